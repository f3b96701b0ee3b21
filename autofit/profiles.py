"""TOML data that comes with autofit, with a plugin or from the user: hardware profiles and presets.

A name is looked for in the user's directory first, then in the plugins', then in ours. Reading uses
`tomllib`; `tomlkit` is loaded only to edit a file, so that the user's comments and order survive.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from autofit.errors import AutofitError, UsageError
from autofit.files import config_home, read_bounded, write_whole

Kind = Literal["hardware", "presets"]
THIS_MACHINE = "this-machine"  #: the profile that `hardware calibrate` writes, and that detection reads
MAX_FILE_BYTES = 1 << 20
MAX_LINE_CHARACTERS = 1024
ABOUT_PRESET = ("schema", "name", "summary")


def data_dir() -> Path:
    """The profiles that ship with autofit: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "_profiles"
    return installed if installed.is_dir() else package.parent / "profiles"


def user_dir(env: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """Where the user's own profiles and presets live: `AUTOFIT_PROFILES`, else the platform's usual place."""
    env = os.environ if env is None else env
    if stated := env.get("AUTOFIT_PROFILES"):
        return Path(stated)
    home = Path(os.path.expanduser(env.get("HOME") or env.get("USERPROFILE") or "~"))  # noqa: PTH111 - never raises
    if platform == "win32":
        return Path(env.get("APPDATA") or home / "AppData" / "Roaming") / "autofit"
    if platform == "darwin" and not env.get("XDG_CONFIG_HOME"):
        return home / "Library" / "Application Support" / "autofit"
    return config_home(env) / "autofit"


def search_dirs(kind: Kind, extra_dirs: Iterable[str | Path] = ()) -> list[Path]:
    """Directories that hold files of this kind, the strongest first."""
    return [base / kind for base in (user_dir(), *map(Path, extra_dirs), data_dir())]


def files(kind: Kind, extra_dirs: Iterable[str | Path] = ()) -> dict[str, Path]:
    """Name -> file. A name in a stronger directory hides the same name in a weaker one."""
    found: dict[str, Path] = {}
    for directory in search_dirs(kind, extra_dirs):
        try:
            names = sorted(entry.name for entry in os.scandir(directory) if entry.name.endswith(".toml"))
        except OSError:
            continue
        for name in names:
            found.setdefault(name.removesuffix(".toml"), directory / name)
    return found


def find_file(kind: Kind, name: str, extra_dirs: Iterable[str | Path] = ()) -> Path | None:
    """The file that `files` has under this very name, if any."""
    for directory in search_dirs(kind, extra_dirs):
        try:
            if f"{name}.toml" in {entry.name for entry in os.scandir(directory)}:
                return directory / f"{name}.toml"
        except OSError:
            continue
    return None


def read_text(path: Path, error: type[AutofitError] = UsageError) -> str:
    """The text of a profile.

    Raises:
        error: not readable, not UTF-8, or larger than `MAX_FILE_BYTES`.
    """
    try:
        return read_bounded(path, MAX_FILE_BYTES).decode("utf-8")
    except OSError as cause:
        raise error(f"{path}: {cause.strerror or cause}") from cause
    except UnicodeDecodeError as cause:
        raise error(f"{path}: byte {cause.start}: not UTF-8 text") from cause


def parse_toml(text: str, name: str, error: type[AutofitError] = UsageError) -> dict[str, Any]:
    """The table that a TOML text holds.

    Raises:
        error: not TOML; the message holds line and column.
    """
    from autofit.text import toml

    if (table := toml.read(text)) is not None:
        return table
    import tomllib

    # the time that a key takes grows with the square of its dots, and a key is on one line
    long = next((i for i, line in enumerate(text.split("\n"), 1) if len(line) > MAX_LINE_CHARACTERS), None)
    if long is not None:
        raise error(f"{name}: line {long} is longer than {MAX_LINE_CHARACTERS} characters")
    try:
        return tomllib.loads(text)
    except ValueError as cause:  # a number of too many digits is none of tomllib's own errors
        raise error(f"{name}: {cause}") from cause
    except RecursionError as cause:
        raise error(f"{name}: nested too deeply") from cause


def list_presets(extra_dirs: Iterable[str | Path] = ()) -> dict[str, str]:
    """Name -> one line about each preset."""
    return {
        name: str(parse_toml(read_text(path), str(path)).get("summary", ""))
        for name, path in sorted(files("presets", extra_dirs).items())
    }


def load_preset(name: str, extra_dirs: Iterable[str | Path] = ()) -> Mapping[str, object]:
    """The options of a preset, as written; what they mean is the settings' business.

    Raises:
        UsageError: no such preset, or not TOML.
    """
    known = files("presets", extra_dirs)
    path = known.get(name)
    if path is None:
        from autofit.text.suggest import close_names

        raise UsageError(
            f"no preset {name[:60]!r}", hint=close_names(name, known) or f"presets: {', '.join(sorted(known))}"
        )
    table = parse_toml(read_text(path), str(path))
    return {key: value for key, value in table.items() if key not in ABOUT_PRESET}


def save(path: Path, values: Mapping[str, Any], heading: Sequence[str] = ()) -> None:
    """Write `values` into a TOML file; keys, comments and order that are already there stay.

    A value `None` removes its key. A new file starts with `heading` as comment lines. The file is replaced at
    once or not at all.

    Raises:
        UsageError: the file there is not TOML, or cannot be written.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(read_text(path)) if path.exists() else tomlkit.document()
    except TOMLKitError as cause:
        raise UsageError(f"{path}: {cause}") from cause
    if not document.as_string():
        for line in heading:
            document.add(tomlkit.comment(line))
    _merge(document, values)
    try:
        write_whole(path, document.as_string().encode("utf-8"))
    except OSError as cause:
        raise UsageError(f"{path}: {cause.strerror or cause}") from cause


def _merge(table: Any, values: Mapping[str, Any]) -> None:
    """Bring a TOML table to `values`, in place; a list of tables is matched by position."""
    for key, value in values.items():
        old = table.get(key)
        if value is None:
            table.pop(key, None)
        elif isinstance(value, Mapping):
            if not isinstance(old, Mapping):
                table[key] = _table(value)
            else:
                _merge(old, value)
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
            _merge_tables(table, key, old, value)
        elif not isinstance(old, (list, Mapping)) and old == value and type(old) is not bool:
            continue  # rewriting would lose how the user wrote the number
        elif isinstance(old, list) and old == list(value if isinstance(value, (list, tuple)) else ()):
            continue
        else:
            table[key] = list(value) if isinstance(value, tuple) else value


def _merge_tables(table: Any, key: str, old: Any, values: Sequence[Mapping[str, Any]]) -> None:
    import tomlkit

    if old is None or len(old) > len(values) or not all(isinstance(item, Mapping) for item in old):
        rows = tomlkit.aot()
        for value in values:
            rows.append(_table(value))
        table[key] = rows
        return
    for item, value in zip(old, values, strict=False):
        _merge(item, value)
    for value in values[len(old) :]:
        old.append(_table(value))


def _table(values: Mapping[str, Any]) -> Any:
    import tomlkit

    table = tomlkit.table()
    _merge(table, values)
    return table
