"""What llama-quantize does beside its rules: shapes, options, refusals."""

from __future__ import annotations

import dataclasses

import pytest
from autofit.domain.model import ModelSpec, TensorInfo
from autofit.errors import EngineRefusalError, UsageError

from autofit_llama.quantization.ftypes import FTYPES, find_ftype
from autofit_llama.quantization.quantize import Options, allows_quantization, fallback, quantize, source_of
from support import quant_models


@pytest.fixture(scope="module")
def model() -> ModelSpec:
    return quant_models.model("qwen3-0.6b")


def _types(model: ModelSpec, ftype: str, **options: object) -> dict[str, str]:
    outcome = quantize(source_of(model), FTYPES[ftype], Options(**options))  # type: ignore[arg-type]
    return {tensor.name: tensor.type for tensor in outcome.tensors}


def _with(model: ModelSpec, name: str, **changes: object) -> ModelSpec:
    tensors = tuple(t._replace(**changes) if t.name == name else t for t in model.tensors)
    return dataclasses.replace(model, tensors=tensors)


@pytest.mark.parametrize(
    ("name", "found"), [("q4_k", "Q4_K_M"), ("Q3_K", "Q3_K_M"), ("7", "Q8_0"), ("0", "F32"), ("iq4_xs", "IQ4_XS")]
)
def test_names_are_found_as_the_program_finds_them(name: str, found: str) -> None:
    assert find_ftype(name).name == found


@pytest.mark.parametrize("name", ["Q9", "", "4", "Q4_K_XL", "٣", "9" * 5000])
def test_an_unknown_name_is_refused_with_those_near(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_ftype(name)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("type_name", "n", "found"),
    [
        ("q4_K", 512, "q4_K"), ("q4_K", 96, "q5_0"), ("q5_K", 96, "q5_1"), ("q6_K", 96, "q8_0"), ("q2_K", 96, "q4_0"),
        ("q3_K", 96, "q4_0"), ("iq4_xs", 96, "iq4_nl"), ("iq1_s", 96, "iq4_nl"), ("q2_0", 96, "q4_0"),
        ("q4_K", 100, "f16"), ("q8_0", 100, "f16"), ("mxfp4", 33, "f16"), ("f16", 33, "f16"),
    ],
)  # fmt: skip
def test_rows_that_are_not_whole_blocks_get_another_type(type_name: str, n: int, found: str) -> None:
    assert fallback(type_name, n) == found


def test_a_type_without_a_fallback_is_refused() -> None:
    with pytest.raises(EngineRefusalError, match="no other type for rows of 96"):
        fallback("q1_0", 96)


@pytest.mark.parametrize(
    ("name", "ne", "allowed"),
    [
        ("blk.0.attn_q.weight", (64, 64), True), ("blk.0.attn_q.bias", (64, 64), False),
        ("blk.0.attn_norm.weight", (64, 2), False), ("output_norm.weight", (64,), False),
        ("blk.0.ffn_gate_inp_shexp.weight", (64, 1), False), ("position_embd.weight", (64, 9), False),
        ("token_types.weight", (64, 2), False), ("blk.0.ssm_conv1d.weight", (4, 64), False),
        ("blk.0.ffn_gate_inp.weight", (64, 8), False), ("hello", (64, 8), True), ("blk.0.ssm_a", (64, 8), False),
    ],
)  # fmt: skip
def test_what_is_never_quantized(name: str, ne: tuple[int, ...], allowed: bool) -> None:
    assert allows_quantization(name, ne, "llama") is allowed


def test_one_architecture_keeps_more() -> None:
    assert allows_quantization("blk.0.attn_k_b.weight", (64, 64, 8), "deepseek2")
    assert not allows_quantization("blk.0.attn_k_b.weight", (64, 64, 8), "glm5-next")


