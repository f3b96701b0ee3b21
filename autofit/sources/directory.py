"""A directory of GGUF files: the quantizations of one model that lie in it, as a repository offers them."""

from __future__ import annotations

import os

from autofit.domain.model import ModelFiles, Offer
from autofit.domain.text import printable
from autofit.sources.choice import GgufModel, are_one_model, choose, is_model, models_of
from autofit.sources.folders import Entry, files_below

_CHECKPOINT = (".safetensors", ".safetensors.index.json")


def quantizations_in(reference: str, directory: str) -> ModelFiles | None:
    """The files of the quantization that engines take where none is named, with all of them as offers.

    `None`: the directory does not hold several quantizations of one model. Where it has no GGUF file itself, they may
    lie one folder deeper, as repositories with large ones have them.
    """
    entries = list(files_below(directory, max_depth=2))
    here = [entry for entry in entries if "/" not in entry.name]
    if any(entry.name.endswith(_CHECKPOINT) for entry in here):
        return None
    ggufs = [entry for entry in here if is_model(entry.name)] or entries
    models = [model for model in models_of({entry.name: entry.size_bytes for entry in ggufs}) if model.is_whole]
    taken = choose(models)
    if taken is None or len(models) < 2 or not are_one_model(models):
        return None
    paths = {entry.name: _path(directory, entry) for entry in ggufs}
    offers = tuple(Offer(paths[model.files[0]], model.quantization, model.size_bytes) for model in models)
    return ModelFiles(
        reference=reference, paths=(paths[taken.files[0]],), offers=offers, notes=(_note(directory, models, taken),)
    )


def _path(directory: str, entry: Entry) -> str:
    return os.path.join(directory, *entry.name.split("/"))  # noqa: PTH118 - a path of any text, and `./` stays


def _note(directory: str, models: list[GgufModel], taken: GgufModel) -> str:
    names = ", ".join(printable(model.quantization, 40) for model in models[:8]) + (", ..." if models[8:] else "")
    return (
        f"{printable(directory)} has {len(models)} quantizations of one model ({names}); "
        f"this is {printable(taken.files[0], 80)}: name another file, or compare them with `autofit advise`"
    )
