"""Models of the recorded truth: header descriptions (tests/data/llama) as `ModelSpec`.

`models` are of real size and `archs` tiny, one file each; `tiny` are tiny ones of nearly every architecture,
all in one file, `later` those of architectures that came after the reference build; `plain` are `tiny` ones without
the tensors that older builds do not know and no model needs.

A description holds every metadata key with its GGUF type, and every tensor as name, dims in ne order, ggml
type id and offset; the strings of a vocabulary are only counted.
"""

from __future__ import annotations

import gzip
import json
import re
from functools import cache
from typing import Any

from autofit.domain.dtypes import GGML_TYPES
from autofit.domain.model import ModelFile, ModelSpec, StringArray, TensorInfo

import support

DATA = support.DATA / "llama"
_ELEMENTS = {
    0: "u8",
    1: "i8",
    2: "u16",
    3: "i16",
    4: "u32",
    5: "i32",
    6: "f32",
    7: "bool",
    10: "u64",
    11: "i64",
    12: "f64",
}


def names(part: str) -> list[str]:
    """The models of `models`, `archs`, `tiny` or `later`, shards counted once, by the name of the first."""
    if part in ("tiny", "later"):
        return list(_tiny(part))
    stems = sorted(path.name.removesuffix(".json.gz") for path in (DATA / part).glob("*.json.gz"))
    return [stem for stem in stems if not re.search(r"-000(?!01)\d\d-of-\d{5}$", stem)]


def description(part: str, name: str) -> dict[str, Any]:
    """The description itself: of `tiny`, `later` or `plain`, or of a model of one file."""
    if part in ("tiny", "later"):
        return dict(_tiny(part)[name])
    if part == "plain":
        return _plain(_tiny("tiny")[name])
    return dict(json.loads(gzip.decompress((DATA / part / f"{name}.json.gz").read_bytes())))


@cache
def spec(part: str, name: str) -> ModelSpec:
    """The model that `name` describes; its other shards are found."""
    if part in ("tiny", "later", "plain"):
        return build([{"header_bytes": 0, "file_bytes": 0, **description(part, name)}], [f"{name}.gguf"])
    shards = [name]
    if match := re.fullmatch(r"(.+)-00001-of-(\d{5})", name):
        shards = [f"{match[1]}-{i:05d}-of-{match[2]}" for i in range(1, int(match[2]) + 1)]
    read = [json.loads(gzip.decompress((DATA / part / f"{shard}.json.gz").read_bytes())) for shard in shards]
    return build(read, [f"{shard}.gguf" for shard in shards])


def _plain(described: dict[str, Any]) -> dict[str, Any]:
    optional = re.compile(r"\.(?:input_)?scale$|attn_[qkv]\.bias$")
    return {**described, "tensors": [tensor for tensor in described["tensors"] if not optional.search(tensor[0])]}


@cache
def _tiny(part: str) -> dict[str, Any]:
    lines = gzip.decompress((DATA / f"{part}.jsonl.gz").read_bytes()).decode().splitlines()
    return {model["name"]: model for model in map(json.loads, lines)}


def build(shards: list[dict[str, Any]], paths: list[str]) -> ModelSpec:
    metadata = {key: _value(kind, value) for key, kind, value in shards[0]["kv"]}
    tensors = []
    for index, shard in enumerate(shards):
        for name, ne, type_id, offset in shard["tensors"]:
            ggml = GGML_TYPES[type_id]
            n_bytes = ne[0] // ggml.block_elements * ggml.block_bytes
            for dim in ne[1:]:
                n_bytes *= dim
            offset_bytes = shard["header_bytes"] + offset
            tensors.append(TensorInfo(name, ggml.name, tuple(ne[::-1]), n_bytes, index, offset_bytes))
    arch = str(metadata["general.architecture"])
    tokens = metadata.get("tokenizer.ggml.tokens")
    return ModelSpec(
        name=paths[0].removesuffix(".gguf"),
        format="gguf",
        architecture=arch,
        files=tuple(
            ModelFile(path=p, size_bytes=s["file_bytes"], header_bytes=s["header_bytes"])
            for p, s in zip(paths, shards, strict=True)
        ),
        tensors=tuple(tensors),
        layers=(),
        metadata=metadata,
        metadata_types={key: type_name(kind) for key, kind, _ in shards[0]["kv"]},
        hidden_elements=metadata.get(f"{arch}.embedding_length"),  # type: ignore[arg-type]
        n_vocab=tokens.count if isinstance(tokens, StringArray) else None,
        context_train_tokens=metadata.get(f"{arch}.context_length"),  # type: ignore[arg-type]
    )


def type_name(kind: int | str) -> str:
    """A type as `ModelSpec.metadata_types` has it."""
    if isinstance(kind, str) and kind.startswith("array:"):
        element = kind.removeprefix("array:")
        return f"{element if element == 'str' else _ELEMENTS[int(element)]}[]"
    return kind if isinstance(kind, str) else _ELEMENTS[kind]


def _value(kind: int | str, value: Any) -> object:
    if kind == "array:str":
        return StringArray(count=value["count"], element_type="str")
    if isinstance(kind, str) and kind.startswith("array:"):
        if isinstance(value, dict):
            return StringArray(count=value["count"], element_type=_ELEMENTS[int(kind.split(":")[1])])
        return tuple(value)
    return value
