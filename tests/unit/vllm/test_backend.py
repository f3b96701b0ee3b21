"""Commands, models and machines as they come in, and what is said about those that cannot be planned."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import autofit
import pytest
from autofit.domain.machine import Host, Machine
from autofit.domain.plan import Plan
from autofit.errors import (
    EngineRefusalError,
    HardwareError,
    ModelError,
    ModelNotFoundError,
    UnsupportedModelError,
    UsageError,
)
from autofit.inputs import engine_inputs
from autofit.settings.layers import Surroundings

from autofit_vllm.backend import VllmBackend
from support.vllm_models import GIB
from support.vllm_truth import DATA

CONFIGS = DATA / "configs"
LLAMA, QWEN, SMALL = CONFIGS / "llama3-8b", CONFIGS / "qwen3-8b", CONFIGS / "qwen3-0.6b"
CARD = autofit.load_machine("rtx-4090", ram="64GiB")


def directory(path: Path, base: Path = LLAMA, **changes: Any) -> Path:
    """A model of its own: `base` with changed keys, `None` for one that is gone."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config.update(changes)
    path.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in config.items() if value is not None}
    (path / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    return path


def plan(model: Path, *args: str, machine: Machine = CARD, **wishes: Any) -> Plan:
    return autofit.plan("vllm", model, machine, engine_args=args, **wishes)


def check(model: Path, *args: str, machine: Machine = CARD, **more: Any) -> Plan:
    return autofit.check(["vllm", "serve", str(model), *args], machine, **more)


def codes(found: Plan) -> set[str]:
    return {finding.code for finding in found.findings}


# -- Models


def test_a_directory_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no model in this directory"):
        plan(tmp_path)


def test_custom_code_is_never_run(tmp_path: Path) -> None:
    """A class that is not vLLM's own, without tensors: nothing to read its layers from."""
    model = directory(
        tmp_path / "own",
        architectures=["OwnForCausalLM"],
        model_type="own",
        auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
    )
    (model / "modeling_own.py").write_text("raise SystemExit('this must not run')", encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="unknown architecture OwnForCausalLM"):
        plan(model)


def test_code_beside_a_known_class_does_not_matter(tmp_path: Path) -> None:
    model = directory(tmp_path / "known", auto_map={"AutoModelForCausalLM": "modeling_known.Known"})
    assert plan(model).fits


def test_gguf_is_told_plainly(tmp_path: Path) -> None:
    from autofit_vllm.command.settings import parse_command
    from autofit_vllm.planning.inputs import read_vllm_model

    spec = dataclasses.replace(autofit.read_model(LLAMA), format="gguf")
    _, settings = parse_command(["vllm", "serve", "x"])
    with pytest.raises(UnsupportedModelError, match="plugin") as caught:
        read_vllm_model(spec, settings)
    assert caught.value.hint is not None and "autofit llama" in caught.value.hint
    with pytest.raises(ModelError):
        autofit.plan("vllm", spec, CARD)


def test_bitsandbytes_is_told_plainly() -> None:
    with pytest.raises(UnsupportedModelError, match="bitsandbytes") as caught:
        plan(LLAMA, "--quantization", "bitsandbytes")
    assert caught.value.hint is not None and "plugin" in caught.value.hint


def test_heads_that_do_not_divide_name_what_would(tmp_path: Path) -> None:
    model = directory(tmp_path / "seven", num_attention_heads=7, num_key_value_heads=7, hidden_size=896, head_dim=128)
    four = autofit.load_machine(*["l40s"] * 4, ram="64GiB")
    with pytest.raises(EngineRefusalError, match=re.escape("(7) must be divisible")) as caught:
        plan(model, "-tp", "4", machine=four)
    assert caught.value.hint == "possible: 1, 7; -tp 1 -pp 4 shares whole layers over as many GPUs"
    assert plan(model, machine=four).fits


def test_overridden_configuration() -> None:
    shorter = check(LLAMA, "--hf-overrides", '{"num_hidden_layers": 16}').engine_report
    assert shorter["bytes_per_block"] == [16 * 65536]


def test_a_length_beyond_the_model() -> None:
    with pytest.raises(EngineRefusalError, match="greater than the derived max_model_len"):
        plan(LLAMA, "--max-model-len", "1M")


def test_embedding_with_a_generative_model() -> None:
    (with_head,) = check(LLAMA).engine_report["weights_bytes_per_rank"]  # type: ignore[misc]
    (without,) = check(LLAMA, "--runner", "pooling").engine_report["weights_bytes_per_rank"]  # type: ignore[misc]
    assert with_head - without == 128256 * 4096 * 2


# -- Flags


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["--max-model-length", "4k"], "no flag '--max-model-length'", "did you mean --max-model-len?"),
        (["--swap-space", "4"], "no flag --swap-space", "--kv-offloading-size"),
        (["--calculate-kv-scales"], "no flag --calculate-kv-scales", "scales come from the checkpoint"),
        (["--max-model-len", "4q"], "not an integer: '4q'", "vllm serve --help"),
        (["--config", "/nowhere.yaml"], "nowhere.yaml", ""),
    ],
)
def test_flags_that_vllm_rejects(args: list[str], message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        plan(LLAMA, *args)
    assert hint in (caught.value.hint or "")


def test_a_version_that_is_not_known() -> None:
    with pytest.raises(UsageError, match=re.escape("0.1.0")):
        check(LLAMA, engine_version="0.1.0")


def test_a_fact_that_is_not_known() -> None:
    with pytest.raises(UsageError, match="available_kv"):
        check(LLAMA, available_kv=1)


def test_a_cache_type_that_is_not_vllms() -> None:
    with pytest.raises(UsageError, match="q8_0"):
        plan(LLAMA, kv="q8_0")


# -- Machines


def test_no_gpu() -> None:
    bare = Machine(host=CARD.host, devices=())
    with pytest.raises(HardwareError, match="NVIDIA"):
        plan(LLAMA, machine=bare)


def test_why_there_is_no_gpu() -> None:
    reason = "NVIDIA GeForce RTX 3090 cannot be used: driver mismatch"
    broken = Machine(host=CARD.host, devices=(), findings=("disks were not looked at", reason))
    with pytest.raises(HardwareError, match="there is none") as caught:
        plan(LLAMA, machine=broken)
    assert caught.value.hint == reason


def test_types_that_a_gpu_is_too_old_for() -> None:
    turing = autofit.load_machine("t4", ram="64GiB")
    with pytest.raises(EngineRefusalError, match=r"compute capability of at least 8\.0"):
        plan(LLAMA, "--dtype", "bfloat16", machine=turing)
    assert "--dtype float16" in " ".join(plan(SMALL, machine=turing).argv)


def test_more_gpus_than_there_are() -> None:
    with pytest.raises(EngineRefusalError, match="2"):
        check(LLAMA, "-tp", "2")


def test_devices_that_the_engine_sees() -> None:
    cards = autofit.load_machine("rtx-4090", "rtx-3090", ram="64GiB")
    names = lambda found: [pool.name for pool in found.memory.pools[:-1]]  # noqa: E731
    assert names(check(SMALL, machine=cards)) == ["NVIDIA GeForce RTX 4090"]
    second = check(SMALL, machine=cards, environ={"CUDA_VISIBLE_DEVICES": "1"})
    assert names(second) == ["NVIDIA GeForce RTX 3090"]
    assert names(check(SMALL, "--device-ids", "1", machine=cards)) == ["NVIDIA GeForce RTX 3090"]
    assert names(plan(SMALL, machine=cards, device="GPU1")) == ["NVIDIA GeForce RTX 3090"]
    with pytest.raises(EngineRefusalError, match="not all of these devices"):
        check(SMALL, "--device-ids", "7", machine=cards)


def test_another_process_holds_memory() -> None:
    """The command as it stands would be refused at start; the plan takes what is free."""
    (card,) = CARD.devices
    busy = dataclasses.replace(card, free_bytes=8 * GIB)
    machine = dataclasses.replace(CARD, devices=(busy,))
    as_it_stands = check(SMALL, machine=machine)
    assert not as_it_stands.fits
    assert "not-enough-free" in codes(as_it_stands)
    planned = plan(SMALL, machine=machine)
    assert planned.fits
    assert planned.kwargs["gpu_memory_utilization"] < 8 / 24  # type: ignore[operator]
    assert check(SMALL, *planned.argv[3:], machine=machine).fits


def test_the_cpu_build() -> None:
    host = Host(cpu_name="a processor", total_bytes=32 * GIB, available_bytes=30 * GIB)
    found = check(SMALL, machine=Machine(host=host, devices=()), environ={"VLLM_CPU_KVCACHE_SPACE": "8"})
    assert found.fits
    assert [pool.id for pool in found.memory.pools] == ["host"]
    assert found.engine_report["num_gpu_blocks"] == 8 * GIB // found.engine_report["bytes_per_block"][0]  # type: ignore[index]


def test_weights_alone_exceed_the_node() -> None:
    found = plan(CONFIGS / "deepseek-v3")
    assert not found.fits
    assert {"does-not-fit", "gpus-needed"} <= codes(found)


@pytest.mark.slow
def test_smaller_cards_take_fewer_layers() -> None:
    """27.5 GiB in two stages on 24 and 12 GiB: even stages do not fit the smaller card."""
    cards = autofit.load_machine("rtx-4090", "rtx-3060-12gb", ram="16GiB")
    model = CONFIGS / "qwen2.5-14b"
    found = plan(model, machine=cards)
    assert found.fits
    counts = [int(part) for part in found.env["VLLM_PP_LAYER_PARTITION"].split(",")]
    assert sum(counts) == 48
    ids = found.argv[found.argv.index("--device-ids") + 1] if "--device-ids" in found.argv else "0,1"
    of_card = dict(zip(ids.split(","), counts, strict=True))
    assert of_card["0"] > 2 * of_card["1"]
    assert "VLLM_PP_LAYER_PARTITION" in {decision.setting for decision in found.decisions}
    assert check(model, *found.argv[3:], machine=cards, environ=found.env).fits
    assert not check(model, *found.argv[3:], machine=cards).fits
    kept = plan(model, machine=cards, margin="1GiB").env
    assert set(kept) <= {"VLLM_PP_LAYER_PARTITION"}


def test_sequences_that_do_not_fit_together() -> None:
    """One sequence of 32k would start; the wish was for eight full ones."""
    one, eight = plan(QWEN, context="32k"), plan(QWEN, context="32k", parallel="8", fill="full", kv="bf16")
    assert one.fits and plan(QWEN, context="32k", parallel="8").fits
    assert not eight.fits
    (finding,) = [finding for finding in eight.findings if finding.code == "does-not-fit"]
    assert "8 sequences of 32,768 tokens" in finding.message


# -- Speculation


def speculate(model: Path, n_tokens: int = 4) -> str:
    return json.dumps({"model": str(model), "num_speculative_tokens": n_tokens})


def test_a_draft_model_is_counted() -> None:
    """28 layers of the draft beside the 36 of the target, and 1.1 GiB of weights."""
    alone = check(QWEN, available_kv_bytes=40 * GIB).engine_report
    drafted = check(QWEN, "--speculative-config", speculate(SMALL), available_kv_bytes=40 * GIB)
    assert alone["bytes_per_block"] == [36 * 65536]
    assert drafted.engine_report["bytes_per_block"] == [64 * 65536]
    items = {item.label: item.n_bytes for item in drafted.memory.pools[0].items}
    (small,) = check(SMALL).engine_report["model_memory_bytes_per_rank"]  # type: ignore[misc]
    assert items["draft layers"] == small


def test_a_draft_head_of_an_unknown_class(tmp_path: Path) -> None:
    head = directory(tmp_path / "head", QWEN, architectures=["OwnHead"], model_type="own", num_hidden_layers=1)
    found = check(QWEN, "--speculative-config", speculate(head), available_kv_bytes=40 * GIB)
    assert found.engine_report["bytes_per_block"] == [37 * 65536]
    assert any("draft model's class is not known" in finding.message for finding in found.findings)


def test_looking_up_ngrams_needs_no_model() -> None:
    config = '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}'
    found = check(QWEN, "--speculative-config", config, available_kv_bytes=40 * GIB)
    assert found.engine_report["bytes_per_block"] == [36 * 65536]


def test_a_check_goes_on_without_a_draft_that_is_not_there(tmp_path: Path) -> None:
    """The rest is checked; what the draft would take is not counted, and said."""
    found = check(QWEN, "--speculative-config", speculate(tmp_path / "nothing"), available_kv_bytes=40 * GIB)
    assert found.fits
    assert "draft-unknown" in codes(found)
    assert (
        found.engine_report["bytes_per_block"]
        == check(QWEN, available_kv_bytes=40 * GIB).engine_report["bytes_per_block"]
    )


def test_the_command_of_vllm_omni() -> None:
    found = check(QWEN, "--omni", "--stage-configs-path", "stages.yaml", available_kv_bytes=40 * GIB)
    assert found.fits and "omni" in codes(found)
    assert "--omni" in found.argv
    with pytest.raises(UsageError, match="stage-configs-path"):
        check(QWEN, "--stage-configs-path", "stages.yaml", available_kv_bytes=40 * GIB)


def test_a_key_that_was_renamed() -> None:
    with pytest.raises(UsageError) as raised:
        check(QWEN, "--attention_config.use_fp4_indexer_cache", "true")
    assert "indexer_kv_dtype" in str(raised.value.hint)


def test_unified_memory_leaves_what_the_system_and_the_engine_need() -> None:
    """vLLM at its default of 0.92 runs out on a GB10, where published commands use 0.72 to 0.85."""
    spark = autofit.load_machine("gb10")
    assert not check(QWEN, machine=spark).fits
    assert check(QWEN, "--gpu-memory-utilization", "0.85", "--max-num-seqs", "16", machine=spark).fits
    planned = plan(QWEN, machine=spark)
    assert planned.fits and planned.engine_report["gpu_memory_utilization"] <= 0.85  # type: ignore[operator]


def test_a_draft_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        plan(QWEN, "--speculative-config", speculate(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("model", "cards", "layers", "gib"),
    [
        ("deepseek-v3", ["h200"] * 8, [62], 1.547),  # 11.5 billion parameters, most of 1 byte, on 8 ranks
        ("qwen3-next-80b", ["h100-80gb"] * 4, [12, 12, 12, 13], 0.771),
        ("qwen3.5-27b-fp8", ["rtx-5090"] * 2, [16, 16, 16, 17], 0.198),
    ],
)
def test_layers_that_predict_further(model: str, cards: list[str], layers: list[int], gib: float) -> None:
    machine = autofit.load_machine(*cards, ram="64GiB")
    args = ["-tp", str(len(cards)), "--spec-method", "mtp", "--spec-tokens", "1", "--max-model-len", "4096"]
    found = check(CONFIGS / model, *args, machine=machine)
    groups: Any = found.engine_report["kv_cache_groups"]
    assert [group["layers"] for group in groups] == layers
    items = {item.label: item.n_bytes for item in found.memory.pools[0].items}
    assert items["draft layers"] == pytest.approx(gib * GIB, rel=0.001)


def test_a_model_without_such_layers() -> None:
    with pytest.raises(EngineRefusalError, match="no MTP layers"):
        plan(LLAMA, "--spec-method", "mtp", "--spec-tokens", "1")


# -- Offloaded pieces


def test_image_processes_share_the_gpu() -> None:
    """`--mm-ipc-gpu-memory-gb` comes out of the cache, of models that see."""
    model = CONFIGS / "qwen3.5-27b-fp8"
    machine = autofit.load_machine("h100-80gb", ram="64GiB")
    (plain,) = check(model, machine=machine).engine_report["available_kv_cache_bytes"]  # type: ignore[misc]
    shared = check(model, "--mm-ipc-gpu-memory-gb", "2", machine=machine).engine_report
    assert shared["available_kv_cache_bytes"] == [plain - 2 * GIB]


def test_encoders_are_named_where_they_could_be_left_out() -> None:
    model = CONFIGS / "qwen3.5-27b-fp8"
    machine = autofit.load_machine("h100-80gb", ram="64GiB")
    seeing, blind = plan(model, machine=machine), plan(model, "--language-model-only", machine=machine)
    assert "images-kept" in codes(seeing)
    assert "images-kept" not in codes(blind)
    assert blind.engine_report["available_kv_cache_bytes"] > seeing.engine_report["available_kv_cache_bytes"]  # type: ignore[operator]


def test_graphs_may_stay_out_of_the_estimate() -> None:
    inside = check(LLAMA).engine_report["available_kv_cache_bytes"]
    variable = {"VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS": "0"}
    outside = check(LLAMA, environ=variable).engine_report["available_kv_cache_bytes"]
    assert outside[0] > inside[0]  # type: ignore[index]


def test_prefetched_weights_are_counted() -> None:
    """Seven of eight moved layers leave the GPU; the host pins them."""
    (plain,) = check(LLAMA).engine_report["available_kv_cache_bytes"]  # type: ignore[misc]
    moved = check(LLAMA, "--offload-group-size", "4")
    (roomier,) = moved.engine_report["available_kv_cache_bytes"]  # type: ignore[misc]
    assert roomier - plain == pytest.approx(7 * 0.41 * GIB, rel=0.05)
    host = {item.label: item.n_bytes for item in moved.memory.pools[-1].items}
    assert host["offloaded weights, pinned"] >= roomier - plain
    with pytest.raises(EngineRefusalError, match="must be <= offload_group_size"):
        check(LLAMA, "--offload-group-size", "2", "--offload-num-in-group", "3")


def test_a_card_that_is_too_small_gets_weights_from_main_memory() -> None:
    small = autofit.load_machine("rtx-3060-12gb", ram="64GiB")
    found = plan(LLAMA, machine=small)
    assert found.fits
    assert {"--cpu-offload-gb", "--offload-group-size"} & set(found.argv)
    titles = " ".join(part for other in found.alternatives for part in other.argv)
    both = titles + " ".join(found.argv)
    assert "--cpu-offload-gb" in both and "--offload-group-size" in both
    assert check(LLAMA, *found.argv[3:], machine=small).fits


# -- values that no launch can have ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--cpu-offload-gb", "inf"], "cpu_offload_gb must be at least 0"),
        (["--cpu-offload-gb", "1e300"], "cpu_offload_gb must be at least 0"),
        (["--cpu-offload-gb", "nan"], "cpu_offload_gb must be at least 0"),
        (["--cpu-offload-gb", "-1"], "cpu_offload_gb must be at least 0"),
        (["--compilation-config", '{"cudagraph_capture_sizes": "x"}'], "must be a list"),
        (["--compilation-config", '{"cudagraph_capture_sizes": ["x"]}'], "must be a whole number, not 'x'"),
        (
            ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": "x"}'],
            "num_speculative_tokens must be a whole number",
        ),
    ],
)
def test_values_that_are_none(args: list[str], message: str) -> None:
    with pytest.raises(EngineRefusalError, match=message):
        check(SMALL, *args)


