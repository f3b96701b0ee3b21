"""What vLLM makes of the flags: every setting resolved, or the reason it would refuse to start.

The order and the wording of the refusals follow vLLM's: config/model.py (types, length), config/parallel.py
(ranks), engine/arg_utils.py (batch), config/scheduler.py, config/vllm.py (graphs).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from autofit.domain.machine import Device
from autofit.domain.units import GIB
from autofit.domain.values import dataclass
from autofit.errors import EngineRefusalError, HardwareError

from autofit_vllm.command.flags import AUTO_LENGTH
from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.modules.model import Draft, Parallel, VllmModel
from autofit_vllm.quantization import NONE, Quantization

GraphMode = Literal["NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE"]
GRAPH_MODES: tuple[GraphMode, ...] = get_args(GraphMode)
#: What is left where the model is not compiled in pieces (CUDAGraphMode.without_piecewise)
_WITHOUT_PIECEWISE: dict[GraphMode, GraphMode] = {"PIECEWISE": "NONE", "FULL_AND_PIECEWISE": "FULL_DECODE_ONLY"}
#: What becomes of it where nothing splits (CompilationConfig.set_splitting_ops_for_v1)
_IN_ONE_PIECE: dict[GraphMode, GraphMode] = {"PIECEWISE": "NONE", "FULL_AND_PIECEWISE": "FULL"}

#: config/model.py:_FLOAT16_NOT_SUPPORTED_MODELS
NO_FLOAT16 = frozenset({"gemma2", "gemma3", "gemma3_text", "glm4"})
DTYPE_NAMES = {
    "half": "float16",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float": "float32",
    "float32": "float32",
}
#: config/cache.py:CacheDType
KV_DTYPES = frozenset(
    [
        "auto",
        "float16",
        "bfloat16",
        "fp8",
        "fp8_e4m3",
        "fp8_e5m2",
        "fp8_inc",
        "fp8_ds_mla",
        "nvfp4_ds_mla",
        "turboquant_k8v4",
        "turboquant_4bit_nc",
        "turboquant_k3v4_nc",
        "turboquant_3bit_nc",
        "octave_k3v4",
        "octave_k3v3",
        "octave_k3v3_compact",
        "ultraquant_4bit",
        "int4_per_token_head",
        "int8_per_token_head",
        "fp8_per_token_head",
        "nvfp4",
        "nvfp4_4over6",
    ]
)
#: Methods whose checkpoints may hold scales of an fp8 cache (attention.py:_init_kv_cache_quant)
FP8_CHECKPOINTS = ("fp8", "modelopt", "quark", "fbgemm_fp8")

_BATCHED_DP_TOKENS = 256  #: config/scheduler.py:DEFAULT_MAX_NUM_BATCHED_TOKENS_FOR_BATCHED_DP
_NO_KEY_LENGTH = 2048  #: config/model.py: when the configuration names no length


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """The device facts that vLLM's rules read; `cpu` is its CPU build."""

    name: str
    total_bytes: int
    cc: tuple[int, int]
    cpu: bool = False

    @classmethod
    def of(cls, device: Device) -> Gpu:
        """Raises: HardwareError, for a device vLLM's CUDA build does not drive or whose facts are missing."""
        if device.api != "cuda":
            raise HardwareError(
                f"{device.name}: only NVIDIA GPUs are planned for vLLM, not {device.api}",
                hint="choose others with --device",
            )
        if device.compute_capability is None or device.total_bytes is None:
            missing = "compute capability" if device.compute_capability is None else "memory"
            raise HardwareError(f"{device.name}: its {missing} is unknown", hint="name a profile: --on rtx-4090")
        return cls(name=device.name, total_bytes=device.total_bytes, cc=device.compute_capability)

    @property
    def capability(self) -> int:
        return self.cc[0] * 10 + self.cc[1]


