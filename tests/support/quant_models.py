"""Models whose quantizations are recorded (tests/data/llama/quants), in the shapes that were published."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from autofit.domain.dtypes import GGML_TYPES, row_bytes
from autofit.domain.model import ModelFile, ModelSpec, TensorInfo

import support
from support import descriptors

RECORDED = support.DATA / "llama" / "quants"
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def recorded(name: str) -> dict[str, Any]:
    return dict(json.loads(gzip.decompress((RECORDED / f"{name}.json.gz").read_bytes())))


def unpacked(case: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a recorded run's source: matrices in one type of floats, some with rows of odd lengths."""
    described = descriptors.description(case["part"], case["model"])
    kind = {"f32": 0, "f16": 1, "bf16": 30}[case["source"]]
    rng = None if case["widths"] is None else random.Random(case["widths"])
    tensors, offset = [], 0
    for name, ne, type_id, _ in described["tensors"]:
        if len(ne) > 1 and type_id not in _KEPT:
            type_id = kind
            ne = ne if rng is None else [rng.choice((ne[0], ne[0], *_ODD)), *ne[1:]]
        tensors.append([name, ne, type_id, offset])
        row = row_bytes(GGML_TYPES[type_id].name, ne[0])
        offset += -(-row * math.prod(ne[1:]) // 32) * 32
    return {"header_bytes": 0, "file_bytes": 0, **described, "tensors": tensors}


_KEPT = (0, 26)  #: f32, i32
_ODD = (32, 64, 96, 100, 160, 288, 704, 1000, 1056)


def runs() -> list[dict[str, Any]]:
    """Dry runs of llama-quantize (tools/truth/quant_runs.py)."""
    lines = gzip.decompress((support.DATA / "llama" / "quant_runs.jsonl.gz").read_bytes()).decode().splitlines()
    return [json.loads(line) for line in lines]


def in_type(model: ModelSpec, type_name: str) -> ModelSpec:
    """The same model with every matrix in one type, as it was before it was quantized."""
    tensors = []
    for tensor in model.tensors:
        ne = tensor.ne
        name = tensor.type if tensor.type in ("f32", "i32") or len(ne) < 2 else type_name
        n_bytes = row_bytes(name, ne[0])
        for dim in ne[1:]:
            n_bytes *= dim
        tensors.append(tensor._replace(type=name, n_bytes=n_bytes))
    return replace(model, tensors=tuple(tensors))


def model(name: str) -> ModelSpec:
    """A recorded model in F16."""
    if name == "gemma-3-4b-it":
        return in_type(descriptors.spec("models", "gemma-3-4b-Q4_K_M"), "f16")
    if name == "gpt-oss-120b":
        return in_type(descriptors.spec("models", "gpt-oss-120b-MXFP4_MOE"), "f16")
    if name == "qwen3-coder-next":  # of the same shapes
        return in_type(descriptors.spec("models", "qwen3-next-80b-a3b-Q4_K_M"), "f16")
    arch, keys, shapes = _BUILT[name]
    tensors = []
    for tensor, ne in shapes:
        kind = "f32" if len(ne) == 1 or "ffn_gate_inp" in tensor else "f16"
        n_bytes = row_bytes(kind, ne[0])
        for dim in ne[1:]:
            n_bytes *= dim
        tensors.append(TensorInfo(tensor, kind, ne[::-1], n_bytes, 0, 0))
    n_vocab = dict(shapes)["token_embd.weight"][-1]
    keys = {**keys, "vocab_size": n_vocab}
    return ModelSpec(
        name=name,
        format="gguf",
        architecture=arch,
        files=(ModelFile(path=f"{name}.gguf", size_bytes=0),),
        tensors=tuple(tensors),
        layers=(),
        metadata={"general.architecture": arch, **{f"{arch}.{key}": value for key, value in keys.items()}},
        n_vocab=n_vocab,
    )


def _dense(n_layer: int, n_embd: int, n_ff: int, n_vocab: int, n_head: int, n_kv: int, head: int) -> Shapes:
    yield "token_embd.weight", (n_embd, n_vocab)
    yield "output.weight", (n_embd, n_vocab)
    yield "output_norm.weight", (n_embd,)
    for i in range(n_layer):
        yield f"blk.{i}.attn_norm.weight", (n_embd,)
        yield f"blk.{i}.attn_q.weight", (n_embd, n_head * head)
        yield f"blk.{i}.attn_k.weight", (n_embd, n_kv * head)
        yield f"blk.{i}.attn_v.weight", (n_embd, n_kv * head)
        yield f"blk.{i}.attn_output.weight", (n_head * head, n_embd)
        yield f"blk.{i}.ffn_norm.weight", (n_embd,)
        yield f"blk.{i}.ffn_gate.weight", (n_embd, n_ff)
        yield f"blk.{i}.ffn_up.weight", (n_embd, n_ff)
        yield f"blk.{i}.ffn_down.weight", (n_ff, n_embd)


def _deepseek_v3() -> Shapes:
    n_embd, n_vocab, n_head = 7168, 129280, 128
    yield "token_embd.weight", (n_embd, n_vocab)
    yield "output.weight", (n_embd, n_vocab)
    yield "output_norm.weight", (n_embd,)
    for i in range(61):
        yield f"blk.{i}.attn_norm.weight", (n_embd,)
        yield f"blk.{i}.attn_q_a.weight", (n_embd, 1536)
        yield f"blk.{i}.attn_q_b.weight", (1536, n_head * 192)
        yield f"blk.{i}.attn_kv_a_mqa.weight", (n_embd, 576)
        yield f"blk.{i}.attn_k_b.weight", (128, 512, n_head)
        yield f"blk.{i}.attn_v_b.weight", (512, 128, n_head)
        yield f"blk.{i}.attn_output.weight", (n_head * 128, n_embd)
        if i < 3:
            yield f"blk.{i}.ffn_gate.weight", (n_embd, 18432)
            yield f"blk.{i}.ffn_up.weight", (n_embd, 18432)
            yield f"blk.{i}.ffn_down.weight", (18432, n_embd)
            continue
        yield f"blk.{i}.ffn_gate_inp.weight", (n_embd, 256)
        yield f"blk.{i}.ffn_gate_exps.weight", (n_embd, 2048, 256)
        yield f"blk.{i}.ffn_up_exps.weight", (n_embd, 2048, 256)
        yield f"blk.{i}.ffn_down_exps.weight", (2048, n_embd, 256)
        yield f"blk.{i}.ffn_gate_shexp.weight", (n_embd, 2048)
        yield f"blk.{i}.ffn_up_shexp.weight", (n_embd, 2048)
        yield f"blk.{i}.ffn_down_shexp.weight", (2048, n_embd)


_DENSE_KEYS = {"attention.layer_norm_rms_epsilon": 1e-6}
_BUILT: Mapping[str, tuple[str, Mapping[str, object], list[tuple[str, tuple[int, ...]]]]] = {
    "qwen3-0.6b": (
        "qwen3",
        _DENSE_KEYS
        | {"context_length": 40960, "embedding_length": 1024, "block_count": 28, "feed_forward_length": 3072}
        | {"attention.head_count": 16, "attention.head_count_kv": 8, "attention.key_length": 128}
        | {"attention.value_length": 128},
        list(_dense(28, 1024, 3072, 151936, 16, 8, 128)),
    ),
    "meta-llama-3.1-70b-instruct": (
        "llama",
        _DENSE_KEYS
        | {"context_length": 131072, "embedding_length": 8192, "block_count": 80, "feed_forward_length": 28672}
        | {"attention.head_count": 64, "attention.head_count_kv": 8},
        list(_dense(80, 8192, 28672, 128256, 64, 8, 128)),
    ),
    "deepseek-v3.1": (
        "deepseek2",
        _DENSE_KEYS
        | {"context_length": 163840, "embedding_length": 7168, "block_count": 61, "feed_forward_length": 18432}
        | {"attention.head_count": 128, "attention.head_count_kv": 1, "attention.key_length": 576}
        | {"attention.value_length": 512, "attention.key_length_mla": 192, "attention.value_length_mla": 128}
        | {"attention.kv_lora_rank": 512, "attention.q_lora_rank": 1536, "leading_dense_block_count": 3}
        | {"expert_count": 256, "expert_used_count": 8, "expert_shared_count": 1, "expert_weights_scale": 2.5}
        | {"expert_feed_forward_length": 2048, "rope.dimension_count": 64, "expert_gating_func": 2},
        list(_deepseek_v3()),
    ),
}
NAMES = sorted(path.name.removesuffix(".json.gz") for path in RECORDED.glob("*.json.gz"))
