"""Files that the loader takes and the graph ends over: refused with the engine's assertion and the file's keys."""

from __future__ import annotations

import json
from typing import Any

import pytest
from autofit.errors import EngineRefusalError

from autofit_llama.graph import ggml
from autofit_llama.graph.assertions import check
from autofit_llama.graph.cpu import check_placed
from autofit_llama.graph.ggml import Tensor
from support.descriptors import DATA
from support.mutants import check as checked
from support.mutants import described_by, hyperparameters

CASES = [json.loads(line) for line in (DATA / "mutants.jsonl").read_text("utf-8").splitlines()]


def label(case: dict[str, Any]) -> str:
    keys = [f"{key}={value}" for key, value in case["input"]["keys"].items()]
    return f"{case['input']['base']} {' '.join(keys)}"


@pytest.mark.parametrize("case", CASES, ids=label)
def test_what_the_engine_aborts_at_is_refused_and_names_a_key(case: dict[str, Any]) -> None:
    given = case["input"]
    said = checked(described_by(given), given["words"], on_cpu=case["on_cpu"])
    assert isinstance(said, str), "it gets a plan"
    assert "llama.cpp aborts" in said
    assert " is " in said
    assert said.isprintable()


def test_heads_that_are_rotated_beyond_their_end_are_refused_where_the_cpu_rotates_them() -> None:
    given = {"base": "gemma-dense", "keys": {"gemma.rope.dimension_count": 256}, "refit": True, "words": ["-c", "512"]}
    described = described_by(given)
    assert "n_dims <= ne0" in checked(described, given["words"], on_cpu=True)
    assert not isinstance(checked(described, given["words"]), str)  # a GPU rotates what there is


@pytest.mark.parametrize(
    ("base", "keys"),
    [
        (
            "gemma3-dense",
            {"gemma3.rope.dimension_count": 129},
        ),  # as many as the first layer, which is windowed
        ("maple-moe", {"maple.rope.dimension_count": 129}),  # only windowed layers rotate
    ],
)
def test_what_no_layer_rotates_is_not_refused(base: str, keys: Any) -> None:
    """The engine decodes these on the CPU (`tools/truth/mutants.py --decode`)."""
    described = described_by({"base": base, "keys": keys, "refit": True, "words": []})
    assert not isinstance(checked(described, ["-c", "512"], on_cpu=True), str)


def test_an_odd_number_of_rotated_elements_is_left_to_a_gpu() -> None:
    given = {"base": "gemma-dense", "keys": {"gemma.rope.dimension_count": 127}, "refit": True, "words": []}
    described = described_by(given)
    assert "n_dims % 2 == 0" in checked(described, ["-c", "512"], on_cpu=True)
    assert not isinstance(checked(described, ["-c", "512"]), str)


def test_windows_that_rotate_nothing_are_left_to_a_gpu() -> None:
    """The CPU skips what it has rotated, and where that is nothing it stays in its place (seen: 60 s, and no end)."""
    given = {"base": "laguna-moe", "keys": {"laguna.rope.dimension_count_swa": 0}, "refit": True, "words": []}
    said = checked(described_by(given), ["-c", "512"], on_cpu=True)
    assert "llama.cpp hangs" in said and "rope.dimension_count_swa is 0" in said
    assert not isinstance(checked(described_by(given), ["-c", "512"]), str)


@pytest.mark.parametrize(
    ("base", "key", "value", "is_taken"),
    [
        ("llama-dense", "llama.attention.layer_norm_rms_epsilon", -1e-6, False),
        ("llama-dense", "llama.attention.layer_norm_rms_epsilon", float("nan"), False),
        ("cohere2-dense", "cohere2.attention.layer_norm_epsilon", -1.0, False),
        ("cohere2-dense", "cohere2.attention.layer_norm_epsilon", 0.0, True),
    ],
)
@pytest.mark.parametrize("on_cpu", [False, True])
def test_norms_are_not_less_than_nothing(base: str, key: str, value: float, is_taken: bool, on_cpu: bool) -> None:
    described = described_by({"base": base, "keys": {key: value}, "refit": True, "words": []})
    said = checked(described, ["-c", "512"], on_cpu=on_cpu)
    assert isinstance(said, str) != is_taken
    assert is_taken or ("eps >= 0" in said and f"{key.partition('.')[2]} is {value}" in said)


HEADS = (8, 4, 6)