def test_unknown_free_memory_is_never_taken_as_free() -> None:
    unknown = dataclasses.replace(CARD, devices=(dataclasses.replace(CARD.devices[0], free_bytes=None),))
    with pytest.raises(HardwareError, match="the free memory of GPU0 is unknown"):
        plan(SMALL, machine=unknown)
    with pytest.raises(HardwareError, match="the free memory of GPU0 is unknown"):
        check(SMALL, machine=unknown)


def test_a_wished_device_is_the_one_that_is_used() -> None:
    two = autofit.load_machine("rtx-3090", "rtx-4090", ram="64GiB")
    found = plan(SMALL, machine=two, device=["GPU1"])
    assert found.argv[found.argv.index("--device-ids") + 1] == "1"
    assert [pool.id for pool in autofit.check(found.argv, two).memory.pools] == ["GPU1", "host"]
    with pytest.raises(UsageError, match="no device 'GPU9' here"):
        plan(SMALL, machine=two, device=["GPU1", "GPU9"])


def test_a_cache_larger_than_main_memory_does_not_fit_the_cpu_build() -> None:
    box = autofit.load_machine("cpu", ram="16GiB")
    command = ["vllm", "serve", str(SMALL), "--max-model-len", "4096"]
    assert autofit.check(command, box, environ={"VLLM_CPU_KVCACHE_SPACE": "4"}).fits
    assert not autofit.check(command, box, environ={"VLLM_CPU_KVCACHE_SPACE": "400"}).fits


