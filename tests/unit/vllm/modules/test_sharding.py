"""What of a module one rank holds."""

from __future__ import annotations

import pytest
from autofit.errors import EngineRefusalError

from autofit_vllm.modules.model import EVERY, FIRST, LAST, Experts, Linear, Parallel, Part, Vocabulary
from autofit_vllm.modules.sharding import (
    column_part,
    experts_shape,
    layer_partition,
    linear_shape,
    on_stage,
    stage_layers,
    vocabulary_rows,
)


def linear(kind: str = "column", in_size: int = 64, *parts: int, **more: object) -> Linear:
    named = tuple(Part(f"p{i}", size) for i, size in enumerate(parts or (96,)))
    return Linear(name="layer", stage=0, kind=kind, in_size=in_size, parts=named, **more)  # type: ignore[arg-type]


def experts(**more: object) -> Experts:
    sizes = {"count": 10, "top_k": 2, "hidden_size": 64, "intermediate_size": 96}
    return Experts(name="experts", stage=0, **{**sizes, **more})  # type: ignore[arg-type]


def test_columns_divide_the_output_and_rows_the_input() -> None:
    column = linear_shape(linear("column", 64, 96, 32), Parallel(tp=4), "bfloat16")
    assert (column.in_rank, column.outs_rank, column.out_size) == (64, (24, 8), 128)
    row = linear_shape(linear("row"), Parallel(tp=4), "bfloat16")
    assert (row.in_rank, row.outs_rank, row.is_row) == (16, (96,), True)
    same = linear_shape(linear("replicated"), Parallel(tp=4), "bfloat16")
    assert (same.in_rank, same.outs_rank) == (64, (96,))


@pytest.mark.parametrize(("tp", "expected"), [(1, (256, 64, 64)), (2, (128, 32, 32)), (8, (32, 32, 32))])
def test_every_rank_has_a_kv_head(tp: int, expected: tuple[int, ...]) -> None:
    qkv = linear("qkv", 64, 256, 64, 64, heads=8, kv_heads=2, head_size=32, head_size_v=32)
    assert linear_shape(qkv, Parallel(tp=tp), "bfloat16").outs_rank == expected


@pytest.mark.parametrize(
    ("module", "tp"),
    [
        (linear("column", 64, 96), 5),
        (linear("row", 63), 2),
        (linear("qkv", 64, 256, 64, 64, heads=8, kv_heads=2, head_size=32), 3),
        (linear("qkv", 64, 192, 96, 96, heads=6, kv_heads=3, head_size=32), 2),
        (linear("qkv", 64, 256, 0, 0, heads=8, kv_heads=0, head_size=32), 2),
    ],
)
def test_what_does_not_divide_is_refused(module: Linear, tp: int) -> None:
    with pytest.raises(EngineRefusalError):
        linear_shape(module, Parallel(tp=tp), "bfloat16")


def test_one_group_is_copied_and_several_must_divide() -> None:
    assert column_part(Part("B", 128, 128), 4, "mixer") == 128
    assert column_part(Part("B", 8 * 16, 16), 4, "mixer") == 32
    with pytest.raises(EngineRefusalError, match="num_groups must equal 1"):
        column_part(Part("B", 3 * 16, 16), 2, "mixer")


def test_encoders_are_whole_where_ranks_share_out_the_images() -> None:
    module = linear("column", 64, 96, tower="image")
    assert linear_shape(module, Parallel(tp=4), "bfloat16").out_rank == 24
    assert linear_shape(module, Parallel(tp=4, vision_data_parallel=True), "bfloat16").out_rank == 96


def test_shared_experts_are_whole_where_ranks_share_out_the_tokens() -> None:
    module = linear("column", 64, 96, spreads_tokens=True)
    for layout, rows in [
        (Parallel(tp=4), 24),
        (Parallel(tp=4, expert_parallel=True), 24),
        (Parallel(tp=4, dp=2), 24),
        (Parallel(tp=4, dp=2, expert_parallel=True), 96),
        (Parallel(tp=1, dp=2, expert_parallel=True), 96),
    ]:
        assert linear_shape(module, layout, "bfloat16").out_rank == rows


