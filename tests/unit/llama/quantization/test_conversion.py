"""A GGUF foretold from a checkpoint: the tensors of the files that were converted, and refusals with their reasons."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import autofit
import pytest
from autofit.domain.model import ModelSpec, TensorInfo
from autofit.errors import UnsupportedModelError

from autofit_llama.quantization.conversion import converted
from support import descriptors, quant_models
from support.vllm_truth import DATA

FILES = {
    "qwen3-32b": "qwen3-32b-Q4_K_M",
    "qwen3-30b-a3b": "qwen3-30b-a3b-Q4_K_M",
    "mixtral-8x7b": "mixtral-8x7b-Q4_K_M",
    "qwen2.5-7b": "qwen2.5-7b-Q8_0",
    "llama3-8b": "llama-3.1-8b-Q4_K_M",
}
CARD = autofit.load_machine("rtx-3090", ram="64GiB")


def _config(name: str) -> ModelSpec:
    return autofit.read_model(DATA / "configs" / name)


@pytest.mark.parametrize("name", FILES)
def test_tensors_are_those_of_the_converted_file(name: str) -> None:
    original = quant_models.in_type(descriptors.spec("models", FILES[name]), "f16")
    made = converted(_config(name))
    assert {t.name: (t.ne, t.type, t.n_bytes) for t in made.tensors} == {
        t.name: (t.ne, t.type, t.n_bytes) for t in original.tensors
    }
    assert made.architecture == original.architecture


def test_forms_and_plans_are_those_of_the_file() -> None:
    rows = {
        row.quantization.name: row
        for row in autofit.quantizations(_config("qwen2.5-7b"), CARD, context="8k", settings=None).rows
        if row.backend == "llama"
    }
    real = descriptors.spec("models", "qwen2.5-7b-Q8_0")
    assert rows["Q8_0"].weights_bytes == real.weights_bytes
    assert rows["Q8_0"].quantization.file_bytes is None and not rows["Q8_0"].quantization.at_hand
    plan = autofit.plan("llama", real, CARD, context="8k", settings=None)
    told = rows["Q8_0"].plan
    assert told is not None
    assert told.memory.pools[0].used_bytes == plan.memory.pools[0].used_bytes


@pytest.mark.parametrize(
    ("name", "because"),
    [("qwen2.5-7b-awq", "a quantized checkpoint"), ("gemma3-27b-text", "is not told beforehand")],
)
def test_what_is_not_foretold_says_why(name: str, because: str) -> None:
    found = autofit.quantizations(_config(name), CARD, context="4k", settings=None)
    chosen, reason = found.choices["llama"]
    assert chosen is None and because in reason
    assert found.recommended is not None and found.recommended.backend == "vllm"


def test_other_tensors_than_its_kind_has() -> None:
    model = _config("qwen3-32b")
    odd = dataclasses.replace(model, tensors=(TensorInfo("model.extra", "BF16", (7, 7), 98, 0, 0),))
    with pytest.raises(UnsupportedModelError, match="not those of Qwen3ForCausalLM alone"):
        converted(odd)


@pytest.mark.parametrize(
    "change", [{"hidden_size": 0}, {"num_hidden_layers": 10**6}, {"vocab_size": "many"}, {"num_attention_heads": None}]
)
def test_figures_that_make_no_sense(change: dict[str, object]) -> None:
    model = _config("qwen3-32b")
    with pytest.raises(UnsupportedModelError):
        converted(dataclasses.replace(model, metadata={**model.metadata, **change}))


def test_the_weights_themselves_count(tmp_path: Path) -> None:
    from autofit.testing import tiny_checkpoint

    made = converted(autofit.read_model(tiny_checkpoint(tmp_path)))
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 2
    assert {t.name for t in made.tensors} >= {"blk.1.ffn_down.weight", "output.weight"}
