"""Names -> files: what a model reference on the command line leads to."""

from __future__ import annotations

import os
import re

from autofit.domain.model import ModelFiles
from autofit.domain.names import parse_bare
from autofit.domain.patterns import lazy_pattern
from autofit.domain.text import printable
from autofit.errors import ModelNotFoundError, UsageError

_SCHEME = lazy_pattern(r"([A-Za-z][A-Za-z0-9+.-]+):(.*)", re.DOTALL)


def scheme_of(reference: str) -> str | None:
    """The scheme of `SCHEME:NAME` in small letters; `None` of a path, also of one spelled like that."""
    match = None if "\0" in reference or os.path.lexists(reference) else _SCHEME.fullmatch(reference)
    return match[1].lower() if match else None


def resolve(reference: str) -> ModelFiles:
    """The files on this disk that a path, `file://PATH` or `example:NAME` leads to.

    Raises:
        ModelNotFoundError: it is a name of something else. UsageError: not a reference at all.
    """
    check(reference)
    if scheme_of(reference) == "example":
        from autofit.sources.examples import find

        return find(reference)
    found = find_path(reference)
    if found is None:
        raise unknown(reference)
    return found


def check(reference: str) -> None:
    """Raises: UsageError, for a text that names nothing."""
    if not reference or "\0" in reference:
        raise UsageError("the model reference is empty" if not reference else "the model reference contains a NUL byte")


def find_path(reference: str) -> ModelFiles | None:
    """A path, a directory or `file://PATH`; `None` for the name of a repository, where nothing has that path.

    Raises:
        UsageError: a file URL of another machine.
    """
    scheme = scheme_of(reference)
    if scheme == "file":
        return ModelFiles(reference=reference, paths=(_file_path(reference),))
    if scheme is not None:
        return None
    # Path().expanduser() raises for an unknown user, and would make a flag of `./-m.gguf`
    path = os.path.expanduser(reference)  # noqa: PTH111
    if not os.path.lexists(path) and parse_bare(reference) is not None:
        return None
    if os.path.isdir(path):  # noqa: PTH112
        from autofit.sources.directory import quantizations_in

        if (several := quantizations_in(reference, path)) is not None:
            return several
    return ModelFiles(reference=reference, paths=(path,))


def unknown(reference: str) -> ModelNotFoundError:
    """The error for a reference that no source knows."""
    scheme = scheme_of(reference)
    if scheme is None:
        return ModelNotFoundError(f"{printable(reference)}: no such file or directory")
    return ModelNotFoundError(
        f"{printable(reference)}: no such file, and no source for {scheme!r}",
        hint="a model of Ollama's is ollama:NAME:TAG, a repository hf:ORG/REPO; `autofit plugins` lists the sources",
    )


def _file_path(reference: str) -> str:
    from urllib.parse import unquote, urlsplit

    parts = urlsplit(reference)
    if parts.netloc not in {"", "localhost"} or not parts.path:
        raise UsageError(f"{printable(reference)}: a file URL of another machine", hint="write file:///absolute/path")
    return unquote(parts.path)