# -- one memory for processor and GPU -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gb10", "jetson-agx-orin-64gb", "jetson-thor"])
def test_unified_memory_is_one_pool(name: str) -> None:
    """Processes take what the GPU would: both are counted against the same bytes, once."""
    machine = autofit.load_machine(name)
    available = machine.host.available_bytes
    found = plan(LLAMA, machine=machine)
    assert found.fits
    (pool,) = found.memory.pools
    assert (pool.id, pool.name, pool.free_bytes) == ("host", "unified memory", available)
    labels = [item.label for item in pool.items]
    assert "server and 1 worker" in labels
    assert any(label.startswith("KV cache") for label in labels)
    assert pool.used_bytes + pool.sum_bytes("reserve") <= available  # type: ignore[operator]
    assert [entry["id"] for entry in found.to_dict()["pools"]] == ["host"]
    assert check(LLAMA, *found.argv[3:], machine=machine).fits


def test_utilization_follows_what_is_free_of_the_shared_pool() -> None:
    machine = autofit.load_machine("gb10")
    idle, busy = (
        dataclasses.replace(machine, host=dataclasses.replace(machine.host, available_bytes=free * GIB))
        for free in (80, 60)
    )
    utilization = lambda found: found.kwargs["gpu_memory_utilization"]  # noqa: E731
    alone, shared = plan(LLAMA, machine=idle), plan(LLAMA, machine=busy)
    assert alone.fits and shared.fits
    freed = 20 * GIB / machine.devices[0].total_bytes  # type: ignore[operator]
    assert utilization(alone) - utilization(shared) == pytest.approx(freed, abs=1e-3)  # type: ignore[operator]
    assert not check(LLAMA, "--gpu-memory-utilization", "0.9", machine=busy).fits
    assert shared.memory.pools[0].used_bytes <= 60 * GIB


