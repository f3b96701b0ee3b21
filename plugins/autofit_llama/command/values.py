"""Parse values of llama.cpp's flags; a `ValueError` repeats llama.cpp's own wording.

Source: common/arg.cpp, the handler of each option.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from autofit.domain.text import printable

from autofit_llama.command.options import AUTO_WORDS, FALSE_WORDS, TRUE_WORDS
from autofit_llama.engine.numbers import MAX_SINGLE, integer, real
from autofit_llama.engine.vocabulary import (
    KV_TYPES,
    MAX_DEVICES,
    POOLING_CLS,
    POOLING_LAST,
    POOLING_MEAN,
    POOLING_NONE,
    POOLING_RANK,
    FlashAttention,
    Override,
)

ALL_LAYERS = -2  #: -ngl all
AUTO_LAYERS = -1  #: -ngl auto
POOLING = {
    "none": POOLING_NONE,
    "mean": POOLING_MEAN,
    "cls": POOLING_CLS,
    "last": POOLING_LAST,
    "rank": POOLING_RANK,
}
#: common/speculative.cpp:common_speculative_type_from_name_map
SPEC_TYPES = (
    "none", "draft-simple", "draft-eagle3", "draft-mtp", "draft-dflash", "draft-dspark",
    "ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache",
)  # fmt: skip


def same(value: Any) -> Any:
    return value


def one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"invalid value (one of {', '.join(words)})")
        return text

    return parse


def parse_switch(text: str) -> bool:
    if text in TRUE_WORDS or text in FALSE_WORDS:
        return text in TRUE_WORDS
    raise ValueError("unknown value (on or off)")


def parse_flash_attn(text: str | bool) -> FlashAttention:
    """`True` is the switch of older builds."""
    if text is True or text in TRUE_WORDS:
        return "on"
    if text in FALSE_WORDS:
        return "off"
    if text in AUTO_WORDS:
        return "auto"
    raise ValueError("unknown value (on, off or auto)")


def parse_layers(text: str) -> int:
    """`-ngl`: a number, `auto` or `all`; every number below -1 means all."""
    return {"auto": AUTO_LAYERS, "all": ALL_LAYERS}.get(text) or max(integer(text), ALL_LAYERS)


def parse_split(text: str) -> tuple[float, ...]:
    """`-ts`: proportions separated by commas or slashes."""
    parts = re.split("[,/]+", text)
    if len(parts) >= MAX_DEVICES:
        raise ValueError(f"got {len(parts)} input configs, but system only has {MAX_DEVICES} devices")
    return shares(parts)


def shares(parts: Sequence[str]) -> tuple[float, ...]:
    """Proportions; what llama.cpp takes and then deals layers out by at random, or not at all, is refused."""
    shares = tuple(map(real, parts))
    if not all(map(math.isfinite, shares)):
        raise ValueError("not a finite number")
    if any(share < 0 for share in shares):
        raise ValueError("a share of the layers cannot be negative")
    if sum(shares) > MAX_SINGLE:
        raise ValueError("the sum is outside the range of a single-precision number")
    return shares


def parse_devices(text: str) -> tuple[str, ...]:
    """`-dev`: names separated by commas; `none` is no device."""
    names = tuple(text.split(","))
    if names == ("none",):
        return ()
    if not all(names):
        raise ValueError("invalid device: ")
    return names


def parse_overrides(text: str) -> tuple[Override, ...]:
    """`-ot`: `PATTERN=BUFFER`, separated by commas, each split at its first equals sign."""
    found = []
    for part in text.split(","):
        pattern, equals, buffer = part.partition("=")
        if not equals:
            raise ValueError("invalid value (PATTERN=BUFFER)")
        found.append(Override(kind="pattern", pattern=pattern, buffer=buffer))
    return tuple(found)


def parse_targets(text: str) -> tuple[int, ...]:
    parts = re.split("[,/]+", text)
    if len(parts) >= MAX_DEVICES:
        raise ValueError(f"got {len(parts)} input configs, but system only has {MAX_DEVICES} devices")
    targets = []
    for part in parts:
        found = re.match(r"\s*([+-]?[0-9]{1,12})", part)
        if not found:
            raise ValueError("not a number of MiB")
        targets.append(int(found[1]))
    return tuple(targets)


def csv(text: str) -> tuple[str, ...]:
    """Values separated by commas; one in double quotes may hold commas (common/arg.cpp:parse_csv_row)."""
    found, value, quoted, at = [], "", False, 0
    while at < len(text):
        char = text[at]
        if quoted and text[at : at + 2] == '""':
            value, at = value + '"', at + 1
        elif char == '"' and (quoted or not value):
            quoted = not quoted
        elif char == "," and not quoted:
            found.append(value)
            value = ""
        else:
            value += char
        at += 1
    return (*found, value)


def parse_scaled(text: str) -> tuple[str, ...]:
    """FNAME:SCALE, as many as there are; only the names matter here."""
    names = []
    for item in csv(text):
        parts = item.split(":")
        if len(parts) != 2:
            raise ValueError("format: FNAME:SCALE")
        real(parts[1])
        names.append(parts[0])
    return tuple(names)


def parse_kv_overrides(text: str) -> tuple[str, ...]:
    items = csv(text)
    for item in items:
        parse_override(item)
    return items


def bounded(low: int, high: int) -> Callable[[int], int]:
    def parse(value: int) -> int:
        if not low <= value <= high:
            raise ValueError(f"must be between {low} and {high} inclusive")
        return value

    return parse


def not_negative(value: int) -> int:
    if value < 0:
        raise ValueError("must be non-negative")
    return value


def parse_kv_type(text: str) -> str:
    if text not in KV_TYPES:
        raise ValueError(f"Unsupported cache type: {printable(text, 40)} (one of {', '.join(KV_TYPES)})")
    return text


def parse_spec_types(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name == "none":
            return ("none",)
        if name not in SPEC_TYPES:
            raise ValueError(f"unknown speculative type: {printable(name, 40)}")
    return names


MAX_OVERRIDE_BYTES = 127  #: bytes of llama_model_kv_override.key and .val_str


def parse_override(text: str) -> tuple[str, bool | int | float | str]:
    """`KEY=TYPE:VALUE` (common/common.cpp:string_parse_kv_override; numbers count as far as they go).

    Raises:
        ValueError: another form.
    """
    key, equals, typed = text.partition("=")
    kind, colon, value = typed.partition(":")
    if not equals or not colon or len(key.encode()) > MAX_OVERRIDE_BYTES:
        raise ValueError("malformed KV override (KEY=TYPE:VALUE)")
    if kind == "int":
        whole = re.match(r"\s*([+-]?[0-9]{1,40})", value)
        return key, int(whole[1]) if whole else 0
    if kind == "float":
        number = re.match(r"\s*([+-]?(?:[0-9]{1,60}\.?[0-9]{0,60}|\.[0-9]{1,60})(?:[eE][+-]?[0-9]{1,3})?)", value)
        return key, float(number[1]) if number else 0.0
    if kind == "bool" and value in ("true", "false"):
        return key, value == "true"
    if kind == "str" and len(value.encode()) <= MAX_OVERRIDE_BYTES:
        return key, value
    raise ValueError("Invalid type for KV override (int, float, bool or str)")
