"""A model's `config.json` as the engine sees it: with the aliases and defaults of its configuration class."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from autofit.domain.text import printable
from autofit.errors import ModelError, UnsupportedModelError

Whole = int  #: the type, where the method of that name hides it
_LIMIT = 1 << 40  #: no size of any model comes near; keeps arithmetic on hostile files short
_MAX_LAYERS = 4096
#: classes whose count of layers is the length of `layers_block_type`, whatever else the file says
_COUNTED = frozenset({"nemotron_h"})


@cache
def _classes() -> Mapping[str, Any]:
    """Configuration classes by model type: `aliases` and `fields` with their defaults (data, see `defaults.json`)."""
    text = Path(__file__).with_name("defaults.json").read_text("utf-8")
    data: Mapping[str, Any] = json.loads(text)["types"]
    return data


class Config(Mapping[str, Any]):
    """One level of `config.json`, keys spelled as the configuration class spells its attributes.

    A key that the file does not have takes the class's default, and one that neither has is absent. Unknown
    model types have no defaults: then only what the file says counts.
    """

    __slots__ = ("_values", "given", "model_type")

    def __init__(self, raw: Mapping[str, Any], model_type: str | None = None) -> None:
        declared = raw.get("model_type")
        self.model_type = declared if isinstance(declared, str) else (model_type or "")
        known = _classes().get(self.model_type) or _classes().get(model_type or "") or {}
        aliases: Mapping[str, str] = known.get("aliases", {})
        values: dict[str, Any] = dict(known.get("fields", {}))
        values.update((aliases.get(key, key), value) for key, value in raw.items())
        values.update((alias, values[key]) for alias, key in aliases.items() if key in values)
        kinds = values.get("layers_block_type")
        if isinstance(kinds, list | tuple) and (self.model_type in _COUNTED or "num_hidden_layers" not in values):
            values["num_hidden_layers"] = len(kinds)
        self.given = frozenset(raw)  #: keys that the file itself has
        self._values = values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def replace(self, **changes: Any) -> Config:
        """The same configuration with some values set."""
        copy = Config.__new__(Config)
        copy.model_type, copy.given = self.model_type, self.given
        copy._values = {**self._values, **changes}
        return copy

    def maybe_int(self, *keys: str) -> int | None:
        """The first of these keys that holds a number; `None` if none does.

        Raises:
            ModelError: the value is no whole number that a size can be.
        """
        for key in keys:
            value = self._values.get(key)
            if value is None:
                continue
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if isinstance(value, bool) or not isinstance(value, int) or not -_LIMIT < value < _LIMIT:
                raise ModelError(f"config.json: {key} is {_short(value)}, not a whole number in range")
            return value
        return None

    def int(self, *keys: str, default: Whole | None = None) -> Whole:
        """Like `maybe_int`, but a missing value is `default`, or an error.

        Raises:
            ModelError: missing, or not a number.
        """
        value = self.maybe_int(*keys)
        if value is None:
            value = default
        if value is None:
            raise UnsupportedModelError(
                f"config.json ({printable(self.model_type, 60) or 'no model_type'}) does not say {keys[0]}",
                hint="use the config.json that the model was published with",
            )
        if value < 0:
            raise ModelError(f"config.json: {keys[0]} is {value}, less than zero")
        return value

    def layers(self, *keys: str) -> Whole:
        """A count of layers, bounded.

        Raises:
            ModelError: missing, or more layers than any model has.
        """
        count = self.int(*(keys or ("num_hidden_layers",)))
        if count > _MAX_LAYERS:
            raise ModelError(f"config.json: {count} layers; at most {_MAX_LAYERS} are accepted")
        return count

    def times(self, key: str, *, default: Whole, each: Whole = 1) -> Whole:
        """How often something of `each` parts is built, bounded as layers are.

        Raises:
            ModelError: not a number, or more parts than any model has.
        """
        count = self.int(key, default=default)
        if count * each > _MAX_LAYERS:
            raise ModelError(
                f"config.json: {key} is {printable(str(count), 40)}; at most {_MAX_LAYERS // each} are accepted"
            )
        return count

    def number(self, key: str, default: float) -> float:
        value = self._values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return default
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._values.get(key)
        return default if value is None else bool(value)

    def text(self, key: str, default: str = "") -> str:
        value = self._values.get(key)
        return value if isinstance(value, str) else default

    def items_of(self, key: str) -> list[Any]:
        """A list, empty if missing."""
        value = self._values.get(key)
        return list(value) if isinstance(value, list | tuple) else []

    def table(self, key: str) -> Mapping[str, Any]:
        """A nested object, empty if missing."""
        value = self._values.get(key)
        return value if isinstance(value, Mapping) else {}

    def section(self, *keys: str, model_type: str | None = None) -> Config:
        """A nested configuration; `model_type` is what its class is when the file does not say."""
        for key in keys:
            if isinstance(value := self._values.get(key), Mapping):
                return Config(value, model_type)
        return Config({}, model_type)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