@pytest.mark.parametrize(
    ("made", "assertion"),
    [
        (lambda: ggml.mul_mat(ggml.new("f32", 8, 4), ggml.new("f32", 9, 2)), "ggml_can_mul_mat"),
        (lambda: ggml.mul_mat(ggml.new("f32", 8, 4, 3), ggml.new("f32", 8, 2, 4)), "ggml_can_mul_mat"),
        (lambda: ggml.mul_mat(ggml.transpose(ggml.new("f32", 8, 4)), ggml.new("f32", 4, 2)), "is_transposed"),
        (lambda: ggml.mul_mat_id(ggml.new("f32", 8, 4, 6), ggml.new("f32", 9, 1, 2), ggml.new("i32", 3, 2)), "as->ne"),
        (lambda: ggml.mul_mat_id(ggml.new("f32", 8, 4, 6), ggml.new("f32", 8, 1, 3), ggml.new("i32", 3, 2)), "ids->ne"),
        (lambda: ggml.add(ggml.new("f32", 8), ggml.new("f32", 3)), "ggml_can_repeat"),
        (lambda: ggml.mul(ggml.new("f32", 8), ggml.new("f32", 0)), "ggml_can_repeat"),
        (lambda: ggml.repeat(ggml.new("f32", 3), ggml.new("f32", 8)), "ggml_can_repeat"),
        (lambda: ggml.concat(ggml.new("f32", 8, 2), ggml.new("f32", 9, 2), 1), "a->ne[d] == b->ne[d]"),
        (lambda: ggml.reshape(ggml.new("f32", *HEADS), 8, 25), "ggml_nelements(a)"),
        (lambda: ggml.reshape(ggml.permute(ggml.new("f32", *HEADS), 1, 0, 2, 3), 32, 6), "ggml_is_contiguous"),
        (lambda: ggml.cont(ggml.new("f32", *HEADS), 8, 25), "ggml_nelements(a)"),
        (lambda: ggml.cpy(ggml.new("f32", 8), ggml.new("f32", 9)), "ggml_nelements(a)"),
        (lambda: ggml.view(ggml.new("f32", 8, 4), (8, 2), (32,), 96), "view_offs"),
        (lambda: ggml.get_rows(ggml.new("f32", 8, 4, 2), ggml.new("i32", 3)), "a->ne[2]"),
        (lambda: ggml.set_rows(ggml.new("f32", 8, 4), ggml.new("f32", 9, 2), ggml.new("i64", 2)), "a->ne[0]"),
        (lambda: ggml.set_rows(ggml.new("f32", 8, 4), ggml.new("f32", 8, 2), ggml.new("i64", 3)), "b->ne[1]"),
        (lambda: ggml.soft_max(ggml.new("f32", 8, 4), ggml.new("f32", 9, 4)), "mask->ne[0]"),
        (lambda: ggml.rope(ggml.new("f32", *HEADS), ggml.new("i32", 5)), "a->ne[2] == b->ne[0]"),
        (lambda: ggml.rope(ggml.new("f32", *HEADS), ggml.new("i32", 6), ggml.new("f16", 4)), "c->type"),
        (lambda: ggml.glu(ggml.new("f32", 8, 4), ggml.new("f32", 8, 5)), "ggml_are_same_shape"),
        (lambda: ggml.top_k(ggml.new("f32", 8), 9), "a->ne[0] >= k"),
        (lambda: ggml.ssm_conv(ggml.new("f32", 8, 4), ggml.new("f32", 4, 5)), "d_inner"),
    ],
)
def test_each_assertion_is_told_with_its_shapes(made: Any, assertion: str) -> None:
    node: Tensor = made()
    with pytest.raises(EngineRefusalError) as refusal:
        check([node], hyperparameters("llama-dense"))
    assert assertion in refusal.value.message
    assert str(list(node.src[0].ne)) in refusal.value.message


def test_views_of_all_of_a_tensor_and_empty_ones_are_made() -> None:
    rows = ggml.new("f32", 8, 4)
    check([ggml.view(rows, (8, 4), (32,)), ggml.view(rows, (0,), (), 128)], hyperparameters("llama-dense"))


def on_cpu(node: Tensor) -> None:
    node.dev = 0
    check_placed([node], hyperparameters("llama-dense"), 0)


def of(*types: str) -> list[Tensor]:
    return [ggml.new(name, 256, 4) for name in types]


@pytest.mark.parametrize(
    ("made", "types"),
    [
        *((ggml.add, pair) for pair in (("f32", "f16"), ("f32", "bf16"), ("f16", "bf16"), ("q4_0", "f16"))),
        *((ggml.mul, pair) for pair in (("f32", "f16"), ("f32", "q8_0"), ("q4_0", "f32"))),
        (ggml.sub, ("f32", "bf16")),
        (ggml.div, ("bf16", "f16")),
        (lambda a: ggml.unary(a, "silu"), ("q8_0",)),
        (ggml.sqrt, ("i32",)),
        (ggml.clamp, ("bf16",)),
        (ggml.scale, ("f16",)),
        (lambda a: ggml.soft_max(a), ("f16",)),
        (lambda a: ggml.repeat(a, a), ("q4_0",)),
        (lambda x, kernel: ggml.ssm_conv(x, kernel), ("f32", "f16")),
    ],
)
def test_types_that_the_cpu_does_not_compute_are_refused_there(made: Any, types: tuple[str, ...]) -> None:
    node: Tensor = made(*of(*types))
    with pytest.raises(EngineRefusalError, match="on the CPU: unsupported types: " + ", ".join(types)):
        on_cpu(node)
    node.dev = 1
    check_placed([node], hyperparameters("llama-dense"), 0)  # which is another device's


