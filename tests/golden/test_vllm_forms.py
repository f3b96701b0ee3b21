"""The forms of a model weigh what vLLM's own model of a checkpoint in that form does."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from autofit.domain.model import ModelFile, ModelSpec
from autofit.domain.quantization import Quantization

from autofit_vllm.planning.forms import forms
from support.vllm_recorded import recorded

#: our names for the forms -> the recorded configurations that they stand for
FORMS = {
    "AWQ": "awq", "GPTQ-Int4": "gptq4", "GPTQ-Int8": "gptq8", "FP8": "fp8hfblk", "FP8-dynamic": "fp8dyn",
    "W8A8": "w8a8", "W4A16": "w4a16", "NVFP4": "nvfp4", "MXFP4": "mxfp4ct",
}  # fmt: skip
SCALES = 4096  #: bytes of the scales of attention, which vLLM drops once weights are loaded


def _rows() -> list[Mapping[str, Any]]:
    rows = [row for row in recorded()["rows"] if not row["args"] and len(row.get("ranks", ())) == 1]
    return [row for row in rows if row["gpu"] in ("h100", "b200")]


def _has_towers(config: Mapping[str, Any]) -> bool:
    return any(key.endswith("_config") and "text" not in key and "quant" not in key for key in config)


@cache
def _forms(name: str) -> Mapping[str, Quantization]:
    spec = ModelSpec(
        name=name,
        format="config",
        architecture="",
        files=(ModelFile(path="m/config.json", size_bytes=1),),
        tensors=(),
        layers=(),
        metadata=recorded()["configs"][name],
    )
    return {form.name.partition(" (")[0]: form for form in forms(spec)}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_weighs_what_vllm_makes_of_it(form: str) -> None:
    """Encoders of images are left out of the forms that are published, and were not of those recorded."""
    configs = recorded()["configs"]
    rows = [row for row in _rows() if row.get("quantisation") == FORMS[form] and not _has_towers(configs[row["model"]])]
    compared = 0
    for row in rows[:: 1 + len(rows) // 8]:
        found = _forms(row["model"])[form]
        if found.weights_bytes is None:  # kernels that this GPU has none of
            assert "kernel" in found.refusal
            continue
        assert 0 <= row["ranks"][0][0] - found.weights_bytes < SCALES, row["model"]
        compared += 1
    assert compared >= 2


def test_checkpoints_that_are_quantized_are_a_form_of_their_own() -> None:
    configs = recorded()["configs"]
    rows = [row for row in _rows() if "quantisation" not in row and configs[row["model"]].get("quantization_config")]
    compared = 0
    for row in rows[::3]:
        found = _forms(row["model"])
        own = found["this checkpoint"]
        assert own.at_hand and not found["original"].at_hand
        if own.weights_bytes is not None and row["gpu"] == "h100":
            compared += abs(row["ranks"][0][0] - own.weights_bytes) < SCALES
            assert found["original"].weights_bytes is not None
            assert found["original"].weights_bytes > own.weights_bytes
    assert compared >= 2
