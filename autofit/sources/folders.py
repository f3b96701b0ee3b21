"""Folders that other programs keep models in, and what lies in one: bounded, since anybody may have filled it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from autofit.domain.values import NamedTuple

MAX_ENTRIES = 50_000  #: entries of a folder and all below it that are looked at
MAX_DEPTH = 8
_HOME = ("HOME", "USERPROFILE")


class Entry(NamedTuple):
    """A file below a folder. `name` is its path from there, with slashes."""

    name: str
    path: str
    size_bytes: int


def home(environ: Mapping[str, str]) -> Path:
    """The user's home; a place where nothing is when it is not an absolute path."""
    found = Path(next((environ[name] for name in _HOME if environ.get(name)), ""))
    return found if found.is_absolute() else Path(os.devnull)


def below(environ: Mapping[str, str], variables: Mapping[str, str], default: str) -> Path:
    """The first folder that a variable names, with what stands below it; else `default`, below the home.

    A `~` that a variable starts with is the home. A relative path would depend on where one is, but programs take it.
    """
    for name, rest in variables.items():
        if value := environ.get(name):
            base = home(environ) / value[2:] if value.startswith("~/") else Path(value)
            return base / rest
    return home(environ) / default


def files_below(folder: str | os.PathLike[str], *, max_depth: int = MAX_DEPTH) -> Iterator[Entry]:
    """Ordinary files below a folder, through links to files but not to folders, in the order of their names.

    A broken link, or a name that cannot be shown, is left out; so is what lies deeper, or beyond `MAX_ENTRIES`.
    """
    left = MAX_ENTRIES
    pending = [(os.fspath(folder), "", 0)]
    while pending and left:
        directory, prefix, depth = pending.pop()
        try:
            with os.scandir(directory) as entries:
                found = []
                for entry in entries:
                    left -= 1
                    found.append(entry)
                    if not left:
                        break
        except (OSError, ValueError):
            continue
        deeper = []
        for entry in sorted(found, key=lambda entry: entry.name):
            try:
                if entry.is_dir(follow_symlinks=False):
                    deeper.append((entry.path, f"{prefix}{entry.name}/", depth + 1))
                elif entry.is_file() and entry.name.isprintable():
                    yield Entry(prefix + entry.name, entry.path, entry.stat().st_size)
            except OSError:
                continue
        pending += [one for one in reversed(deeper) if one[2] < max_depth]


def folders_in(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Names of the folders in a folder, sorted; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = []
            for left, entry in zip(range(MAX_ENTRIES), entries, strict=False):
                del left
                if entry.name.isprintable() and entry.is_dir():
                    names.append(entry.name)
    except (OSError, ValueError):
        return
    yield from sorted(names)
