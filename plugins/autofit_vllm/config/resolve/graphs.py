"""Which CUDA graphs are captured, and for which batch sizes (config/compilation.py, config/vllm.py)."""

from __future__ import annotations

from collections.abc import Sequence

from autofit.errors import EngineRefusalError

from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.config.engine import GRAPH_MODES, Gpu, GraphMode
from autofit_vllm.config.resolve.speculation import whole
from autofit_vllm.modules.model import VllmModel

#: What is left where the model is not compiled in pieces (CUDAGraphMode.without_piecewise)
_WITHOUT_PIECEWISE: dict[GraphMode, GraphMode] = {"PIECEWISE": "NONE", "FULL_AND_PIECEWISE": "FULL_DECODE_ONLY"}


#: What becomes of it where nothing splits (CompilationConfig.set_splitting_ops_for_v1)
_IN_ONE_PIECE: dict[GraphMode, GraphMode] = {"PIECEWISE": "NONE", "FULL_AND_PIECEWISE": "FULL"}


def graph_mode(settings: VllmSettings, model: VllmModel, *, pooling: bool) -> GraphMode:
    """Which CUDA graphs are captured (config/compilation.py, config/vllm.py)."""
    if settings.enforce_eager:
        return "NONE"
    level = settings.optimization_level
    wish = settings.compilation_config.get("cudagraph_mode")
    mode: GraphMode
    if wish is not None:
        named = GRAPH_MODES[wish] if wish in (0, 1, 2) else str(wish).upper()
        known = next((mode for mode in GRAPH_MODES if mode == named), None)
        if known is None:
            raise EngineRefusalError(f"cudagraph_mode is one of {', '.join(GRAPH_MODES)}, not {str(wish)[:40]!r}")
        mode = known
    elif level == "0":
        mode = "NONE"
    elif level == "1" or pooling:
        mode = "PIECEWISE"
    else:
        mode = "FULL_DECODE_ONLY" if model.is_encoder_decoder else "FULL_AND_PIECEWISE"
    compiled = settings.compilation_config.get("mode")
    compiled = str(("NONE" if level == "0" else "VLLM_COMPILE") if compiled is None else compiled).upper()
    if compiled in ("1", "STOCK_TORCH_COMPILE"):
        return "NONE"
    if compiled not in ("3", "VLLM_COMPILE"):
        return _WITHOUT_PIECEWISE.get(mode, mode)
    in_one_piece = settings.compilation_config.get("splitting_ops") == []
    return _IN_ONE_PIECE.get(mode, mode) if in_one_piece else mode


def capture_sizes(
    settings: VllmSettings,
    model: VllmModel,
    gpu: Gpu,
    *,
    mode: GraphMode,
    tokens: int,
    seqs: int,
    query_len: int,
) -> tuple[int, ...]:
    """Batch sizes of the captured graphs (config/vllm.py:_set_cudagraph_sizes).

    Raises:
        EngineRefusalError: two given limits contradict each other.
    """
    if mode == "NONE":
        return ()
    config = settings.compilation_config
    given = settings.cudagraph_capture_sizes or config.get("cudagraph_capture_sizes")
    limit = settings.max_cudagraph_capture_size
    limit = config.get("max_cudagraph_capture_size") if limit is None else limit
    if limit is not None and whole(limit, "max_cudagraph_capture_size") < 1:
        raise EngineRefusalError("Maximum cudagraph size should be greater than or equal to 1 when using cuda graph.")
    if given is not None:
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise EngineRefusalError("cudagraph_capture_sizes must be a list")
        if not given:
            raise EngineRefusalError("cudagraph_capture_sizes should contain at least one element with graphs")
        every = [whole(size, "cudagraph_capture_sizes") for size in given]
        sizes = tuple(sorted({size for size in every if size <= tokens}))
        if limit is not None and sizes and whole(limit, "max_cudagraph_capture_size") != sizes[-1]:
            raise EngineRefusalError(
                f"customized max_cudagraph_capture_size(={limit}) should be consistent with the max value of "
                f"cudagraph_capture_sizes(={sizes[-1]})"
            )
        return sizes
    decode: set[int] = set()
    if limit is None and model.architecture == "GptOssForCausalLM":
        limit = 1024
    if limit is None:
        default = 1024 if gpu.cc[0] == 10 else 512
        limit = min(2 * seqs * query_len, default)
        if query_len > 1:
            counts = _request_counts(min(seqs, default))
            decode = {n * query_len for n in counts if n * query_len <= limit}
        elif seqs <= limit:
            decode = {seqs}
    largest = min(int(limit), tokens)
    steps = [size for size in (1, 2, 4) if size <= largest]
    if settings.performance_mode == "interactivity":
        steps = list(range(1, min(largest, 32) + 1))
    steps += range(8, min(largest + 1, 256), 8)
    steps += range(256, largest + 1, 16)
    if tokens <= largest:
        steps.append(tokens)
    return tuple(sorted({*steps, *(size for size in decode if size <= tokens)}))


def _request_counts(most: int) -> set[int]:
    small = {n for n in (1, 2, 4) if n <= most}
    return {*small, *range(8, min(most + 1, 256), 8), *range(256, most + 1, 16), most}
