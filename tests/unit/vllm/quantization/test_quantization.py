"""Which layers a checkpoint's configuration quantizes, what they then keep, and what vLLM refuses."""

from __future__ import annotations

import fnmatch
import math
from itertools import product
from typing import Any

import pytest
from autofit.errors import AutofitError, EngineRefusalError, UnsupportedModelError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autofit_vllm.modules.dtypes import dtype_bytes
from autofit_vllm.modules.model import Experts, Linear, Parallel, Part, Vocabulary
from autofit_vllm.modules.sharding import experts_shape, linear_shape
from autofit_vllm.quantization import NONE, UNQUANTISED, Quantization, quantization_for
from autofit_vllm.quantization.name_maps import rename_of, renamed
from autofit_vllm.quantization.names import Below, Globs, NameList, bare, listed, regex_matches, skipped
from autofit_vllm.quantization.quark import Entries

HOPPER = (9, 0)


def linear(name: str = "model.layers.0.mlp.gate_up_proj", in_size: int = 256, size: int = 512) -> Linear:
    parts = (Part("gate_proj", size), Part("up_proj", size))
    return Linear(name=name, stage=0, kind="column", in_size=in_size, parts=parts)


def down(name: str = "model.layers.0.mlp.down_proj", in_size: int = 512) -> Linear:
    return Linear(name=name, stage=0, kind="row", in_size=in_size, parts=(Part("down_proj", 256),))


def experts(width: int = 384) -> Experts:
    return Experts(
        name="model.layers.0.mlp.experts",
        stage=0,
        count=4,
        top_k=2,
        hidden_size=256,
        intermediate_size=width,
    )


def size_of(found: Quantization, module: Linear | Experts, layout: Parallel | None = None) -> int:
    layout = layout or Parallel()
    if isinstance(module, Experts):
        local = experts_shape(module, layout, "bfloat16")
        tensors = found.experts(module, local).experts(local)
    else:
        tensors = found.linear(module).linear(linear_shape(module, layout, "bfloat16"))
    return sum(math.prod(shape) * dtype_bytes(dtype) for _, shape, dtype in tensors)


def gptq(**more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, **more}


def test_plain_checkpoints_quantize_nothing() -> None:
    found = quantization_for(None, capability=HOPPER)
    assert (found.name, found.linear(linear())) == (None, UNQUANTISED)
    assert size_of(found, linear()) == 1024 * 256 * 2


def test_four_bits_in_groups() -> None:
    weights, groups = 1024 * 256, 2
    scales_and_zeros = groups * 1024 * 2 + groups * 1024 // 2
    assert size_of(quantization_for(gptq(), capability=HOPPER), linear()) == weights // 2 + scales_and_zeros


def test_one_scale_per_channel_stays_on_every_rank() -> None:
    found = quantization_for(gptq(group_size=-1), capability=HOPPER)
    halved = size_of(found, down(), Parallel(tp=2))
    assert halved == 256 * 256 // 2 + 256 * 2 + 256 // 2


def test_eight_bit_floats_have_a_scale_per_part_channel_or_block() -> None:
    weights = 1024 * 256
    tensor = {"quant_method": "fp8", "activation_scheme": "static"}
    assert size_of(quantization_for(tensor, capability=HOPPER), linear()) == weights + 2 * 4 + 2 * 4
    block = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    assert size_of(quantization_for(block, capability=HOPPER), linear()) == weights + 8 * 2 * 4
    channel = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
                "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
            }
        },
    }
    assert size_of(quantization_for(channel, capability=HOPPER), linear()) == weights + 1024 * 4


def test_blocks_of_experts_get_finer_where_ranks_would_split_them() -> None:
    block = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    found = quantization_for(block, capability=HOPPER)
    whole, halved = size_of(found, experts()), size_of(found, experts(), Parallel(tp=2))
    weights = 4 * 3 * 256 * 384
    assert whole == weights + 4 * 4 * (2 * 3 * 2 + 2 * 3)
    assert halved == weights // 2 + 4 * 4 * (2 * 3 * 4 + 4 * 3)
    with pytest.raises(EngineRefusalError, match="not divisible by weight quantization block_n"):
        size_of(found, experts(width=336), Parallel(tp=2))


