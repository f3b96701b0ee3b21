"""Headers of files as large as DeepSeek V3 and Kimi K2 in Q4_K_M: names, shapes and types, and no weights."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from support import DATA, ggufs

LITE = DATA / "llama/models/deepseek-v2-lite-Q4_K_M.json.gz"
GEMMA = DATA / "llama/models/gemma-3-4b-Q4_K_M.json.gz"
Q4_K, Q5_0, Q6_K, F32 = 12, 6, 14, 0
Row = list[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    name: str
    n_vocab: int
    n_head: int
    n_expert: int
    n_dense: int
    groups: tuple[int, int]
    scale: float
    n_ctx: int


DEEPSEEK = Dims(name="DeepSeek-V3", n_vocab=129280, n_head=128, n_expert=256, n_dense=3, groups=(8, 4), scale=2.5,
                n_ctx=163840)  # fmt: skip
KIMI = Dims(name="Kimi-K2", n_vocab=163840, n_head=64, n_expert=384, n_dense=1, groups=(1, 1), scale=2.827,
            n_ctx=131072)  # fmt: skip
_N_EMBD, _N_LAYER, _N_FF, _N_EXPERT_FF = 7168, 61, 18432, 2048


def write_large_files(folder: Path) -> None:
    """`DeepSeek-V3-Q4_K_M.gguf` and `Kimi-K2-Q4_K_M.gguf`, sparse."""
    for dims in (DEEPSEEK, KIMI):
        header, n_bytes = _file(dims)
        path = folder / f"{dims.name}-Q4_K_M.gguf"
        path.write_bytes(header)
        os.truncate(path, n_bytes)


@cache
def _file(dims: Dims) -> tuple[bytes, int]:
    """The header, and the bytes of the whole file."""
    made = ggufs.from_description({"kv": list(_metadata(dims)), "tensors": list(_tensors(dims))})
    return made.header(), made.size_bytes()


def _metadata(dims: Dims) -> Iterator[Row]:
    """Those of DeepSeek V2 Lite, with what the larger models have other, and more."""
    with gzip.open(LITE) as file:
        known: list[Row] = json.loads(file.read())["kv"]
    own = {
        "general.name": dims.name, "block_count": _N_LAYER, "context_length": dims.n_ctx, "embedding_length": _N_EMBD,
        "feed_forward_length": _N_FF, "attention.head_count": dims.n_head, "vocab_size": dims.n_vocab,
        "leading_dense_block_count": dims.n_dense, "expert_feed_forward_length": _N_EXPERT_FF,
        "expert_count": dims.n_expert, "expert_used_count": 8, "expert_shared_count": 1,
        "expert_weights_scale": dims.scale, "expert_weights_norm": True, "expert_gating_func": 2,
        "tokenizer.ggml.tokens": {"count": dims.n_vocab}, "tokenizer.ggml.token_type": {"count": dims.n_vocab},
    }  # fmt: skip
    for key, kind, value in known:
        yield [key, kind, own.get(key, own.get(key.removeprefix("deepseek2."), value))]
    for key, number in (
        ("attention.q_lora_rank", 1536), ("expert_group_count", dims.groups[0]),
        ("expert_group_used_count", dims.groups[1]),
    ):  # fmt: skip
        yield [f"deepseek2.{key}", 4, number]


def _tensors(dims: Dims) -> Iterator[Row]:
    heads = dims.n_head
    yield ["output.weight", [_N_EMBD, dims.n_vocab], Q6_K, 0]
    yield ["output_norm.weight", [_N_EMBD], F32, 0]
    yield ["token_embd.weight", [_N_EMBD, dims.n_vocab], Q4_K, 0]
    for layer in range(_N_LAYER):
        down = Q6_K if layer % 2 else Q4_K  # about half of them, as in files of this type
        own: list[Row] = [
            ["attn_k_b", [128, 512, heads], Q5_0], ["attn_kv_a_mqa", [_N_EMBD, 576], Q4_K],
            ["attn_kv_a_norm", [512], F32], ["attn_norm", [_N_EMBD], F32],
            ["attn_output", [128 * heads, _N_EMBD], Q4_K], ["attn_q_a", [_N_EMBD, 1536], Q4_K],
            ["attn_q_a_norm", [1536], F32], ["attn_q_b", [1536, 192 * heads], Q4_K],
            ["attn_v_b", [512, 128, heads], Q4_K], ["ffn_norm", [_N_EMBD], F32],
        ]  # fmt: skip
        if layer < dims.n_dense:
            own += [["ffn_down", [_N_FF, _N_EMBD], down], ["ffn_gate", [_N_EMBD, _N_FF], Q4_K],
                    ["ffn_up", [_N_EMBD, _N_FF], Q4_K]]  # fmt: skip
        else:
            experts, width = dims.n_expert, _N_EXPERT_FF
            own += [
                ["ffn_down_exps", [width, _N_EMBD, experts], down], ["ffn_gate_exps", [_N_EMBD, width, experts], Q4_K],
                ["ffn_up_exps", [_N_EMBD, width, experts], Q4_K], ["ffn_down_shexp", [width, _N_EMBD], down],
                ["ffn_gate_shexp", [_N_EMBD, width], Q4_K], ["ffn_up_shexp", [_N_EMBD, width], Q4_K],
                ["ffn_gate_inp", [_N_EMBD, experts], F32],
            ]  # fmt: skip
            yield [f"blk.{layer}.exp_probs_b.bias", [experts], F32, 0]
        for name, shape, kind in own:
            yield [f"blk.{layer}.{name}.weight", shape, kind, 0]


def gemma3_27b() -> dict[str, Any]:
    """The description of Gemma 3 27B in Q4_K_M: the recorded one of 4B, with more of everything."""
    described: dict[str, Any] = json.loads(gzip.decompress(GEMMA.read_bytes()))
    own = {
        "block_count": 62, "embedding_length": 5376, "feed_forward_length": 21504, "attention.head_count": 32,
        "attention.head_count_kv": 16, "attention.key_length": 128, "attention.value_length": 128,
    }  # fmt: skip
    widths = {2560: 5376, 10240: 21504, 2048: 32 * 128, 1024: 16 * 128, 256: 128, 262144: 262144}
    blocks: dict[str, list[Row]] = {}
    rows: list[Row] = []
    for name, dims, kind, _ in described["tensors"]:
        row = [name, [widths[n] for n in dims], kind, 0]
        if name.startswith("blk."):
            blocks.setdefault(name.split(".")[1], []).append(row)
        else:
            rows.append(row)
    for il in range(own["block_count"]):
        like = str(il % len(blocks))
        rows += [[name.replace(f"blk.{like}.", f"blk.{il}.", 1), *rest] for name, *rest in blocks[like]]
    kv = [[key, kind, own.get(key.removeprefix("gemma3."), value)] for key, kind, value in described["kv"]]
    return {**described, "kv": kv, "tensors": rows}
