"""From `config.json` to the modules and caches that vLLM builds: one model builder per family of architectures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autofit.domain.text import printable
from autofit.errors import ModelError, UnsupportedModelError

from autofit_vllm.architectures.builder import Builder, Options
from autofit_vllm.architectures.builders import BY_ARCHITECTURE, CAUSAL_LM, CONVERTED, base_of, model_builder
from autofit_vllm.architectures.config import Config
from autofit_vllm.architectures.facts import (
    attention_heads,
    config_dtype,
    expert_count,
    experts_per_token,
    head_size,
    is_encoder_decoder,
    key_value_heads,
    model_length,
    ssm_dtype,
    uses_mla,
)
from autofit_vllm.architectures.record import Architecture, is_missing
from autofit_vllm.architectures.registry import DROPPED
from autofit_vllm.architectures.validate import check_figures
from autofit_vllm.engine.history import first_with, release_key
from autofit_vllm.engine.versions import DEFAULT, Engine
from autofit_vllm.modules.model import Experts, StateCache, VllmModel

__all__ = ["Options", "build_from_config", "choose_architecture"]


def choose_architecture(root: Config, engine: Engine = DEFAULT) -> str | None:
    """The first of the file's `architectures` whose layers are known here; `None` if there is none.

    Raises:
        UnsupportedModelError: this release dropped it, or has no class for it yet.
    """
    names = [name for name in root.items_of("architectures") if isinstance(name, str)]
    for name in names:
        if is_missing(name, engine.release):
            continue
        if name in BY_ARCHITECTURE:
            return name
        for suffix in CONVERTED:
            if name.endswith(suffix) and name.removesuffix(suffix) + "ForCausalLM" in BY_ARCHITECTURE:
                return name
        if name in DROPPED and release_key(engine.release) > release_key(DROPPED[name]):
            raise UnsupportedModelError(
                f"Model architecture {name} was supported in vLLM until v{DROPPED[name]}, and is not supported "
                "anymore.",
                hint="use that version of vLLM",
            )
    if missing := next((name for name in names if is_missing(name, engine.release)), None):
        raise UnsupportedModelError(
            f"vLLM {engine.version} has no class for {missing}", hint=f"vLLM {first_with('classes', missing)} has"
        )
    if not names and root.model_type in CAUSAL_LM:
        return CAUSAL_LM[root.model_type]
    return None


def build_from_config(raw: Mapping[str, Any], options: Options | None = None) -> VllmModel:
    """The model that a configuration describes, whatever its tensors are.

    Raises:
        UnsupportedModelError: an architecture that is not known here, or a key that is missing.
    """
    check_figures(raw)
    root = Config(raw)
    options = options or Options()
    architecture = choose_architecture(root, options.engine)
    if architecture is None:
        named = ", ".join(printable(str(name), 60) for name in root.items_of("architectures")[:4])
        words = named or printable(root.model_type, 60) or "unnamed"
        raise UnsupportedModelError(f"unknown architecture {words}")
    builder = Builder(root, root, options)
    base, conversion = base_of(architecture, options.engine.release)
    builder.headless = conversion is not None or (options.pooling and not base.pooling)
    try:
        model_builder(base.name)(builder)
        if conversion == "classify":
            from autofit_vllm.architectures.families.encoders import classifier

            classifier(builder)
        return assemble(architecture, base, builder)
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        # The file is untrusted: a list too short, a size of zero, a word where a number should be.
        raise ModelError(
            f"config.json: no {architecture} can be built from it ({type(error).__name__}: {printable(str(error), 80)})"
        ) from error


def assemble(architecture: str, base: Architecture, builder: Builder) -> VllmModel:
    """The finished value, with the facts that vLLM's own settings read; `base` is the class that is built."""
    root, text = builder.root, builder.config
    length = model_length(text)
    dtype = config_dtype(root, text)
    kinds = {type(cache) for cache in builder.caches}
    states, attends = StateCache in kinds, bool(kinds - {StateCache})
    quantization = (
        root.table("quantization_config")
        or root.table("compression_config")
        or root.table("hf_quant_config")  # a file of its own in older ModelOpt checkpoints
    )
    nested = root.section("text_config").table("quantization_config")
    return VllmModel(
        architecture=architecture,
        model_type=root.model_type,
        modules=tuple(builder.modules),
        buffers=tuple(builder.buffers),
        caches=tuple(builder.caches),
        dtype=dtype or "float32",
        n_layers=text.layers("num_hidden_layers", "num_layers", "n_layers", "n_layer"),
        hidden_size=text.int("hidden_size", "d_model", "n_embd", default=0),
        intermediate_size=text.maybe_int("intermediate_size", "ffn_hidden_size", "n_inner") or 0,
        vocab_size=text.int("vocab_size", "padded_vocab_size", default=0),
        n_heads=attention_heads(text),
        n_kv_heads=key_value_heads(text),
        head_size=head_size(text),
        max_len_tokens=length.derived,
        max_len_key=length.key,
        default_len_tokens=length.default,
        n_experts=expert_count(text),
        n_experts_per_token=experts_per_token(text),
        moe_intermediate_size=max(
            (module.intermediate_size for module in builder.modules if isinstance(module, Experts)), default=0
        ),
        sliding_window=builder.sliding_window(),
        uses_mla=uses_mla(text),
        is_hybrid=base.hybrid and states and attends,
        is_attention_free=base.attention_free,
        is_multimodal=base.multimodal,
        is_pooling=base.pooling or builder.headless or builder.options.pooling,
        is_encoder_decoder=is_encoder_decoder(root, text),
        is_encoder_only=base.encoder_only,
        supports_pipeline=base.pipeline,
        supports_lora=base.lora,
        modalities=("image", "video") if base.multimodal else (),
        quantization=_with(quantization or nested, builder.quantization) or None,
        ssm_dtype=ssm_dtype(root, text, architecture),
        draft=builder.draft,
        notes=tuple(builder.notes),
        config=dict(text),
    )


def _with(quantization: Mapping[str, object], more: Mapping[str, object]) -> Mapping[str, object]:
    return {**quantization, **more} if quantization and more else quantization