def test_a_block_may_not_straddle_two_ranks() -> None:
    found = quantization_for({"quant_method": "fp8", "weight_block_size": [128, 128]}, capability=HOPPER)
    with pytest.raises(EngineRefusalError, match="block_k = 128"):
        size_of(found, down(), Parallel(tp=8))


def test_groups_that_straddle_two_ranks_need_a_kernel_for_it() -> None:
    layer, layout = down(in_size=384), Parallel(tp=2)
    assert size_of(quantization_for(gptq(), capability=HOPPER), layer, layout) > 0, "Machete takes it"
    with pytest.raises(EngineRefusalError, match="Failed to find a kernel"):
        size_of(quantization_for(gptq(), capability=(8, 9)), layer, layout)
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
    with pytest.raises(EngineRefusalError, match="not aligned"):
        size_of(quantization_for(awq, capability=HOPPER), layer, layout)


@pytest.mark.parametrize(
    "raw",
    [
        gptq(desc_act=True),
        gptq(bits=3),
        gptq(sym=False),
        gptq(group_size=48),
        {"quant_method": "awq", "bits": 8, "group_size": 128},
        {"quant_method": "fp8", "activation_scheme": "odd"},
        {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": [128, 128]},
        {"quant_method": "hqq"},
        {"quant_method": "modelopt"},
        {"quant_method": "modelopt", "quant_algo": "INT3"},
        {"quant_method": "gptq"},
    ],
)
def test_layouts_that_vllm_refuses(raw: dict[str, Any]) -> None:
    with pytest.raises(EngineRefusalError):
        quantization_for(raw, capability=HOPPER)


@pytest.mark.parametrize("method", ["bitsandbytes", "gguf"])
def test_plug_ins_are_named(method: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"supports {method} only through the plugin") as raised:
        quantization_for({"quant_method": method}, capability=HOPPER)
    assert "plugin" in (raised.value.hint or "")


@pytest.mark.parametrize(
    ("requested", "fine"),
    [
        (None, True),
        ("gptq", True),
        ("gptq_marlin", True),
        ("auto_gptq", True),
        ("marlin", True),
        ("awq", False),
        ("fp8", False),
        ("nonsense", False),
    ],
)
def test_what_is_asked_for_must_be_what_the_checkpoint_is(requested: str | None, fine: bool) -> None:
    if fine:
        assert quantization_for(gptq(), capability=HOPPER, requested=requested).name == "auto_gptq"
    else:
        with pytest.raises(EngineRefusalError, match="does not match"):
            quantization_for(gptq(), capability=HOPPER, requested=requested)


def test_quantizing_while_loading() -> None:
    found = quantization_for(None, capability=HOPPER, requested="fp8")
    assert (found.name, found.while_loading) == ("fp8_per_tensor", True)
    shape = linear_shape(linear(), Parallel(), "bfloat16")
    kinds = {tensor.dtype for tensor in found.linear(linear()).loaded_linear(shape)}
    assert kinds == {"float8_e4m3fn", "float32"}
    assert size_of(found, linear()) == 1024 * 256 * 2, "created as they are in the checkpoint"
    with pytest.raises(EngineRefusalError, match="not quantized that way"):
        quantization_for(None, capability=HOPPER, requested="gptq")
    with pytest.raises(EngineRefusalError, match="Unknown quantization method: nonsense"):
        quantization_for(None, capability=HOPPER, requested="nonsense")


def test_old_gpus() -> None:
    with pytest.raises(EngineRefusalError, match=r"Minimum capability: 75\. Current capability: 70"):
        quantization_for(gptq(), capability=(7, 0))


def test_deprecated_methods_must_be_asked_for() -> None:
    raw = {"quant_method": "fbgemm_fp8"}
    with pytest.raises(AutofitError):
        quantization_for(raw, capability=HOPPER)


# -- Names


def test_wrappers_in_front_of_names_do_not_count() -> None:
    assert bare("model.language_model.layers.0.mlp") == "layers.0.mlp"
    assert bare("language_model.model.layers.0.mlp") == "layers.0.mlp"
    assert bare("model") == "model"
    assert listed(("model.layers.0.mlp.gate",)).means("language_model.model.layers.0.mlp.gate")


def test_many_patterns_that_are_cheap_each_are_refused_together() -> None:
    listed(f"re:.*a.*{n}" for n in range(1000))
    with pytest.raises(EngineRefusalError, match="5000 patterns"):
        listed(f"re:.*a.*{n}" for n in range(5000))


def test_the_first_entry_that_means_a_layer() -> None:
    found = listed(("re:model.layers.1.*", "layers.2.mlp", "re:.*mlp", "layers.2.mlp", "layers.1.mlp"))
    names = ("model.layers.1.mlp", "model.layers.2.mlp", "layers.1.mlp", "layers.9.mlp", "layers.9.attn")
    assert [found.first(name) for name in names] == [0, 1, 2, 2, None]


@pytest.mark.parametrize("pattern", ["", "a", "*", "a*", "*a", "a*a", "*a*b*", "**ab", "a*b*a", "b*ab*b", "ab*ba"])
def test_stars_match_as_fnmatch_has_them(pattern: str) -> None:
    for letters in (letters for n in range(6) for letters in product("ab", repeat=n)):
        name = "".join(letters)
        assert Globs([pattern]).match(name) == fnmatch.fnmatchcase(name, pattern), name


def test_stars_without_number_are_matched_at_once() -> None:
    assert not Globs(["*a" * 250 + "!"]).match("a" * 400)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text("ab*.", max_size=5), max_size=8), st.text("ab.", max_size=7))
