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


#: figures of the published config.json, and the file that was converted from it
CONFIGS = {
    "gemma-2-27b-Q5_K_M": {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": 4608, "intermediate_size": 36864,
        "num_hidden_layers": 46, "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128,
        "vocab_size": 256000, "max_position_embeddings": 8192, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "rms_norm_eps": 1e-06,
    },
    "phi-3-mini-4k-F16": {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064,
        "max_position_embeddings": 4096, "sliding_window": 2047, "rope_scaling": None, "tie_word_embeddings": False,
    },
    "command-r7b-Q6_K": {
        "architectures": ["Cohere2ForCausalLM"], "model_type": "cohere2", "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 256000, "max_position_embeddings": 8192, "sliding_window": 4096,
        "logit_scale": 0.0625, "layer_norm_eps": 1e-05,
    },
}  # fmt: skip


def _stated(tmp_path: Path, **config: object) -> ModelSpec:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return autofit.read_model(tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_other_decoders_get_the_tensors_and_plans_of_their_files(name: str, tmp_path: Path) -> None:
    original = quant_models.in_type(descriptors.spec("models", name), "f16")
    made = converted(_stated(tmp_path, **CONFIGS[name]))
    assert {t.name: (t.ne, t.type, t.n_bytes) for t in made.tensors} == {
        t.name: (t.ne, t.type, t.n_bytes) for t in original.tensors
    }
    command = ["llama-server", "-m", "x.gguf", "-c", "4096", "-ngl", "99"]
    big = autofit.load_machine("h100-80gb", ram="64GiB")
    told, real = (autofit.check(command, big, model=model, settings=None) for model in (made, original))
    assert [pool.used_bytes for pool in told.memory.pools] == [pool.used_bytes for pool in real.memory.pools]


DECODER = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 128,
}


@pytest.mark.parametrize(
    ("kind", "arch"),
    [("GemmaForCausalLM", "gemma"), ("Olmo2ForCausalLM", "olmo2"), ("GraniteForCausalLM", "granite")],
)
def test_decoders_have_the_tensors_that_the_engine_asks_for(kind: str, arch: str, tmp_path: Path) -> None:
    """Those that the engine itself wrote, but for what it can do without: biases and scales."""
    written = descriptors.spec("archs", f"{arch}-dense")
    made = converted(_stated(tmp_path, architectures=[kind], model_type=arch, **DECODER))
    needed = {t.name: t.ne for t in written.tensors if t.name.endswith("weight") and "rope" not in t.name}
    needed.pop("output.weight", None)
    assert {t.name: t.ne for t in made.tensors if t.name != "output.weight"} == needed


def test_long_contexts_have_factors_and_biases_are_refused(tmp_path: Path) -> None:
    phi = {**CONFIGS["phi-3-mini-4k-F16"], "rope_scaling": {"type": "longrope"}}
    assert {t.name: t.ne for t in converted(_stated(tmp_path, **phi)).tensors if "rope" in t.name} == {
        "rope_factors_long.weight": (48,), "rope_factors_short.weight": (48,),
    }  # fmt: skip
    with pytest.raises(UnsupportedModelError, match="biases that its kind lacks"):
        converted(_stated(tmp_path, **{**phi, "attention_bias": True}))


@pytest.mark.slow
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