def test_offloading_frees_nothing_of_one_memory() -> None:
    machine = autofit.load_machine("gb10")
    share = ("--gpu-memory-utilization", "0.8")
    plain = check(LLAMA, *share, machine=machine)
    moved = check(LLAMA, *share, "--cpu-offload-gb", "4", machine=machine)
    assert "one-memory" in codes(moved) - codes(plain)
    (before,), (after,) = (found.engine_report["available_kv_cache_bytes"] for found in (plain, moved))  # type: ignore[misc]
    assert after < before
    assert plain.speed is not None and moved.speed is not None
    assert moved.speed.decode_tokens_per_s == plain.speed.decode_tokens_per_s
    large = plan(CONFIGS / "llama3-70b", machine=machine)
    assert not large.fits
    assert not {"--cpu-offload-gb", "--offload-group-size"} & set(large.argv)


def test_a_card_beside_unified_memory_keeps_its_own_pool() -> None:
    mixed = autofit.load_machine("gb10", "rtx-4090")
    found = check(LLAMA, "-tp", "2", "--max-model-len", "8192", machine=mixed)
    card, host = found.memory.pools
    assert (card.id, host.id) == ("GPU1", "host")
    assert host.sum_bytes("weights") == card.sum_bytes("weights")
    assert host.sum_bytes("runtime") - card.sum_bytes("runtime") == 5 * GIB  # server and two workers


