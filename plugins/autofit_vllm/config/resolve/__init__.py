"""What vLLM makes of the flags: every setting resolved, or the reason it would refuse to start.

The order and the wording of the refusals follow vLLM's: config/model.py (types, length), config/parallel.py
(ranks), engine/arg_utils.py (batch), config/scheduler.py, config/vllm.py (graphs).
"""

from __future__ import annotations

from collections.abc import Mapping

from autofit.domain.units import GIB
from autofit.domain.values import NamedTuple
from autofit.errors import EngineRefusalError

from autofit_vllm.command.flags import AUTO_LENGTH
from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.config.connectors import check_connectors
from autofit_vllm.config.engine import EngineConfig, Gpu, GraphMode
from autofit_vllm.config.resolve.batch import (
    async_scheduling,
    check_mamba,
    check_scheduler,
    concurrent_batches,
    hybrid_manager,
    resolve_batch,
    uses_v2_runner,
)
from autofit_vllm.config.resolve.dtype import boundary_layers, check_quantization, resolve_dtype, resolve_kv_dtype
from autofit_vllm.config.resolve.fusion import fused_allreduce_bytes
from autofit_vllm.config.resolve.graphs import capture_sizes, graph_mode
from autofit_vllm.config.resolve.length import resolve_max_len
from autofit_vllm.config.resolve.parallel import resolve_parallel
from autofit_vllm.config.resolve.speculation import resolve_speculation
from autofit_vllm.engine.versions import Change
from autofit_vllm.modules.model import Parallel, VllmModel
from autofit_vllm.quantization import NONE, Quantization

HYBRID_PREFIXES = Change(
    since="0.28.0",
    source="engine/arg_utils.py:_set_default_chunked_prefill_and_prefix_caching_args",
    before="0.27.1: hybrid models cache no prefixes unless asked to",
)
OPTIONAL_CHUNKS = Change(
    since="0.11.1",
    source="engine/arg_utils.py:_set_default_chunked_prefill_and_prefix_caching_args",
    before="0.11.0: _set_default_args_v1 turns chunked prefill on, whatever was asked",
)
#: transformers_utils/model_arch_config_convertor.py:MM_PREFIX_LM_MODELS
MM_PREFIX_MODELS = frozenset({"bagel", "gemma3", "molmo2", "moondream3", "paligemma"})


def resolve(
    settings: VllmSettings,
    model: VllmModel,
    gpu: Gpu,
    *,
    quantization: Quantization = NONE,
    n_gpus: int | None = None,
) -> EngineConfig:
    """Every default of `settings` for this model on this kind of GPU. `n_gpus` `None`: not checked.

    Raises:
        EngineRefusalError: vLLM would refuse these arguments.
    """
    _check_lora(settings, model)
    dtype = resolve_dtype(settings, model, gpu)
    check_quantization(quantization, dtype)
    pooling = model.is_pooling or settings.pooling
    max_len = resolve_max_len(settings, model)
    parallel = resolve_parallel(settings, model, gpu, n_gpus=n_gpus)
    check_connectors(settings, model, parallel)
    kv_dtype = resolve_kv_dtype(settings, model, gpu, quantization, dtype)
    steps = _steps(settings, model, gpu, parallel, max_len=max_len, pooling=pooling)
    method, n_speculative, draft = resolve_speculation(settings, model)
    mode = graph_mode(settings, model, pooling=pooling)
    mode = "NONE" if gpu.cpu or quantization.eager else mode
    images = _encodes_images(settings, model)
    return EngineConfig(
        gpu_memory_utilization=_utilization(settings),
        engine=settings.version,
        gpu=gpu,
        parallel=parallel,
        dtype=dtype,
        quantization=quantization.name,
        max_model_len=max_len,
        auto_length=settings.max_model_len == AUTO_LENGTH,
        max_num_seqs=steps.seqs,
        max_num_batched_tokens=steps.tokens,
        chunked_prefill=steps.chunked,
        prefix_caching=steps.prefix,
        async_scheduling=steps.is_async,
        max_concurrent_batches=steps.n_concurrent,
        hybrid_manager=hybrid_manager(settings, model, method),
        kv_cache_dtype=kv_dtype,
        kv_skip_layers=frozenset(settings.kv_cache_dtype_skip_layers) | boundary_layers(kv_dtype, model),
        block_size=settings.block_size,
        attention_backend=_attention_backend(settings),
        flash_version=_flash_version(settings, kv_dtype),
        indexer_kv_dtype=_indexer_dtype(settings, gpu),
        sliding_window=not settings.disable_sliding_window,
        mm_prefix=images and model.model_type in MM_PREFIX_MODELS,
        images=images,
        speculative_tokens=n_speculative,
        draft=draft,
        graph_mode=mode,
        capture_sizes=_graph_sizes(settings, model, gpu, mode, steps, n_speculative),
        fused_allreduce_bytes=fused_allreduce_bytes(settings, model, gpu, mode, dtype, parallel.tp, steps.tokens),
        mamba_cache_dtype=settings.mamba_cache_dtype,
        mamba_ssm_dtype=_ssm_dtype(settings, model),
        mamba_block_size=settings.mamba_block_size,
        mamba_cache_mode=settings.given.get("mamba_cache_mode"),
        replay_ssm=settings.use_replayssm,
        gdn_backend=_gdn_backend(settings),
        kv_cache_memory_bytes=_kv_memory(settings, gpu),
        num_gpu_blocks_override=settings.num_gpu_blocks_override,
    )


