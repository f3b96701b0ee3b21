"""Tokens and sequences of a step, and how steps are scheduled (engine/arg_utils.py, config/scheduler.py)."""

from __future__ import annotations

from autofit.domain.units import GIB
from autofit.errors import EngineRefusalError

from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.config.connectors import keeps_hybrid, without_hybrid
from autofit_vllm.config.engine import Gpu
from autofit_vllm.engine.versions import DEFAULT, Change, Engine
from autofit_vllm.modules.model import Parallel, VllmModel

LARGEST_TIER = Change(
    since="0.28.0",
    source="engine/arg_utils.py:get_batch_defaults",
    before="0.27.1: GPUs of 160 GiB and more are as those of 70",
)
SMALL_GB10 = Change(
    since="0.33.0",
    source="engine/arg_utils.py:get_batch_defaults",
    before="0.32.0: compute capability 12.1 is as any other of its memory",
)
_BATCHED_DP_TOKENS = 256  #: config/scheduler.py:DEFAULT_MAX_NUM_BATCHED_TOKENS_FOR_BATCHED_DP


def batch_defaults(
    gpu: Gpu, *, usage: str = "server", world_size: int = 1, engine: Engine = DEFAULT
) -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs) by kind of device (engine/arg_utils.py:get_batch_defaults)."""
    server = usage == "server"
    if gpu.cpu:
        return (2048 * world_size, 128 * world_size) if server else (4096 * world_size, 256 * world_size)
    if gpu.total_bytes >= 160 * GIB and engine.has(LARGEST_TIER):
        return 16384, 1024
    small = "a100" in gpu.name.lower() or (gpu.cc == (12, 1) and engine.has(SMALL_GB10))
    if gpu.total_bytes >= 70 * GIB and not small:
        return (8192 if server else 16384), 1024
    return (2048 if server else 8192), 256


def resolve_batch(
    settings: VllmSettings, gpu: Gpu, parallel: Parallel, *, max_len: int, chunked: bool
) -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs)
    (arg_utils.py:_set_default_max_num_seqs_and_batched_tokens_args)."""
    tokens, seqs = batch_defaults(
        gpu, usage=settings.usage, world_size=parallel.pp * parallel.tp, engine=settings.version
    )
    batched_dp = settings.all2all_backend in ("deepep_low_latency", "nixl_ep")
    if batched_dp and parallel.expert_parallel and parallel.dp > 1:
        tokens = _BATCHED_DP_TOKENS
    if settings.performance_mode == "throughput":
        tokens, seqs = 2 * tokens, 2 * seqs
    if settings.max_num_seqs is not None:
        seqs = settings.max_num_seqs
    if settings.max_num_batched_tokens is not None:
        tokens = settings.max_num_batched_tokens
    else:
        if not chunked:
            tokens = max(tokens, max_len)
        tokens = min(tokens, seqs * max_len)
    if settings.max_num_seqs is None:
        seqs = min(seqs, tokens)
    return tokens, seqs


def check_scheduler(settings: VllmSettings, *, tokens: int, seqs: int, max_len: int, chunked: bool) -> None:
    """Limits that contradict each other (config/scheduler.py:verify_max_model_len)."""
    if tokens < 1 or seqs < 1:
        raise EngineRefusalError("max_num_batched_tokens and max_num_seqs must be at least 1")
    if tokens < max_len and not chunked:
        raise EngineRefusalError(
            f"max_num_batched_tokens ({tokens}) is smaller than max_model_len ({max_len}), and chunked prefill is off",
            hint="increase --max-num-batched-tokens or decrease --max-model-len",
        )
    if tokens < seqs:
        raise EngineRefusalError(
            f"max_num_batched_tokens ({tokens}) must be greater than or equal to max_num_seqs ({seqs})."
        )
    active = settings.max_num_active_seqs
    if active is not None and active > seqs:
        raise EngineRefusalError(f"max_num_active_seqs ({active}) cannot be greater than max_num_seqs ({seqs}).")
    if settings.long_prefill_token_threshold > max_len:
        raise EngineRefusalError(
            f"long_prefill_token_threshold ({settings.long_prefill_token_threshold}) cannot be "
            "greater than the "
            f"max_model_len ({max_len})."
        )


def check_mamba(settings: VllmSettings, model: VllmModel, *, prefix: bool, chunked: bool) -> None:
    """Rules of recurrent models (config/vllm.py:validate_mamba_block_size,
    models/config.py:MambaModelConfig)."""
    if settings.mamba_block_size is not None and not prefix:
        raise EngineRefusalError("--mamba-block-size can only be set with --enable-prefix-caching")
    if (model.is_hybrid or model.is_attention_free) and prefix and not chunked:
        raise EngineRefusalError("Chunked prefill is required for Mamba prefix caching.")


def uses_v2_runner(settings: VllmSettings, parallel: Parallel, gpu: Gpu) -> bool:
    """Which model runner serves (config/vllm.py:use_v2_model_runner)."""
    forced = settings.env.get("VLLM_USE_V2_MODEL_RUNNER")
    if forced:
        return forced not in ("0", "false", "False")
    if gpu.cpu:
        return False
    if settings.distributed_executor_backend == "external_launcher" and parallel.pp > 1:
        return False
    return (settings.speculative_config or {}).get("method") not in ("suffix", "custom_class")


def async_scheduling(settings: VllmSettings, parallel: Parallel, gpu: Gpu, *, pooling: bool, v2: bool) -> bool:
    if gpu.cpu:
        return False
    method = (settings.speculative_config or {}).get("method")
    blocked = None
    if not v2:
        if method in ("suffix", "custom_class", "ngram", "medusa"):
            blocked = f"{method}-based speculative decoding"
        elif parallel.pp > 1:
            blocked = "pipeline parallelism"
    if settings.async_scheduling:
        if blocked:
            raise EngineRefusalError(f"Async scheduling is not supported by the V1 model runner with {blocked}.")
        return True
    return settings.async_scheduling is None and not pooling and blocked is None


def concurrent_batches(pp: int, *, is_async: bool, v2: bool) -> int:
    """Batches in flight at once (config/vllm.py:max_concurrent_batches)."""
    if is_async and v2:
        return pp + 1
    return 2 if is_async and pp <= 1 else pp


def hybrid_manager(settings: VllmSettings, model: VllmModel, method: str | None) -> bool:
    """Whether each kind of layer keeps only what it needs (config/vllm.py:
    disable_hybrid_kv_cache_manager)."""
    disabled = False
    if any(getattr(cache, "kind", None) == "chunked" for cache in model.distinct_caches):
        allowed = settings.env.get("VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE", "1") not in ("", "0")
        disabled = method in ("eagle", "eagle3", "mtp") or not allowed
    wish = settings.disable_hybrid_kv_cache_manager
    without = without_hybrid(settings)
    if wish is False and without is not None:
        raise EngineRefusalError(
            f"Connector {without} does not support HMA but HMA is enabled.",
            hint="set --disable-hybrid-kv-cache-manager",
        )
    disabled = disabled or (wish is None and not keeps_hybrid(settings))
    if wish is False and disabled:
        raise EngineRefusalError(
            "Hybrid KV cache manager was explicitly enabled but is not supported in this configuration."
        )
    return not (disabled if wish is None else wish)
