"""What vLLM takes beside weights and cache, and how much of a GPU it may be given."""

from __future__ import annotations

import dataclasses
import json

import autofit
import pytest
from autofit.errors import EngineRefusalError

from autofit_vllm.architectures import build_from_config
from autofit_vllm.config.engine import EngineConfig
from autofit_vllm.memory.budget import (
    FLASHINFER_BYTES,
    RankBudget,
    graphs_item,
    highest_utilization,
    peak_items,
    pinned_bytes,
    rank_budget,
    requested_bytes,
)
from autofit_vllm.memory.kv import plan_kv
from autofit_vllm.memory.offload import offload, prefetch, smallest_offload, smallest_prefetch
from autofit_vllm.modules.model import VllmModel
from support import DATA, vllm_models
from support.vllm_models import GIB, config

MIB = 1 << 20
_ATTENTION = ("--cpu-offload-params", "self_attn")


def budget(model: VllmModel, resolved: EngineConfig, *, stage: int = 0, **more: object) -> RankBudget:
    stages = vllm_models.weights(model, 15 * GIB, tp=resolved.parallel.tp, pp=resolved.parallel.pp)
    return rank_budget(model, resolved, stages[stage], plan_kv(model, resolved), **more)  # type: ignore[arg-type]


def built(name: str) -> VllmModel:
    return build_from_config(json.loads((DATA / "vllm/configs" / name / "config.json").read_text(encoding="utf-8")))


def labels(found: RankBudget) -> dict[str, int]:
    return {item.label: item.n_bytes for item in found.items}


def test_the_identity_of_the_log() -> None:
    """available KV = requested - consumed - peak - graphs."""
    model = vllm_models.llama_8b()
    found = budget(model, config(model, "4090"))
    requested = requested_bytes(int(23.52 * GIB), 0.92)
    kv = found.available_kv_bytes(requested)
    assert kv == requested - found.consumed_bytes - found.peak.n_bytes - found.graphs.n_bytes
    outside = sum(item.n_bytes for item in (*found.outside, *found.after))
    assert sum(item.n_bytes for item in found.items) == requested - kv + outside


def test_requested_is_rounded_up() -> None:
    assert requested_bytes(1000, 0.9205) == 921


def test_the_sampler_grows_with_sequences_and_vocabulary() -> None:
    """1024 slots of 128,256 entries: 501 MiB of counters that stay."""
    model = vllm_models.llama_8b()
    few = labels(budget(model, config(model, "h100", "--max-num-seqs", "16")))
    many = labels(budget(model, config(model, "h100")))
    counters = 1024 * 128_256 * 4 + 1024 * 4008 * 4
    assert many["sampler and input state"] == counters + 8192 * 64
    assert few["sampler and input state"] < many["sampler and input state"]
    hidden = 8192 * 4096 * 2  # what the step before has handed to the sampler
    assert many["activation peak (sampler)"] == (256 * 18 + 768 * 39) * 128_256 + hidden


def test_only_the_last_stage_samples() -> None:
    model = vllm_models.llama_8b()
    resolved = config(model, "h100", "-pp", "2")
    assert budget(model, resolved, stage=0).peak.label == "activation peak (layers)"
    assert budget(model, resolved, stage=1).peak.label == "activation peak (sampler)"


def test_experts_need_room_for_every_choice() -> None:
    """And keep it: the buffer that they share with other kernels is no part of the peak that goes away."""
    model = vllm_models.deepseek_v3()
    found = budget(model, config(model, "h200", "-tp", "8"))
    caches = 8192 * 8 * (4096 + 4096) * 2
    assert {item.label: item.n_bytes for item in found.consumed}["workspace of experts"] == caches
    assert "workspace of experts" not in found.peak.label