def test_a_list_is_read_as_each_entry_alone(entries: list[str], name: str) -> None:
    """Prefixes of wrappers apart, which these names have not."""
    names = NameList(entries)
    assert names.glob(name) == any(fnmatch.fnmatchcase(name, entry) for entry in entries)
    assert names.part_of(name) == any(entry in name for entry in entries)
    assert names.exact(name) == (name in entries)
    below = Below({entry: number for number, entry in enumerate(dict.fromkeys(entries))})
    assert below.at(name) == [at for at, entry in enumerate(dict.fromkeys(entries)) if entry.startswith(name)]
    first = next(
        (entry for entry in entries if (fnmatch.fnmatchcase(name, entry) if "*" in entry else name in entry)), None
    )
    assert Entries({entry: {"entry": entry} for entry in entries}).of(name) == (
        None if first is None else {"entry": first}
    )


def test_parts_of_a_fused_layer_must_agree() -> None:
    shards = ("l.q_proj", "l.k_proj", "l.v_proj")
    assert skipped("l.qkv_proj", shards, NameList(shards))
    assert not skipped("l.qkv_proj", shards, NameList(["l.o_proj"]))
    with pytest.raises(EngineRefusalError, match="treats the parts"):
        skipped("l.qkv_proj", shards, NameList(["l.k_proj"]))


def test_patterns_leave_layers_out() -> None:
    raw = gptq(dynamic={r"-:.*\.mlp\.down.*": {}, r".*gate.*": {"bits": 8, "group_size": 32}})
    found = quantization_for(raw, capability=HOPPER)
    assert found.linear(down()) is UNQUANTISED
    assert size_of(found, linear()) == 1024 * 256 + 8 * 1024 * 2 + 8 * 1024


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+$",
        r"(.*)*x",
        r"(?:a|a)+b",
        ".*a.*b.*c.*d.*e",
        "(",
        "a" * 600,
        ".?" * 60 + "!",
        ".{0,30}" * 12 + "!",
        "(?:.|..)" * 40 + "!",
        "(?=" + ".?" * 60 + "!)",
        "a{99999999999}",
    ],
)
def test_patterns_that_might_not_end_are_refused(pattern: str) -> None:
    with pytest.raises(EngineRefusalError, match="pattern"):
        regex_matches(pattern, "model.layers.0")


