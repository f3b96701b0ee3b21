"""Model files -> `ModelSpec`. One entry point, `read_model`; each format has its module."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from autofit.domain.model import ModelFiles, Storage
from autofit.domain.text import printable
from autofit.errors import CorruptModelError, ModelError, UsageError
from autofit.readers.files import DISK, first_bytes, foreign

if TYPE_CHECKING:
    from autofit.domain.model import ModelSpec

Role = Literal["model", "mmproj", "lora", "draft"]

_DRAFTS = {"eagle3", "dflash", "gemma4-assistant"}  # architectures that only ever serve another model
_MAX_CANDIDATES = 32


def read_model(model: ModelFiles | str | os.PathLike[str] | Sequence[str], storage: Storage | None = None) -> ModelSpec:
    """The model at a path, in a directory, or in these files (the shards of one model), of the disk or of `storage`.

    Raises:
        ModelNotFoundError: nothing is there. CorruptModelError: a file contradicts itself.
        ModelError: it cannot be read, it is no model, or a directory holds several.
    """
    if isinstance(model, ModelFiles):
        paths, storage = list(model.paths), storage or model.storage
    elif isinstance(model, (str, os.PathLike)):
        paths = [os.fspath(model)]
    else:
        paths = [os.fspath(path) for path in model]
    if not paths:
        raise UsageError("no model file was given")
    if len(paths) > 1:
        _check_shards(paths)
    where = storage or DISK
    return _read_directory(Path(paths[0]), where) if where.is_directory(paths[0]) else _read_file(paths[0], where)


def role_of(model: ModelSpec) -> Role:
    """What a GGUF is for: a model of its own, or a companion of one (llama-adapter.cpp, clip.cpp)."""
    kind = model.metadata.get("general.type")
    if kind == "adapter":
        return "lora"
    if model.architecture == "clip" or kind == "mmproj":
        return "mmproj"
    return "draft" if model.architecture in _DRAFTS else "model"


def group_of(model: ModelSpec) -> Callable[[str], str]:
    """The function from a tensor's name to its group, for this model's names."""
    if model.format == "gguf":
        from autofit.readers.layers import gguf_group

        return gguf_group
    from autofit.readers.hf_layers import hf_group

    return hf_group


def _read_file(path: str, storage: Storage) -> ModelSpec:
    name = Path(path).name
    if name.endswith(".gguf"):
        from autofit.readers.gguf import read_gguf

        return read_gguf(path, storage)
    if name.endswith((".safetensors", ".safetensors.index.json")) or name == "config.json":
        from autofit.readers.safetensors import read_safetensors

        return read_safetensors(path, storage)
    if name.endswith(".json.gz"):
        from autofit.readers.description import read_description

        return read_description(path)
    start = first_bytes(path, 64, storage)
    if start[:4] == b"GGUF":
        from autofit.readers.gguf import read_gguf

        return read_gguf(path, storage)
    if start[8:9] == b"{":
        from autofit.readers.safetensors import read_safetensors

        return read_safetensors(path, storage)
    raise CorruptModelError(printable(path), "neither GGUF nor safetensors", offset_bytes=0, hint=foreign(start))


def _read_directory(directory: Path, storage: Storage) -> ModelSpec:
    names = set(storage.names(str(directory)))
    ggufs = _first_shards(directory, names)
    has_safetensors = any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names)
    if ggufs and has_safetensors:
        raise ModelError(
            f"{printable(str(directory))}: both GGUF and safetensors models are in this directory",
            hint=_choose(ggufs),
        )
    if ggufs:
        return _only_model(directory, ggufs, storage)
    from autofit.readers.safetensors import read_safetensors

    return read_safetensors(directory, storage)


def _only_model(directory: Path, ggufs: Sequence[Path], storage: Storage) -> ModelSpec:
    """The one file that is a model and no companion of one."""
    from autofit.readers.gguf import read_gguf

    if len(ggufs) > _MAX_CANDIDATES:
        raise ModelError(f"{printable(str(directory))}: {len(ggufs)} GGUF models", hint=_choose(ggufs))
    found = [(path, read_gguf(path, storage)) for path in ggufs]
    models = [(path, model) for path, model in found if role_of(model) == "model"] or found
    if len(models) > 1:
        raise ModelError(
            f"{printable(str(directory))}: {len(models)} GGUF models are in this directory",
            hint=_choose([path for path, _ in models]),
        )
    return models[0][1]


def _first_shards(directory: Path, names: set[str]) -> list[Path]:
    """One path for each GGUF model in a directory."""
    ggufs = [name for name in names if name.endswith(".gguf")]
    if not ggufs:
        return []
    from autofit.readers.gguf import shard_names

    firsts = {next((shard for shard in shard_names(name) if shard in names), name) for name in ggufs}
    return [directory / name for name in sorted(firsts)]


def _check_shards(paths: Sequence[str]) -> None:
    from autofit.readers.gguf import shard_names

    if sorted(paths) != sorted(shard_names(paths[0])):
        raise ModelError(
            f"{printable(paths[0])}: these {len(paths)} files are not the shards of one model",
            hint="name one file, or one shard: the others are found by their names",
        )


def _choose(paths: Sequence[Path]) -> str:
    shown = ", ".join(printable(path.name, 80) for path in paths[:6])
    return f"name one of them: {shown}{', ...' if len(paths) > 6 else ''}"
