"""The decision: layouts, lengths, batches, the cache's type, and what happens when nothing fits."""

from __future__ import annotations

import pytest
from autofit.domain.request import Margin
from autofit.errors import EngineRefusalError

from autofit_vllm.planning.evaluation import margin_bytes
from autofit_vllm.planning.explain import explain
from autofit_vllm.planning.layouts import layouts
from autofit_vllm.planning.relief import gpus_needed
from autofit_vllm.planning.search import solve
from autofit_vllm.planning.speed import speed_of
from support.vllm_models import GIB, deepseek_v3, gemma3_27b, llama_8b, qwen3_6_27b, qwen3_8b
from support.vllm_problems import best, problem

WEIGHTS = 15 * GIB


def plan(*args: object, **more: object) -> object:
    asked = problem(*args, **more)  # type: ignore[arg-type]
    chosen, others = solve(asked)
    return explain(asked, chosen, others, program=("vllm", "serve"), reference="M")


def test_a_model_that_fits_one_card() -> None:
    chosen = best(llama_8b(), WEIGHTS, "rtx-4090")
    assert chosen.fits
    assert chosen.length >= 32_768
    assert (chosen.values["max_num_seqs"], chosen.values["max_num_batched_tokens"]) == (256, 2048)
    assert list(chosen.values) == [
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "gpu_memory_utilization",
        "dtype",
    ]


def test_every_device_dependent_default_is_written_out() -> None:
    found = plan(llama_8b(), WEIGHTS, "h100-80gb")
    argv = " ".join(found.argv)  # type: ignore[attr-defined]
    for flag in (
        "--max-model-len",
        "--max-num-seqs",
        "--max-num-batched-tokens",
        "--gpu-memory-utilization",
        "--dtype",
    ):
        assert flag in argv


def test_a_wished_length_is_kept() -> None:
    assert best(llama_8b(), WEIGHTS, "rtx-4090", context=8192).length == 8192
    short = best(llama_8b(), WEIGHTS, "rtx-4090", context=120_000, kv="bf16", ram="8GiB")
    assert not short.fits
    assert short.evaluation.shortfall_bytes > 0


def test_the_longest_takes_smaller_steps() -> None:
    usual = best(llama_8b(), WEIGHTS, "rtx-4090")
    longest = best(llama_8b(), WEIGHTS, "rtx-4090", context=0)
    assert longest.length > usual.length
    assert longest.values["max_num_batched_tokens"] < usual.values["max_num_batched_tokens"]


def test_the_longest_leaves_what_it_must_in_ram() -> None:
    """As far as `-c 131072` goes: an fp8 cache, and no more weights in RAM than it needs."""
    asked = best(llama_8b(), WEIGHTS, "rtx-4090", context=131_072)
    longest = best(llama_8b(), WEIGHTS, "rtx-4090", context=0)
    assert asked.fits and longest.values == asked.values
    offload = longest.evaluation.offload
    assert offload is not None and 0 < sum(offload.moved) < GIB * 4
    tight = best(llama_8b(), WEIGHTS, "rtx-4090", context=0, ram="7GiB")
    assert tight.fits and 65_536 < tight.length < 131_072
    just_longer = best(llama_8b(), WEIGHTS, "rtx-4090", context=tight.length + 256, ram="7GiB")
    assert not just_longer.fits


def test_a_context_is_as_long_as_its_prompt_is_read_in_time() -> None:
    free = best(llama_8b(), WEIGHTS, "h100-80gb")
    held = best(llama_8b(), WEIGHTS, "h100-80gb", max_ttft=1.0)
    assert held.fits and held.length < free.length
    assert held.values.get("kv_cache_dtype") is None, "a shorter context asks for no lossy cache"
    assert best(llama_8b(), WEIGHTS, "h100-80gb", context=held.length, max_ttft=1.0).fits
    late = best(llama_8b(), WEIGHTS, "h100-80gb", context=held.length + 2048, max_ttft=1.0).late
    assert late is not None and "--max-ttft 1 is not reached: ~1" in late


def test_no_time_is_promised_where_weights_wait_in_ram() -> None:
    in_ram = best(llama_8b(), 40 * GIB, "rtx-4090", max_ttft=600.0)
    assert in_ram.late is not None and "--max-ttft 600 is not known to be reached" in in_ram.late


