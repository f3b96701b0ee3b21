"""Files that the loader takes and the graph ends over: refused with the engine's assertion and the file's keys."""

from __future__ import annotations

import json
from typing import Any

import pytest
from autofit.errors import EngineRefusalError

from autofit_llama.graph import ggml
from autofit_llama.graph.assertions import check
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
