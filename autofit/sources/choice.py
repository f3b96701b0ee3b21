"""Which files of a repository are one model, and which model is meant: the rules of llama.cpp's `-hf`.

Source: common/download.cpp (get_gguf_split_info, find_best_model, find_best_sibling, gguf_filename_is_model).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from autofit.domain.patterns import lazy_pattern
from autofit.domain.values import NamedTuple

DEFAULT_TAGS = ("Q4_K_M", "Q8_0")  #: tried in this order where nothing was chosen
_COMPANIONS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")  #: parts of names of files beside models
_SPLIT = lazy_pattern(r"(.+)-([0-9]{5})-of-([0-9]{5})", re.ASCII | re.DOTALL | re.IGNORECASE)
_TAG = lazy_pattern(r"[-.]([A-Z0-9_]+)$", re.ASCII | re.IGNORECASE)
_QUANTIZATION = lazy_pattern(r"(?:I?Q[0-9]|TQ[0-9]|B?F16|FP?16|FP?32|MXFP[0-9]|NVFP[0-9])[A-Z0-9_]*", re.ASCII)
_DYNAMIC = lazy_pattern(r"[-.](?:UD|i1)$", re.ASCII)  #: before the quantization: types of a mixture that others choose
_DIGITS = lazy_pattern(r"[0-9]{1,9}", re.ASCII)


class GgufModel(NamedTuple):
    """A model of a repository: its files in order, its quantization as their names spell it, their bytes."""

    files: tuple[str, ...]
    quantization: str  #: in capitals; empty where the name says none
    size_bytes: int
    is_whole: bool  #: no shard is missing


class _Name(NamedTuple):
    prefix: str
    tag: str
    number: int  #: of this shard, from 1
    n_shards: int


def models_of(sizes: Mapping[str, int]) -> tuple[GgufModel, ...]:
    """The GGUF models among files of these sizes, in the order of their names; companions of models are left out."""
    groups: dict[tuple[str, int], dict[int, str]] = {}
    for path in sorted(sizes):
        if is_model(path):
            name = split_name(path)
            groups.setdefault((name.prefix, name.n_shards), {})[name.number] = path
    found = []
    for (_, count), shards in groups.items():
        files = tuple(shards[index] for index in sorted(shards))
        tag = split_name(files[0]).tag
        found.append(GgufModel(files, tag, sum(map(sizes.__getitem__, files)), len(files) == count and 1 in shards))
    return tuple(found)


def choose(models: Sequence[GgufModel], quantization: str | None = None) -> GgufModel | None:
    """The model of this quantization; where none is named the engine's own choice: Q4_K_M, Q8_0, the first."""
    for tag in (quantization,) if quantization else DEFAULT_TAGS:
        pattern = re.compile(re.escape(tag) + "[.-]", re.IGNORECASE)
        for model in models:
            if pattern.search(model.files[0]):
                return model
    return models[0] if models and not quantization else None


def are_one_model(models: Iterable[GgufModel]) -> bool:
    """Whether their names differ by the quantization alone, and all say which."""
    stems = [split_name(model.files[0].rpartition("/")[2]) for model in models]
    if not all(_QUANTIZATION.fullmatch(stem.tag) for stem in stems):
        return False
    return len({_DYNAMIC.sub("", stem.prefix[: -len(stem.tag) - 1]).casefold() for stem in stems}) == 1


def with_file(models: Iterable[GgufModel], file: str) -> GgufModel | None:
    """The model that this file is a part of."""
    return next((model for model in models if file in model.files), None)


def sibling(paths: Iterable[str], model: str, keyword: str) -> str | None:
    """The file beside a model whose name holds `keyword`: nearest folder first, then nearest in bits."""
    own_parts, own_bits = model.split("/")[:-1], _bits(model)
    best: tuple[int, int] | None = None
    found = None
    for path in sorted(paths):
        if not path.endswith(".gguf") or keyword not in path:
            continue
        folder = path.split("/")[:-1]
        if folder != own_parts[: len(folder)]:
            continue
        rank = (-len(folder), abs(_bits(path) - own_bits))
        if best is None or rank < best:
            best, found = rank, path
    return found


def is_model(path: str) -> bool:
    """Whether the name is that of a model, and of no companion of one."""
    name = path.rpartition("/")[2]
    return path.endswith(".gguf") and not any(word in name for word in _COMPANIONS)


def split_name(path: str) -> _Name:
    """What a GGUF file's name says: prefix without shard number, quantization, shard and number of shards."""
    prefix, index, count = path.removesuffix(".gguf"), 1, 1
    if match := _SPLIT.fullmatch(prefix):
        prefix, index, count = match[1], int(match[2]), int(match[3])
    tag = _TAG.search(prefix)
    return _Name(prefix, tag[1].upper() if tag else "", index, count)


def _bits(path: str) -> int:
    digits = _DIGITS.search(split_name(path).tag)
    return int(digits[0]) if digits else 0
