"""How a checkpoint's weights are quantized, and what each layer keeps because of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from autofit.domain.values import replace
from autofit.errors import EngineRefusalError

from autofit_vllm.engine.versions import DEFAULT, Engine
from autofit_vllm.quantization.scheme import NONE, UNQUANTISED, Quantization, Scheme, Tensor

__all__ = ["NONE", "UNQUANTISED", "Quantization", "Scheme", "Tensor", "checkpoint_method", "quantization_for"]


def checkpoint_method(raw: Mapping[str, Any] | None) -> str | None:
    """The word for a checkpoint's own quantization, ModelOpt's older files included; `None` if it has none
    (transformers_utils/model_arch_config_convertor.py:_normalize_quantization_config). ModelOpt as the producer does
    not decide: DeepSeek-V4's NVFP4 files are of it, and of the method `fp8`."""
    if not raw:
        return None
    inner = raw.get("quantization")
    if isinstance(inner, Mapping) and "quant_algo" in inner:
        return "modelopt"
    method = str(raw.get("quant_method") or "").lower().replace("compressed_tensors", "compressed-tensors")
    return method or None


def quantization_for(
    raw: Mapping[str, Any] | None,
    *,
    capability: tuple[int, int],
    requested: str | None = None,
    model_type: str = "",
    architecture: str = "",
    quantized_layers: Iterable[str] = (),
    ggml_types: Mapping[str, str] | None = None,
    allow_deprecated: bool = False,
    env: Mapping[str, str] | None = None,
    engine: Engine = DEFAULT,
) -> Quantization:
    """The quantization of a checkpoint on a GPU, or the one asked for while loading.

    `raw` is its configuration's `quantization_config`, `architecture` the model's class in vLLM, which renames the
    layers that `raw` lists, `requested` the word after `--quantization`, `ggml_types` the types of a GGUF file's
    tensors by name.

    Raises:
        EngineRefusalError: the two contradict each other, the GPU is too old, or vLLM does not know the word.
        UnsupportedModelError: a plugin of vLLM is needed, or the layout is not known here.
    """
    generation = min(capability[0] * 10 + capability[1], 999)
    method = checkpoint_method(raw)
    if method is None and requested is None:
        found = NONE
    else:
        from autofit_vllm.quantization.methods import read

        found = read(
            method,
            raw or {},
            generation,
            requested=requested,
            model_type=model_type,
            architecture=architecture,
            quantized_layers=quantized_layers,
            ggml_types=ggml_types or {},
            allow_deprecated=allow_deprecated,
            env=env or {},
            engine=engine,
        )
    if generation < found.min_capability:
        raise EngineRefusalError(
            f"The quantization method {found.name} is not supported for the current GPU. Minimum capability: "
            f"{found.min_capability}. Current capability: {generation}.",
            hint="use a newer GPU or another quantization",
        )
    return replace(found, capability=generation)
