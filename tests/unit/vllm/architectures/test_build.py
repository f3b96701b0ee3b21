"""From `config.json` to a model: defaults, choices, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from autofit.errors import EngineRefusalError, ModelError, UnsupportedModelError

from autofit_vllm.architectures import Options, build_from_config
from autofit_vllm.architectures.config import Config
from autofit_vllm.architectures.facts import model_length
from autofit_vllm.architectures.rope import rope_cache_rows, rope_parameters
from autofit_vllm.checkpoint.build import build_model
from autofit_vllm.memory.lora import LoraSpec, lora_bytes
from autofit_vllm.memory.weights import weights_per_rank
from autofit_vllm.modules.model import AttentionCache, LatentCache, Parallel, StateCache, VllmModel, Vocabulary
from autofit_vllm.quantization import quantization_for
from support import vllm_reports
from support.vllm_checkpoints import spec
from support.vllm_recorded import config

ULTRA = "nvidia--NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16"
LIGHTNING = "nvidia--NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4"


def parameters(model: VllmModel, **layout: Any) -> int:
    return sum(stage.parameter_bytes for stage in weights_per_rank(model, Parallel(**layout), dtype="bfloat16"))


def test_keys_that_are_absent_take_the_default_of_their_class() -> None:
    short = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    model = build_from_config(short)
    assert (model.n_layers, model.hidden_size, model.n_heads, model.vocab_size) == (32, 4096, 32, 32000)
    assert model.max_len_tokens == 2048
    assert parameters(model) == 2 * 6_738_415_616


def test_other_spellings_of_a_key() -> None:
    assert Config({"model_type": "gpt2", "n_embd": 1600}).int("hidden_size") == 1600
    assert Config({"model_type": "gpt2", "hidden_size": 1600}).int("n_embd") == 1600


@pytest.mark.parametrize("value", ["12", 1.5, True, 1 << 50, [8], -3])
def test_sizes_are_whole_numbers(value: object) -> None:
    raw = {**config("llama3.2-1b"), "hidden_size": value}
    with pytest.raises(ModelError):
        build_from_config(raw)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 0},
        {"num_hidden_layers": 5000},
        {"num_hidden_layers": 10**30},
        {"head_dim": "wide"},
        {"rope_scaling": {"rope_type": "yarn", "factor": "x"}},
        {"vocab_size": None},
    ],
)
def test_a_configuration_that_makes_no_sense_is_an_error_of_its_own(changes: dict[str, Any]) -> None:
    try:
        build_from_config({**config("llama3.2-1b"), **changes})
    except ModelError as error:
        assert str(error).startswith("config.json")
        assert "\n" not in str(error)


@pytest.mark.parametrize("key", ["layer_types", "layers_block_type", "block_configs"])
def test_lists_may_be_too_short(key: str) -> None:
    for name in ("granite4-small", "zamba2-7b", "nemotron-nas-51b", "lfm2-1.2b", "qwen3-next-80b"):
        try:
            build_from_config({**config(name), key: ["full_attention"]})
        except ModelError as error:
            assert "\n" not in str(error)


def test_an_architecture_that_vllm_dropped_says_since_when() -> None:
    raw = {"architectures": ["MiniMaxText01ForCausalLM"], "model_type": "minimax"}
    with pytest.raises(UnsupportedModelError, match="was supported in vLLM until"):
        build_from_config(raw)


def test_control_characters_do_not_reach_the_message() -> None:
    with pytest.raises(UnsupportedModelError) as raised:
        build_model(spec({"architectures": ["\x1b[31mEvil"], "model_type": "x"}))
    assert "\x1b" not in str(raised.value)


def test_switching_off_every_modality_leaves_the_language_model() -> None:
    raw = config("gemma3-4b")
    whole = build_from_config(raw)
    text = build_from_config(raw, Options(language_model_only=True))
    none = build_from_config(raw, Options(disabled_modalities=frozenset({"image"})))
    assert parameters(text) == parameters(none)
    towers = weights_per_rank(whole, Parallel(), dtype="bfloat16")[0].tower_bytes
    assert parameters(whole) - parameters(text) == towers > 800_000_000


def test_an_encoder_divides_or_is_copied() -> None:
    model = build_from_config(config("qwen2.5-vl-7b"))
    divided = weights_per_rank(model, Parallel(tp=4), dtype="bfloat16")[0].tower_bytes
    copied = weights_per_rank(model, Parallel(tp=4, vision_data_parallel=True), dtype="bfloat16")[0].tower_bytes
    assert 3.9 < copied / divided < 4.1


def test_a_vector_needs_no_head() -> None:
    raw = config("llama3-8b")
    head = 128256 * 4096 * 2
    assert parameters(build_from_config(raw)) - parameters(build_from_config(raw, Options(pooling=True))) == head
    judge = build_from_config({**raw, "architectures": ["LlamaForSequenceClassification"], "num_labels": 1})
    assert judge.is_pooling
    assert parameters(judge) == parameters(build_from_config(raw)) - head + 4 * 4096


def test_a_shared_head_weighs_nothing_until_the_stages_part() -> None:
    model = build_from_config(config("llama3.2-1b"))
    table = 128256 * 2048 * 2
    assert parameters(model, pp=2) - parameters(model) == table
    assert any(isinstance(module, Vocabulary) and module.tied_to for module in model.modules)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("llama3-8b", {AttentionCache: 32}),
        ("deepseek-v2-lite", {LatentCache: 27}),
        ("qwen3-next-80b", {StateCache: 36, AttentionCache: 12}),
        ("codestral-mamba", {StateCache: 64}),
        ("gemma3n-text", {AttentionCache: 20}),
        ("whisper-large-v3", {AttentionCache: 64}),
        ("bert-base", {}),
    ],
)
def test_what_each_layer_keeps(name: str, kinds: dict[type, int]) -> None:
    model = build_from_config(config(name))
    assert {kind: sum(type(cache) is kind for cache in model.caches) for kind in kinds} == kinds
    assert len(model.caches) == sum(kinds.values())


def test_prediction_layers_are_kept_apart() -> None:
    model = build_from_config(config("deepseek-v3-bf16") | {"num_nextn_predict_layers": 1})
    assert model.draft is not None
    assert len(model.draft.caches) == 1
    with_draft = weights_per_rank(model, Parallel(), dtype="bfloat16", with_draft=True)[0]
    without = weights_per_rank(model, Parallel(), dtype="bfloat16")[0]
    assert without.draft_bytes == 0
    assert with_draft.parameter_bytes == without.parameter_bytes
    # A layer with experts, behind a projection of two vectors to one.
    attention = 7168 * (1536 + 576) + 1536 * 128 * 192 + 512 * 128 * 256 + 128 * 128 * 7168 + 1536 + 512
    mixture = 257 * 3 * 7168 * 2048 + 256 * 7168
    small = 2 * 7168 * 7168 + 5 * 7168
    assert with_draft.draft_bytes == 2 * (attention + mixture + small) + 4 * 256


def test_latent_attention_unpacks_what_is_quantized() -> None:
    from autofit_vllm.quantization import quantization_for

    model = build_from_config(config("deepseek-v2-lite"))
    plain = weights_per_rank(model, Parallel(tp=2), dtype="bfloat16")[0]
    assert plain.extra_bytes == 0
    raw = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    quantization = quantization_for(raw, capability=(9, 0))
    eight = weights_per_rank(model, Parallel(tp=2), dtype="bfloat16", quantization=quantization)[0]
    assert eight.extra_bytes == 27 * 512 * 8 * 256 * 2


def test_room_for_adapters() -> None:
    model = build_from_config(config("llama3.2-1b"))
    layer = {module.name.rpartition(".")[2]: module for module in model.modules if module.stage == 0}
    one = LoraSpec(max_loras=1, max_rank=16)
    whole, halved = Parallel(), Parallel(tp=2)
    assert lora_bytes(layer["qkv_proj"], whole, one) == 2 * 16 * (3 * 2048 + 3072)
    assert lora_bytes(layer["qkv_proj"], halved, one) == 2 * 16 * (3 * 2048 + 1536)
    assert lora_bytes(layer["o_proj"], halved, one) == 2 * 16 * (1024 + 2048)
    sharded = LoraSpec(max_loras=1, max_rank=16, fully_sharded=True)
    assert lora_bytes(layer["qkv_proj"], halved, sharded) == 2 * (3 * 8 * 2048 + 16 * 1536)
    assert lora_bytes(layer["o_proj"], halved, sharded) == 2 * 16 * (1024 + 1024)
    four = LoraSpec(max_loras=4, max_rank=64, dtype="float32")
    assert lora_bytes(layer["qkv_proj"], whole, four) == 4 * 64 * 4 * (3 * 2048 + 3072)
    with pytest.raises(EngineRefusalError, match="--fully-sharded-loras"):
        lora_bytes(layer["qkv_proj"], Parallel(tp=8), LoraSpec(max_rank=1, fully_sharded=True))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"max_position_embeddings": 4096}, (4096, 4096)),
        ({"max_position_embeddings": 32768, "model_max_length": 8192}, (8192, 8192)),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.0}}, (8192, 8192)),
        (
            {"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            (131072, 131072),
        ),
        (
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope", "short_factor": [], "long_factor": []},
            },
            (131072, 4096),
        ),
        ({}, (None, None)),
    ],
)
def test_how_long_a_sequence_may_get(raw: dict[str, Any], expected: tuple[int | None, int | None]) -> None:
    found = model_length(Config(raw))
    assert (found.derived, found.default) == expected


@pytest.mark.parametrize(
    ("scaling", "rows"),
    [
        ({"rope_type": "default"}, 4096),
        ({"rope_type": "llama3", "factor": 8.0}, 4096),
        ({"rope_type": "linear", "factor": 2.0}, 8192),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192),
        ({"rope_type": "longrope", "original_max_position_embeddings": 2048}, 6144),
        ({"rope_type": "default", "mrope_section": [16, 24, 24]}, 16384),
    ],
)
def test_rows_of_a_rope_table(scaling: dict[str, Any], rows: int) -> None:
    read = rope_parameters(Config({"rope_scaling": scaling}))
    assert rope_cache_rows(read, 4096) == rows


def test_building_a_model_imports_nothing_heavy() -> None:
    script = (
        "import json, sys\n"
        "from autofit_vllm.architectures import build_from_config\n"
        "from autofit_vllm.modules.model import Parallel\n"
        "from autofit_vllm.memory.weights import weights_per_rank\n"
        "weights_per_rank(build_from_config(json.load(sys.stdin)), Parallel(tp=2), dtype='bfloat16')\n"
        "heavy = {'torch', 'numpy', 'vllm', 'transformers', 'safetensors', 'pydantic'} & set(sys.modules)\n"
        "print(sorted(heavy))\n"
    )
    raw = json.dumps(config("llama3.2-1b"))
    done = subprocess.run([sys.executable, "-c", script], input=raw, text=True, capture_output=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_layers_may_be_counted_by_their_list_alone() -> None:
    """Nemotron-H's class takes the number from `layers_block_type`, and ignores another that the file says."""
    raw = vllm_reports.configs()[ULTRA]["config"]
    kinds = raw["layers_block_type"]
    assert "num_hidden_layers" not in raw and len(kinds) == 108
    model = build_from_config(raw)
    assert model.n_layers == 108
    assert sum(isinstance(cache, StateCache) for cache in model.caches) == kinds.count("mamba")
    assert sum(isinstance(cache, AttentionCache) for cache in model.caches) == kinds.count("attention")
    assert build_from_config({**raw, "num_hidden_layers": 4}).n_layers == 108


def test_mixed_precision_by_configuration_alone() -> None:
    """17.58 GiB are what vLLM builds from it; names in `quantized_layers` begin with `backbone.`."""
    raw = vllm_reports.configs()[LIGHTNING]
    model = build_from_config({**raw["config"], "hf_quant_config": raw["hf_quant_config"]})
    quantization = quantization_for(model.quantization, capability=(9, 0), architecture=model.architecture)
    (stage,) = weights_per_rank(model, Parallel(), dtype="bfloat16", quantization=quantization)
    assert stage.parameter_bytes / (1 << 30) == pytest.approx(17.58, abs=0.01)