# -- what a check is told beside the command ------------------------------------------------------------


def test_a_margin_is_memory_that_a_checked_command_must_leave() -> None:
    args = ["--max-model-len", "8192", "--gpu-memory-utilization", "0.9"]
    plain = check(LLAMA, *args)
    (pool, _) = plain.memory.pools
    assert plain.fits and pool.sum_bytes("reserve") == 0
    left = pool.free_bytes - pool.used_bytes  # type: ignore[operator]
    assert check(LLAMA, *args, margin=f"{left}B").fits
    tight = check(LLAMA, *args, margin=f"{left + 1}B")
    assert not tight.fits
    assert not tight.memory.fits
    (finding,) = [finding for finding in tight.findings if finding.code == "does-not-fit"]
    assert "with a margin of" in finding.message


def test_a_checked_device() -> None:
    cards = autofit.load_machine("rtx-4090", "rtx-3090", ram="64GiB")
    ids = lambda found: [pool.id for pool in found.memory.pools]  # noqa: E731
    assert ids(check(SMALL, machine=cards, device="GPU1")) == ["GPU1", "host"]
    assert ids(check(SMALL, "--device-ids", "1", machine=cards, device=["1"])) == ["GPU1", "host"]
    with pytest.raises(EngineRefusalError, match=r"World size \(2\) is larger than .* \(1\)"):
        check(SMALL, "-tp", "2", machine=cards, device="GPU1")
    with pytest.raises(UsageError, match="--device-ids 0 takes GPU0, which is not among the devices"):
        check(SMALL, "--device-ids", "0", machine=cards, device="GPU1")
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES=0 hides GPU1"):
        check(SMALL, machine=cards, device="GPU1", environ={"CUDA_VISIBLE_DEVICES": "0"})
    with pytest.raises(HardwareError, match="NVIDIA"):
        check(SMALL, machine=cards, environ={"CUDA_VISIBLE_DEVICES": ""})


