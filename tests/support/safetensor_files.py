"""safetensors files for tests: any header, with data as a hole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Tensors = Mapping[str, tuple[str, Sequence[int]]]  #: name -> type and shape

BITS = {"F32": 32, "BF16": 16, "F16": 16, "F8_E4M3": 8, "F4": 4, "U8": 8, "I8": 8, "I32": 32, "I64": 64}


def header(tensors: Mapping[str, tuple[str, Sequence[int]]], notes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The entries of a header, laid out one after the other."""
    entries: dict[str, Any] = {"__metadata__": dict(notes)} if notes else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        n_bits = BITS[dtype]
        for dim in shape:
            n_bits *= dim
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + n_bits // 8]}
        end += n_bits // 8
    return entries


def write(path: Path, entries: Mapping[str, Any] | bytes, n_data: int | None = None) -> Path:
    """A file with this header (or these bytes of one) and a hole for the data."""
    if isinstance(entries, bytes):
        raw, end = entries, n_data or 0
    else:
        raw = json.dumps(entries).encode()
        raw += b" " * (-len(raw) % 8)
        end = max((e["data_offsets"][1] for n, e in entries.items() if n != "__metadata__"), default=0)
        end = end if n_data is None else n_data
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    os.truncate(path, 8 + len(raw) + end)
    return path


def write_tensors(path: Path, tensors: Tensors, **options: Any) -> Path:
    return write(path, header(tensors, **options))


def llama(
    n_layer: int = 2, n_embd: int = 64, n_ff: int = 128, n_vocab: int = 100, dtype: str = "BF16"
) -> dict[str, Any]:
    """Tensors of a small dense model under Hugging Face names."""
    tensors: dict[str, Any] = {"model.embed_tokens.weight": (dtype, (n_vocab, n_embd))}
    for i in range(n_layer):
        block = f"model.layers.{i}"
        tensors |= {f"{block}.self_attn.{x}_proj.weight": (dtype, (n_embd, n_embd)) for x in "qkvo"}
        tensors |= {f"{block}.mlp.{x}_proj.weight": (dtype, (n_ff, n_embd)) for x in ("gate", "up")}
        tensors |= {
            f"{block}.mlp.down_proj.weight": (dtype, (n_embd, n_ff)),
            f"{block}.input_layernorm.weight": (dtype, (n_embd,)),
        }
    return tensors | {"model.norm.weight": (dtype, (n_embd,)), "lm_head.weight": (dtype, (n_vocab, n_embd))}


def write_sharded(directory: Path, tensors: Mapping[str, Any], n_shards: int) -> Path:
    """A directory with `n_shards` files and their index; returns the index."""
    names = list(tensors)
    size = -(-len(names) // n_shards)
    weight_map = {}
    for number in range(n_shards):
        file = f"model-{number + 1:05d}-of-{n_shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[number * size : (number + 1) * size]}
        write_tensors(directory / file, part)
        weight_map |= dict.fromkeys(part, file)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 2048,
}


def write_model(directory: Path, *, n_shards: int = 0, config: Mapping[str, Any] = CONFIG, **dims: Any) -> Path:
    """A model directory: config.json and one file, or `n_shards` with their index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if n_shards:
        write_sharded(directory, llama(**dims), n_shards)
    else:
        write_tensors(directory / "model.safetensors", llama(**dims))
    return directory
