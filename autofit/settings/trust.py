"""Settings files of a directory that the user has trusted, each with its content: a file that changes is not trusted.

An `autofit.toml` comes along with whatever is downloaded into a directory, so what it may do without a word of the
user is little (`docs/SECURITY.md`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from autofit.errors import UsageError
from autofit.files import config_home, read_bounded, write_whole

MAX_BYTES = 1 << 20


def config_dir(environ: Mapping[str, str]) -> Path:
    """Where the user's own settings are."""
    return config_home(environ) / "autofit"


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
    return trusted(environ).get(_name(path)) == _digest(text)


def trust(path: Path, text: str, environ: Mapping[str, str]) -> None:
    """Trust this file as it is now.

    Raises:
        UsageError: the list cannot be written.
    """
    with _alone(environ):
        _save({**trusted(environ), _name(path): _digest(text)}, environ)


def forget(path: Path, environ: Mapping[str, str]) -> bool:
    """Trust this file no longer; whether it was.

    Raises:
        UsageError: the list cannot be written.
    """
    with _alone(environ):
        known = trusted(environ)
        was = known.pop(_name(path), None) is not None
        if was:
            _save(known, environ)
    return was


def _name(path: Path) -> str:
    """The file's place. A link that lies in another directory is another file, whatever it points to."""
    return os.path.join(os.path.realpath(path.parent), path.name)  # noqa: PTH118


@contextmanager
def _alone(environ: Mapping[str, str]) -> Iterator[None]:
    """Others that change the list wait meanwhile, where directories can be locked."""
    try:
        import fcntl

        _store(environ).parent.mkdir(parents=True, exist_ok=True)
        directory = os.open(_store(environ).parent, os.O_RDONLY)
    except (ImportError, OSError):  # what is wrong with it, the save says
        yield
        return
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


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