CPU = Gpu(name="CPU", total_bytes=0, cc=(0, 0), cpu=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The engine's configuration after all defaults (config/vllm.py:VllmConfig), as far as memory depends
    on it."""

    gpu: Gpu
    parallel: Parallel
    dtype: str
    quantization: str | None
    max_model_len: int
    auto_length: bool
    max_num_seqs: int
    max_num_batched_tokens: int
    chunked_prefill: bool
    prefix_caching: bool
    async_scheduling: bool
    max_concurrent_batches: int
    hybrid_manager: bool
    kv_cache_dtype: str
    kv_skip_layers: frozenset[str]
    block_size: int | None
    attention_backend: str | None
    flash_version: int | None
    indexer_kv_dtype: str  #: of the keys that a sparse-attention indexer keeps
    sliding_window: bool  #: windows limit what is kept
    mm_prefix: bool
    images: bool  #: encoders are built and profiled
    speculative_tokens: int
    draft: Draft | None
    graph_mode: GraphMode
    capture_sizes: tuple[int, ...]
    mamba_cache_dtype: str
    mamba_ssm_dtype: str
    mamba_block_size: int | None
    replay_ssm: bool
    gdn_backend: str
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | None
    num_gpu_blocks_override: int | None

    @property
    def max_in_flight_tokens(self) -> int:
        """Tokens scheduled but not yet settled (config/vllm.py:max_in_flight_tokens)."""
        return self.max_concurrent_batches * self.max_num_batched_tokens


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
    if settings.enable_lora and not model.supports_lora:
        raise EngineRefusalError(f"{model.architecture} does not support LoRA yet.")
    dtype = resolve_dtype(settings, model, gpu)
    check_quantisation(quantization, dtype)
    pooling = model.is_pooling or settings.pooling
    max_len = resolve_max_len(settings, model)
    parallel = resolve_parallel(settings, model, gpu, n_gpus=n_gpus)
    chunked = settings.enable_chunked_prefill
    if chunked is None:
        chunked = not (model.is_encoder_decoder or model.is_encoder_only)
    prefix = settings.enable_prefix_caching
    if prefix is None:
        prefix = not (model.is_encoder_decoder or model.is_encoder_only or model.is_attention_free)
    kv_dtype = resolve_kv_dtype(settings, model, gpu, quantization, dtype)
    tokens, seqs = resolve_batch(settings, gpu, parallel, max_len=max_len, chunked=chunked)
    check_scheduler(settings, tokens=tokens, seqs=seqs, max_len=max_len, chunked=chunked)
    check_mamba(settings, model, prefix=prefix, chunked=chunked)
    v2 = _uses_v2_runner(settings, parallel, gpu)
    is_async = _async_scheduling(settings, parallel, gpu, pooling=pooling, v2=v2)
    method, n_speculative, draft = resolve_speculation(settings, model)
    mode = graph_mode(settings, model, pooling=pooling)
    if gpu.cpu or quantization.eager:
        mode = "NONE"
    skip = frozenset(settings.kv_cache_dtype_skip_layers) | _boundary_layers(kv_dtype, model)
    attention = dict(settings.attention_config)
    wanted = _wanted_backend(settings)
    flash = attention.get("flash_attn_version")
    if kv_dtype.startswith("turboquant_") and (flash is None or flash >= 3):
        flash = 2
    images = model.is_multimodal and settings.encodes(model.modalities)
    if model.is_multimodal and min(settings.mm_processor_cache_gb, settings.mm_ipc_gpu_memory_gb) < 0:
        raise EngineRefusalError("mm_processor_cache_gb and mm_ipc_gpu_memory_gb must be at least 0")
    utilization = settings.gpu_memory_utilization
    if utilization is None:
        utilization = settings.version.default_gpu_memory_utilization
    if not 0 < utilization <= 1:
        raise EngineRefusalError(f"gpu_memory_utilization must be above 0 and at most 1, not {utilization}")
    return EngineConfig(
        gpu=gpu,
        parallel=parallel,
        dtype=dtype,
        quantization=quantization.name,
        max_model_len=max_len,
        auto_length=settings.max_model_len == AUTO_LENGTH,
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        chunked_prefill=chunked,
        prefix_caching=prefix,
        async_scheduling=is_async,
        max_concurrent_batches=_concurrent_batches(parallel.pp, is_async=is_async, v2=v2),
        hybrid_manager=_hybrid_manager(settings, model, method),
        kv_cache_dtype=kv_dtype,
        kv_skip_layers=skip,
        block_size=settings.block_size,
        attention_backend=wanted,
        flash_version=flash,
        indexer_kv_dtype=_indexer_dtype(attention, gpu),
        sliding_window=not settings.disable_sliding_window,
        mm_prefix=images and model.model_type in MM_PREFIX_MODELS,
        images=images,
        speculative_tokens=n_speculative,
        draft=draft,
        graph_mode=mode,
        capture_sizes=capture_sizes(
            settings, model, gpu, mode=mode, tokens=tokens, seqs=seqs, query_len=1 + n_speculative
        ),
        mamba_cache_dtype=settings.mamba_cache_dtype,
        mamba_ssm_dtype=settings.mamba_ssm_cache_dtype
        if settings.mamba_ssm_cache_dtype != "auto"
        else model.ssm_dtype or "auto",
        mamba_block_size=settings.mamba_block_size,
        replay_ssm=settings.use_replayssm,
        gdn_backend=_gdn_backend(settings),
        gpu_memory_utilization=utilization,
        kv_cache_memory_bytes=_kv_memory(settings, gpu),
        num_gpu_blocks_override=settings.num_gpu_blocks_override,
    )


#: transformers_utils/model_arch_config_convertor.py:MM_PREFIX_LM_MODELS
MM_PREFIX_MODELS = frozenset({"bagel", "gemma3", "molmo2", "moondream3", "paligemma"})


# -- Types -----------------------------------------------------------------------------------------


def supported_dtypes(gpu: Gpu) -> tuple[str, ...]:
    """In order of preference (platforms/cuda.py:supported_dtypes)."""
    if gpu.cpu or gpu.cc >= (8, 0):
        return ("bfloat16", "float16", "float32")
    return ("float16", "float32")


def resolve_dtype(settings: VllmSettings, model: VllmModel, gpu: Gpu) -> str:
    """The type of weights and activations (config/model.py:_get_and_verify_dtype)."""
    if settings.dtype == "auto":
        usable = tuple(d for d in supported_dtypes(gpu) if d != "float16" or model.model_type not in NO_FLOAT16)
        pooling = model.is_pooling or settings.pooling
        preferred = "float16" if pooling and "float16" in usable else usable[0]
        wanted = preferred if model.dtype == "float32" else model.dtype
        return wanted if wanted in usable else preferred
    dtype = DTYPE_NAMES[settings.dtype]
    if dtype == "float16" and model.model_type in NO_FLOAT16:
        raise EngineRefusalError(
            f"The model type {model.model_type!r} does not support float16: numerical instability",
            hint="use --dtype bfloat16 or float32",
        )
    if dtype == "bfloat16" and not gpu.cpu and gpu.cc < (8, 0):
        raise EngineRefusalError(
            f"Bfloat16 is only supported on GPUs with compute capability of at least 8.0; {gpu.name} has "
            f"{gpu.cc[0]}.{gpu.cc[1]}",
            hint="use --dtype half",
        )
    return dtype


def check_quantisation(quantization: Quantization, dtype: str) -> None:
    """Whether the method computes in this type (config/vllm.py:_get_quantization_config)."""
    if quantization.name is not None and dtype not in quantization.dtypes:
        raise EngineRefusalError(
            f"{dtype} is not supported for quantization method {quantization.name}. "
            f"Supported dtypes: {', '.join(quantization.dtypes)}"
        )


def resolve_kv_dtype(settings: VllmSettings, model: VllmModel, gpu: Gpu, quantization: Quantization, dtype: str) -> str:
    """`--kv-cache-dtype`, or what the checkpoint asks for
    (utils/torch_utils.py:resolve_kv_cache_dtype_string)."""
    wanted = settings.kv_cache_dtype
    if wanted not in KV_DTYPES:
        raise EngineRefusalError(
            f"Invalid kv_cache_dtype: {wanted[:40]!r}", hint=f"valid: {', '.join(sorted(KV_DTYPES))}"
        )
    if wanted == "auto":
        wanted = quantization.kv_cache_dtype or "auto"
        if wanted == "fp8" and (quantization.name or "").startswith("modelopt"):
            wanted = "fp8_e4m3"
        if wanted == "auto" and model.architecture == "GlmMoeDsaForCausalLM" and gpu.cc[0] == 10:
            wanted = "fp8_e4m3"
        if wanted == "auto" and model.architecture.startswith("Glm5Next") and gpu.cc[0] == 10:
            wanted = "fp8"
    if model.architecture == "DeepseekV32ForCausalLM" and wanted == "bfloat16":
        wanted = "auto"
    if wanted in ("float16", "bfloat16") and wanted != dtype:
        raise EngineRefusalError(
            f'kv_cache_dtype="{wanted}" is incompatible with dtype="{dtype}". '
            f"Please set `--kv-cache-dtype` to `auto` or `{dtype}`."
        )
    if wanted == "fp8_e5m2" and (quantization.name or "").startswith(FP8_CHECKPOINTS):
        raise EngineRefusalError("fp8_e5m2 kv-cache is not supported with fp8 checkpoints.")
    return wanted


def _boundary_layers(kv_dtype: str, model: VllmModel) -> frozenset[str]:
    """The first and last two layers stay unquantised under TurboQuant
    (turboquant/config.py:get_boundary_skip_layers)."""
    if not kv_dtype.startswith("turboquant_") or model.is_hybrid:
        return frozenset()
    n = min(2, model.n_layers // 2)
    return frozenset(str(i) for i in (*range(n), *range(model.n_layers - n, model.n_layers)))


# -- Length and batch ------------------------------------------------------------------------------


def resolve_max_len(settings: VllmSettings, model: VllmModel) -> int:
    """`--max-model-len` checked against the model's own (config/model.py:_get_and_verify_max_len)."""
    wanted = settings.max_model_len
    if wanted is not None and wanted != AUTO_LENGTH and wanted < 1:
        raise EngineRefusalError(f"max_model_len must be a positive integer, got {wanted}")
    derived, key = model.max_len_tokens, model.max_len_key
    default = model.default_len_tokens
    window = model.sliding_window
    if settings.disable_sliding_window and window is not None and (derived is None or window < derived):
        derived = default = window
        key = "sliding_window"
    if derived is None:
        return wanted if wanted is not None and wanted != AUTO_LENGTH else _NO_KEY_LENGTH
    if wanted is None or wanted == AUTO_LENGTH:
        return default or derived
    if wanted > derived:
        longer = model.config.get("model_max_length")
        allowed = settings.env.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0") not in ("", "0")
        if not allowed and not (isinstance(longer, int) and wanted <= longer):
            raise EngineRefusalError(
                f"User-specified max_model_len ({wanted}) is greater than the derived max_model_len "
                f"({key}={derived} or model_max_length={longer} in model's config.json).",
                hint="VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 allows it, at the risk of wrong results",
            )
    return wanted


def batch_defaults(gpu: Gpu, *, usage: str = "server", world_size: int = 1) -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs) by kind of device (engine/arg_utils.py:get_batch_defaults)."""
    server = usage == "server"
    if gpu.cpu:
        return (2048 * world_size, 128 * world_size) if server else (4096 * world_size, 256 * world_size)
    if gpu.total_bytes >= 160 * GIB:
        return 16384, 1024
    if gpu.total_bytes >= 70 * GIB and "a100" not in gpu.name.lower() and gpu.cc != (12, 1):
        return (8192 if server else 16384), 1024
    return (2048 if server else 8192), 256


def resolve_batch(
    settings: VllmSettings, gpu: Gpu, parallel: Parallel, *, max_len: int, chunked: bool
) -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs)
    (arg_utils.py:_set_default_max_num_seqs_and_batched_tokens_args)."""
    tokens, seqs = batch_defaults(gpu, usage=settings.usage, world_size=parallel.pp * parallel.tp)
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


