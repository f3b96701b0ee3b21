"""Where the values of options come from: flags or keywords, `AUTOFIT_*`, `autofit.toml`, a preset, in this order.

A value is taken from the first place that has it, and remembers which that was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from autofit.domain.plan import Finding, Origin
from autofit.domain.request import Margin
from autofit.domain.text import printable
from autofit.domain.values import dataclass, field, replace
from autofit.errors import UsageError
from autofit.files import open_ordinary
from autofit.planning.findings import COMMON, tell
from autofit.settings.options import BY_NAME, OPTIONS, Option
from autofit.settings.trust import config_dir, is_trusted

SETTINGS_FILE = "autofit.toml"
SETTINGS_VARIABLE = "AUTOFIT_SETTINGS"  #: also `--settings FILE`: a file that counts instead of the directory's
NEEDS_TRUST = ("engine_args", "force")  #: what a file of the directory sets only when the user has trusted it
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
        """The file that the user names, else `autofit.toml` of the directory; then the user's."""
        users, named = config_dir(self.variables) / SETTINGS_FILE, self.named
        if named is not None and not named.is_file():
            raise UsageError(f"{printable(str(named), 300)}: {_instead(named)}")
        found = [path for path in (named or self.own_file, users) if path.is_file()]
        return found[1:] if len(found) == 2 and found[0].samefile(users) else found

    @property
    def named(self) -> Path | None:
        """What the user says to be the settings, and so trusts."""
        text = self.variables.get(SETTINGS_VARIABLE)
        return Path(text) if text else None

    @property
    def own_file(self) -> Path:
        return Path(self.directory) / SETTINGS_FILE


HERE = Surroundings()  #: of this process


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Values of the options that somebody stated, and who did."""

    values: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, Origin] = field(default_factory=dict)
    engine_args: tuple[str, ...] = ()  #: from settings files or a preset; come before the user's own
    arg_origins: tuple[Origin, ...] = ()  #: where each of them comes from
    notes: tuple[Finding, ...] = ()  #: what came from settings files, and what of them was not used

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)


def collect(
    given: Mapping[str, Any],
    surroundings: Surroundings | None,
    backend: str,
    preset: Callable[[str], Layer],
    used: Container[str] | None = None,
) -> Options:
    """Options from flags or keywords, and from the surroundings. `preset` gives the table of a preset; `used` are the
    options that matter to the caller, of whose origin the notes tell (`None`: all).

    Raises:
        UsageError: a value that makes no sense, with the place it comes from.
    """
    layers: list[tuple[Origin, Layer]] = [("user", from_given(given))]
    notes: list[Finding] = []
    doubtful: tuple[Layer, Path] | None = None
    if surroundings is not None:
        layers.append(("environment", from_environment(surroundings.variables)))
        for path in surroundings.files():
            layer, may_set_all = _read(path, surroundings, backend)
            found: list[Finding] = []
            if not may_set_all:
                layer, found = _held_back(layer, path)
                doubtful = layer, path
            stronger = {name for _, other in layers for name in other if name != "engine_args"}
            effective = [name for name in layer if name not in stronger and (used is None or name in used)]
            notes += [*_said(path, {name: layer[name] for name in effective}), *found]
            layers.append(("settings file", layer))
    asking = next((layer for _, layer in layers if "preset" in layer), None)
    if asking is not None:
        name = asking["preset"]
        table: Layer = from_table(preset(name), f"preset {name}", backend)
        if doubtful is not None and asking is doubtful[0]:  # what it may not say, it may not ask for
            table, found = _held_back(table, doubtful[1], f" of the preset {printable(name, 60)}, which it asks for,")
            notes += found
        layers.append(("preset", table))
    return replace(merge(layers), notes=tuple(notes))


def _instead(path: Path) -> str:
    """What is there, where a settings file is named and is none."""
    try:
        os.close(open_ordinary(path))
    except FileNotFoundError:
        pass
    except OSError as error:
        return error.strerror or str(error)
    return "no such settings file"


def _read(path: Path, surroundings: Surroundings, backend: str) -> tuple[Layer, bool]:
    """What a settings file sets, and whether it may set all of it: one that came with the directory must be trusted."""
    from autofit.profiles import read_text

    text = read_text(path)
    layer = _parse_file(text, path, backend)
    is_own = path == surroundings.own_file and surroundings.named is None
    return layer, not is_own or is_trusted(path, text, surroundings.variables)


def _held_back(layer: Layer, path: Path, of: str = "") -> tuple[Layer, list[Finding]]:
    """A layer without what the untrusted file at `path` may not set, and that this is not used; `of`: of what else."""
    names = [name for name in NEEDS_TRUST if name in layer]
    if not names:
        return layer, []
    where = os.path.abspath(path)  # noqa: PTH100 - as it is written, links and all
    flags = f" ({printable(' '.join(layer['engine_args']), 120)})" if "engine_args" in layer else ""
    message = (
        f"{printable(where, 300)} is not trusted: {'' if of else 'its '}{' and '.join(names)}{flags}{of} "
        f"{'are' if 'engine_args' in names else 'is'} not used; "
        f"`autofit trust {printable(os.path.dirname(where), 300)}` lets it"  # noqa: PTH120
    )
    finding = tell(COMMON, "settings-not-trusted", message)
    return {name: value for name, value in layer.items() if name not in names}, [finding]


def _said(path: Path, layer: Layer) -> list[Finding]:
    """That these options come from a file."""
    names = [f"engine flags {' '.join(layer[name])}" if name == "engine_args" else name for name in layer]
    if not names:
        return []
    message = f"from {printable(str(path), 300)}: {printable(', '.join(names), 300)}"
    return [tell(COMMON, "settings-file", message)]


def merge(layers: Sequence[tuple[Origin, Layer]]) -> Options:
    """Fold parsed layers, strongest first."""
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    engine_args: tuple[str, ...] = ()
    arg_origins: tuple[Origin, ...] = ()
    for origin, layer in layers:
        for name, value in layer.items():
            if name == "engine_args":
                engine_args, arg_origins = (*value, *engine_args), (*[origin] * len(value), *arg_origins)
            elif name not in values:
                values[name] = value
                origins[name] = origin
    return Options(values=values, origins=origins, engine_args=engine_args, arg_origins=arg_origins)


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
            from autofit.text.suggest import suggest

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
    from autofit.profiles import read_text

    return _parse_file(read_text(path), path, backend)


def _parse_file(text: str, path: Path, backend: str) -> dict[str, Any]:
    from autofit.profiles import parse_toml

    return from_table(parse_toml(text, str(path)), str(path), backend)


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
