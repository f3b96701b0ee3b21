"""`lmstudio:…`: models below LM Studio's folder, `PUBLISHER/REPOSITORY/FILE`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from autofit.domain.model import ModelFiles, StoredModel
from autofit.domain.text import printable
from autofit.errors import ModelNotFoundError, UsageError
from autofit.files import read_bounded
from autofit.sources.choice import models_of
from autofit.sources.folders import Entry, files_below, home

PLACE = "LM Studio"
_OLD = ".cache/lm-studio/models"
_MAX_SETTINGS_BYTES = 1 << 20


def folder(environ: Mapping[str, str]) -> Path:
    """Its models: the folder of its settings, else `~/.lmstudio/models`, else that of old versions."""
    base = home(environ)
    own = base / ".lmstudio"
    try:
        pointed = Path(read_bounded(base / ".lmstudio-home-pointer", 4096).decode("utf-8").strip())
        own = pointed if pointed.is_absolute() else own
    except (OSError, ValueError):
        pass
    try:
        chosen = json.loads(read_bounded(own / "settings.json", _MAX_SETTINGS_BYTES))["downloadsFolder"]
        if isinstance(chosen, str) and Path(chosen).is_absolute():
            return Path(chosen)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    new = own / "models"
    return new if new.is_dir() or not (base / _OLD).is_dir() else base / _OLD


def stored(environ: Mapping[str, str]) -> Iterator[StoredModel]:
    """Every model of the folder: GGUF files, and folders of safetensors."""
    where = folder(environ)
    entries = {entry.name: entry for entry in files_below(where, max_depth=4)}
    for model in models_of({name: entry.size_bytes for name, entry in entries.items()}):
        if model.is_whole:
            yield StoredModel(f"lmstudio:{model.files[0]}", entries[model.files[0]].path, model.size_bytes, PLACE)
    for name in entries:
        if name.endswith("/config.json"):
            directory = name.removesuffix("/config.json")
            size = sum(_weights(entry, directory) for entry in entries.values())
            if size:
                yield StoredModel(f"lmstudio:{directory}", str(where / directory), size, PLACE)


def find(reference: str) -> ModelFiles:
    """The files of `lmstudio:PUBLISHER/REPOSITORY[/FILE]`, or of a part of that which only one model has.

    Raises:
        ModelNotFoundError: none is there, or several are. UsageError: no name.
    """
    word = reference.partition(":")[2].strip("/")
    if not word:
        raise UsageError("lmstudio: what? No model is named", hint="`autofit models` lists what is there")
    models = list(stored(os.environ))
    names = {model.name.removeprefix("lmstudio:"): model for model in models}
    exact = [model for name, model in names.items() if name == word]
    part = [model for name, model in names.items() if word.lower() in name.lower()]
    found = exact or part
    if len(found) == 1:
        return ModelFiles(reference=reference, paths=(found[0].path,))
    shown = ", ".join(printable(model.name, 80) for model in (found or models)[:6]) or "nothing is there"
    what = f"{len(found)} models have that in their names" if found else "no such model in LM Studio's folder"
    raise ModelNotFoundError(f"{printable(reference)}: {what}", hint=f"name one: {shown}")


def _weights(entry: Entry, directory: str) -> int:
    inside = entry.name.startswith(f"{directory}/") and entry.name.endswith(".safetensors")
    return entry.size_bytes if inside else 0
