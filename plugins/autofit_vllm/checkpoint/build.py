"""From a checkpoint to the modules and caches that vLLM builds for it."""

from __future__ import annotations

from collections.abc import Iterable

from autofit.domain.model import ModelSpec

from autofit_vllm.architectures import Options, build_from_config, choose_architecture
from autofit_vllm.architectures.config import Config
from autofit_vllm.engine.versions import DEFAULT, Engine
from autofit_vllm.modules.model import VllmModel


def build_model(
    spec: ModelSpec,
    *,
    language_model_only: bool = False,
    disabled_modalities: Iterable[str] = (),
    disable_sliding_window: bool = False,
    pooling: bool = False,
    engine: Engine = DEFAULT,
) -> VllmModel:
    """What vLLM builds for a model, from its configuration and, where the files are there, its tensors.

    An architecture whose layers are not known gives an upper bound from the tensors, and says so.

    Raises:
        UnsupportedModelError: vLLM does not run it, or neither configuration nor tensors tell its layers.
        ModelError: the configuration contradicts itself.
    """
    options = Options(
        language_model_only=language_model_only,
        disabled_modalities=frozenset(disabled_modalities),
        disable_sliding_window=disable_sliding_window,
        pooling=pooling,
        engine=engine,
    )
    architecture = choose_architecture(Config(spec.metadata), engine)
    if architecture is None:
        from autofit_vllm.checkpoint.tensors import bound_model

        return bound_model(spec, options)
    model = build_from_config(spec.metadata, options)
    if not spec.tensors:
        return model
    from autofit_vllm.checkpoint.tensors import check_against_tensors

    return check_against_tensors(model, spec)
