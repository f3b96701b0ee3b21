"""Model files -> `ModelSpec`. One entry point, `read_model`; each format has its module."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from autofit.domain.model import ModelFiles
from autofit.domain.text import printable
from autofit.errors import ModelError, UsageError
from autofit.readers.files import explain, first_bytes

if TYPE_CHECKING:
    from autofit.domain.model import ModelSpec

Role = Literal["model", "mmproj", "lora", "draft"]

_DRAFTS = {"eagle3", "dflash", "gemma4-assistant"}  # architectures that only ever serve another model
_MAX_CANDIDATES = 32


def read_model(model: ModelFiles | str | os.PathLike[str] | Sequence[str]) -> ModelSpec:
    """The model at a path, in a directory, or in these files (the shards of one model).

    Raises:
        ModelNotFoundError: nothing is there. CorruptModelError: a file contradicts itself.
        ModelError: it cannot be read, it is no model, or a directory holds several.
    """
    if isinstance(model, ModelFiles):
        paths = list(model.paths)
    elif isinstance(model, (str, os.PathLike)):
        paths = [os.fspath(model)]
    else:
        paths = [os.fspath(path) for path in model]
    if not paths:
        raise UsageError("no model file is named")
    if len(paths) > 1:
        _check_shards(paths)
    path = Path(paths[0])
    return _read_directory(path) if _is_directory(path) else _read_file(path)


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


def _read_file(path: Path) -> ModelSpec:
    name = path.name
    if name.endswith(".gguf"):
        from autofit.readers.gguf import read_gguf

        return read_gguf(path)
    if name.endswith((".safetensors", ".safetensors.index.json")) or name == "config.json":
        from autofit.readers.safetensors import read_safetensors

        return read_safetensors(path)
    if name.endswith(".json.gz"):
        from autofit.readers.description import read_description

        return read_description(path)
    start = first_bytes(str(path), 16)
    if start[:4] == b"GGUF":
        from autofit.readers.gguf import read_gguf

        return read_gguf(path)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32:
        from autofit.readers.safetensors import read_safetensors

        return read_safetensors(path)
    raise ModelError(
        f"{printable(str(path))}: byte 0: neither GGUF nor safetensors", hint=_other_format(name, start)
    )


def _read_directory(directory: Path) -> ModelSpec:
    try:
        names = {entry.name for entry in os.scandir(directory)}
    except OSError as error:
        raise explain(str(directory), error) from error
    ggufs = _first_shards(directory, names)
    has_safetensors = any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names)
    if ggufs and has_safetensors:
        raise ModelError(
            f"{printable(str(directory))}: both GGUF and safetensors models are in this directory",
            hint=_choose(ggufs),
        )
    if ggufs:
        return _only_model(directory, ggufs)
    from autofit.readers.safetensors import no_weights, read_safetensors

    if not has_safetensors:
        raise no_weights(directory)
    return read_safetensors(directory)


def _only_model(directory: Path, ggufs: Sequence[Path]) -> ModelSpec:
    """The one file that is a model and no companion of one."""
    from autofit.readers.gguf import read_gguf

    if len(ggufs) > _MAX_CANDIDATES:
        raise ModelError(f"{printable(str(directory))}: {len(ggufs)} GGUF models", hint=_choose(ggufs))
    found = [(path, read_gguf(path)) for path in ggufs]
    models = [(path, model) for path, model in found if role_of(model) == "model"] or found
    if len(models) > 1:
        raise ModelError(
            f"{printable(str(directory))}: {len(models)} GGUF models are in this directory",
            hint=_choose([path for path, _ in models]),
        )
    return models[0][1]


def _first_shards(directory: Path, names: set[str]) -> list[Path]:
    """One path for each GGUF model in a directory."""
    from autofit.readers.gguf import shard_names

    firsts = {
        next((shard for shard in shard_names(name) if shard in names), name)
        for name in names
        if name.endswith(".gguf")
    }
    return [directory / name for name in sorted(firsts)]


def _check_shards(paths: Sequence[str]) -> None:
    from autofit.readers.gguf import shard_names

    if sorted(paths) != sorted(shard_names(paths[0])):
        raise ModelError(
            f"{printable(paths[0])}: these {len(paths)} files are not the shards of one model",
            hint="name one file, or one shard: the others are found by their names",
        )


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError) as error:
        raise explain(str(path), error) from error


def _choose(paths: Sequence[Path]) -> str:
    shown = ", ".join(printable(path.name, 80) for path in paths[:6])
    return f"name one of them: {shown}{', ...' if len(paths) > 6 else ''}"


def _other_format(name: str, start: bytes) -> str | None:
    if name.endswith((".bin", ".pt", ".pth", ".ckpt")) or start[:2] == b"PK":
        return "pickled weights are not read: convert them to safetensors or GGUF"
    if start.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the model: run `git lfs pull`"
    if start.lstrip()[:1] == b"<":
        return "this looks like a web page: download the file itself"
    return None