@pytest.mark.parametrize(
    "pattern",
    [
        r".*lm_head",
        r".*mlp\.gate$",
        r"model\.layers\.(?:[0-9]|1[0-9])\.self_attn\..*",
        r"^(?!.*self_attn).*$",
        r".*\.layers\.\d+\.mlp\.experts\.\d+\..*",
        r"model\.layers\.(" + "|".join(map(str, range(80))) + r")\.mlp\.(gate|up|down)_proj",
        r"(?:[a-z]{3}\.)?model\.(?:layers)+\.\d{1,3}$",
    ],
)
def test_patterns_of_published_checkpoints_are_taken(pattern: str) -> None:
    regex_matches(pattern, "model.layers.0.self_attn.q_proj")


def test_ignored_layers_of_one_group() -> None:
    raw = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["lm_head", "re:.*down_proj"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128},
            }
        },
    }
    found = quantization_for(raw, capability=HOPPER)
    assert found.linear(down()) is UNQUANTISED
    assert found.linear(linear()) is not UNQUANTISED
    head = Vocabulary(name="lm_head", stage=-2, rows=512, columns=256, head=True)
    assert found.vocabulary(head) is UNQUANTISED


def test_auto_round_gives_layers_widths_of_their_own() -> None:
    raw = {
        "quant_method": "auto-round",
        "bits": 4,
        "group_size": 128,
        "sym": True,
        "packing_format": "auto_round:auto_gptq",
        "extra_config": {"model.layers.0.mlp.down_proj": {"bits": 16}, ".*layers\\.1\\..*": {"bits": 8}},
    }
    found = quantization_for(raw, capability=HOPPER)
    assert found.name == "inc"
    assert found.linear(down()) is UNQUANTISED
    assert size_of(found, linear()) < size_of(found, linear("model.layers.1.mlp.gate_up_proj"))


def test_nothing_is_scaled_where_nothing_is_quantized() -> None:
    assert list(NONE.attention(8, "bfloat16", latent=False)) == []