def test_bounds_on_the_length() -> None:
    assert best(llama_8b(), WEIGHTS, "rtx-4090", max_context=4096).length == 4096
    assert not best(llama_8b(), WEIGHTS, "rtx-4090", min_context=120_000, kv="bf16", ram="8GiB").fits


def test_full_contexts_for_all_sequences_where_they_are_asked_for() -> None:
    one = best(llama_8b(), WEIGHTS, "rtx-4090", context=0, parallel=1, kv="bf16", ram="8GiB")
    four = best(llama_8b(), WEIGHTS, "rtx-4090", context=0, parallel=4, fill="full", kv="bf16", ram="8GiB")
    assert four.values["max_num_seqs"] == 4
    assert four.length * 4 <= one.length * 1.05
    kv, capacity = four.evaluation.kv, four.evaluation.capacity
    assert capacity is not None
    assert 4 * kv.blocks_per_request(four.length) < capacity.n_blocks


def test_parallel_sequences_share_a_paged_cache() -> None:
    """A full context, and three of a fourth of it each: 1.75 full ones instead of four."""
    full = best(llama_8b(), WEIGHTS, "rtx-4090", context=0, parallel=4, fill="full", kv="bf16", ram="8GiB")
    shared = best(llama_8b(), WEIGHTS, "rtx-4090", context=0, parallel=4, kv="bf16", ram="8GiB")
    assert shared.length == pytest.approx(full.length * 4 / 1.75, rel=0.03)
    assert shared.served == 1.0 and shared.load is not None and shared.load.n_sequences == 4
    short = best(llama_8b(), WEIGHTS, "rtx-4090", context=0, parallel=4, mean_tokens=1000, kv="bf16", ram="8GiB")
    assert short.length > shared.length


def test_sequences_are_served_at_a_time_and_not_reserved() -> None:
    """64 sequences of 16,384 tokens are 134 GiB of cache; one of them, and as many as there is room for, fit a card."""
    chosen = best(llama_8b(), WEIGHTS, "rtx-4090", context=16_384, parallel=64)
    assert chosen.fits and chosen.length == 16_384
    assert chosen.values["max_num_seqs"] == 64
    assert not best(llama_8b(), WEIGHTS, "rtx-4090", context=16_384, parallel=64, fill="full", ram="8GiB").fits


def test_throughput_under_a_wish_for_speed() -> None:
    free = best(llama_8b(), WEIGHTS, "h100-80gb", prefer="throughput")
    held = best(llama_8b(), WEIGHTS, "h100-80gb", prefer="throughput", min_tps=60.0)
    assert free.load is not None and held.load is not None and held.load.tokens_per_s is not None
    assert held.load.tokens_per_s >= 60.0 > (free.load.tokens_per_s or 0.0)
    assert held.values["max_num_seqs"] == held.load.n_sequences < free.load.n_sequences
    assert held.total_speed < free.total_speed


def test_a_wish_for_speed_that_no_plan_meets() -> None:
    for wish in ({"min_tps": 1000.0}, {"max_ttft": 0.001}):
        chosen = best(llama_8b(), WEIGHTS, "rtx-4090", **wish)
        assert chosen.holds and not chosen.fits
        assert chosen.late is not None and next(iter(wish)).replace("_", "-") in chosen.late
    two = best(llama_8b(), WEIGHTS, "rtx-4090", "rtx-4090", min_tps=70.0)
    assert two.fits and two.parallel.tp == 2


def test_a_wish_for_speed_is_of_a_full_context_which_is_shortened_for_it() -> None:
    """As for llama.cpp: what the plan shows is what was asked for."""
    roofline = problem(llama_8b(), WEIGHTS, "h100-80gb").roofline
    free = best(llama_8b(), WEIGHTS, "h100-80gb")
    full = speed_of(free.evaluation, roofline, n_filled=free.length)
    start = speed_of(free.evaluation, roofline, n_filled=4096)
    assert full is not None and start is not None and full.decode_tokens_per_s < start.decode_tokens_per_s
    wish = (full.decode_tokens_per_s + start.decode_tokens_per_s) / 2
    held = best(llama_8b(), WEIGHTS, "h100-80gb", min_tps=wish)
    assert held.fits and 4096 < held.length < free.length
    rate = speed_of(held.evaluation, roofline, n_filled=held.length)
    assert rate is not None and rate.decode_tokens_per_s >= wish
    stated = best(llama_8b(), WEIGHTS, "h100-80gb", min_tps=wish, context=free.length)
    assert not stated.fits and stated.late is not None and f"{free.length:,} tokens in the context" in stated.late


