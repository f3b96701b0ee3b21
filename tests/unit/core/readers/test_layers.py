"""Blocks: how each mixes tokens, what feeds forward, and that no byte is lost between them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from autofit.domain.model import LayerSpec, ModelSpec
from autofit.readers import read_model
from autofit.readers.hf_layers import hf_layers
from autofit.readers.layers import gguf_group, split_block

from support import DATA, ggufs
from support import safetensor_files as sf
from support.ggufs import Gguf, Tensor

RECORDED = DATA / "llama"
ALL = sorted(
    path
    for folder in ("archs", "models")
    for path in RECORDED.glob(f"{folder}/*.json.gz")
    if "-of-" not in path.name or "00001-of" in path.name
)


def recorded(name: str) -> ModelSpec:
    return read_model(RECORDED / f"{name}.json.gz")


def makes(model: ModelSpec) -> Counter[tuple[str, str]]:
    return Counter((layer.mixer, layer.feed_forward) for layer in model.layers)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("models/llama-3.1-8b-Q4_K_M", {("full", "dense"): 32}),
        ("models/mixtral-8x7b-Q4_K_M", {("full", "experts"): 32}),
        ("models/deepseek-v2-lite-Q4_K_M", {("latent", "dense"): 1, ("latent", "experts"): 26}),
        ("models/qwen3-next-80b-a3b-Q4_K_M", {("recurrent", "experts"): 36, ("full", "experts"): 12}),
        ("models/lfm2-1.2b-Q4_0", {("shortconv", "dense"): 10, ("full", "dense"): 6}),
        ("models/mamba-2.8b-F16", {("recurrent", "none"): 64}),
        (
            "models/nemotron-3-nano-30b-a3b-Q4_K_M",
            {("recurrent", "none"): 23, ("none", "experts"): 23, ("full", "none"): 6},
        ),
        ("archs/gemma3-dense", {("sliding", "dense"): 1, ("full", "dense"): 1}),
        ("archs/bailingmoe3-moe", {("latent", "dense"): 1, ("recurrent", "experts"): 1}),
    ],
)  # fmt: skip
def test_recorded_models(name: str, expected: dict[tuple[str, str], int]) -> None:
    assert makes(recorded(name)) == expected


def test_attention_and_a_state_side_by_side() -> None:
    model = recorded("models/falcon-h1-7b-Q8_0")
    assert {(layer.mixer, layer.also_recurrent) for layer in model.layers} == {("full", True)}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_no_byte_of_a_block_is_lost(path: Path) -> None:
    model = read_model(path)
    inside = sum(t.n_bytes for t in model.tensors if split_block(t.name)[1] is not None)
    assert sum(total(layer) for layer in model.layers) == inside
    experts = sum(t.n_bytes for t in model.tensors if gguf_group(t.name) == "experts")
    assert sum(layer.expert_bytes for layer in model.layers) == experts
    assert all(total(layer) > 0 for layer in model.layers)


def total(layer: LayerSpec) -> int:
    return layer.attention_bytes + layer.feed_forward_bytes + layer.expert_bytes + layer.other_bytes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blk.7.attn_q.weight", ("", 7, "attn_q.weight")),
        ("enc.blk.0.ffn_up.weight", ("enc", 0, "ffn_up.weight")),
        ("v.blk.12.ln1.weight", ("v", 12, "ln1.weight")),
        ("token_embd.weight", ("", None, "token_embd.weight")),
        ("blk.weight", ("", None, "blk.weight")),
        ("blk.x.attn_q.weight", ("", None, "blk.x.attn_q.weight")),
        ("blk.-1.attn_q", ("", None, "blk.-1.attn_q")),
        ("blk.99999999999.a", ("", None, "blk.99999999999.a")),
        ("blk.²³.a", ("", None, "blk.²³.a")),
        ("v.blk", ("", None, "v.blk")),
        ("", ("", None, "")),
    ],
)
def test_split_block(name: str, expected: tuple[str, int | None, str]) -> None:
    assert split_block(name) == expected


def test_one_tensor_per_expert_as_old_files_have_them(tmp_path: Path) -> None:
    tensors = [Tensor(f"blk.0.ffn_{part}.{i}.weight", (32, 32)) for part in ("gate", "up") for i in range(4)]
    model = read_model(Gguf(metadata={"general.architecture": "llama"}, tensors=tensors).write(tmp_path / "m.gguf"))
    assert model.layers[0].expert_bytes == 8 * 32 * 32 * 4
    assert model.layers[0].feed_forward == "experts"


def test_encoder_and_decoder(tmp_path: Path) -> None:
    keys = {"t5.block_count": 2, "t5.attention.head_count": 4, "t5.embedding_length": 64}
    tensors = [
        Tensor(f"{stack}.blk.{i}.{part}.weight", (64, 64))
        for stack, parts in {"enc": ("attn_q", "ffn_up"), "dec": ("attn_q", "cross_attn_q", "ffn_up")}.items()
        for i in range(2)
        for part in parts
    ]
    file = Gguf(metadata={"general.architecture": "t5", **keys}, tensors=tensors)
    layers = read_model(file.write(tmp_path / "m.gguf")).layers
    assert [(layer.stack, layer.index) for layer in layers] == [
        ("dec", 0),
        ("dec", 1),
        ("enc", 0),
        ("enc", 1),
    ]
    assert [layer.attention_bytes for layer in layers] == [32768, 32768, 16384, 16384]
    assert {layer.n_heads for layer in layers} == {4}


def test_per_layer_arrays_and_a_pattern(tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "llama.attention.head_count": [8, 4, 8],
        "llama.attention.head_count_kv": [4, 2, 0],
        "llama.attention.sliding_window": 512,
        "llama.attention.sliding_window_pattern": [True, False, False],
        "llama.attention.key_length": 96,
    }
    layers = read_model(ggufs.write_llama(tmp_path / "m.gguf", n_layer=3, metadata=keys)).layers
    assert [(layer.mixer, layer.window_tokens) for layer in layers] == [
        ("sliding", 512),
        ("full", None),
        ("none", None),
    ]
    assert [(layer.n_heads, layer.n_kv_heads) for layer in layers] == [(8, 4), (4, 2), (None, None)]
    assert (layers[0].key_dim, layers[0].value_dim) == (96, 64)


def test_a_period_of_windows(tmp_path: Path) -> None:
    keys = {"llama.attention.sliding_window": 512, "llama.attention.sliding_window_pattern": 3}
    layers = read_model(ggufs.write_llama(tmp_path / "m.gguf", n_layer=7, metadata=keys)).layers
    assert [layer.mixer == "sliding" for layer in layers] == [True, True, False] * 2 + [True]


# -- Hugging Face ---------------------------------------------------------------------------------------


def configured(tmp_path: Path, **changes: Any) -> tuple[LayerSpec, ...]:
    return read_model(sf.write_model(tmp_path, config={**sf.CONFIG, **changes}) / "config.json").layers


def test_layer_types_of_a_configuration(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention", "linear_attention", "chunked_attention"]
    layers = configured(
        tmp_path, num_hidden_layers=4, layer_types=kinds, sliding_window=1024, attention_chunk_size=8192
    )
    assert [(layer.mixer, layer.window_tokens) for layer in layers] == [
        ("sliding", 1024),
        ("full", None),
        ("recurrent", None),
        ("chunked", 8192),
    ]
    assert layers[2].n_heads is None


@pytest.mark.parametrize(
    ("keys", "sparse"),
    [
        ({"n_routed_experts": 8, "first_k_dense_replace": 1}, [False, True, True, True]),
        ({"num_experts": 8, "decoder_sparse_step": 2}, [False, True, False, True]),
        ({"num_experts": 8, "mlp_only_layers": [0, 3]}, [False, True, True, False]),
        ({"num_local_experts": 8, "interleave_moe_layer_step": 2}, [False, True, False, True]),
        ({"num_local_experts": 8}, [True] * 4),
        ({"num_experts": 0}, [False] * 4),
    ],
)
def test_which_layers_have_experts(tmp_path: Path, keys: dict[str, Any], sparse: list[bool]) -> None:
    layers = configured(tmp_path, num_hidden_layers=4, num_experts_per_tok=2, **keys)
    assert [layer.feed_forward == "experts" for layer in layers] == sparse
    assert [layer.n_experts_used for layer in layers] == [2 * is_sparse for is_sparse in sparse]


def test_latent_attention_of_a_configuration(tmp_path: Path) -> None:
    layer = configured(tmp_path, kv_lora_rank=512, qk_rope_head_dim=64)[0]
    assert (layer.mixer, layer.n_kv_heads, layer.key_dim, layer.value_dim) == ("latent", 1, 576, 512)


def test_linear_attention_by_interval(tmp_path: Path) -> None:
    layers = configured(tmp_path, num_hidden_layers=8, full_attention_interval=4, linear_num_value_heads=2)
    assert [layer.mixer for layer in layers] == ["recurrent", "recurrent", "recurrent", "full"] * 2


def test_windows_by_period(tmp_path: Path) -> None:
    layers = configured(tmp_path, num_hidden_layers=7, sliding_window=1024, sliding_window_pattern=6)
    assert [layer.mixer for layer in layers] == ["sliding"] * 5 + ["full", "sliding"]


def test_the_text_model_of_a_composite(tmp_path: Path) -> None:
    layers = configured(tmp_path, text_config={**sf.CONFIG, "num_hidden_layers": 5}, num_hidden_layers=1)
    assert len(layers) == 5


def test_vision_blocks_are_another_stack(tmp_path: Path) -> None:
    tensors = sf.llama() | {"vision_tower.blocks.0.attn.qkv.weight": ("BF16", (8, 8))}
    sf.write_tensors(tmp_path / "model.safetensors", tensors)
    layers = read_model(tmp_path).layers
    assert [(layer.stack, layer.index) for layer in layers] == [("", 0), ("", 1), ("vision_tower.blocks", 0)]
    assert layers[-1].attention_bytes == 128


NEMOTRON = {"model_type": "nemotron_h", "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128}


def test_layers_that_mix_tokens_or_feed_forward_and_never_both() -> None:
    """Of a pattern, or of a list of names that is also the count of the layers."""
    feeds = {"n_routed_experts": 128, "num_experts_per_tok": 6}
    listed = {"layers_block_type": ["mamba", "moe", "attention", "mlp"]}
    pattern = {"hybrid_override_pattern": "ME*-", "num_hidden_layers": 4}
    for config in ({**NEMOTRON, **feeds, **listed}, {**NEMOTRON, **feeds, **pattern}):
        layers = hf_layers(config, ())
        assert [(layer.mixer, layer.feed_forward) for layer in layers] == [
            ("recurrent", "none"),
            ("none", "experts"),
            ("full", "none"),
            ("none", "dense"),
        ]
        assert layers[1].n_experts_used == 6 and layers[2].n_kv_heads == 2


def test_a_list_of_layers_of_the_wrong_kind() -> None:
    assert hf_layers({"layers_block_type": [None, 3, {}]}, ())[0].mixer == "full"
