"""Where the values of options come from: flags or keywords, `AUTOFIT_*`, `autofit.toml`, a preset, in this order.

A value is taken from the first place that has it, and remembers which that was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autofit.domain.plan import Origin
from autofit.domain.request import Margin
from autofit.domain.values import dataclass, field
from autofit.errors import UsageError
from autofit.settings.options import BY_NAME, OPTIONS, Option
from autofit.text.suggest import suggest

SETTINGS_FILE = "autofit.toml"
Layer = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What stands around a call: variables (`None`: this process's), and the directory whose `autofit.toml` counts."""

    environ: Mapping[str, str] | None = None
    directory: str | os.PathLike[str] = "."

    @property
    def variables(self) -> Mapping[str, str]:
        return os.environ if self.environ is None else self.environ

    def files(self) -> list[Path]:
        """`autofit.toml` of the directory, then the user's."""
        config = self.variables.get("XDG_CONFIG_HOME") or "~/.config"
        # os.path leaves a `~` alone that it cannot look up, pathlib raises
        user = os.path.expanduser(config)  # noqa: PTH111
        places = [Path(self.directory) / SETTINGS_FILE, Path(user) / "autofit" / SETTINGS_FILE]
        return [path for path in places if path.is_file()]


HERE = Surroundings()  #: of this process


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Values of the options that somebody stated, and who did."""

    values: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, Origin] = field(default_factory=dict)
    engine_args: tuple[str, ...] = ()  #: from a settings file or a preset; come before the user's own

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)


def collect(
    given: Mapping[str, Any], surroundings: Surroundings | None, backend: str, preset: Callable[[str], Layer]
) -> Options:
    """Options from flags or keywords, and from the surroundings. `preset` gives the table of a preset.

    Raises:
        UsageError: a value that makes no sense, with the place it comes from.
    """
    layers: list[tuple[Origin, Layer]] = [("user", from_given(given))]
    if surroundings is not None:
        layers.append(("environment", from_environment(surroundings.variables)))
        layers += [("settings file", read_settings_file(path, backend)) for path in surroundings.files()]
    name = next((layer["preset"] for _, layer in layers if "preset" in layer), None)
    if name is not None:
        layers.append(("preset", from_table(preset(name), f"preset {name}", backend)))
    return merge(layers)


def merge(layers: Sequence[tuple[Origin, Layer]]) -> Options:
    """Fold parsed layers, strongest first."""
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    engine_args: tuple[str, ...] = ()
    for origin, layer in layers:
        for name, value in layer.items():
            if name == "engine_args":
                engine_args = (*value, *engine_args)
            elif name not in values:
                values[name] = value
                origins[name] = origin
    return Options(values=values, origins=origins, engine_args=engine_args)


def from_given(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parse flags as argparse collected them, or keywords; absent ones are None."""
    found = ((option, given.get(option.name)) for option in OPTIONS)
    return {option.name: _given(option, value) for option, value in found if value is not None and value is not False}


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Parse the `AUTOFIT_*` variables; those of a list are separated by commas."""
    parsed = {}
    for option in OPTIONS:
        text = environ.get(option.variable)
        if text is None or not text.strip(" ,"):
            continue
        items = [item for item in text.split(",") if item.strip()]
        parsed[option.name] = option.value_of(items if option.many else text, option.variable)
    return parsed


def from_table(table: Mapping[str, Any], where: str, backend: str) -> dict[str, Any]:
    """Parse a TOML table of options; a table named like the backend overrides it.

    Raises:
        UsageError: an unknown key (with a suggestion) or a value that does not parse; `where` is named.
    """
    wrong = next((key for key, value in table.items() if isinstance(value, Mapping) and _is_option(key)), None)
    if wrong is not None:
        raise UsageError(f"{where}: {wrong} is a table, not a value")
    merged = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    section = table.get(backend, {})
    if isinstance(section, Mapping):
        merged |= section
    parsed: dict[str, Any] = {}
    for key, value in merged.items():
        name = key.replace("-", "_")
        if name in {"schema", "summary", "name"}:
            continue
        if name == "engine_args":
            if not isinstance(value, list) or not all(isinstance(arg, str) for arg in value):
                raise UsageError(f"{where}: engine_args must be a list of strings")
            parsed[name] = tuple(value)
            continue
        option = BY_NAME.get(name)
        if option is None:
            raise UsageError(f"{where}: unknown key {key!r}", hint=suggest(key, [*BY_NAME, "engine_args"]))
        if isinstance(value, bool):
            value = "true" if value else "false"
        texts = [str(item) for item in value] if isinstance(value, list) else [str(value)]
        parsed[name] = option.value_of(texts if option.many else ",".join(texts), f"{where}: {key}")
    return parsed


def read_settings_file(path: Path, backend: str) -> dict[str, Any]:
    """The options of an `autofit.toml`.

    Raises:
        UsageError: not TOML, too large, or a key or value that makes no sense.
    """
    from autofit.profiles import parse_toml, read_text

    return from_table(parse_toml(read_text(path), str(path)), str(path), backend)


def _is_option(key: str) -> bool:
    return key.replace("-", "_") in {*BY_NAME, "engine_args"}


def _given(option: Option, value: Any) -> Any:
    """A value as text, as the command line has it, or as it is; `True` is one only of switches."""
    if isinstance(value, tuple) and value and all(isinstance(item, Margin) for item in value):
        return value
    if isinstance(value, bool) and option.metavar is None:
        return value
    if isinstance(value, (list, tuple)):
        texts = [str(item) for item in value]
        return option.value_of(texts if option.many else ",".join(texts), option.flag)
    return option.value_of(str(value), option.flag)
