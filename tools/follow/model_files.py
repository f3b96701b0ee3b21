"""Model files for a dry run, out of the descriptions in tests/data/llama: a header, then a hole of the real length.

The vocabulary is left out (`tokenizer.ggml.model` "none", with its size): builds refuse the tokenizers of other
times, it takes most of the time of a dry run, and no byte of a device depends on it.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autofit.domain.dtypes import GGML_TYPES

from support.descriptors import description

SCALAR = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY, U32 = 8, 9, 4
ALIGNMENT = 32
KEPT = "tokenizer.ggml.token_type_count"

KeyValue = tuple[str, Any, Any]


def write(part: str, name: str, folder: Path) -> Path:
    """The model that `name` describes, below `folder`, with its shards; kept if it is there."""
    first = folder / part / f"{name}.gguf"
    if first.is_file():
        return first
    first.parent.mkdir(parents=True, exist_ok=True)
    shards = [name]
    if match := re.fullmatch(r"(.+)-00001-of-(\d{5})", name):
        shards = [f"{match[1]}-{i:05d}-of-{match[2]}" for i in range(1, int(match[2]) + 1)]
    for shard in reversed(shards):  # the first one last: where it is, all are
        described = description(part, shard)
        tensors = laid_out(described["tensors"])
        data_bytes = max((offset + padded_bytes(dims, kind) for _, dims, kind, offset in tensors), default=0)
        _write(folder / part / f"{shard}.gguf", header(described, tensors), data_bytes)
    return first


def without_vocabulary(pairs: Sequence[KeyValue]) -> list[KeyValue]:
    """The metadata with no tokenizer but the number of its tokens."""
    values = {key: value for key, _, value in pairs}
    if "general.architecture" not in values:  # a later shard
        return list(pairs)
    key = f"{values['general.architecture']}.vocab_size"
    tokens = values.get("tokenizer.ggml.tokens")
    n_tokens = values.get(key) if tokens is None else tokens["count"] if isinstance(tokens, dict) else len(tokens)
    kept = [(k, kind, value) for k, kind, value in pairs if (k == KEPT or not k.startswith("tokenizer.")) and k != key]
    size = [] if n_tokens is None else [(key, U32, n_tokens)]
    return [*kept, *size, ("tokenizer.ggml.model", "str", "none")]


def header(described: dict[str, Any], tensors: Sequence[tuple[str, Sequence[int], int, int]]) -> bytes:
    """A GGUF header, padded to where its data begins."""
    pairs = without_vocabulary([(key, kind, value) for key, kind, value in described["kv"]])
    parts = [b"GGUF", struct.pack("<IQQ", described.get("version", 3), len(tensors), len(pairs))]
    parts += [_text(key) + _value(kind, value) for key, kind, value in pairs]
    for name, dims, kind, offset in tensors:
        parts.append(_text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset))
    made = b"".join(parts)
    return made + bytes(-len(made) % ALIGNMENT)


def laid_out(tensors: Sequence[Sequence[Any]]) -> list[tuple[str, Sequence[int], int, int]]:
    """The tensors with their offsets; those of a tiny model are not recorded, and one after another then."""
    recorded = any(offset for _, _, _, offset in tensors)
    at, made = 0, []
    for name, dims, kind, offset in tensors:
        made.append((name, dims, kind, offset if recorded else at))
        at += padded_bytes(dims, kind)
    return made


def padded_bytes(dims: Sequence[int], kind: int) -> int:
    ggml = GGML_TYPES[kind]
    n_bytes = math.prod(dims) // ggml.block_elements * ggml.block_bytes
    return n_bytes + -n_bytes % ALIGNMENT


def _write(path: Path, head: bytes, n_bytes: int) -> None:
    path.write_bytes(head)
    os.truncate(path, len(head) + n_bytes)


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: Any, value: Any) -> bytes:
    if kind == "str":
        return struct.pack("<I", STRING) + _text(value)
    if kind == "array:str":
        texts = ["x"] * value["count"] if isinstance(value, dict) else value
        return struct.pack("<IIQ", ARRAY, STRING, len(texts)) + b"".join(map(_text, texts))
    if isinstance(kind, str):
        element = int(kind.partition(":")[2])
        values = [0] * value["count"] if isinstance(value, dict) else value
        return struct.pack("<IIQ", ARRAY, element, len(values)) + b"".join(
            struct.pack(SCALAR[element], v) for v in values
        )
    return struct.pack("<I", kind) + struct.pack(SCALAR[kind], value)