def test_options_replace_choices(model: ModelSpec) -> None:
    base = _types(model, "Q4_K_M")
    assert base["output.weight"] == "q6_K"
    assert set(_types(model, "Q4_K_M", pure=True).values()) == {"q4_K", "f32"}
    assert _types(model, "Q4_K_M", leave_output=True)["output.weight"] == "f16"
    assert _types(model, "Q4_K_M", output_type="q8_0")["output.weight"] == "q8_0"
    assert _types(model, "Q4_K_M", token_embedding_type="q8_0")["token_embd.weight"] == "q8_0"
    some = _types(model, "Q4_K_M", tensor_types=((r"blk\.1[0-3]\.attn_k", "q8_0"), ("attn_k", "q5_K")))
    assert (some["blk.12.attn_k.weight"], some["blk.9.attn_k.weight"]) == ("q8_0", "q5_K")


def test_a_tensor_that_is_named_is_not_counted_by_the_rules(model: ModelSpec) -> None:
    """`use_more_bits` counts the tensors that it is asked for, so naming one moves all that follow."""
    base = _types(model, "Q4_K_M")
    moved = _types(model, "Q4_K_M", tensor_types=(("blk.0.attn_v", "q8_0"),))
    at = [i for i in range(1, 28) if base[f"blk.{i}.attn_v.weight"] != moved[f"blk.{i}.attn_v.weight"]]
    assert at


def test_float_files_know_no_patterns(model: ModelSpec) -> None:
    assert set(_types(model, "F16", tensor_types=(("attn_k", "q8_0"),)).values()) == {"f16", "f32"}


def test_an_importance_matrix_changes_types_and_is_asked_for(model: ModelSpec) -> None:
    source = source_of(model)
    without = quantize(source, FTYPES["IQ3_XXS"])
    with_one = quantize(source, FTYPES["IQ3_XXS"], Options(imatrix=True))
    assert without.needs_imatrix and not with_one.needs_imatrix
    assert with_one.weights_bytes < without.weights_bytes
    assert not quantize(source, FTYPES["Q2_K"]).needs_imatrix
    assert quantize(source, FTYPES["Q2_K_S"]).needs_imatrix


def test_a_quantized_source_is_refused_unless_asked_for(model: ModelSpec) -> None:
    packed = _with(model, "blk.3.attn_q.weight", type="q8_0", n_bytes=1)
    with pytest.raises(EngineRefusalError, match=r"1 tensors are quantized already, blk\.3\.attn_q\.weight as q8_0"):
        _types(packed, "Q4_K_M")
    assert _types(packed, "Q4_K_M", allow_requantize=True)["blk.3.attn_q.weight"] == "q4_K"
    assert _types(packed, "Q8_0")["blk.3.attn_q.weight"] == "q8_0"  # nothing to do for it


def test_integers_cannot_be_quantized(model: ModelSpec) -> None:
    with pytest.raises(EngineRefusalError, match="cannot convert"):
        _types(_with(model, "blk.3.attn_q.weight", type="i32", n_bytes=4), "Q4_K_M", allow_requantize=True)


def test_experts_without_a_layer_number_stop_the_program(model: ModelSpec) -> None:
    metadata = {**model.metadata, "qwen3.expert_count": 4, "qwen3.expert_used_count": 2}
    odd = TensorInfo("shared.ffn_down.weight", "f16", (256, 256), 1, 0, 0)
    strange = dataclasses.replace(model, metadata=metadata, tensors=(*model.tensors, odd))
    with pytest.raises(EngineRefusalError, match="no layer of 0 to 27"):
        _types(strange, "Q4_K_M")


def test_a_projector_has_no_heads_to_ask_for(model: ModelSpec) -> None:
    clip = dataclasses.replace(
        model,
        architecture="clip",
        metadata={"general.architecture": "clip"},
        tensors=(TensorInfo("v.blk.0.attn_v.weight", "f16", (256, 256), 131072, 0, 0),),
    )
    assert _types(clip, "Q8_0") == {"v.blk.0.attn_v.weight": "q8_0"}
    with pytest.raises(EngineRefusalError, match="no heads"):
        _types(clip, "Q2_K")


def test_an_option_whose_type_does_not_suit_the_rows_aborts(model: ModelSpec) -> None:
    odd = _with(model, "token_embd.weight", shape=(151936, 1000), n_bytes=1)
    with pytest.raises(EngineRefusalError, match="aborts at token_embd"):
        _types(odd, "Q4_K_M", token_embedding_type="q4_K")
