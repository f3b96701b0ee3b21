"""Files made to measure: within their budget, and near it; the printed flags give exactly these types."""

from __future__ import annotations

import pytest
from autofit.domain.dtypes import GGML_TYPES_BY_NAME
from autofit.domain.model import ModelSpec
from autofit.errors import ModelError, UsageError

from autofit_llama.quantization.flags import read_flags
from autofit_llama.quantization.ftypes import FTYPES
from autofit_llama.quantization.quantize import quantize, source_of
from autofit_llama.quantization.recipe import recipe
from support import descriptors, quant_models

MODELS = ("llama-3.1-8b-Q4_K_M", "qwen3-30b-a3b-Q4_K_M", "nemotron-3-nano-30b-a3b-Q4_K_M", "deepseek-v2-lite-Q4_K_M")


def _original(name: str) -> ModelSpec:
    return quant_models.in_type(descriptors.spec("models", name), "f16")


def _types_by_flags(model: ModelSpec, argv: tuple[str, ...]) -> dict[str, str]:
    """What the printed command makes, by the rules alone."""
    *flags, _, _, ftype = argv[1:]
    outcome = quantize(source_of(model), FTYPES[ftype], read_flags(flags))
    return {tensor.name: tensor.type for tensor in outcome.tensors}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("share", [0.29, 0.36, 0.45])
def test_a_budget_is_used_to_its_last_megabyte(name: str, share: float) -> None:
    model = _original(name)
    budget = int(model.weights_bytes * share)
    made = recipe(model, budget)
    form = made.quantization
    assert form.file_bytes is not None and form.model is not None
    assert 0 <= budget - form.file_bytes < 1 << 20
    assert _types_by_flags(model, made.argv) == {tensor.name: tensor.type for tensor in form.model.tensors}
    assert not form.needs


def test_bits_go_where_mixtures_put_them_first() -> None:
    model = _original("llama-3.1-8b-Q4_K_M")
    smaller, larger = (quantize(source_of(model), FTYPES[name]) for name in ("Q4_K_M", "Q5_K_S"))
    made = recipe(model, smaller.weights_bytes + (larger.weights_bytes - smaller.weights_bytes) // 4)
    assert made.quantization.model is not None
    types = {tensor.name: tensor.type for tensor in made.quantization.model.tensors}
    wider = {name for name, type_name in types.items() if ".ffn_" in name and type_name == "q5_K"}
    assert {name.split(".")[2] for name in wider} == {"ffn_down"}


def test_flags_of_the_user_are_kept() -> None:
    model = _original("llama-3.1-8b-Q4_K_M")
    words = ("--output-tensor-type", "q8_0", "--tensor-type", "attn_k=q8_0")
    made = recipe(model, 6_000_000_000, words)
    assert made.argv[1:5] == words and made.quantization.model is not None
    types = {tensor.name: tensor.type for tensor in made.quantization.model.tensors}
    assert {types["output.weight"], *(types[f"blk.{i}.attn_k.weight"] for i in range(32))} == {"q8_0"}


def test_a_matrix_allows_less() -> None:
    model = _original("llama-3.1-8b-Q4_K_M")
    with pytest.raises(UsageError, match="less than Q2_K, the smallest file"):
        recipe(model, 2_500_000_000)
    made = recipe(model, 2_500_000_000, ("--imatrix", "m.gguf"))
    assert made.quantization.weights_bytes is not None
    assert 2_490_000_000 < made.quantization.weights_bytes < 2_500_000_000


def test_more_than_the_original_is_the_original() -> None:
    made = recipe(_original("llama-3.1-8b-Q4_K_M"), 1 << 50)
    assert made.argv[-1] == "F16" and "--tensor-type" not in made.argv


def test_a_packed_file_is_not_what_is_quantized() -> None:
    made = recipe(descriptors.spec("models", "llama-3.1-8b-Q4_K_M"), 6_000_000_000)
    assert made.argv[-3] == "ORIGINAL-F16.gguf"
    assert recipe(_original("llama-3.1-8b-Q4_K_M"), 6_000_000_000).argv[-3] == "llama-3.1-8b-Q4_K_M.gguf"


def test_without_a_header_there_is_no_size() -> None:
    with pytest.raises(ModelError, match="header is not known"):
        recipe(quant_models.model("qwen3-0.6b"), 1 << 30)


def test_naming_does_not_move_what_is_not_named() -> None:
    """Every type comes out as wanted although a tensor that is named is not counted by the rules."""
    model = _original("llama-3.1-8b-Q4_K_M")
    source = source_of(model)
    base = {t.name: t.type for t in quantize(source, FTYPES["Q4_K_M"]).tensors}
    made = recipe(model, 5_000_000_000)
    assert made.quantization.model is not None
    types = {tensor.name: tensor.type for tensor in made.quantization.model.tensors}
    narrower = [name for name in types if types[name] != base[name] and _bits(types[name]) < _bits(base[name])]
    assert narrower == []


def _bits(type_name: str) -> float:
    _, block, n_bytes = GGML_TYPES_BY_NAME[type_name]
    return n_bytes / block