def quark(weight: dict[str, Any], inputs: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    entry = {"weight": weight, "input_tensors": inputs, "output_tensors": None, "bias": None}
    return {"quant_method": "quark", "export": {"kv_cache_group": []}, "global_quant_config": entry, **more}


FOUR = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"}


def test_quark_names_layers_apart() -> None:
    eight = {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}
    own = {"weight": eight, "input_tensors": eight}
    raw = quark(FOUR, layer_quant_config={"*down_proj": own}, exclude=["re:.*layers.1.mlp.(gate|up)_proj"])
    found = quantization_for(raw, capability=HOPPER)
    assert size_of(found, linear()) == 1024 * 256 // 2 + 1024 * 256 // 32
    assert size_of(found, down()) == 256 * 512 + 4 + 4
    assert found.linear(linear("model.layers.1.mlp.gate_up_proj")) is UNQUANTISED
    with pytest.raises(EngineRefusalError, match="all to use the same scheme"):
        quantization_for(quark(FOUR, layer_quant_config={"*up_proj": own}), capability=HOPPER).linear(linear())


@pytest.mark.parametrize(
    ("raw", "capability", "message"),
    [
        ({"quant_method": "quark"}, HOPPER, "export key"),
        (quark({"dtype": "int2", "qscheme": "per_group"}), HOPPER, "No quark compatible scheme"),
        (quark({**FOUR, "group_size": 16}), HOPPER, "No quark compatible scheme"),
        (quark({"dtype": "fp8_e4m3", "qscheme": "per_tensor"}, {"dtype": "fp8_e4m3"}), (8, 6), "Min capability: 89"),
    ],
)
def test_quark_refusals(raw: dict[str, Any], capability: tuple[int, int], message: str) -> None:
    with pytest.raises(EngineRefusalError, match=message):
        quantization_for(raw, capability=capability).linear(linear())


def test_experts_in_bytes_when_asked_for() -> None:
    plain = quantization_for(gptq(), capability=HOPPER)
    asked = quantization_for(gptq(), capability=HOPPER, requested="moe_wna16")
    layer = experts(width=512)
    assert asked.name == "moe_wna16"
    assert size_of(asked, layer) == size_of(plain, layer) - 4 * (1024 * 2 + 256 * 4) // 2 - 4 * (1024 + 256) * 2


def test_layers_are_listed_by_the_names_of_the_checkpoint() -> None:
    """vLLM's class of Nemotron-H renames `backbone` to `model` before a layer looks itself up."""
    raw = {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {"backbone.layers.0.mixer.down_proj": {"quant_algo": "FP8"}},
    }
    module = down("model.layers.0.mixer.down_proj")
    plain = quantization_for(raw, capability=HOPPER)
    renamed = quantization_for(raw, capability=HOPPER, architecture="NemotronHForCausalLM")
    assert plain.linear(module) is UNQUANTISED
    assert renamed.linear(module) is not UNQUANTISED


@pytest.mark.parametrize(
    ("architecture", "name", "expected"),
    [
        ("Gemma3ForConditionalGeneration", "model.language_model.layers.1.mlp", "language_model.model.layers.1.mlp"),
        ("Qwen3VLForConditionalGeneration", "lm_head.weight", "language_model.lm_head.weight"),
        ("DeepseekV4ForCausalLM", "layers.3.ffn.shared_experts.w2", "model.layers.3.ffn.shared_experts.down_proj"),
        ("GptOssForCausalLM", "model.layers.0.self_attn.q_proj", "model.layers.0.attn.q_proj"),
    ],
)
def test_names_that_a_class_changes(architecture: str, name: str, expected: str) -> None:
    rename = rename_of(architecture)
    assert rename is not None and rename(name) == expected


def test_a_class_without_a_mapper_keeps_names() -> None:
    assert rename_of("LlamaForCausalLM") is None
    raw = {"quant_method": "fp8", "ignored_layers": ["backbone.layers.0"]}
    assert renamed(raw, "fp8", "LlamaForCausalLM") is raw


def test_patterns_and_classes_among_targets_stay() -> None:
    group = {"targets": ["Linear", "re:.*backbone.*", "backbone.layers.0.mixer.down_proj"]}
    raw = {"quant_method": "compressed-tensors", "config_groups": {"a": group}, "ignore": ["backbone.layers.1.mixer"]}
    found = renamed(raw, "compressed-tensors", "NemotronHForCausalLM")
    assert found["config_groups"]["a"]["targets"] == [*group["targets"][:2], "model.layers.0.mixer.down_proj"]
    assert found["ignore"] == ["model.layers.1.mixer"]


def test_experts_of_deepseek_v4_in_nvfp4() -> None:
    """ModelOpt's files are of the method fp8, and name the experts' type apart: half a byte and a scale byte per 16."""
    raw: dict[str, Any] = {
        "quant_method": "deepseek_v4_fp8",
        "expert_dtype": "fp4",
        "weight_block_size": [128, 128],
        "producer": {"name": "modelopt"},
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {"layers.0.ffn.experts": {"quant_algo": "NVFP4"}},
    }
    n = 4 * 3 * 256 * 384
    assert size_of(quantization_for(raw, capability=(10, 0)), experts()) == n // 2 + n // 32
    four = quantization_for({**raw, "moe_quant_algo": "NVFP4"}, capability=(10, 0))
    assert size_of(four, experts()) == n // 2 + n // 16 + 2 * (4 * 2 * 4 + 4 * 4)


@pytest.mark.parametrize("algorithm", ["FP8", "NVFP4", "W4A16_NVFP4", "MXFP8", "MIXED_PRECISION"])
@pytest.mark.parametrize("word", ["modelopt", "modelopt_fp4", "fp8", "awq"])
def test_a_checkpoint_of_modelopt_decides_whatever_word_was_asked_for(algorithm: str, word: str) -> None:
    raw = {"quant_method": "modelopt", "quant_algo": algorithm, "quantized_layers": {"x": {"quant_algo": "FP8"}}}
    assert (
        quantization_for(raw, capability=HOPPER, requested=word).name == quantization_for(raw, capability=HOPPER).name
    )


def test_scales_of_other_shapes_do_not_claim_a_checkpoint() -> None:
    raw = {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}
    with pytest.raises(EngineRefusalError, match="does not match"):
        quantization_for(raw, capability=HOPPER, requested="fp8")
