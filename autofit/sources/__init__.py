"""Names -> files: what a model reference on the command line leads to."""

from __future__ import annotations

import os
import re

from autofit.domain.model import ModelFiles
from autofit.domain.text import printable
from autofit.errors import ModelNotFoundError, UsageError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(.*)", re.DOTALL)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*(?<!\.gguf)(?<!\.json)(?<!\.safetensors)", re.ASCII)
_NOT_YET = {
    "hf": "download it first (`hf download REPOSITORY`) and give the path",
    "http": "download the file first and give its path",
    "https": "download the file first and give its path",
    "docker": "give the path of the model's file",
    "ollama": "give the path of the blob that `ollama show --modelfile NAME` prints after FROM",
    "lmstudio": "give the path of the file under LM Studio's models folder",
}


def scheme_of(reference: str) -> str | None:
    """The scheme of `SCHEME:NAME` in small letters; `None` of a path, also of one spelled like that."""
    match = None if "\0" in reference or os.path.lexists(reference) else _SCHEME.fullmatch(reference)
    return match[1].lower() if match else None


def resolve(reference: str) -> ModelFiles:
    """The local files of a reference: a path, a directory, `file://PATH` or `example:NAME`.

    A path that exists wins over a scheme of the same spelling.

    Raises:
        ModelNotFoundError: nothing is there, or the scheme has no source.
        UsageError: not a reference at all.
    """
    if not reference or "\0" in reference:
        raise UsageError("the model reference is empty" if not reference else "the model reference contains a NUL byte")
    scheme = scheme_of(reference)
    if scheme in (None, "file"):
        return find_path(reference)
    if scheme == "example":
        from autofit.sources.examples import find

        return find(reference)
    raise unknown(reference)


def find_path(reference: str) -> ModelFiles:
    """A path, a directory or `file://PATH`.

    Raises:
        ModelNotFoundError: it looks like a repository, and is no path. UsageError: a file URL of another machine.
    """
    if scheme_of(reference) is None:
        # Path().expanduser() raises for an unknown user, and would make a flag of `./-m.gguf`
        path = os.path.expanduser(reference)  # noqa: PTH111
        if _REPOSITORY.fullmatch(reference) and not os.path.lexists(path):
            raise ModelNotFoundError(
                f"{reference}: no such file or directory", hint=f"if it is a repository, {_NOT_YET['hf']}"
            )
        return ModelFiles(reference=reference, paths=(path,))
    return ModelFiles(reference=reference, paths=(_file_path(reference),))


def unknown(reference: str) -> ModelNotFoundError:
    """The error for a reference that no source knows."""
    scheme = scheme_of(reference)
    if scheme in _NOT_YET:
        return ModelNotFoundError(
            f"{printable(reference)}: {scheme} references are not read yet", hint=_NOT_YET[scheme]
        )
    return ModelNotFoundError(f"{printable(reference)}: no such file, and no source for {scheme!r}")


def _file_path(reference: str) -> str:
    from urllib.parse import unquote, urlsplit

    parts = urlsplit(reference)
    if parts.netloc not in {"", "localhost"} or not parts.path:
        raise UsageError(f"{printable(reference)}: a file URL of another machine", hint="write file:///absolute/path")
    return unquote(parts.path)
