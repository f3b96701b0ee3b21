"""`--override-kv`: metadata of a model replaced before the engine reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from autofit.domain.model import ModelSpec

MAX_KEY = 127  #: bytes of llama_model_kv_override.key and .val_str


def parse_override(text: str) -> tuple[str, bool | int | float | str]:
    """`KEY=TYPE:VALUE` (common/common.cpp:string_parse_kv_override; numbers count as far as they go).

    Raises:
        ValueError: another form.
    """
    key, equals, typed = text.partition("=")
    kind, colon, value = typed.partition(":")
    if not equals or not colon or len(key.encode()) > MAX_KEY:
        raise ValueError("malformed KV override (KEY=TYPE:VALUE)")
    if kind == "int":
        whole = re.match(r"\s*([+-]?[0-9]{1,40})", value)
        return key, int(whole[1]) if whole else 0
    if kind == "float":
        number = re.match(r"\s*([+-]?(?:[0-9]{1,60}\.?[0-9]{0,60}|\.[0-9]{1,60})(?:[eE][+-]?[0-9]{1,3})?)", value)
        return key, float(number[1]) if number else 0.0
    if kind == "bool" and value in ("true", "false"):
        return key, value == "true"
    if kind == "str" and len(value.encode()) <= MAX_KEY:
        return key, value
    raise ValueError("Invalid type for KV override (int, float, bool or str)")


def overridden(model: ModelSpec, overrides: Sequence[str]) -> ModelSpec:
    """`model` as the engine sees it with these overrides.

    Arrays stay as they are, and a value of another type is ignored
    (src/llama-model-loader.cpp:validate_override).

    Raises:
        ValueError: an override is malformed.
    """
    if not overrides:
        return model
    metadata = dict(model.metadata)
    for text in overrides:
        key, value = parse_override(text)
        if key not in metadata or type(metadata[key]) is type(value):
            metadata[key] = value
    architecture = metadata.get("general.architecture")
    return replace(
        model,
        metadata=metadata,
        architecture=architecture if isinstance(architecture, str) else model.architecture,
    )