def test_sparse_attention_gathers_what_it_picks_from() -> None:
    """DeepSeek-V4 in steps of 8192 tokens: rows of four sequences of half precision, a fourth of the length and a
    window each; with short experts they are the largest that the shared buffer is asked for."""
    raw = json.loads((DATA / "vllm/configs/deepseek-v4-flash/config.json").read_text(encoding="utf-8"))
    model = build_from_config({**raw, "moe_intermediate_size": 128, "num_experts_per_tok": 1})
    found = budget(model, config(model, "h200", "--max-model-len", "1000000"))
    gathered = {item.label: item.n_bytes for item in found.consumed}["workspace of sparse attention"]
    assert gathered == max(2 * 1_000_000 * 1152 // 4, 4 * (250_000 + 128 + 8192) * 512 * 2 + 8192 * (640 + 1) * 4)


def test_images_are_profiled_unless_they_are_off() -> None:
    model = vllm_models.llama_8b(is_multimodal=True, modalities=("image",))
    vision = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "image_size": 896,
        "patch_size": 14,
        "mm_tokens_per_image": 256,
    }
    shown = {item.label for item in peak_items(model, config(model, "4090"), is_last=True, vision=vision)}
    blind = config(model, "4090", "--language-model-only")
    hidden = {item.label for item in peak_items(model, blind, is_last=True, vision=vision)}
    assert shown - hidden == {"image encoder"}


def test_graphs() -> None:
    model = vllm_models.qwen3_8b()
    logged = graphs_item(model, config(model, "4090")).n_bytes  # 0.52 GiB for 51 + 35 graphs
    assert logged == pytest.approx(0.52 * GIB, rel=0.05)
    few = config(model, "4090", "--cudagraph-capture-sizes", "1", "2", "4", "--max-num-seqs", "2")
    assert graphs_item(model, few).n_bytes == pytest.approx(0.09 * GIB, rel=0.15)  # 3 + 2 graphs
    assert graphs_item(model, config(model, "4090", "--enforce-eager")).n_bytes == 0


def test_graphs_of_experts_have_more_kernels_in_a_layer() -> None:
    """MiniMax-M3 on two B200 with 128 sequences: 35 piecewise and 19 full graphs were estimated at 1.97 GiB."""
    model = built("minimax-m3")
    found = graphs_item(model, config(model, "b200", "-tp", "2", "--max-num-seqs", "128"))
    assert found.label == "54 CUDA graphs"
    assert found.n_bytes == pytest.approx(1.97 * GIB, rel=0.2)
    halves = graphs_item(model, config(model, "b200", "-pp", "2", "--max-num-seqs", "128"))
    assert 2 * halves.n_bytes == pytest.approx(found.n_bytes, rel=0.2)  # the layers of a stage alone


def test_what_a_model_keeps_of_a_step() -> None:
    """DeepSeek-V4: four residual streams on the last stage, and what its indexers pick, for each token of a step."""
    model = built("deepseek-v4-flash")
    short, long = (
        labels(budget(model, config(model, "h200", "--max-num-batched-tokens", str(tokens)), stage=0))
        for tokens in (4096, 8192)
    )
    kept = 64 + 4 * 4096 * 2 + 4 * 512  # step inputs, streams in half precision, picked tokens
    assert long["sampler and input state"] - short["sampler and input state"] == 4096 * kept
    first = labels(budget(model, config(model, "h200", "-pp", "2"), stage=0))["sampler and input state"]
    assert first == 8192 * (64 + 4 * 512)


