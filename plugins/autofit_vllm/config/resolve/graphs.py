"""Which CUDA graphs are captured, and for which batch sizes (config/compilation.py, config/vllm.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autofit.errors import EngineRefusalError

from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.config.engine import GRAPH_MODES, Gpu, GraphMode
from autofit_vllm.config.resolve.speculation import whole
from autofit_vllm.engine.versions import Change
from autofit_vllm.modules.model import VllmModel

_SIZES = "config/vllm.py:_set_cudagraph_sizes"
FULL_GRAPHS = Change(since="0.11.0", source="config/vllm.py:VllmConfig", before="0.10.2: graphs are piecewise")
WIDE_STEPS = Change(since="0.11.1", source=_SIZES, before="0.11.0: steps of 8 up to 512, by --cuda-graph-sizes")
QUERY_LENGTH = Change(since="0.13.0", source=_SIZES, before="0.12.0: twice the sequences, whatever is drafted")
BUDGET_CAPTURED = Change(since="0.20.1", source=_SIZES, before="0.20.0: the token budget is no size of its own")
BLACKWELL_SIZES = Change(since="0.28.0", source=_SIZES, before="0.27.1: at most 512 on every GPU")
DRAFT_SIZES = Change(since="0.29.0", source=_SIZES, before="0.28.0: no sizes for steps that only decode drafts")
SEQUENCES_CAPTURED = Change(since="0.31.0", source=_SIZES, before="0.30.0: max_num_seqs is no size of its own")
_GPT_OSS_SIZES = 1024  #: model_executor/models/config.py:GptOssForCausalLMConfig

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
    elif level == "1" or pooling or not settings.version.has(FULL_GRAPHS):
        mode = "PIECEWISE"
    else:
        mode = "FULL_DECODE_ONLY" if model.is_encoder_decoder else "FULL_AND_PIECEWISE"
    compiled = settings.compilation_config.get("mode", settings.compilation_config.get("level"))
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
    given, limit = _given_sizes(settings)
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
    engine = settings.version
    decode: set[int] = set()
    own = limit is None and model.architecture == "GptOssForCausalLM"
    if own:
        limit = _GPT_OSS_SIZES
    if limit is None:
        default = 1024 if gpu.cc[0] == 10 and engine.has(BLACKWELL_SIZES) else 512
        limit = min(2 * seqs * (query_len if engine.has(QUERY_LENGTH) else 1), default)
        if query_len > 1:
            counts = _request_counts(min(seqs, default)) if engine.has(DRAFT_SIZES) else set()
            decode = {n * query_len for n in counts if n * query_len <= limit}
        elif seqs <= limit and engine.has(SEQUENCES_CAPTURED):
            decode = {seqs}
    largest = min(int(limit), tokens)
    steps = [size for size in (1, 2, 4) if size <= largest]
    if settings.performance_mode == "interactivity":
        steps = list(range(1, min(largest, 32) + 1))
    if engine.has(WIDE_STEPS) or own:
        steps += range(8, min(largest + 1, 256), 8)
        steps += range(256, largest + 1, 16)
    else:
        steps += range(8, largest + 1, 8)
    if tokens <= largest and engine.has(BUDGET_CAPTURED):
        steps.append(tokens)
    return tuple(sorted({*steps, *(size for size in decode if size <= tokens)}))


def _given_sizes(settings: VllmSettings) -> tuple[Any, Any]:
    """(sizes, the largest) as flags or the compilation configuration say; one `--cuda-graph-sizes` is the largest."""
    config = settings.compilation_config
    sizes = settings.cudagraph_capture_sizes or config.get("cudagraph_capture_sizes")
    limit = settings.max_cudagraph_capture_size
    limit = config.get("max_cudagraph_capture_size") if limit is None else limit
    older = settings.given.get("cuda_graph_sizes")
    if older and sizes is None:
        return (older, limit) if len(older) > 1 else (None, older[0])
    return sizes, limit


def _request_counts(most: int) -> set[int]:
    small = {n for n in (1, 2, 4) if n <= most}
    return {*small, *range(8, min(most + 1, 256), 8), *range(256, most + 1, 16), most}
