"""From a reference to a model: sources find its files, readers read their headers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from autofit import host as plugins
from autofit.domain.names import is_elsewhere
from autofit.domain.values import NamedTuple, replace
from autofit.errors import AutofitError, ModelNotFoundError, PluginError, RemoteError, UsageError
from autofit.host import blamed
from autofit.host import resolve as resolve_ref

if TYPE_CHECKING:
    from autofit.backend import Backend
    from autofit.domain.model import ModelFiles, ModelSpec, Storage
    from autofit.hookspecs import ModelReaderRef

MAX_NEIGHBORS = 1000  #: files of a model's folder that are looked at


class Found(NamedTuple):
    """A model, and where it was found."""

    model: ModelSpec
    files: ModelFiles


def reference_of(where: str, value: object, hint: str = "a path, or example:NAME") -> str:
    """A name or a path as text.

    Raises:
        UsageError: something else.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise UsageError(f"{where} takes a name or a path, not {type(value).__name__}", hint=hint)
    return str(os.fspath(value))


def find(reference: str) -> Found:
    """The model that a reference names.

    Raises:
        ModelNotFoundError, CorruptModelError, ModelError, UsageError, PluginError
    """
    files = locate(reference)
    return Found(read(files), files)


def locate(reference: str) -> ModelFiles:
    """The files of a reference, from the first source of its scheme that knows it.

    Raises:
        ModelNotFoundError: none does. UsageError: it is no reference at all.
    """
    from autofit.domain.model import ModelFiles
    from autofit.sources import check, scheme_of, unknown

    check(reference)
    scheme = scheme_of(reference) or ""
    for ref in plugins.host().model_sources().values():
        if scheme not in ref.schemes:
            continue
        source = resolve_ref(ref.factory)
        with blamed(ref.factory):
            found = source(reference)
            if isinstance(found, ModelFiles):
                return found
            if found is not None:
                paths = [found] if isinstance(found, (str, os.PathLike)) else found
                return ModelFiles(reference=reference, paths=tuple(map(os.fspath, paths)))
    raise unknown(reference)


def read(files: ModelFiles) -> ModelSpec:
    """The model in these files, through the reader of their suffix, or else of their first bytes.

    Raises:
        CorruptModelError, ModelError, PluginError
    """
    from autofit.domain.model import ModelSpec

    chosen = _reader_of(files.paths[0] if files.paths else "", files.storage)
    reader = resolve_ref(chosen.factory)
    with blamed(chosen.factory):
        if files.storage is None:
            model = reader(files.paths)
        else:
            try:
                model = reader(files.paths, files.storage)
            finally:
                files.storage.close()
        if not isinstance(model, ModelSpec):
            raise PluginError(f"{chosen.factory} must return a ModelSpec, not {type(model).__name__}")
        return model


def _reader_of(path: str, storage: Storage | None) -> ModelReaderRef:
    """By suffix, where a directory has `/`; by first bytes; else the reader of what has neither, with suffix ``."""
    from autofit.readers.files import DISK, first_bytes

    refs = tuple(plugins.host().model_readers().values())
    # os.path answers for any text, pathlib raises for some
    is_directory = os.path.isdir(path) if storage is None else storage.is_directory(path)  # noqa: PTH112
    name = f"{path}/" if is_directory else path
    if chosen := next((ref for ref in refs if name.endswith(tuple(filter(None, ref.suffixes)))), None):
        return chosen
    magics = [ref for ref in refs if ref.magic]
    start = first_bytes(path, max(len(ref.magic) for ref in magics), storage or DISK) if magics else b""
    found = next((ref for ref in magics if start.startswith(ref.magic)), None)
    return found or next(ref for ref in refs if "" in ref.suffixes)


def written_as(reference: str, model: ModelSpec, files: ModelFiles) -> str:
    """What a command says for a model: its first file, the checkpoint's directory, or a name that the engine knows."""
    from autofit.sources import scheme_of

    if files.written is not None:
        return files.written
    if model.format == "gguf":
        path = model.files[0].path
    else:
        # os.path leaves a `~` alone that it cannot look up, pathlib raises
        path = str(Path(model.files[0].path).parent) if scheme_of(reference) else os.path.expanduser(reference)  # noqa: PTH111
    if not os.path.exists(path):  # noqa: PTH110
        return reference  # an example without a file, which a check reads again
    # a file that is called like a name elsewhere
    return f"./{path}" if is_elsewhere(path) else path


def with_companions(
    model: ModelSpec, named: Mapping[str, str], sought: Mapping[str, str] = MappingProxyType({})
) -> ModelSpec:
    """The model with the files that are named beside it, by role, and of those that are `sought` what is found."""
    missing = {role: path for role, path in named.items() if role not in model.companions}
    extra = {role: find(path).model for role, path in missing.items()}
    for role, path in sought.items():
        if role not in model.companions and role not in extra:
            with suppress(ModelNotFoundError, RemoteError):
                extra[role] = find(path).model
    if not extra:
        return model
    return replace(model, companions={**model.companions, **extra})


def beside(backend: Backend, model: ModelSpec, files: ModelFiles, named: Mapping[str, str]) -> dict[str, ModelSpec]:
    """The models of the same folder that the engine could load too, but for roles that the command names.

    Of quantizations that have a folder each, also of the folder that was named, which they share.
    """
    path = model.files[0].path if model.files else ""
    if files.storage is not None or not os.path.isfile(path):  # noqa: PTH113 - a path of any text; an example has no file
        return {}
    own = {os.path.basename(file.path) for file in model.files}  # noqa: PTH119
    found: dict[str, ModelSpec] = {}
    for folder in _folders(path, files):
        with suppress(OSError), os.scandir(folder or ".") as entries:
            names = sorted(entry.name for entry in islice(entries, MAX_NEIGHBORS) if entry.name not in own)
            for role, name in backend.beside(names).items():
                if role not in named and role not in found:
                    with suppress(AutofitError):
                        found[role] = find(os.path.join(folder, name)).model  # noqa: PTH118
    return found


def _folders(path: str, files: ModelFiles) -> list[str]:
    """The folder of a model's first file, and the one above where several quantizations have a folder each."""
    own = os.path.dirname(path)  # noqa: PTH120
    shared = {os.path.dirname(os.path.dirname(offer.reference)) for offer in files.offers}  # noqa: PTH120
    alone = len({os.path.dirname(offer.reference) for offer in files.offers}) == len(files.offers) > 1  # noqa: PTH120
    return [own, *(shared if alone and len(shared) == 1 and os.path.dirname(own) in shared else ())]  # noqa: PTH120


def missing(model: ModelSpec) -> Iterator[str]:
    """What the files of a model lack, in words."""
    from autofit.domain.units import format_bytes

    total = format_bytes(model.missing_bytes)
    if model.n_missing_files:
        of = f" of {total} in all" if model.missing_bytes else ""
        yield (
            f"{model.n_missing_files} files of weights{of} are not here: their tensors are those of the configuration, "
            "not of their headers"
        )
    elif model.missing_bytes:
        yield f"the files lack {total} of their weights: download them to their end before the start"