class _Steps(NamedTuple):
    """What one step of the scheduler may hold, and how many steps are under way."""

    tokens: int
    seqs: int
    chunked: bool  #: prompts are read in pieces
    prefix: bool  #: prefixes are cached
    is_async: bool
    n_concurrent: int


def _steps(
    settings: VllmSettings, model: VllmModel, gpu: Gpu, parallel: Parallel, *, max_len: int, pooling: bool
) -> _Steps:
    """The batch and the scheduler.

    Raises:
        EngineRefusalError: they contradict each other, the length or the model.
    """
    chunked, prefix = _chunks_and_prefixes(settings, model)
    tokens, seqs = resolve_batch(settings, gpu, parallel, max_len=max_len, chunked=chunked)
    check_scheduler(settings, tokens=tokens, seqs=seqs, max_len=max_len, chunked=chunked)
    check_mamba(settings, model, prefix=prefix, chunked=chunked)
    v2 = uses_v2_runner(settings, parallel, gpu)
    is_async = async_scheduling(settings, parallel, gpu, pooling=pooling, v2=v2)
    n_concurrent = concurrent_batches(parallel.pp, is_async=is_async, v2=v2)
    return _Steps(tokens, seqs, chunked, prefix, is_async, n_concurrent)


def _graph_sizes(
    settings: VllmSettings, model: VllmModel, gpu: Gpu, mode: GraphMode, steps: _Steps, n_speculative: int
) -> tuple[int, ...]:
    """Sizes of steps that are captured; a step that checks drafts holds them and one token more."""
    query_len = 1 + n_speculative
    return capture_sizes(settings, model, gpu, mode=mode, tokens=steps.tokens, seqs=steps.seqs, query_len=query_len)


def _check_lora(settings: VllmSettings, model: VllmModel) -> None:
    if settings.enable_lora and not model.supports_lora:
        raise EngineRefusalError(f"{model.architecture} does not support LoRA yet.")


def _chunks_and_prefixes(settings: VllmSettings, model: VllmModel) -> tuple[bool, bool]:
    """(chunked prefill, prefix caching) (engine/arg_utils.py:_set_default_chunked_prefill_and_prefix_caching_args)."""
    chunked, prefix = settings.enable_chunked_prefill, settings.enable_prefix_caching
    if chunked is None or not settings.version.has(OPTIONAL_CHUNKS):
        chunked = not (model.is_encoder_decoder or model.is_encoder_only)
    if prefix is None:
        prefix = not (model.is_encoder_decoder or model.is_encoder_only or model.is_attention_free)
        prefix = prefix and (not model.is_hybrid or settings.version.has(HYBRID_PREFIXES))
    return chunked, prefix


def _encodes_images(settings: VllmSettings, model: VllmModel) -> bool:
    if model.is_multimodal and min(settings.mm_processor_cache_gb, settings.mm_ipc_gpu_memory_gb) < 0:
        raise EngineRefusalError("mm_processor_cache_gb and mm_ipc_gpu_memory_gb must be at least 0")
    return model.is_multimodal and settings.encodes(model.modalities)


def _utilization(settings: VllmSettings) -> float:
    given = settings.gpu_memory_utilization
    utilization = settings.version.default_gpu_memory_utilization if given is None else given
    if not 0 < utilization <= 1:
        raise EngineRefusalError(f"gpu_memory_utilization must be above 0 and at most 1, not {utilization}")
    return utilization


def _flash_version(settings: VllmSettings, kv_dtype: str) -> int | None:
    """The version of FlashAttention that is asked for, or that TurboQuant's caches need."""
    wanted: int | None = settings.attention_config.get("flash_attn_version")
    return 2 if kv_dtype.startswith("turboquant_") and (wanted is None or wanted >= 3) else wanted


def _ssm_dtype(settings: VllmSettings, model: VllmModel) -> str:
    given = settings.mamba_ssm_cache_dtype
    return given if given != "auto" else model.ssm_dtype or "auto"


def _attention_backend(settings: VllmSettings) -> str | None:
    wish = settings.attention_backend or settings.attention_config.get("backend")
    if settings.attention_backend and settings.attention_config.get("backend"):
        raise EngineRefusalError("attention_backend and attention_config.backend are mutually exclusive")
    return None if wish is None or str(wish).lower() == "auto" else str(wish).upper()


def _indexer_dtype(settings: VllmSettings, gpu: Gpu) -> str:
    """(v1/attention/backends/mla/indexer.py:dsa_indexer_uses_fp4)"""
    wanted = str(settings.attention_config.get("indexer_kv_dtype") or "auto").lower()
    if wanted == "mxfp4" and gpu.cc[0] != 10:
        raise EngineRefusalError(
            "indexer_kv_dtype='mxfp4' requires Blackwell datacenter GPUs (sm_10x, e.g. B200/GB200); sm_120 (consumer "
            "Blackwell) and earlier architectures are not supported.",
            hint="leave indexer_kv_dtype out",
        )
    return wanted


def _gdn_backend(settings: VllmSettings) -> str:
    extra = settings.additional_config
    inner = extra.get("gdn_prefill_backend") if isinstance(extra, Mapping) else None
    return str(settings.gdn_prefill_backend or inner or "auto").lower()


def _kv_memory(settings: VllmSettings, gpu: Gpu) -> int | None:
    if gpu.cpu and settings.env.get("VLLM_CPU_KVCACHE_SPACE"):
        try:
            return int(settings.env["VLLM_CPU_KVCACHE_SPACE"]) * GIB
        except ValueError:
            raise EngineRefusalError("VLLM_CPU_KVCACHE_SPACE must be a whole number of GiB") from None
    return settings.kv_cache_memory_bytes