# -- Ranks -----------------------------------------------------------------------------------------


def resolve_parallel(settings: VllmSettings, model: VllmModel, gpu: Gpu, *, n_gpus: int | None = None) -> Parallel:
    """How the ranks share the model; every divisibility rule of config/parallel.py and config/model.py."""
    sizes = {
        "tensor_parallel_size": settings.tensor_parallel_size,
        "pipeline_parallel_size": settings.pipeline_parallel_size,
        "data_parallel_size": settings.data_parallel_size,
        "prefill_context_parallel_size": settings.prefill_context_parallel_size,
        "decode_context_parallel_size": settings.decode_context_parallel_size,
        "nnodes": settings.nnodes,
    }
    for name, size in sizes.items():
        if size < 1:
            raise EngineRefusalError(f"{name} must be at least 1, not {size}")
    tp, pp, dp = settings.tensor_parallel_size, settings.pipeline_parallel_size, settings.data_parallel_size
    pcp, dcp = settings.prefill_context_parallel_size, settings.decode_context_parallel_size
    redundant = int(settings.eplb_config.get("num_redundant_experts") or 0)
    parallel = Parallel(
        tp=tp,
        pp=pp,
        dp=dp,
        pcp=pcp,
        dcp=dcp,
        expert_parallel=settings.enable_expert_parallel,
        redundant_experts=redundant if settings.enable_eplb else 0,
        layer_partition=_layer_partition(settings, model),
        vision_data_parallel=settings.mm_encoder_tp_mode == "data",
    )
    _check_data_parallel(settings, model)
    _check_nodes(settings, parallel)
    if settings.enable_eplb:
        if not settings.enable_expert_parallel:
            raise EngineRefusalError("enable_expert_parallel must be True to use EPLB.")
        if tp * pcp * dp <= 1:
            raise EngineRefusalError(
                f"EPLB requires tensor, prefill-context, or data parallelism, but got TP={tp}, PCP={pcp}, DP={dp}."
            )
    elif settings.eplb_config.get("num_redundant_experts"):
        raise EngineRefusalError("num_redundant_experts is set but EPLB is not enabled.")
    if pcp == 1 and tp % dcp:
        raise EngineRefusalError(f"tp_size={tp} must be divisible by dcp_size={dcp}.")
    if pcp > 1 and dcp not in (1, pcp, tp * pcp):
        raise EngineRefusalError(
            f"When PCP is enabled, DCP must be 1, {pcp} or {tp * pcp}; got TP={tp}, PCP={pcp}, DCP={dcp}"
        )
    if n_gpus is not None and not gpu.cpu:
        _check_local_gpus(settings, parallel, n_gpus)
    check_shards(model, parallel)
    return parallel


