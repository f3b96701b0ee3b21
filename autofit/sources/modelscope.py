"""`modelscope:ORG/NAME`: models that ModelScope's client has downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from autofit.domain.model import ModelFiles, StoredModel
from autofit.domain.names import HubName, parse_hub
from autofit.domain.text import printable
from autofit.errors import ModelNotFoundError, UsageError
from autofit.sources.choice import choose, models_of, with_file
from autofit.sources.folders import below, files_below, folders_in

PLACE = "ModelScope"


def roots(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Folders that hold `ORG/NAME`: of client 1.20 and later, and of older ones."""
    base = below(environ, {"MODELSCOPE_CACHE": ""}, ".cache/modelscope/hub")
    return (base / "models", base / "hub" / "models", base)


def stored(environ: Mapping[str, str]) -> Iterator[StoredModel]:
    """Every model of these folders."""
    seen: set[str] = set()
    for root in roots(environ):
        for org in folders_in(root):
            if org.startswith((".", "_")) or org in ("models", "hub", "datasets"):
                continue
            for folder in folders_in(root / org):
                # the client writes a dot as three underscores
                repository = f"{org}/{folder}".replace("___", ".")
                if repository not in seen and not folder.startswith("."):
                    seen.add(repository)
                    yield from _models(repository, root / org / folder)


def find(reference: str) -> ModelFiles:
    """The files of `modelscope:ORG/NAME[:quant or file]`.

    Raises:
        ModelNotFoundError: it is not on this machine. UsageError: no such name.
    """
    name = parse_hub(reference.partition(":")[2])
    if name is None or "/" not in name.repository:
        raise UsageError(f"{printable(reference)}: not a repository", hint="write modelscope:ORG/NAME")
    for root in roots(os.environ):
        for spelled in (name.repository, name.repository.replace(".", "___")):
            directory = root / spelled
            if directory.is_dir():
                return _files(reference, name, directory)
    raise ModelNotFoundError(
        f"{printable(reference)}: not on this machine",
        hint=f"download it: modelscope download --model {name.repository}; or have it read from there: "
        f"MODEL_ENDPOINT=https://www.modelscope.cn and {name.repository}",
    )


def _files(reference: str, name: HubName, directory: Path) -> ModelFiles:
    entries = {entry.name: entry for entry in files_below(directory, max_depth=3)}
    models = models_of({key: entry.size_bytes for key, entry in entries.items()})
    model = with_file(models, name.file) if name.file else choose(models, name.quantization)
    if model is not None:
        return ModelFiles(reference=reference, paths=(entries[model.files[0]].path,))
    if name.choice is not None and not (name.file and name.file in entries):
        raise ModelNotFoundError(f"{printable(reference)}: {printable(str(directory))} holds no such model")
    return ModelFiles(reference=reference, paths=(str(directory / name.file if name.file else directory),))


def _models(repository: str, directory: Path) -> Iterator[StoredModel]:
    entries = {entry.name: entry for entry in files_below(directory, max_depth=3)}
    models = [m for m in models_of({name: e.size_bytes for name, e in entries.items()}) if m.is_whole]
    for model in models:
        name = f"modelscope:{repository}:{model.files[0]}"
        yield StoredModel(name, entries[model.files[0]].path, model.size_bytes, PLACE)
    size = sum(entry.size_bytes for name, entry in entries.items() if name.endswith(".safetensors"))
    if not models and size and "config.json" in entries:
        yield StoredModel(f"modelscope:{repository}", str(directory), size, PLACE)
