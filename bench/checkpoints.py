"""Directories of large checkpoints for benches: configuration, index and headers as published, the data a hole.

    python bench/checkpoints.py deepseek-v3 DIRECTORY

`deepseek-v3` writes 163 files with the 91,991 names of the block-quantized original, `llama3-8b` four with 291.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[1] / "tests" / "data" / "vllm" / "configs"
FILES = {"deepseek-v3": 163, "llama3-8b": 4}
BITS = {"BF16": 16, "F32": 32, "F8_E4M3": 8}
Tensor = tuple[str, str, tuple[int, ...]]  #: name, type, shape


def write_checkpoint(name: str, directory: Path) -> Path:
    """A directory of the model `name`; nothing is written where one is already."""
    if (directory / "config.json").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    config = json.loads((CONFIGS / name / "config.json").read_text("utf-8"))
    tensors = list(deepseek(config) if name == "deepseek-v3" else llama(config))
    n_files = FILES[name]
    size = -(-len(tensors) // n_files)
    homes = {}
    for number in range(n_files):
        file = f"model-{number + 1:05d}-of-{n_files:06d}.safetensors"
        part = tensors[number * size : (number + 1) * size]
        write_header(directory / file, part)
        homes |= {tensor[0]: file for tensor in part}
    index = {"metadata": {"total_size": 0}, "weight_map": homes}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), "utf-8")
    shutil.copyfile(CONFIGS / name / "config.json", directory / "config.json")
    return directory


def write_header(path: Path, tensors: list[Tensor]) -> None:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, kind, shape in tensors:
        n_bits = BITS[kind]
        for dim in shape:
            n_bits *= dim
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": (end, end := end + n_bits // 8)}
    raw = json.dumps(entries).encode()
    raw += b" " * (-len(raw) % 8)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    os.truncate(path, 8 + len(raw) + end)


def llama(config: Mapping[str, Any]) -> Iterator[Tensor]:
    hidden, ff, vocab = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", "BF16", (vocab, hidden)
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}"
        for part, out in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden)):
            yield f"{block}.self_attn.{part}_proj.weight", "BF16", (out, hidden)
        for part, shape in (("gate", (ff, hidden)), ("up", (ff, hidden)), ("down", (hidden, ff))):
            yield f"{block}.mlp.{part}_proj.weight", "BF16", shape
        for part in ("input_layernorm", "post_attention_layernorm"):
            yield f"{block}.{part}.weight", "BF16", (hidden,)
    yield "model.norm.weight", "BF16", (hidden,)
    yield "lm_head.weight", "BF16", (vocab, hidden)


def deepseek(config: Mapping[str, Any]) -> Iterator[Tensor]:
    hidden, vocab, n_layers = (config[key] for key in ("hidden_size", "vocab_size", "num_hidden_layers"))
    yield "model.embed_tokens.weight", "BF16", (vocab, hidden)
    for i in range(n_layers + config["num_nextn_predict_layers"]):
        block = f"model.layers.{i}"
        yield from _attention(f"{block}.self_attn", config)
        if i < config["first_k_dense_replace"]:
            yield from _feed_forward(f"{block}.mlp", hidden, config["intermediate_size"])
        else:
            yield f"{block}.mlp.gate.weight", "BF16", (config["n_routed_experts"], hidden)
            yield f"{block}.mlp.gate.e_score_correction_bias", "F32", (config["n_routed_experts"],)
            width = config["moe_intermediate_size"]
            for expert in range(config["n_routed_experts"]):
                yield from _feed_forward(f"{block}.mlp.experts.{expert}", hidden, width)
            yield from _feed_forward(f"{block}.mlp.shared_experts", hidden, width * config["n_shared_experts"])
        for part in ("input_layernorm", "post_attention_layernorm"):
            yield f"{block}.{part}.weight", "BF16", (hidden,)
        if i >= n_layers:
            for part in ("enorm", "hnorm", "shared_head.norm"):
                yield f"{block}.{part}.weight", "BF16", (hidden,)
            yield f"{block}.eh_proj.weight", "BF16", (hidden, 2 * hidden)
            for part in ("embed_tokens", "shared_head.head"):
                yield f"{block}.{part}.weight", "BF16", (vocab, hidden)
    yield "model.norm.weight", "BF16", (hidden,)
    yield "lm_head.weight", "BF16", (vocab, hidden)


def _attention(block: str, config: Mapping[str, Any]) -> Iterator[Tensor]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    q_rank, kv_rank = config["q_lora_rank"], config["kv_lora_rank"]
    nope, rope, value = (config[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    yield from _quantized(f"{block}.q_a_proj", (q_rank, hidden))
    yield from _quantized(f"{block}.q_b_proj", (heads * (nope + rope), q_rank))
    yield from _quantized(f"{block}.kv_a_proj_with_mqa", (kv_rank + rope, hidden))
    yield from _quantized(f"{block}.kv_b_proj", (heads * (nope + value), kv_rank))
    yield from _quantized(f"{block}.o_proj", (hidden, heads * value))
    yield f"{block}.q_a_layernorm.weight", "BF16", (q_rank,)
    yield f"{block}.kv_a_layernorm.weight", "BF16", (kv_rank,)


def _feed_forward(block: str, hidden: int, width: int) -> Iterator[Tensor]:
    for part, shape in (("gate", (width, hidden)), ("up", (width, hidden)), ("down", (hidden, width))):
        yield from _quantized(f"{block}.{part}_proj", shape)


def _quantized(name: str, shape: tuple[int, int]) -> Iterator[Tensor]:
    yield f"{name}.weight", "F8_E4M3", shape
    yield f"{name}.weight_scale_inv", "F32", (-(-shape[0] // 128), -(-shape[1] // 128))


if __name__ == "__main__":
    print(write_checkpoint(sys.argv[1], Path(sys.argv[2])))