@pytest.mark.parametrize(
    ("name", "gpu", "args", "version", "mib"),
    [
        ("llama3-8b", "h100", ("-tp", "2"), "0.17.0", 4 * 2 * 64),  # 8192 tokens of 8 KiB are 64 MiB
        ("llama3-8b", "h100", ("-tp", "2"), "0.16.0", 0),
        ("llama3-8b", "h100", ("-tp", "4"), "0.33.0", 4 * 4 * 2),
        ("llama3-8b", "b200", ("-tp", "4"), "0.33.0", 4 * 4 * 32),
        ("llama3-8b", "h100", ("-tp", "2", "--max-num-batched-tokens", "2048"), "0.33.0", 4 * 2 * 16),
        ("llama3-8b", "h100", (), "0.33.0", 0),
        ("llama3-8b", "4090", ("-tp", "2"), "0.33.0", 0),
        ("llama3-8b", "h100", ("-tp", "2", "--enforce-eager"), "0.33.0", 0),
        ("llama3-8b", "h100", ("-tp", "2", "-O1"), "0.33.0", 0),
        ("llama3-8b", "h100", ("-tp", "2", "-cc.pass_config.fuse_allreduce_rms=false"), "0.33.0", 0),
        ("deepseek-v4-flash", "h200", ("-tp", "2"), "0.22.0", 4 * 2 * 64),
        ("deepseek-v4-flash", "h200", ("-tp", "2"), "0.23.0", 0),  # compiled no more
    ],
)
def test_sums_joined_with_norms_have_a_buffer(
    name: str, gpu: str, args: tuple[str, ...], version: str, mib: int
) -> None:
    """flashinfer keeps a buffer of every rank's part and three in turn, on Hopper and Blackwell."""
    model = built(name)
    resolved = config(model, gpu, *args, version=version)
    found = labels(budget(model, resolved)).get("buffer of joined all-reduces", 0)
    assert found == mib * MIB


def test_more_ranks_need_nccl() -> None:
    model = vllm_models.llama_8b()
    assert "NCCL" not in labels(budget(model, config(model, "5090")))
    two = budget(model, config(model, "5090", "-tp", "2"))
    assert two.outside_bytes == pytest.approx(1.13 * GIB, rel=0.1)  # 30.27 free of 31.4 GiB
    eight = budget(model, config(model, "b200", "-tp", "8"))
    assert eight.outside_bytes == pytest.approx(2.54 * GIB, rel=0.1)  # 175.81 free of 178.35 GiB


def test_flashinfer_brings_its_workspace() -> None:
    model = vllm_models.llama_8b()
    assert labels(budget(model, config(model, "b200")))["FlashInfer workspace"] == FLASHINFER_BYTES
    assert "FlashInfer workspace" not in labels(budget(model, config(model, "h100")))


def test_a_known_context_is_taken_as_it_is() -> None:
    model = vllm_models.llama_8b()
    assert labels(budget(model, config(model, "4090"), runtime_bytes=123 * MIB))["CUDA context"] == 123 * MIB


def test_utilization_leaves_what_others_hold() -> None:
    model = vllm_models.llama_8b()
    found = budget(model, config(model, "4090"))
    total = int(23.52 * GIB)
    free = {"total_bytes": total, "budget": found, "margin_bytes": 0}
    idle = highest_utilization(free_bytes=total - GIB, **free)  # type: ignore[arg-type]
    shared = highest_utilization(free_bytes=total - 4 * GIB, **free)  # type: ignore[arg-type]
    assert idle - shared == pytest.approx(3 / 23.52, abs=2e-4)
    assert highest_utilization(free_bytes=total, **free) == 0.95  # type: ignore[arg-type]
    assert requested_bytes(total, shared) <= total - 4 * GIB - found.outside_bytes
    assert highest_utilization(total_bytes=total, free_bytes=0, budget=found, margin_bytes=0) == 0.0


# -- RAM -----------------------------------------------------------------------------------


def test_pinned_allocations_are_powers_of_two() -> None:
    assert pinned_bytes([1, 3, 4, 5, 0]) == 1 + 4 + 4 + 8


