"""The methods of quantization: which class reads a checkpoint of a method, or quantizes while loading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from autofit.domain.text import printable
from autofit.domain.values import replace
from autofit.errors import EngineRefusalError, ModelError, UnsupportedModelError

from autofit_vllm.engine.versions import Engine
from autofit_vllm.quantization.autoround import auto_round
from autofit_vllm.quantization.compressed import compressed_tensors
from autofit_vllm.quantization.floating import Mxfp4, fp8, mxfp4
from autofit_vllm.quantization.integer import Awq, Gptq, awq, gptq
from autofit_vllm.quantization.modelopt import ModelOpt, modelopt
from autofit_vllm.quantization.modelopt import scheme_of as algorithm_scheme
from autofit_vllm.quantization.name_maps import renamed
from autofit_vllm.quantization.online import COMPOSABLE, SHORTHANDS, composed, online
from autofit_vllm.quantization.plugins import OUTSIDE, require
from autofit_vllm.quantization.scheme import NONE, Quantization

#: every word that `--quantization` takes (layers/quantization/__init__.py)
METHODS = (
    "awq",
    "auto_awq",
    "fp8",
    "fbgemm_fp8",
    "fp_quant",
    "modelopt",
    "modelopt_fp4",
    "modelopt_mxfp8",
    "modelopt_mixed",
    "auto_gptq",
    "gptq",
    "gptq_marlin",
    "awq_marlin",
    "humming",
    "compressed-tensors",
    "quark",
    "moe_wna16",
    "torchao",
    "inc",
    "mxfp4",
    "gpt_oss_mxfp4",
    "deepseek_v4_fp8",
    "online",
    *sorted(SHORTHANDS - {"mxfp4"}),
)

#: why some methods of METHODS are left out
NOT_PLANNED = {
    "torchao": ": its tensors are of the torchao package, which vLLM needs as well",
    "humming": ": its kernels choose how weights are kept when they are loaded",
    "online": ": its schemes come from --quantization-config, which is not read here",
}
_ALIASES = {  #: requested word -> words of the checkpoint that it may stand for
    "gptq": {"gptq"},
    "gptq_marlin": {"gptq"},
    "auto_gptq": {"gptq"},
    "marlin": {"gptq", "awq"},
    "awq": {"awq"},
    "awq_marlin": {"awq"},
    "auto_awq": {"awq"},
}


def read(
    method: str | None,
    raw: Mapping[str, Any],
    generation: int,
    *,
    requested: str | None,
    model_type: str,
    architecture: str,
    quantized_layers: Iterable[str],
    ggml_types: Mapping[str, str],
    allow_deprecated: bool,
    env: Mapping[str, str],
    engine: Engine,
) -> Quantization:
    """What `quantization_for` promises, for a checkpoint that is quantized or a word after `--quantization`."""
    check_release(method, engine)
    check_release(requested, engine)
    if (word := method or requested or "") in OUTSIDE and word not in methods_at(engine):
        require(word, env)
    if method is None:
        found = _unquantized_checkpoint(requested)
    else:
        try:
            if method == "gguf":
                from autofit_vllm.quantization.gguf import gguf

                found = gguf(ggml_types)
            else:
                found = _read(
                    method, renamed(raw, method, architecture), generation, model_type, quantized_layers, engine
                )
        except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            # The file is untrusted: a number where a list should be, a group of nothing.
            cause = f"{type(error).__name__}: {printable(str(error), 80)}"
            raise ModelError(f"config.json: quantization_config is invalid ({cause})") from error
        found = _as_requested(requested, method, found)
    if found.name in ("fbgemm_fp8", "fp_quant") and not allow_deprecated:
        raise EngineRefusalError(
            f"The quantization method {found.name} is deprecated",
            hint="pass --allow-deprecated-quantization",
        )
    return found


def methods_at(engine: Engine) -> frozenset[str]:
    """Methods that an older release has in itself; none of the newest, whose own are `METHODS`."""
    if engine.newest:
        return frozenset()
    from autofit_vllm.engine.history import facts_at

    return frozenset(facts_at(engine.release)["quantizations"])


def check_release(word: str | None, engine: Engine) -> None:
    """Raises: EngineRefusalError, for a method that an older release has not and the newest has."""
    known = methods_at(engine)
    if known and word in METHODS and word not in known:
        raise EngineRefusalError(
            f"Unknown quantization method: {word}. Must be one of {', '.join(sorted(known))}.",
            hint="a newer vLLM has it",
        )


def _unquantized_checkpoint(requested: str | None) -> Quantization:
    if requested is None:
        return NONE
    word = "fp8_per_tensor" if requested == "fp8" else requested
    if word in SHORTHANDS:
        return online(word)
    if word == "bitsandbytes":
        from autofit_vllm.quantization.bitsandbytes import bitsandbytes

        return bitsandbytes({}, stored=False)
    if word == "online":
        raise UnsupportedModelError(
            f"--quantization online{NOT_PLANNED[word]}",
            hint=f"name one scheme for all: {', '.join(sorted(SHORTHANDS))}",
        )
    if word not in METHODS and word not in OUTSIDE:
        raise EngineRefusalError(f"Unknown quantization method: {word}. Must be one of {', '.join(METHODS)}.")
    raise EngineRefusalError(
        f"--quantization {word}: the checkpoint is not quantized that way",
        hint=f"to quantize while loading: {', '.join(sorted(SHORTHANDS))}",
    )


def _as_requested(requested: str | None, method: str, found: Quantization) -> Quantization:
    """The method after `--quantization` has had its say (override_quantization_method).

    Raises:
        EngineRefusalError: the checkpoint is quantized in another way.
    """
    if isinstance(found, Mxfp4) and found.name == "gpt_oss_mxfp4" and requested in COMPOSABLE:
        return composed(found, requested)
    if requested is None or requested in (method, found.name) or _claimed(method, found):
        return found
    if requested == "moe_wna16" and isinstance(found, Gptq | Awq):
        return replace(found, name=requested, in_bytes=True, min_capability=75 if isinstance(found, Awq) else 70)
    if method in _ALIASES.get(requested, ()):
        return found
    raise EngineRefusalError(
        f"Quantization method specified in the model config ({found.name}) does not match the quantization "
        f"method specified in the `quantization` argument ({requested}).",
        hint="leave --quantization out",
    )


def _claimed(method: str, found: Quantization) -> bool:
    """Whether vLLM takes the checkpoint's method whatever word was asked for (override_quantization_method of gpt-oss's
    MXFP4, AutoRound, DeepSeek-V4, and of ModelOpt but for FP8 of other scales than one per tensor)."""
    if found.name in ("gpt_oss_mxfp4", "deepseek_v4_fp8") or method == "auto-round":
        return True
    return method.startswith("modelopt") and isinstance(found, ModelOpt) and found.claims


def _read(
    method: str,
    raw: Mapping[str, Any],
    capability: int,
    model_type: str,
    quantized_layers: Iterable[str],
    engine: Engine,
) -> Quantization:
    if method == "gptq":
        return gptq(raw, capability, quantized_layers)
    if method == "awq":
        return awq(raw)
    if method in ("auto-round", "inc"):
        return auto_round(raw, capability)
    if method == "compressed-tensors":
        return compressed_tensors(raw, capability)
    if method in ("fp8", "deepseek_v4_fp8"):
        # models/deepseek_v4/quant_config.py: ModelOpt's files have NVFP4 experts, the model's own MXFP4
        nvfp4 = str(raw.get("moe_quant_algo") or "").upper() == "NVFP4"
        return fp8(raw, experts=algorithm_scheme("NVFP4", 16) if nvfp4 else mxfp4(capability, gpt_oss=False).scheme)
    if method.startswith("modelopt"):
        return modelopt(raw)
    if method in ("mxfp4", "gpt_oss_mxfp4"):
        return mxfp4(capability, gpt_oss=model_type == "gpt_oss", engine=engine)
    return _read_seldom(method, raw, model_type)


def _read_seldom(method: str, raw: Mapping[str, Any], model_type: str) -> Quantization:
    """Methods of few checkpoints, whose modules are imported when one comes."""
    if method == "quark":
        from autofit_vllm.quantization.quark import quark

        return quark(raw, gpt_oss=model_type == "gpt_oss")
    if method == "fbgemm_fp8":
        from autofit_vllm.quantization.deprecated import fbgemm

        return fbgemm(raw)
    if method == "fp_quant":
        from autofit_vllm.quantization.deprecated import fp_quant

        return fp_quant(raw)
    if method == "bitsandbytes":
        from autofit_vllm.quantization.bitsandbytes import bitsandbytes

        return bitsandbytes(raw, stored=True)
    if method not in METHODS:
        raise EngineRefusalError(f"Unknown quantization method: {printable(method, 60)}.")
    reason = NOT_PLANNED.get(method, "")
    raise UnsupportedModelError(
        f"the layout of {method} checkpoints is unknown{reason}",
        hint="check the plan against `vllm serve`'s own log",
    )