def test_several_sequences_hold_their_average_when_a_rate_is_wished() -> None:
    for fill, most in (("mean", 8192), ("full", 32_768)):
        slow = best(llama_8b(), WEIGHTS, "h100-80gb", parallel=4, context=32_768, min_tps=1000.0, fill=fill)
        assert slow.late is not None
        assert f"each with 4 sequences with {most:,} tokens in the context" in slow.late


def test_two_cards_share_what_one_cannot_hold() -> None:
    chosen = best(llama_8b(), 40 * GIB, "rtx-4090", "rtx-4090")
    assert (chosen.values["tensor_parallel_size"], chosen.fits) == (2, True)


def test_stages_where_heads_do_not_divide() -> None:
    model = llama_8b(n_heads=25, n_kv_heads=5)
    chosen = best(model, 40 * GIB, "rtx-4090", "rtx-4090")
    assert chosen.values["pipeline_parallel_size"] == 2


def test_the_roomiest_cards_are_taken() -> None:
    chosen = best(llama_8b(), WEIGHTS, "rtx-3090:12GiB", "rtx-3090", args=("-tp", "1"))
    assert chosen.values["device_ids"] == "1"
    assert [rank.device.id for rank in chosen.evaluation.ranks] == ["GPU1"]


def test_pins_are_never_altered() -> None:
    args = ("-tp", "2", "--max-num-seqs", "7", "--gpu-memory-utilization", "0.7", "--max-model-len", "4k")
    found = plan(llama_8b(), WEIGHTS, "rtx-4090", "rtx-4090", "rtx-4090", "rtx-4090", args=args)
    assert found.argv[-len(args) :] == args  # type: ignore[attr-defined]
    report = found.engine_report  # type: ignore[attr-defined]
    assert (report["tensor_parallel_size"], report["max_num_seqs"], report["max_model_len"]) == (2, 7, 4000)
    assert report["gpu_memory_utilization"] == 0.7
    ours = found.argv[: -len(args)]  # type: ignore[attr-defined]
    assert not {"--max-num-seqs", "--tensor-parallel-size", "--max-model-len"} & set(ours)


def test_pins_that_cannot_hold() -> None:
    with pytest.raises(EngineRefusalError, match="tensor parallel size"):
        solve(problem(llama_8b(), WEIGHTS, "rtx-4090", "rtx-4090", "rtx-4090", args=("-tp", "3")))


def test_an_8_bit_cache_only_where_it_makes_the_wish_fit() -> None:
    chosen = best(llama_8b(), WEIGHTS, "rtx-4090", context=70_000)
    assert (chosen.fits, chosen.values["kv_cache_dtype"]) == (True, "fp8")
    for kv in (None, "auto"):
        relaxed = best(llama_8b(), WEIGHTS, "rtx-4090", context=16_384, kv=kv)
        assert "kv_cache_dtype" not in relaxed.values, "not where it is not needed"
    assert "kv_cache_dtype" not in best(llama_8b(), WEIGHTS, "rtx-4090").values, "not for a longer context by itself"
    kept = best(llama_8b(), WEIGHTS, "rtx-4090", context=120_000, kv="bf16", ram="8GiB")
    assert not kept.fits and kept.values["kv_cache_dtype"] == "bfloat16"
    assert best(llama_8b(), WEIGHTS, "rtx-4090", kv="fp8_e5m2").values["kv_cache_dtype"] == "fp8_e5m2"


def test_graphs_go_last() -> None:
    chosen = best(llama_8b(), int(21.75 * GIB), "rtx-4090", context=1024)
    assert chosen.fits
    assert chosen.values["enforce_eager"] is True
    assert not any(key.startswith("cpu_offload") for key in chosen.values)


def test_experts_move_to_main_memory() -> None:
    model = llama_8b(n_experts=64, n_experts_per_token=4, moe_intermediate_size=1024)
    chosen = best(model, 40 * GIB, "rtx-4090", ram="128GiB")
    assert chosen.fits
    assert chosen.values["cpu_offload_params"] == ("experts",)
    moved = chosen.evaluation.offload
    assert moved is not None
    assert moved.moved[0] >= 17 * GIB
    assert not best(model, 40 * GIB, "rtx-4090", ram="16GiB").fits, "there is no room for them"


