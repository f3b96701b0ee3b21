"""The forms in which vLLM could be given a model, with the parameters that it makes of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autofit.domain.model import ModelSpec
from autofit.domain.quantization import Quantization as Form
from autofit.domain.values import replace
from autofit.errors import AutofitError

from autofit_vllm.architectures import choose_architecture
from autofit_vllm.architectures.config import Config
from autofit_vllm.checkpoint.build import build_model
from autofit_vllm.command.settings import parse_command
from autofit_vllm.config.engine import Gpu
from autofit_vllm.config.resolve.dtype import resolve_dtype
from autofit_vllm.memory.weights import RankTensor, rank_tensors
from autofit_vllm.modules.model import Parallel, VllmModel
from autofit_vllm.quantization import checkpoint_method, quantization_for
from autofit_vllm.quantization.published import WHILE_LOADING, published_forms

_KEY = "quantization_config"
_GPU = Gpu(name="any", total_bytes=1 << 40, cc=(10, 0))  #: takes every form, and changes none
_WHOLE = Parallel()


def forms(model: ModelSpec) -> tuple[Form, ...]:
    """The original, the forms that are published of models, and those that vLLM makes while it loads the original.

    Nothing for an architecture that vLLM does not know. A form that cannot be made of this model says why.
    """
    if model.format not in ("safetensors", "config") or choose_architecture(Config(model.metadata)) is None:
        return ()
    own = checkpoint_method(_own_config(model.metadata))
    original = _with_config(model, None)
    built = build_model(original)
    settings = parse_command(("vllm", "serve"), {}, model=model.name)[1]
    weigh = _Weigher(built, resolve_dtype(settings, built, _GPU))
    found = [weigh.form("original", original, None, is_float=True, at_hand=own is None)]
    for published in published_forms(_towers(built)):
        spec = _with_config(model, published.config)
        kin, notes = f"{published.bits} bits", (f"of {published.made_by}",)
        found.append(replace(weigh.form(published.name, spec, published.config), kin=kin, notes=notes))
    for name, word, bits in WHILE_LOADING:
        made = weigh.form(name, original, None, requested=word)
        found.append(replace(made, kin=f"{bits} bits", engine_args=("--quantization", word)))
    if own is not None:  # its configuration may be unlike any of the published ones
        whole = replace(model, tensors=())
        weigh = _Weigher(build_model(whole), weigh.dtype)
        found.append(weigh.form(f"this checkpoint ({own})", whole, _own_config(model.metadata), at_hand=True))
    return tuple(found)


class _Weigher:
    """Weighs one model in one form after the other."""

    def __init__(self, built: VllmModel, dtype: str) -> None:
        self.built = built
        self.dtype = dtype
        self.n_parameters = sum(map(_elements, self.tensors(None, None)))

    def tensors(self, config: Mapping[str, Any] | None, requested: str | None) -> list[RankTensor]:
        """Every parameter on one rank that has it all."""
        built = self.built
        quantization = quantization_for(
            config,
            capability=_GPU.cc,
            requested=requested,
            model_type=built.model_type,
            architecture=built.architecture,
        )
        loaded = quantization.while_loading
        found = rank_tensors(built, _WHOLE, dtype=self.dtype, quantization=quantization, loaded=loaded)
        return [tensor for tensor in found if tensor.kind != "scale"]

    def form(
        self,
        name: str,
        spec: ModelSpec,
        config: Mapping[str, Any] | None,
        *,
        requested: str | None = None,
        is_float: bool = False,
        at_hand: bool = False,
    ) -> Form:
        try:
            tensors = self.tensors(config, requested)
        except AutofitError as error:
            return Form(name=name, refusal=error.message)
        types: dict[str, int] = {}
        for tensor in tensors:
            types[tensor.dtype] = types.get(tensor.dtype, 0) + tensor.n_bytes
        return Form(
            name=name,
            model=spec,
            weights_bytes=sum(types.values()),
            n_parameters=self.n_parameters,
            types_bytes=dict(sorted(types.items(), key=lambda item: -item[1])),
            is_float=is_float,
            at_hand=at_hand,
        )


def _elements(tensor: RankTensor) -> int:
    n = 1
    for dim in tensor.shape:
        n *= dim
    return n


def _towers(built: VllmModel) -> tuple[str, ...]:
    """The first parts of the names of what encodes other inputs."""
    names = (module.name.removeprefix("model.") for module in built.modules if getattr(module, "tower", None))
    return tuple(sorted({name.partition(".")[0] for name in names}))


def _own_config(metadata: Mapping[str, object]) -> Mapping[str, Any] | None:
    text = metadata.get("text_config")
    own = metadata.get(_KEY) or (text.get(_KEY) if isinstance(text, Mapping) else None)
    return own if isinstance(own, Mapping) else None


def _with_config(model: ModelSpec, config: Mapping[str, Any] | None) -> ModelSpec:
    """The model as if its checkpoint had this `quantization_config`. Its tensors are others then, and not looked at."""
    metadata = {key: value for key, value in model.metadata.items() if key not in (_KEY, "compression_config")}
    text = metadata.get("text_config")
    if isinstance(text, Mapping):
        metadata["text_config"] = {key: value for key, value in text.items() if key != _KEY}
    if config is not None:
        metadata[_KEY] = dict(config)
    return replace(model, tensors=(), layers=(), metadata=metadata)