def check_shards(model: VllmModel, parallel: Parallel) -> None:
    """Whether the model divides over these ranks (config/model.py:verify_with_parallel_config)."""
    tp, dcp = parallel.tp, parallel.dcp
    if model.n_heads % tp:
        raise EngineRefusalError(
            f"Total number of attention heads ({model.n_heads}) must be divisible by tensor parallel size ({tp}).",
            hint=f"possible: {', '.join(map(str, possible_tp(model)))}",
        )
    if parallel.expert_parallel and not model.is_moe:
        raise EngineRefusalError(
            "Number of experts in the model must be greater than 0 when expert parallelism is enabled."
        )
    if parallel.pp > 1 and not model.supports_pipeline:
        raise EngineRefusalError("Pipeline parallelism is not supported for this model.")
    if parallel.pp > max(model.n_layers, 1):
        raise EngineRefusalError(f"{model.n_layers} layers cannot be shared by {parallel.pp} pipeline stages")
    if dcp > 1 and not model.uses_mla:
        kv = model.n_kv_heads
        if tp <= kv:
            raise EngineRefusalError(
                f"Decode context parallelism for GQA/MQA requires `--tensor-parallel-size` ({tp}) to "
                "be greater than the "
                f"model's total number of KV heads ({kv})."
            )
        if dcp > tp // kv:
            raise EngineRefusalError(
                f"`--decode-context-parallel-size` ({dcp}) exceeds the maximum supported value "
                f"({tp // kv}) for "
                f"`--tensor-parallel-size` ({tp}) and {kv} model KV heads."
            )
        if (model.n_heads // kv) % dcp:
            raise EngineRefusalError(
                f"The model's number of query heads per KV head ({model.n_heads // kv}) must be divisible by "
                f"`--decode-context-parallel-size` ({dcp}) for GQA/MQA."
            )
    if not model.uses_mla and model.n_kv_heads:
        kv = model.n_kv_heads
        if kv % tp if kv >= tp else tp % kv:
            raise EngineRefusalError(
                f"{kv} KV heads neither divide over tensor parallel size {tp} nor repeat evenly on it",
                hint=f"possible: {', '.join(map(str, possible_tp(model)))}",
            )


def possible_tp(model: VllmModel, limit: int = 64) -> list[int]:
    """Tensor parallel sizes that the heads allow."""
    kv = model.n_kv_heads or 1
    return [
        tp
        for tp in range(1, min(limit, max(model.n_heads, 1)) + 1)
        if model.n_heads % tp == 0 and (model.uses_mla or (kv % tp == 0 if kv >= tp else tp % kv == 0))
    ]


def _layer_partition(settings: VllmSettings, model: VllmModel) -> tuple[int, ...] | None:
    text = settings.env.get("VLLM_PP_LAYER_PARTITION")
    if not text:
        return None
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise EngineRefusalError(f"Invalid partition string: {text[:40]!r}") from None
    if len(sizes) != settings.pipeline_parallel_size:
        raise EngineRefusalError(
            f"len(partitions)={len(sizes)} does not match pp_size={settings.pipeline_parallel_size}."
        )
    if sum(sizes) != model.n_layers:
        raise EngineRefusalError(f"sum(partitions)={sum(sizes)} does not match num_hidden_layers={model.n_layers}.")
    return sizes


def _check_data_parallel(settings: VllmSettings, model: VllmModel) -> None:
    dp, local = settings.data_parallel_size, settings.data_parallel_size_local
    if local is not None and local > dp:
        raise EngineRefusalError(f"data_parallel_size_local ({local}) must be <= data_parallel_size ({dp})")
    if settings.data_parallel_hybrid_lb and settings.data_parallel_external_lb:
        raise EngineRefusalError(
            "`--data-parallel-hybrid-lb` and `--data-parallel-external-lb` cannot be enabled together."
        )
    external = settings.data_parallel_external_lb or settings.data_parallel_rank is not None
    if external and dp > 1 and not model.is_moe:
        raise EngineRefusalError("Non-MoE models do not support external data parallel mode.")
    if settings.data_parallel_external_lb and dp <= 1:
        raise EngineRefusalError("data_parallel_external_lb can only be set when data_parallel_size > 1")
    if external and local not in (1, None):
        raise EngineRefusalError(
            f"an external data-parallel rank requires `--data-parallel-size-local 1`; got {local}."
        )
    if settings.data_parallel_rank is not None and not 0 <= settings.data_parallel_rank < max(dp, 1):
        raise EngineRefusalError(f"data_parallel_rank ({settings.data_parallel_rank}) must be in the range [0, {dp})")
    if settings.data_parallel_hybrid_lb and local is None:
        raise EngineRefusalError("`--data-parallel-hybrid-lb` requires `--data-parallel-size-local`.")


def _check_nodes(settings: VllmSettings, parallel: Parallel) -> None:
    nnodes = settings.nnodes
    if nnodes == 1:
        return
    world = parallel.dp * parallel.world_size
    if settings.data_parallel_backend != "mp":
        raise EngineRefusalError(f"`--nnodes {nnodes}` requires `--data-parallel-backend mp`")
    if settings.distributed_executor_backend not in (None, "mp", "uni", "external_launcher"):
        raise EngineRefusalError(
            "nnodes > 1 can only be set when distributed executor backend is mp, uni or external_launcher."
        )
    if world % nnodes:
        raise EngineRefusalError(f"`--nnodes {nnodes}` must evenly divide the total world size ({world}).")
    if not 0 <= settings.node_rank < nnodes:
        raise EngineRefusalError(
            f"`--node-rank` must be between 0 and {nnodes - 1}; got `--node-rank {settings.node_rank}`."
        )


def _check_local_gpus(settings: VllmSettings, parallel: Parallel, n_gpus: int) -> None:
    """As many GPUs here as ranks (config/parallel.py:__post_init__)."""
    if settings.distributed_executor_backend == "ray" or settings.data_parallel_backend == "ray":
        return
    local_dp = 1 if settings.data_parallel_external_lb else settings.data_parallel_size_local or parallel.dp
    needed = (
        parallel.world_size * local_dp if settings.nnodes == 1 else parallel.world_size * parallel.dp // settings.nnodes
    )
    if needed > n_gpus:
        raise EngineRefusalError(
            f"World size ({needed}) is larger than the number of available GPUs ({n_gpus}) in this node.",
            hint="set --nnodes, or --distributed-executor-backend ray",
        )


# -- Scheduling, speculation, graphs ---------------------------------------------------------------


def _uses_v2_runner(settings: VllmSettings, parallel: Parallel, gpu: Gpu) -> bool:
    """Which model runner serves (config/vllm.py:use_v2_model_runner)."""
    forced = settings.env.get("VLLM_USE_V2_MODEL_RUNNER")
    if forced:
        return forced not in ("0", "false", "False")
    if gpu.cpu:
        return False
    if settings.distributed_executor_backend == "external_launcher" and parallel.pp > 1:
        return False
    return (settings.speculative_config or {}).get("method") not in ("suffix", "custom_class")


def _async_scheduling(settings: VllmSettings, parallel: Parallel, gpu: Gpu, *, pooling: bool, v2: bool) -> bool:
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


def _concurrent_batches(pp: int, *, is_async: bool, v2: bool) -> int:
    """Batches in flight at once (config/vllm.py:max_concurrent_batches)."""
    if is_async and v2:
        return pp + 1
    return 2 if is_async and pp <= 1 else pp


def _hybrid_manager(settings: VllmSettings, model: VllmModel, method: str | None) -> bool:
    """Whether each kind of layer keeps only what it needs (config/vllm.py:
    disable_hybrid_kv_cache_manager)."""
    disabled = False
    if any(getattr(cache, "kind", None) == "chunked" for cache in model.caches):
        allowed = settings.env.get("VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE", "1") not in ("", "0")
        disabled = method in ("eagle", "eagle3", "mtp") or not allowed
    wish = settings.disable_hybrid_kv_cache_manager
    if wish is False and disabled:
        raise EngineRefusalError(
            "Hybrid KV cache manager was explicitly enabled but is not supported in this configuration."
        )
    return not (disabled if wish is None else wish)


def resolve_speculation(settings: VllmSettings, model: VllmModel) -> tuple[str | None, int, Draft | None]:
    """(method, draft tokens, the draft's layers) (config/speculative.py:SpeculativeConfig)."""
    config = settings.speculative_config
    if not config:
        return None, 0, None
    method = config.get("method")
    if method is None:
        method = "draft_model" if config.get("model") else None
    if isinstance(method, str) and method.endswith("_mtp"):
        method = "mtp"
    if method is None:
        raise EngineRefusalError("num_speculative_tokens was provided but without speculative model.")
    if method == "mtp":
        if model.draft is None:
            raise EngineRefusalError(f"the model has no MTP layers: speculative method {method} cannot be used")
        tokens = whole(config.get("num_speculative_tokens") or model.draft.n_layers, "num_speculative_tokens")
        if tokens > model.draft.n_layers and tokens % model.draft.n_layers:
            raise EngineRefusalError(
                f"num_speculative_tokens:{tokens} must be divisible by n_predict={model.draft.n_layers}"
            )
        return method, tokens, model.draft
    tokens = whole(config.get("num_speculative_tokens") or 0, "num_speculative_tokens")
    if tokens <= 0:
        raise EngineRefusalError("num_speculative_tokens must be provided with speculative model")
    second = bool(config.get("model")) and method not in ("ngram", "ngram_gpu", "suffix", "custom_class")
    return str(method), tokens, model.draft if second else None


def whole(value: object, name: str) -> int:
    """A whole number within JSON given to a flag.

    Raises:
        EngineRefusalError: something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not re.fullmatch(r"-?[0-9]{1,18}", str(value)):
        raise EngineRefusalError(f"{name} must be a whole number, not {str(value)[:40]!r}")
    return int(value)


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


def _wanted_backend(settings: VllmSettings) -> str | None:
    wish = settings.attention_backend or settings.attention_config.get("backend")
    if settings.attention_backend and settings.attention_config.get("backend"):
        raise EngineRefusalError("attention_backend and attention_config.backend are mutually exclusive")
    return None if wish is None or str(wish).lower() == "auto" else str(wish).upper()


def _indexer_dtype(attention: Mapping[str, Any], gpu: Gpu) -> str:
    """(v1/attention/backends/mla/indexer.py:dsa_indexer_uses_fp4)"""
    wanted = str(attention.get("indexer_kv_dtype") or "auto").lower()
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
