"""Folders and repositories that have several quantizations of one model, as sparse files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from autofit.host import host
from autofit.references import find

from support import ROOT, ggufs

LLAMA = "llama-3.1-8b-q4_k_m"
STEM = "Llama-3.1-8B"


@cache
def forms(example: str = LLAMA) -> Mapping[str, ggufs.Gguf]:
    """Every quantization of an example, by its name: the types that llama-quantize gives to each tensor."""
    described = json.loads(gzip.decompress((ROOT / f"autofit/_models/{example}.json.gz").read_bytes()))
    at_hand = ggufs.from_description(described)
    made = {}
    for form in host().backend("llama").quantizations(find(f"example:{example}").model):
        if form.model is not None:
            types = {tensor.name: tensor.type for tensor in form.model.tensors}
            tensors = [tensor._replace(type=types[tensor.name]) for tensor in at_hand.tensors]
            made[form.name] = ggufs.Gguf(metadata=at_hand.metadata, tensors=tensors)
    return made


def write(folder: Path, names: Iterable[str], *, stem: str = STEM, n_shards: int = 1) -> Path:
    """The folder with a file, or shards, of each quantization."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if n_shards == 1:
            forms()[name].write(folder / f"{stem}-{name}.gguf")
        else:
            ggufs.write_split(folder, f"{stem}-{name}", forms()[name], n_shards)
    return folder
