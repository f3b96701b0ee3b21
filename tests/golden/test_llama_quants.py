"""Tensor types that llama.cpp itself chose: its snapshots for real models, and files that are in use."""

from __future__ import annotations

import pytest
from autofit.errors import EngineRefusalError

from autofit_llama.quantization.flags import read_flags
from autofit_llama.quantization.forms import forms
from autofit_llama.quantization.ftypes import FTYPES
from autofit_llama.quantization.quantize import Options, quantize, source_of
from support import descriptors, quant_models

#: bits per weight that llama.cpp publishes for Llama-3.1-8B (tools/quantize/README.md)
PUBLISHED_BITS = {
    "IQ1_S": 2.0042, "IQ1_M": 2.1460, "IQ2_XXS": 2.3824, "IQ2_XS": 2.5882, "IQ2_S": 2.7403, "IQ2_M": 2.9294,
    "IQ3_XXS": 3.2548, "IQ3_XS": 3.4977, "IQ3_S": 3.6606, "IQ3_M": 3.7628, "IQ4_XS": 4.4597, "IQ4_NL": 4.6818,
    "Q2_K_S": 2.9697, "Q2_K": 3.1593, "Q3_K_S": 3.6429, "Q3_K_M": 3.9960, "Q3_K_L": 4.2979, "Q4_K_S": 4.6672,
    "Q4_K_M": 4.8944, "Q5_K_S": 5.5704, "Q5_K_M": 5.7036, "Q6_K": 6.5633, "Q8_0": 8.5008, "F16": 16.0005,
}  # fmt: skip


@pytest.mark.parametrize("name", quant_models.NAMES)
def test_every_choice_of_the_snapshots(name: str) -> None:
    source = source_of(quant_models.model(name))
    allowed = {tensor.name for tensor in source.tensors if tensor.quantizable}
    recorded = quant_models.recorded(name)["choices"]
    assert len(recorded) == 33
    for ftype, choice in recorded.items():
        assert FTYPES[ftype].default == choice["default"]
        outcome = quantize(source, FTYPES[ftype])
        chosen = {t.name: t.type for t in outcome.tensors if t.name in allowed}
        expected = {**dict.fromkeys(allowed, choice["default"]), **choice["exceptions"]}
        assert chosen == expected, ftype


@pytest.mark.parametrize("name", descriptors.names("models"))
def test_files_in_use_have_the_types_that_the_rules_give(name: str) -> None:
    model = descriptors.spec("models", name)
    ftype = FTYPES[name.partition("-000")[0].rpartition("-")[2]]
    outcome = quantize(source_of(quant_models.in_type(model, "f16")), ftype)
    assert {t.name: (t.type, t.n_bytes) for t in outcome.tensors} == {
        tensor.name: (tensor.type, tensor.n_bytes) for tensor in model.tensors
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in descriptors.names("models") if "-F16" not in name and "-0000" not in name]
)
def test_files_in_use_have_the_size_that_is_foretold(name: str) -> None:
    """Files that llama-quantize wrote. Those that a converter wrote lack a key that it adds; of splits it makes one."""
    model = descriptors.spec("models", name)
    at_hand = [form for form in forms(model) if form.at_hand]
    assert [form.file_bytes for form in at_hand] == [model.files[0].size_bytes]


@pytest.mark.parametrize("ftype", PUBLISHED_BITS)
def test_published_bits_per_weight(ftype: str) -> None:
    """The files of one to two bits, and IQ3_XXS, were made with an importance matrix."""
    model = quant_models.in_type(descriptors.spec("models", "llama-3.1-8b-Q4_K_M"), "f16")
    outcome = quantize(source_of(model), FTYPES[ftype], Options(imatrix=ftype == "IQ3_XXS"))
    assert round(outcome.weights_bytes * 8 / model.n_parameters, 4) == PUBLISHED_BITS[ftype]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["tiny", "models"])
def test_dry_runs_of_llama_quantize(part: str) -> None:
    """Every architecture, odd rows, flags: types, fallbacks, the need of a matrix, refusals."""
    rows = [row for row in quant_models.runs() if row["part"] == part]
    wrong = []
    for row in rows:
        source = source_of(descriptors.build([quant_models.unpacked(row)], ["m.gguf"]))
        try:
            outcome = quantize(source, FTYPES[row["ftype"]], read_flags(row["args"]))
        except EngineRefusalError:
            if "error" not in row:
                wrong.append(row["model"])
            continue
        if "error" in row:
            wrong.append(row["model"])
            continue
        types = [row["legend"][ord(letter) - ord("a")] for letter in row["types"]]
        found = ([t.type for t in outcome.tensors], outcome.needs_imatrix, outcome.n_fallback)
        if found != (types, row["needs_imatrix"], row["n_fallback"]):
            wrong.append(row["model"])
    assert len(rows) > 100 and not wrong
