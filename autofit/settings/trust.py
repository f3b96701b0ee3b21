"""Settings files of a directory that the user has trusted, each with its content: a file that changes is not trusted.

An `autofit.toml` comes along with whatever is downloaded into a directory, so what it may do without a word of the
user is little (`docs/SECURITY.md`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from autofit.errors import UsageError
from autofit.files import read_bounded, write_whole

MAX_BYTES = 1 << 20


def config_dir(environ: Mapping[str, str]) -> Path:
    """Where the user's own settings are."""
    # os.path leaves a `~` alone that it cannot look up, pathlib raises
    return Path(os.path.expanduser(environ.get("XDG_CONFIG_HOME") or "~/.config")) / "autofit"  # noqa: PTH111


def trusted(environ: Mapping[str, str]) -> dict[str, str]:
    """Absolute path -> hash of the content that was trusted. What is no such list trusts nothing."""
    import json

    try:
        found = json.loads(read_bounded(_store(environ), MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {path: digest for path, digest in entries if isinstance(digest, str)}


def is_trusted(path: Path, text: str, environ: Mapping[str, str]) -> bool:
    return trusted(environ).get(os.path.realpath(path)) == _digest(text)


def trust(path: Path, text: str, environ: Mapping[str, str]) -> None:
    """Trust this file as it is now.

    Raises:
        UsageError: the list cannot be written.
    """
    _save({**trusted(environ), os.path.realpath(path): _digest(text)}, environ)


def forget(path: Path, environ: Mapping[str, str]) -> bool:
    """Trust this file no longer; whether it was.

    Raises:
        UsageError: the list cannot be written.
    """
    known = trusted(environ)
    was = known.pop(os.path.realpath(path), None) is not None
    if was:
        _save(known, environ)
    return was


def _save(entries: Mapping[str, str], environ: Mapping[str, str]) -> None:
    import json

    store = _store(environ)
    try:
        write_whole(store, (json.dumps(dict(sorted(entries.items())), indent=2) + "\n").encode())
    except OSError as error:
        raise UsageError(f"{store}: {error.strerror or error}") from error


def _store(environ: Mapping[str, str]) -> Path:
    return config_dir(environ) / "trusted.json"


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