def test_some_methods_keep_a_layer_whole() -> None:
    module = linear("column", 64, 96, undivided_with=frozenset({"auto_awq"}))
    assert linear_shape(module, Parallel(tp=4), "bfloat16", "auto_awq").out_rank == 96
    assert linear_shape(module, Parallel(tp=4), "bfloat16", "fp8").out_rank == 24


def test_experts_are_sliced_by_all_replicas_or_dealt_out() -> None:
    sliced = experts_shape(experts(), Parallel(tp=2, dp=3), "bfloat16")
    assert (sliced.count, sliced.intermediate_rank, sliced.expert_parallel) == (10, 16, False)
    dealt = experts_shape(experts(), Parallel(tp=2, dp=2, expert_parallel=True), "bfloat16")
    assert (dealt.count, dealt.intermediate_rank, dealt.expert_parallel) == (3, 96, True)
    spare = Parallel(tp=2, dp=2, expert_parallel=True, redundant_experts=6)
    assert experts_shape(experts(), spare, "bfloat16").count == 4
    with pytest.raises(EngineRefusalError):
        experts_shape(experts(), Parallel(tp=5), "bfloat16")


def test_narrow_slices_of_experts_are_filled_up() -> None:
    module = experts(least_width=64)
    assert experts_shape(module, Parallel(), "bfloat16").intermediate_rank == 96
    assert experts_shape(module, Parallel(tp=2), "bfloat16").intermediate_rank == 64
    spread = Parallel(tp=2, expert_parallel=True)
    assert experts_shape(module, spread, "bfloat16").intermediate_rank == 96


@pytest.mark.parametrize(("rows", "padding", "tp", "expected"), [(1000, 64, 1, 1024), (1000, 64, 8, 128)])
def test_vocabularies_are_padded_before_they_are_divided(rows: int, padding: int, tp: int, expected: int) -> None:
    module = Vocabulary(name="head", stage=LAST, rows=rows, columns=8, padding=padding)
    assert vocabulary_rows(module, Parallel(tp=tp)) == expected
    with pytest.raises(EngineRefusalError):
        vocabulary_rows(module, Parallel(tp=3))


@pytest.mark.parametrize(
    ("layers", "pp", "expected"),
    [(32, 2, (16, 16)), (61, 4, (15, 15, 16, 15)), (10, 4, (2, 3, 3, 2)), (11, 4, (3, 3, 3, 2)), (3, 4, (1, 1, 1, 0))],
)
def test_layers_left_over_go_to_the_stages_before_the_last(layers: int, pp: int, expected: tuple[int, ...]) -> None:
    assert layer_partition(layers, Parallel(pp=pp)) == expected


def test_a_partition_may_be_given() -> None:
    layout = Parallel(pp=3, layer_partition=(5, 3, 2))
    assert [stage_layers(10, layout, stage) for stage in range(3)] == [(0, 5), (5, 8), (8, 10)]
    with pytest.raises(EngineRefusalError, match="names 3 stages"):
        layer_partition(10, Parallel(pp=2, layer_partition=(5, 3, 2)))
    with pytest.raises(EngineRefusalError, match="adds up to 10 layers, the model has 12"):
        layer_partition(12, layout)


def test_modules_live_on_their_stage() -> None:
    layers = (4, 8)
    assert [on_stage(place, 1, 3, layers) for place in (3, 4, 7, 8)] == [False, True, True, False]
    assert [on_stage(FIRST, stage, 3, layers) for stage in range(3)] == [True, False, False]
    assert [on_stage(LAST, stage, 3, layers) for stage in range(3)] == [False, False, True]
    assert [on_stage(EVERY, stage, 3, layers) for stage in range(3)] == [True, True, True]
