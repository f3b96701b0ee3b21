"""Element types: of weights and activations, and of the KV cache (config/model.py, config/cache.py)."""

from __future__ import annotations

from autofit.errors import EngineRefusalError

from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.config.engine import Gpu
from autofit_vllm.modules.model import VllmModel
from autofit_vllm.quantization import Quantization

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


#: Methods whose checkpoints may hold scales of an fp8 cache (attention/attention.py:_init_kv_cache_quant)
FP8_CHECKPOINTS = ("fp8", "modelopt", "quark", "fbgemm_fp8")


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


def check_quantization(quantization: Quantization, dtype: str) -> None:
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


def boundary_layers(kv_dtype: str, model: VllmModel) -> frozenset[str]:
    """The first and last two layers stay unquantized under TurboQuant
    (turboquant/config.py:get_boundary_skip_layers)."""
    if not kv_dtype.startswith("turboquant_") or model.is_hybrid:
        return frozenset()
    n = min(2, model.n_layers // 2)
    return frozenset(str(i) for i in (*range(n), *range(model.n_layers - n, model.n_layers)))