def test_a_detected_machine_has_followed_the_variable_already() -> None:
    """Detection leaves the visible devices and numbers them anew: `2,3` would now name none."""
    two = autofit.load_machine("rtx-4090", "rtx-4090", ram="64GiB")
    found = dataclasses.replace(two, origin="detected")
    environ = {"CUDA_VISIBLE_DEVICES": "2,3"}
    assert check(SMALL, "-tp", "2", machine=found, environ=environ).fits
    surroundings = Surroundings(environ={**environ, "VLLM_CPU_KVCACHE_SPACE": "4", "OTHER": "1"})
    assert engine_inputs(VllmBackend(), surroundings) == {"VLLM_CPU_KVCACHE_SPACE": "4"}


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("0,0", "must not contain duplicates: 0,0"),
        ("0,GPU-aa", "must not mix integer IDs and UUIDs: 0,GPU-aa"),
        ("0,2", r"0,2: not all of these devices are visible \(2 are\)"),
        ("GPU-aa", "GPU-aa: not all of these devices are visible"),
    ],
)
def test_device_ids_that_the_engine_refuses(ids: str, message: str) -> None:
    cards = autofit.load_machine("rtx-4090", "rtx-3090", ram="64GiB")
    with pytest.raises(EngineRefusalError, match=message):
        check(SMALL, "--device-ids", ids, machine=cards)


def test_device_ids_may_be_uuids() -> None:
    cards = autofit.load_machine("rtx-4090", "rtx-3090", ram="64GiB")
    named = tuple(dataclasses.replace(card, uuid=f"GPU-{card.index}a") for card in cards.devices)
    found = check(SMALL, "--device-ids", "GPU-1a", machine=dataclasses.replace(cards, devices=named))
    assert [pool.id for pool in found.memory.pools] == ["GPU1", "host"]


@pytest.mark.parametrize("stated", ["x", [], -1, True, 1.5, [GIB, "x"], {}])
def test_kv_memory_that_is_none(stated: object) -> None:
    with pytest.raises(UsageError, match="available_kv_bytes is bytes, or a list of them"):
        check(SMALL, available_kv_bytes=stated)


