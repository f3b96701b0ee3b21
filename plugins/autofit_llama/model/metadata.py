"""`--override-kv`: metadata of a model replaced before the engine reads it."""

from __future__ import annotations

from collections.abc import Sequence

from autofit.domain.model import ModelSpec
from autofit.domain.values import replace

from autofit_llama.command.values import parse_override


def overridden(model: ModelSpec, overrides: Sequence[str]) -> ModelSpec:
    """`model` as the engine sees it with these overrides.

    Arrays stay as they are, and a value of another type is ignored
    (src/llama-model-loader.cpp:validate_override).

    Raises:
        ValueError: an override is malformed.
    """
    if not overrides:
        return model
    metadata, types = dict(model.metadata), dict(model.metadata_types)
    for text in overrides:
        key, value = parse_override(text)
        if key not in metadata or type(metadata[key]) is type(value):
            metadata[key] = value
            types.pop(key, None)
    architecture = metadata.get("general.architecture")
    return replace(
        model,
        metadata=metadata,
        metadata_types=types,
        architecture=architecture if isinstance(architecture, str) else model.architecture,
    )
