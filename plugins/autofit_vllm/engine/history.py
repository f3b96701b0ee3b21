"""What releases before the newest known one had, as records of change (`history.json`).

The file is read when a plan is for such a release, and not before. A record holds up to a release, and the first one
that reaches the release asked for counts; where none does, the newest table holds.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Section = Literal["flags", "defaults", "classes", "facts"]
_MISSING = object()


def release_key(release: str) -> tuple[int, ...]:
    """Numbers of a release, padded: `0.10.1.1` is after `0.10.1` and before `0.10.2`."""
    numbers = [int(part) for part in release.split(".")]
    return tuple([*numbers, 0, 0, 0][:4])


@functools.cache
def _read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parent / "history.json").read_text(encoding="utf-8"))
    return found


@functools.cache
def releases() -> tuple[str, ...]:
    """Every known release, the oldest first."""
    return tuple(_read()["versions"])


@functools.cache
def _changes(section: Section, release: str) -> dict[str, Any]:
    """NAME -> what it was at `release`, of names that differ from the newest table; `_MISSING`: it was not there."""
    wanted = release_key(release)
    found: dict[str, Any] = {}
    for until, name, *value in _read()[section]:  # newest first: the last record that reaches the release counts
        if release_key(until) >= wanted:
            found[name] = value[0] if value else _MISSING
    return found


def table_at(section: Section, release: str, newest: Mapping[str, Any]) -> dict[str, Any]:
    """`newest` as it was at a release; names that it has not come last."""
    changed = _changes(section, release)
    merged = {**newest, **changed}
    return {name: value for name, value in merged.items() if value is not _MISSING}


def facts_at(release: str) -> dict[str, Any]:
    """Constants that no flag sets."""
    return table_at("facts", release, _read()["newest"]["facts"])


def defaults_at(release: str) -> dict[str, Any]:
    """What options were by default, of those whose default has changed since."""
    return {name: value for name, value in _changes("defaults", release).items() if value is not _MISSING}


def first_with(section: Section, name: str) -> str | None:
    """The release that brought a name that the newest table has; `None`: it was there from the start."""
    versions = _read()["versions"]
    absent = [until for until, each, *value in _read()[section] if each == name and not value]
    if not absent:
        return None
    newest_absent = max(absent, key=release_key)
    after = [version for version in versions if release_key(version) > release_key(newest_absent)]
    return after[0] if after else None


def last_with(section: Section, name: str) -> str | None:
    """The last release that had a name which the newest table has not."""
    present = [until for until, each, *value in _read()[section] if each == name and value]
    return max(present, key=release_key) if present else None


# -- Options, whose JSON values have keys --------------------------------------------------------------


def flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the flag table by name: the option itself, and each key of its value by its path."""
    dest, keys = row["dest"], row.get("keys")
    found: dict[str, Any] = {dest: {name: value for name, value in row.items() if name not in ("keys", "dest")}}
    if isinstance(keys, Mapping):
        found[f"{dest}."] = None
        found |= _flat_keys(dest, keys)
    return found


def _flat_keys(path: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in keys.items():
        nested = isinstance(value, Mapping)
        found[f"{path}.{name}"] = {} if nested else value
        if nested:
            found |= _flat_keys(f"{path}.{name}", value)
    return found


def options_at(release: str, newest: tuple[Mapping[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """The flag table of a release, from the newest."""
    flat: dict[str, Any] = {}
    for row in newest:
        flat |= flatten(row)
    rows: dict[str, dict[str, Any]] = {}
    table = table_at("flags", release, flat)
    for name in sorted(table, key=lambda name: name.count(".")):  # what holds keys comes before them
        dest, dot, path = name.partition(".")
        if not dot:
            rows[name] = {**table[name], "dest": name}
        elif not path:
            rows[dest].setdefault("keys", {})
        else:
            *outer, last = path.split(".")
            keys = rows[dest].setdefault("keys", {})
            for key in outer:
                keys = keys[key]
            value = table[name]
            keys[last] = {} if value == {} else value
    return tuple(rows.values())