def test_experts_move_tensor_by_tensor() -> None:
    model = vllm_models.deepseek_v3()
    (stage,) = vllm_models.weights(model, 61 * GIB)
    moved = offload((stage,), 1.0, ("experts",))
    per_layer = stage.expert_bytes // 61
    assert moved.moved == (per_layer + 2 * per_layer // 3,), "two tensors pass one GiB, then a third would be too many"
    assert moved.host_bytes >= moved.moved[0]
    assert moved.host_bytes <= 2 * moved.moved[0]


def test_the_least_that_is_enough() -> None:
    model = vllm_models.llama_8b()
    stages = vllm_models.weights(model, 15 * GIB)
    found = smallest_offload(stages, (int(1.23 * GIB),), ())
    assert found is not None
    assert found.values == {"cpu_offload_gb": 1.3}
    assert found.saved_bytes(0) >= 1.23 * GIB
    assert smallest_offload(stages, (15 * GIB,), ()) is None, "embeddings stay"
    assert smallest_offload(stages, (0,), ()) is None


def test_prefetched_layers_need_a_pool() -> None:
    """The last of every four layers moves: eight of 32, and one layer's worth of pool stays."""
    stages = vllm_models.weights(vllm_models.llama_8b(), 15 * GIB)
    found = prefetch(stages, 4, 1, 1, ())
    per_layer = found.pool[0]
    assert found.moved[0] == 8 * per_layer
    assert found.saved_bytes(0) == 7 * per_layer
    assert found.host_bytes >= found.moved[0]


def test_the_fewest_prefetched_layers_that_are_enough() -> None:
    stages = vllm_models.weights(vllm_models.llama_8b(), 15 * GIB)
    found = smallest_prefetch(stages, (int(1.23 * GIB),), ())
    assert found is not None
    assert found.saved_bytes(0) >= 1.23 * GIB
    assert found.moved[0] < 2 * GIB
    assert smallest_prefetch(stages, (15 * GIB,), ()) is None
    most = smallest_prefetch(stages, (int(10 * GIB),), ())
    assert most is not None
    assert most.values["offload_num_in_group"] != 1


def test_offloaded_weights_leave_the_gpu() -> None:
    model = vllm_models.llama_8b()
    plain = budget(model, config(model, "4090"))
    relieved = budget(model, config(model, "4090"), offloaded_bytes=2 * GIB)
    assert plain.consumed_bytes - relieved.consumed_bytes == 2 * GIB


def test_settings_are_kept_when_replaced() -> None:
    model = vllm_models.llama_8b()
    resolved = config(model, "4090")
    assert dataclasses.replace(resolved, max_num_seqs=1).max_in_flight_tokens == resolved.max_in_flight_tokens


@pytest.mark.parametrize(
    ("vision", "basis"),
    [({"hidden_size": 1280, "patch_size": 14, "image_size": 448}, "derived"), ({"hidden_size": 1280}, "assumed")],
)
def test_an_image_without_a_size_is_an_assumption(vision: dict[str, object], basis: str) -> None:
    sees = vllm_models.llama_8b(is_multimodal=True, modalities=("image",))
    items = peak_items(sees, config(sees, "h100"), is_last=True, vision=vision)
    encoder = next(item for item in items if item.label == "image encoder")
    assert encoder.basis == basis
    assert ("16384" in (encoder.source or "")) is (basis == "assumed")


@pytest.mark.parametrize(
    ("flags", "takes"),
    [
        (["--quantization", "fp8", "--cpu-offload-gb", "20"], False),
        (["--quantization", "fp8_per_block", "--offload-group-size", "4"], False),
        (["--quantization", "int8_per_channel_weight_only", "--cpu-offload-gb", "2"], False),
        (["--quantization", "int8_per_channel_weight_only", "--cpu-offload-gb", "2", *_ATTENTION], True),
        (["--cpu-offload-gb", "20"], True),
    ],
)
def test_weights_quantized_while_loading_cannot_be_offloaded(flags: list[str], takes: bool) -> None:
    """They are on the meta device when an offloader copies them (offloader/uva.py)."""
    argv = ["vllm", "serve", str(DATA / "vllm" / "configs" / "qwen3-30b-a3b"), *flags]
    if takes:
        found = autofit.check(argv, autofit.load_machine("a100-80gb"))
        weights = sum(item.n_bytes for item in found.memory.pool("GPU0").items if item.kind == "weights")
        assert weights > 0
        return
    with pytest.raises(EngineRefusalError, match="meta tensor"):
        autofit.check(argv, autofit.load_machine("a100-80gb"))