@pytest.mark.parametrize(
    "node",
    [
        *(ggml.add(*of(a, b)) for a, b in (("f32", "f32"), ("f16", "f32"), ("bf16", "bf16"), ("q4_0", "f32"))),
        *(ggml.mul(*of(a, b)) for a, b in (("f16", "f16"), ("bf16", "f32"))),
        *(ggml.unary(of(name)[0], "gelu") for name in ("f32", "f16", "bf16")),
        ggml.scale(of("bf16")[0]),
        ggml.clamp(of("f16")[0]),
    ],
)
def test_types_that_the_cpu_computes_are_taken(node: Tensor) -> None:
    on_cpu(node)


def test_a_table_of_f16_that_is_added_is_left_to_a_gpu() -> None:
    """`indexer_compressor_ape`, as the engine's own tests write it."""
    described = described_by({"base": "glm5-next-moe", "keys": {}, "refit": False, "words": []})
    said = checked(described, ["-c", "512"], on_cpu=True)
    assert "unsupported types: f32, f16" in said and "indexer_compressor_ape" in said
    assert not isinstance(checked(described, ["-c", "512"]), str)


def test_factors_of_a_rotation_are_of_single_precision_where_the_graph_has_none_too() -> None:
    given = {"base": "falcon-h1-dense", "keys": {}, "refit": True, "words": [], "types": {"rope_freqs.weight": 1}}
    assert "rope_freqs.weight is f16" in checked(described_by(given), ["-c", "512"])


def test_sections_are_not_looked_at_where_a_token_has_one_position() -> None:
    keys = {"bailingmoe3.rope.dimension_sections": [8, 12, 12, -1]}
    described = described_by({"base": "bailingmoe3-moe", "keys": keys, "refit": False, "words": []})
    assert not isinstance(checked(described, ["-c", "512"], on_cpu=True), str)


@pytest.mark.parametrize(("base", "is_taken"), [("afmoe-moe", False), ("gemma3-dense", True), ("cohere2-dense", True)])
def test_a_graph_of_windows_needs_a_cache_of_windows(base: str, is_taken: bool) -> None:
    """afmoe.cpp has none where a window is of 0 tokens, and takes the cache for one that has (seen: signal 11)."""
    keys = {f"{base.partition('-')[0]}.attention.sliding_window": 0}
    said = checked(described_by({"base": base, "keys": keys, "refit": False, "words": []}), ["-c", "512"])
    assert isinstance(said, str) != is_taken
    assert is_taken or ("crashes" in said and "attention.sliding_window is 0" in said)


@pytest.mark.parametrize(("ratio", "is_taken"), [(64, True), (65, False)])
def test_blocks_of_tokens_have_as_many_as_a_word_has_bits(ratio: int, is_taken: bool) -> None:
    given = {"base": "qwen4exp-moe", "keys": {"qwen4exp.attention.compress_ratios": [7, ratio]}, "refit": False}
    said = checked(described_by({**given, "words": []}), ["-c", "512"])
    assert isinstance(said, str) != is_taken
    assert is_taken or ("r <= 64" in said and "compress_ratios is 7, 65" in said)


def test_a_scan_is_of_single_precision_on_the_cpu() -> None:
    given = {"base": "granitehybrid-dense", "keys": {}, "refit": True, "words": [], "types": {"blk.1.ssm_a": 30}}
    assert "unsupported types" in checked(described_by(given), ["-c", "512"], on_cpu=True)


def test_each_size_of_batch_is_held_to_what_ggml_asserts() -> None:
    """A rotation of 64 takes two heads of 32 at once, which one token does not have."""
    given = {"base": "deepseek4-moe", "keys": {"deepseek4.attention.indexer.key_length": 32}, "refit": True}
    said = checked(described_by({**given, "words": []}), ["-c", "512"])
    assert "ggml_nelements(a)" in said and "indexer.key_length is 32" in said


@pytest.mark.parametrize(("types", "is_taken"), [([1], True), ([1, 0, 0, 0, 0, 0], True), ([0], False), ([], False)])
def test_an_array_that_the_engine_copies_may_be_shorter_than_the_blocks(types: list[int], is_taken: bool) -> None:
    """Blocks without an entry have no indexer: dots3note.cpp calls get_arr."""
    keys = {"dots3note.attention.indexer.types": types}
    said = checked(described_by({"base": "dots3note-moe", "keys": keys, "refit": True, "words": []}), ["-c", "512"])
    assert isinstance(said, str) != is_taken