def test_kv_memory_of_each_stage() -> None:
    two = autofit.load_machine("rtx-4090", "rtx-4090", ram="64GiB")
    assert check(SMALL, "-pp", "2", machine=two, available_kv_bytes=[9 * GIB, 9 * GIB]).fits
    with pytest.raises(UsageError, match="has 1 values for 2 pipeline stages"):
        check(SMALL, "-pp", "2", machine=two, available_kv_bytes=[GIB])


# -- wishes and flags that meet -------------------------------------------------------------------------


def test_more_sequences_than_a_step_has_tokens() -> None:
    """vLLM refuses steps of fewer tokens than sequences: a step that nobody pinned grows."""
    large = autofit.load_machine("h200", ram="64GiB")
    found = plan(SMALL, "--max-num-batched-tokens", "4096", parallel=4096, context=40, machine=large)
    assert found.fits
    grown = plan(SMALL, parallel=4096, context=40, machine=autofit.load_machine("a100-80gb", ram="64GiB"))
    assert grown.fits
    assert grown.engine_report["max_num_seqs"] == grown.engine_report["max_num_batched_tokens"] == 4096
    (decision,) = [decision for decision in grown.decisions if decision.setting == "--max-num-batched-tokens"]
    assert "one token per step for each of 4096 sequences" in decision.because
    pinned = plan(SMALL, "--max-num-seqs", "3000", machine=autofit.load_machine("a100-80gb", ram="64GiB"))
    assert pinned.fits and pinned.engine_report["max_num_batched_tokens"] == 3000
    with pytest.raises(EngineRefusalError, match=r"\(256\) must be greater than or equal to max_num_seqs \(300\)"):
        plan(SMALL, "--max-num-batched-tokens", "256", parallel=300, context=40)
    with pytest.raises(EngineRefusalError, match=r"\(2048\) must be greater"):
        check(SMALL, "--max-num-seqs", "3000")


def test_sequences_that_are_never_together_anywhere() -> None:
    found = plan(LLAMA, parallel=4096, fill="full", kv="bf16")
    assert not found.fits
    assert any("4096 sequences of 4,096 tokens" in finding.message for finding in found.findings)
    assert any("does not fit on 64 of these GPUs" in finding.message for finding in found.findings)


@pytest.mark.parametrize(
    ("wishes", "args", "message"),
    [
        ({"parallel": 8}, ["--max-num-seqs", "4"], "--parallel 8 and --max-num-seqs 4"),
        ({"context": "8k"}, ["--max-model-len", "4k"], "--context 8192 and --max-model-len 4000"),
        ({"min_context": "8k"}, ["--max-model-len", "4k"], "--min-context 8192 and --max-model-len 4000"),
        ({"max_context": "2k"}, ["--max-model-len", "4k"], "--max-context 2048 and --max-model-len 4000"),
    ],
)
def test_wishes_that_a_flag_contradicts(wishes: dict[str, Any], args: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=f"{message} contradict each other"):
        plan(SMALL, *args, **wishes)


def test_a_margin_that_leaves_nothing() -> None:
    found = plan(LLAMA, margin="99%")
    assert not found.fits
    assert codes(found) == {"does-not-fit", "margin-too-large", "machine"}
    lacks, most = (finding.message for finding in found.findings if finding.code != "machine")
    assert "with the margin of 23.28 GiB" in lacks
    (room,) = re.findall(r"at most ([0-9.]+) GiB, 4,096 tokens fit", most)
    assert plan(LLAMA, margin=f"{float(room) - 0.05}GiB").fits


@pytest.mark.parametrize("args", [["--model", "M"], ["--model=M"], ["--seed", "1", "--model", "M"]])
def test_a_model_that_is_named_twice(args: list[str]) -> None:
    """`vllm serve` puts the model of `--model` in front, where there is place for one."""
    with pytest.raises(UsageError, match="unexpected argument"):
        plan(SMALL, *args)
    with pytest.raises(UsageError, match="unexpected argument"):
        check(SMALL, *args)
    for spelling in (["--model", str(SMALL)], [f"--model={SMALL}"], ["--model", str(SMALL), "--model", "other"]):
        assert autofit.check(["vllm", "serve", "--seed", "1", *spelling], CARD).fits


# -- what a person who runs vLLM would call wrong -------------------------------------------------------


def test_too_little_main_memory_is_said() -> None:
    found = plan(LLAMA, machine=autofit.load_machine("rtx-4090", ram="2GiB:none"))
    assert not found.fits
    (finding,) = found.findings
    assert finding.message.startswith("RAM needs 1.50 GiB more; the largest item is server and 1 worker: 3.50 GiB")
    box = autofit.load_machine("cpu", ram="16GiB")
    found = autofit.check(["vllm", "serve", str(LLAMA)], box, environ={"VLLM_CPU_KVCACHE_SPACE": "8"})
    assert any("largest item is parameters" in finding.message for finding in found.findings)