def test_recurrent_models_have_a_block_per_sequence() -> None:
    chosen = best(qwen3_6_27b(), 29 * GIB, "l40s")
    capacity = chosen.evaluation.capacity
    assert capacity is not None
    assert chosen.values["max_num_seqs"] <= capacity.n_blocks


def test_replicas_for_throughput() -> None:
    chosen = best(llama_8b(), WEIGHTS, *["h100-80gb"] * 4, prefer="throughput")
    assert chosen.values.get("data_parallel_size", 1) * chosen.values.get("tensor_parallel_size", 1) >= 2
    assert chosen.total_speed >= best(llama_8b(), WEIGHTS, "h100-80gb", prefer="throughput").total_speed


def test_context_parallel_where_the_cache_repeats() -> None:
    chosen = best(deepseek_v3(), 600 * GIB, *["h200"] * 8, prefer="context", parallel=16, fill="full")
    assert chosen.values.get("decode_context_parallel_size") == 8


def test_nothing_fits() -> None:
    found = plan(llama_8b(), 200 * GIB, "rtx-4090", "rtx-4090", ram="32GiB")
    assert not found.fits  # type: ignore[attr-defined]
    codes = {finding.code: finding.message for finding in found.findings}  # type: ignore[attr-defined]
    assert "GiB more for 4,096 tokens" in codes["does-not-fit"]
    assert "GPUs like" in codes["gpus-needed"]
    needed = gpus_needed(problem(llama_8b(), 200 * GIB, "rtx-4090", "rtx-4090"), 4096)
    assert needed is not None
    assert needed.world_size >= 10


def test_margins_are_kept() -> None:
    usual = best(llama_8b(), WEIGHTS, "rtx-4090")
    wide = best(llama_8b(), WEIGHTS, "rtx-4090", margin=(Margin(n_bytes=2 * GIB),))
    assert wide.evaluation.utilization < usual.evaluation.utilization
    device = wide.evaluation.ranks[0].device
    assert margin_bytes(device, 3, (Margin(n_bytes=1), Margin(n_bytes=2))) == 2, "the last is repeated"


def test_decisions_say_why() -> None:
    found = plan(llama_8b(), WEIGHTS, "rtx-4090", args=("--seed", "7"), context=0, kv="bf16", ram="6GiB")
    decisions = {decision.setting: decision for decision in found.decisions}  # type: ignore[attr-defined]
    assert all(decision.because for decision in decisions.values())
    length = decisions["--max-model-len"]
    assert length.next_rejected is not None
    assert (length.next_rejected.shortfall_bytes or 0) > 0
    assert decisions["--seed"].origin == "user"
    assert "margin" in decisions["--gpu-memory-utilization"].because


def test_keyword_arguments_mean_the_same() -> None:
    found = plan(llama_8b(), WEIGHTS, "rtx-4090", args=("--port", "80", "--seed", "7", "--max-model-len", "1k"))
    kwargs = found.kwargs  # type: ignore[attr-defined]
    assert kwargs["model"] == "M"
    assert (kwargs["max_model_len"], kwargs["seed"]) == (1000, 7)
    assert kwargs["max_num_seqs"] == found.engine_report["max_num_seqs"]  # type: ignore[attr-defined]
    assert "port" not in kwargs


def test_windows_fit_more_with_smaller_steps() -> None:
    chosen = best(gemma3_27b(), 51 * GIB, *["rtx-4090"] * 4, context=0)
    assert chosen.fits
    assert chosen.length > 32_768


def test_layouts_cover_the_machine() -> None:
    asked = problem(llama_8b(), WEIGHTS, *["rtx-4090"] * 4)
    shapes = {
        (layout.values.get("tensor_parallel_size", 1), layout.values.get("pipeline_parallel_size", 1))
        for family in layouts(asked)
        for layout in family
    }
    assert shapes == {(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (4, 1)}


def test_a_handful_of_tokens_is_not_enough() -> None:
    """Where little more than the weights fits, RAM is asked as well."""
    asked = problem(qwen3_8b(), int(20.9 * GIB), "rtx-4090", ram="64GiB")
    chosen, _ = solve(asked)
    assert chosen.fits
    assert chosen.length >= 4096
