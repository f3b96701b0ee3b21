"""Tensors against configurations, and models known by their tensors alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from autofit.errors import UnsupportedModelError

from autofit_vllm.architectures import build_from_config
from autofit_vllm.checkpoint.build import build_model
from autofit_vllm.checkpoint.tensors import contents, expected_layers
from autofit_vllm.memory.weights import weights_per_rank
from autofit_vllm.modules.model import Parallel
from autofit_vllm.quantization import quantization_for
from support.vllm_checkpoints import checkpoint, spec, tensor, tensors_of
from support.vllm_recorded import config

#: parameters of published checkpoints, as their own files count them
PUBLISHED = {
    "codestral-mamba": 7285403648,
    "command-r": 34980831232,
    "dbrx": 131596523520,
    "deepseek-v2-lite": 15706484224,
    "deepseek-v3-bf16": 671026419200,
    "falcon-7b": 6921720704,
    "gemma2-27b": 27227128320,
    "gemma2-9b": 9241705984,
    "gemma3-1b": 999885952,
    "gemma3-27b": 27432406640,
    "gemma3-4b": 4300079472,
    "glm4-9b-0414": 9400279040,
    "gpt-oss-120b": 116829156672,
    "gpt-oss-20b": 20914757184,
    "granite3-8b": 8170848256,
    "jamba-mini": 51570323328,
    "llama3-405b": 405853388800,
    "llama3-8b": 8030261248,
    "llama3.2-1b": 1235814400,
    "llama3.2-3b": 3212749824,
    "llama4-scout": 108641793536,
    "mamba-2.8b": 2768345600,
    "minimax-m2": 228689764864,
    "mistral-7b-v0.3": 7248023552,
    "mistral-nemo": 12247782400,
    "mixtral-8x22b": 140630071296,
    "mixtral-8x7b": 46702792704,
    "olmoe": 6919161856,
    "phi3-mini-4k": 3821079552,
    "phi3.5-moe": 41873153344,
    "phi4-14b": 14659507200,
    "qwen1.5-moe": 14315784192,
    "qwen2-vl-7b": 8291375616,
    "qwen2.5-72b": 72706203648,
    "qwen2.5-7b": 7615616512,
    "qwen2.5-vl-7b": 8292166656,
    "qwen3-235b": 235093634560,
    "qwen3-30b-a3b": 30532122624,
    "qwen3-next-80b": 79674391296,
    "qwen3-vl-8b": 8767123696,
    "smollm3-3b": 3075098624,
    "starcoder2-7b": 7173923840,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_derived_tensors_are_those_of_the_published_checkpoint(name: str) -> None:
    model = build_from_config(config(name))
    assert sum(found.n_elements for found in tensors_of(model)) == PUBLISHED[name]


@pytest.mark.parametrize("name", ["llama3.2-1b", "gemma3-4b", "jamba-mini", "gpt2-xl", "falcon-h1-0.5b"])
def test_a_checkpoint_of_the_described_shape_needs_no_note(name: str) -> None:
    model = build_model(checkpoint(config(name)))
    assert model.notes == build_from_config(config(name)).notes
    assert model.basis == "derived"


def test_ninety_thousand_tensors_fall_into_their_layers() -> None:
    raw = dict(config("deepseek-v3-bf16"))
    raw |= {"num_hidden_layers": 40, "n_routed_experts": 800}
    found = checkpoint(raw)
    assert len(found.tensors) > 85_000
    model = build_model(found)
    assert model.notes == ()
    assert contents(model, found.tensors).layers == expected_layers(model)


def test_wrappers_in_front_of_a_name_do_not_matter() -> None:
    raw = config("llama3.2-1b")
    renamed = checkpoint(raw, prefix="language_model.")
    assert build_model(renamed).notes == ()


def test_layers_that_hold_something_else_are_pointed_out() -> None:
    raw = config("llama3.2-1b")
    found = checkpoint(raw)
    cut = tuple(t for t in found.tensors if "layers.3.mlp.down_proj" not in t.name)
    (note,) = build_model(replace(found, tensors=cut)).notes
    assert note.startswith("layer 3 holds")
    assert "1 of 16 layers differ" in note


def test_prediction_layers_stay_in_the_file() -> None:
    raw = config("llama3.2-1b")
    extra = tensor("model.layers.16.mlp.down_proj.weight", (2048, 8192))
    found = checkpoint(raw)
    model = build_model(replace(found, tensors=(*found.tensors, extra)))
    assert model.notes == (
        "0.03 GB of the files are layers for multi-token prediction, which vLLM loads for speculation only",
    )
    described = build_from_config(raw)
    assert _bytes(model) == _bytes(described)


def test_tables_of_older_checkpoints_are_ignored() -> None:
    raw = config("llama3.2-1b")
    found = checkpoint(raw)
    tables = tuple(tensor(f"model.layers.{i}.self_attn.rotary_emb.inv_freq", (1 << 20,)) for i in range(16))
    assert build_model(replace(found, tensors=(*found.tensors, *tables))).notes == ()


def test_the_tensors_say_the_type_where_the_configuration_does_not() -> None:
    raw = {key: value for key, value in config("llama3.2-1b").items() if key != "torch_dtype"}
    model = build_from_config(raw)
    assert model.dtype == "float32"
    for kind in ("F16", "BF16", "F32"):
        tensors = tuple(tensor(t.name, t.shape, kind) for t in tensors_of(model))
        expected = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}[kind]
        assert build_model(spec(raw, tensors)).dtype == expected
        assert build_model(spec({**raw, "dtype": "float16"}, tensors)).dtype == "float16"


def _packed(raw: dict[str, Any], skip: str) -> Any:
    """A GPTQ or AWQ checkpoint in which the layers of this name are not packed."""
    for found in tensors_of(build_from_config(raw)):
        layer = found.name.removesuffix(".weight")
        if "_proj" in layer and skip not in layer:
            yield tensor(f"{layer}.qweight", (found.shape[1] // 8, found.shape[0]), "I32")
            yield tensor(f"{layer}.scales", (found.shape[1] // 128, found.shape[0]))
        else:
            yield found


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_layers_without_packed_tensors_are_not_quantized(method: str) -> None:
    quantized = {"quant_method": method, "bits": 4, "group_size": 128, "zero_point": True, "sym": True}
    raw = {**config("llama3.2-1b"), "quantization_config": quantized}
    model = build_model(spec(raw, tuple(_packed(raw, "o_proj"))))
    quantization = quantization_for(model.quantization, capability=(9, 0))
    schemes = {module.name: quantization.linear(module) for module in model.modules if hasattr(module, "in_size")}
    plain = quantization_for(None, capability=(9, 0)).linear(None)  # type: ignore[arg-type]
    assert schemes["model.layers.5.self_attn.o_proj"] is plain
    assert schemes["model.layers.5.self_attn.qkv_proj"] is not plain


# -- Architectures that no page describes

UNKNOWN = {
    "architectures": ["NovelForCausalLM"],
    "model_type": "novel",
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 512,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}


def _novel() -> tuple[Any, ...]:
    blocks = [tensor(f"model.layers.{i}.odd.weight", (512, 1000)) for i in range(2)]
    return (tensor("model.embed.weight", (1000, 512)), *blocks)


def _bytes(model: Any, **layout: int) -> list[int]:
    return [stage.parameter_bytes for stage in weights_per_rank(model, Parallel(**layout), dtype=model.dtype)]


def test_an_unknown_architecture_is_bounded_by_its_tensors() -> None:
    model = build_model(spec(UNKNOWN, _novel()))
    assert model.basis == "bound"
    assert "unknown architecture NovelForCausalLM" in model.notes[0]
    whole = 3 * 512 * 1000 * 2
    assert _bytes(model) == [whole]
    assert _bytes(model, tp=2) == [whole], "nothing is known to divide"
    assert _bytes(model, pp=2) == [2 * whole // 3] * 2, "a layer each, and the embedding on both"
    assert [cache.head_size for cache in model.caches] == [64, 64]


def test_without_tensors_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="unknown architecture NovelForCausalLM, and no tensors"):
        build_model(spec(UNKNOWN))


@pytest.mark.parametrize("key", ["mamba_d_state", "linear_num_key_heads", "conv_kernel"])
def test_an_unknown_state_is_not_taken_for_attention(key: str) -> None:
    with pytest.raises(UnsupportedModelError, match="does not state the size of its recurrent state"):
        build_model(spec({**UNKNOWN, key: 16}, _novel()))


def test_code_beside_the_weights_is_never_run() -> None:
    raw = {**UNKNOWN, "auto_map": {"AutoModelForCausalLM": "modeling_novel.NovelForCausalLM"}}
    assert build_model(spec(raw, _novel())).basis == "bound"


@pytest.mark.parametrize("name", ["mistral-small-3.1", "qwen3-vl-8b", "gemma3-4b"])
def test_a_known_language_model_behind_unknown_encoders(name: str) -> None:
    raw, unknown = config(name), "LlavaOnevision2ForConditionalGeneration"
    known = build_model(checkpoint(raw))
    found = build_model(replace(checkpoint(raw), metadata={**raw, "architectures": [unknown]}))
    assert (found.basis, found.caches) == ("bound", known.caches)
    for tp in (1, 2):
        exact, bound = (
            weights_per_rank(model, Parallel(tp=tp), dtype="bfloat16")[0].parameter_bytes for model in (known, found)
        )
        assert bound >= exact
        assert bound == exact or tp > 1
    bare = spec({**raw, "architectures": [unknown]})
    with pytest.raises(UnsupportedModelError, match="and no tensors to take their size from"):
        build_model(bare)
    without = build_model(bare, language_model_only=True)
    alone = build_model(spec(raw), language_model_only=True)
    first, second = (weights_per_rank(model, Parallel(), dtype="bfloat16") for model in (without, alone))
    assert first == second