def test_every_gpu_must_run_the_type() -> None:
    """vLLM decides by the first GPU, and the worker on a T4 then refuses bfloat16."""
    mixed = autofit.load_machine("rtx-4090", "t4", ram="64GiB")
    with pytest.raises(EngineRefusalError, match=r"GPU1 \(Tesla T4\) has 7\.5") as caught:
        check(QWEN, "-tp", "2", "--max-model-len", "4096", machine=mixed)
    assert caught.value.hint == "use --dtype half"
    found = plan(CONFIGS / "qwen2.5-14b", machine=mixed)
    assert found.fits
    assert len(found.memory.pools) == 3
    assert found.argv[found.argv.index("--dtype") + 1] == "float16"
    assert check(CONFIGS / "qwen2.5-14b", *found.argv[3:], machine=mixed, environ=found.env).fits
    with pytest.raises(EngineRefusalError, match="Bfloat16 is only supported"):
        plan(QWEN, "-tp", "2", "--dtype", "bfloat16", machine=mixed)


def test_cache_types_under_our_own_names() -> None:
    assert plan(LLAMA, kv="bf16").kwargs["kv_cache_dtype"] == "bfloat16"
    with pytest.raises(EngineRefusalError, match="Please set `--kv-cache-dtype` to `auto` or `bfloat16`"):
        plan(LLAMA, kv="f16")


def test_a_preset_for_many_users_leaves_the_engine_its_slots() -> None:
    """What the preset says is guaranteed room; vLLM may run more of shorter ones."""
    machine = autofit.load_machine("h100-80gb", ram="64GiB")
    many = plan(QWEN, machine=machine, preset="throughput")
    assert many.fits
    assert many.engine_report["max_num_seqs"] == 1024
    assert many.engine_report["kv_cache_tokens"] >= 8 * 8192  # type: ignore[operator]
    wished = plan(QWEN, machine=machine, preset="throughput", parallel=8)
    assert wished.engine_report["max_num_seqs"] == 8


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--kv-cache-memory-bytes", "40G"], "vLLM uses --kv-cache-memory-bytes as given; lower it"),
        (["--num-gpu-blocks-override", "100000"], "vLLM uses --num-gpu-blocks-override as given; lower it"),
        (["--gpu-memory-utilization", "0.99"], "at most 0.98 will start"),
    ],
)
def test_a_pinned_budget_that_is_not_there(args: list[str], message: str) -> None:
    found = plan(QWEN, *args)
    assert not found.fits
    (error,) = [finding for finding in found.findings if finding.severity == "error"]
    assert message in error.message


def test_gpus_older_than_the_wheel() -> None:
    assert "old-gpu" in codes(plan(SMALL, machine=autofit.load_machine("p40", ram="64GiB")))
    assert "old-gpu" not in codes(plan(SMALL, machine=autofit.load_machine("t4", ram="64GiB")))


@pytest.mark.slow
def test_single_precision_for_want_of_another_is_said() -> None:
    eight = autofit.load_machine(*["t4"] * 8, ram="256GiB")
    assert "float32" in codes(plan(CONFIGS / "gemma3-27b-text", machine=eight))
    assert "float32" not in codes(plan(SMALL, "--dtype", "float32", machine=eight))


def test_weights_in_main_memory_are_said() -> None:
    found = plan(LLAMA, machine=autofit.load_machine("rtx-3060-12gb", ram="64GiB"))
    (finding,) = [finding for finding in found.findings if finding.code == "weights-in-ram"]
    assert "reading them over PCIe limits decoding" in finding.message


def test_vllm_is_started_with_a_directory() -> None:
    found = plan(LLAMA / "config.json")
    assert found.argv[2] == found.kwargs["model"] == str(LLAMA)


@pytest.mark.parametrize(
    "words",
    [
        ["python", "-m", "vllm.entrypoints.openai.api_server", "--model"],
        ["/opt/venv/bin/python3", "-m", "vllm.entrypoints.cli.main", "serve"],
        ["/opt/venv/bin/vllm", "serve"],
    ],
)
def test_ways_to_start_the_server(words: list[str]) -> None:
    found = autofit.check([*words, str(SMALL), "--max-model-len", "4096"], CARD)
    assert found.fits and found.context_tokens == 4096
    assert found.argv[: len(words)] == tuple(words)


def test_other_modules_are_no_servers() -> None:
    with pytest.raises(UsageError, match="not a vLLM server"):
        autofit.check(["python", "-m", "vllm.collect_env"], CARD)
    with pytest.raises(UsageError, match="no backend understands the command 'http'"):
        autofit.check(["python", "-m", "http.server"], CARD)
