"""What an experienced person would run: experts, replicas, nodes, GPUs left out, and the cheapest change."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import autofit
import pytest
from autofit.domain.plan import Plan

from support import DATA, vllm_reports

CONFIGS = DATA / "vllm" / "configs"
FP8_BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def plan(model: Path, cards: str, *args: str, ram: str = "1TiB", **wishes: Any) -> Plan:
    return autofit.plan("vllm", model, autofit.load_machine(cards, ram=ram), engine_args=args, **wishes)


def check(model: Path, cards: str, *args: str) -> Plan:
    return autofit.check(["vllm", "serve", str(model), *args], autofit.load_machine(cards, ram="1TiB"), environ={})


def told(found: Plan) -> dict[str, str]:
    return {finding.code: finding.message for finding in found.findings}


def config(name: str, into: Path, **changes: object) -> Path:
    raw = json.loads((CONFIGS / name / "config.json").read_text(encoding="utf-8"))
    (into / "config.json").write_text(json.dumps({**raw, **changes}), encoding="utf-8")
    return into


def test_replicas_share_experts_where_heads_would_be_padded() -> None:
    """DeepSeek-V4-Flash on eight B200: kernels fill the 8 heads of a rank up to 64, and each rank would have the whole
    cache; with replicas every GPU has its own."""
    found = plan(CONFIGS / "deepseek-v4-flash", "8xb200")
    report = found.engine_report
    assert (report["data_parallel_size"], report["tensor_parallel_size"]) == (8, 1)
    assert "--enable-expert-parallel" in found.argv
    assert "idle-gpus" not in told(found)
    one = plan(CONFIGS / "deepseek-v4-flash", "b200")
    each = report["kv_cache_tokens"]
    assert 8 * each > 7 * one.engine_report["kv_cache_tokens"]  # type: ignore[operator]


@pytest.mark.slow
def test_replicas_that_share_experts_pay_for_the_exchange_between_them() -> None:
    """Each gathers the tokens of all in every layer, over the links between modules of a board."""
    found = plan(CONFIGS / "deepseek-v3", "8xh200", prefer="throughput")
    assert found.speed is not None and "exchange between replicas" in found.speed.basis
    ranks = plan(CONFIGS / "deepseek-v3", "8xh200", "-tp", "8", "-dp", "1")
    assert ranks.speed is not None and "exchange" not in ranks.speed.basis
    machine = autofit.load_machine("8xh200", ram="1TiB")
    slow = dataclasses.replace(machine, links=())  # over PCIe
    bridged = autofit.plan("vllm", CONFIGS / "deepseek-v3", slow, prefer="throughput", engine_args=("-dp", "8"))
    fast, slower = (one.engine_report["total_tokens_per_s"] for one in (found, bridged))
    assert fast > 1.2 * slower  # type: ignore[operator]


@pytest.mark.parametrize(("width", "whole"), [(768, False), (1536, True), (2048, False)])
def test_whole_experts_where_slices_would_cut_quantization_blocks(width: int, whole: bool, tmp_path: Path) -> None:
    """Eight slices of 192 are no whole blocks of 128; whole experts take as many bytes."""
    name = "qwen3-30b-a3b"
    model = config(name, tmp_path, moe_intermediate_size=width, quantization_config=FP8_BLOCKS, num_hidden_layers=60)
    flags = ("-tp", "8" if width != 768 else "2")
    found = plan(model, "8xh100-80gb", *flags)
    assert found.fits
    assert ("--enable-expert-parallel" in found.argv) == whole
    if whole:
        parts = check(model, "8xh100-80gb", *flags, "--enable-expert-parallel").engine_report
        assert parts["weights_bytes_per_rank"] == found.engine_report["weights_bytes_per_rank"]


def test_a_card_that_is_left_out_is_said() -> None:
    """Two of three cards are faster for one sequence; three stages would hold more."""
    found = plan(CONFIGS / "llama3-70b", "3xa100-80gb")
    assert found.engine_report["tensor_parallel_size"] == 2
    message = told(found)["idle-gpus"]
    assert "GPU2 not used: -pp 3 on all GPUs holds 131,072 tokens" in message
    assert plan(CONFIGS / "llama3-70b", "3xa100-80gb", context="128k").engine_report["pipeline_parallel_size"] == 3


def test_the_summary_says_what_the_cache_serves() -> None:
    found = plan(CONFIGS / "llama3-8b", "h100-80gb", parallel=64, context="16k")
    report = found.engine_report
    assert report["mean_tokens"] == 4096 and report["sequences_at_mean"] == 64
    message = told(found)["kv-capacity"]
    assert f"KV cache {report['kv_cache_tokens']:,} tokens" in message
    assert "all 64 sequences at a time at 4,096 tokens on average" in message and "tokens/s in all" in message
    longer = plan(CONFIGS / "llama3-8b", "h100-80gb", parallel=64, context="16k", mean_tokens="16k").engine_report
    assert longer["sequences_at_mean"] < 64  # type: ignore[operator]


def test_nodes_are_machines_like_this_one() -> None:
    """16 ranks on two nodes of 8: each stage has its own node."""
    machine = autofit.load_machine("8xh100-80gb", ram="1TiB")
    found = check(CONFIGS / "llama3-70b", "8xh100-80gb", "-tp", "8", "-pp", "2", "--nnodes", "2")
    assert found.fits
    available = found.engine_report["available_kv_cache_bytes"]
    assert isinstance(available, list) and len(available) == 2 and min(available) > 50 << 30
    assert len(found.memory.pools) == 17
    free = autofit.plan("vllm", CONFIGS / "llama3-70b", machine, engine_args=("--nnodes", "2"))
    report = free.engine_report
    assert (report["tensor_parallel_size"], report["pipeline_parallel_size"]) == (8, 2)
    assert "--node-rank" in told(free)["nodes"]


def test_nodes_whose_gpus_share_ram_have_it_each() -> None:
    """Two GB10 hold what one does not: the RAM of the second is not that of the first."""
    machine = autofit.load_machine("gb10")
    assert not autofit.plan("vllm", CONFIGS / "llama3-70b", machine, engine_args=()).fits
    found = autofit.plan("vllm", CONFIGS / "llama3-70b", machine, engine_args=("--nnodes", "2"))
    assert found.fits
    utilization = found.engine_report["gpu_memory_utilization"]
    assert isinstance(utilization, float) and 0.8 <= utilization <= 0.85
    other, host = found.memory.pools
    assert (other.id, host.id) == ("node1/host", "host")
    for pool in (other, host):
        assert 100 << 30 < pool.used_bytes <= (pool.free_bytes or 0)


def test_replicas_are_spread_over_nodes_one_on_each_gpu() -> None:
    """Stages of a replica would wait for each other, and serve fewer sequences."""
    machine = autofit.load_machine("8xh200", ram="2TiB")
    found = autofit.plan("vllm", CONFIGS / "deepseek-v4-flash", machine, engine_args=("--nnodes", "2"))
    report = found.engine_report
    sizes = [report[f"{kind}_parallel_size"] for kind in ("data", "tensor", "pipeline")]
    assert sizes == [16, 1, 1]


def test_each_node_has_its_command() -> None:
    """The head has the server; the others run the same flags without one."""
    found = check(
        CONFIGS / "llama3-70b", "8xh100-80gb", "-tp", "8", "-pp", "3", "--nnodes", "3", "--node_rank=2", "-r", "1"
    )
    head, *workers = found.nodes
    flags = ("vllm", "serve", str(CONFIGS / "llama3-70b"), "-tp", "8", "-pp", "3", "--nnodes", "3")
    assert head.commands == ((*flags, "--node-rank", "0", "--master-addr", "HEAD_ADDRESS"),)
    own = [("--node-rank", str(rank), "--master-addr", "HEAD_ADDRESS", "--headless") for rank in (1, 2)]
    assert [worker.commands for worker in workers] == [((*flags, *words),) for words in own]
    assert [(one.node, one.role, one.n_devices) for one in found.nodes] == [
        ("node0", "head", 8),
        ("node1", "worker", 8),
        ("node2", "worker", 8),
    ]
    assert found.to_dict()["nodes"][2]["head_address"] == "HEAD_ADDRESS"
    stated = check(CONFIGS / "llama3-70b", "8xh100-80gb", "-tp", "16", "--nnodes", "2", "--master-addr", "10.0.0.1")
    assert stated.nodes[1].commands[0][-5:] == ("--node-rank", "1", "--master-addr", "10.0.0.1", "--headless")
    assert stated.nodes[1].head_address == "10.0.0.1"
    assert check(CONFIGS / "llama3-70b", "8xh100-80gb", "-tp", "8").nodes == ()


def test_ray_is_started_on_each_node_before_the_engine() -> None:
    ray = ("--distributed-executor-backend", "ray")
    found = check(CONFIGS / "deepseek-v3", "8xh200", "-tp", "8", "-pp", "2", *ray)
    head, worker = found.nodes
    assert head.commands == (("ray", "start", "--head", "--port=6379"), found.argv)
    assert worker.commands == (("ray", "start", "--address=HEAD_ADDRESS:6379", "--block"),)
    assert (head.head_address, worker.head_address) == (None, "HEAD_ADDRESS")


def test_a_node_is_told_which_ranks_it_has() -> None:
    flags = ("-tp", "8", "-pp", "2", "--nnodes", "2", "--node-rank", "1", "--master-addr", "10.0.0.1", "--headless")
    message = told(check(CONFIGS / "llama3-70b", "8xh100-80gb", *flags))["nodes"]
    assert "2 nodes like this one with 8 GPUs each, of which this is node 1 (ranks 8 to 15)" in message
    flags = ("-dp", "16", "-dpl", "8", "--data-parallel-start-rank", "8", "--enable-expert-parallel", "--headless")
    found = check(CONFIGS / "deepseek-v3", "8xh200", *flags)
    assert "replicas 8 to 15 of 16 run here" in told(found)["nodes"] and len(found.memory.pools) == 9


def test_ray_fills_machines_like_this_one() -> None:
    ray = ("--distributed-executor-backend", "ray")
    found = check(CONFIGS / "deepseek-v3", "8xh200", "-tp", "8", "-pp", "2", *ray)
    assert found.fits and len(found.memory.pools) == 17 and "2 nodes" in told(found)["nodes"]
    one = check(CONFIGS / "deepseek-v3", "8xh200", "-tp", "8", *ray)
    assert len(one.memory.pools) == 9 and "nodes" not in told(one)
    planned = plan(CONFIGS / "deepseek-v3", "8xh100-80gb", "-tp", "16", *ray)
    assert planned.fits and len(planned.memory.pools) == 17


def test_keyword_arguments_are_of_one_replica() -> None:
    """vllm.LLM refuses data_parallel_size above 1."""
    found = plan(CONFIGS / "deepseek-v4-flash", "8xb200")
    assert found.engine_report["data_parallel_size"] == 8
    assert "data_parallel_size" not in found.kwargs and found.kwargs["max_model_len"] == found.context_tokens
    asked = plan(CONFIGS / "llama3-8b", "2xh100-80gb", "-dp", "2", "-O3")
    assert asked.kwargs["data_parallel_size"] == 2 and asked.kwargs["optimization_level"] == 3


def test_fewer_sequences_where_ram_is_short() -> None:
    """Each rank pins the tokens of every request: 1,024 of a million tokens on eight ranks are 32 GiB."""
    found = plan(CONFIGS / "deepseek-v4-flash", "8xb200", ram="24GiB")
    assert found.fits and found.context_tokens == 1048576
    assert found.memory.pool("host").used_bytes <= 22 << 30
    assert found.engine_report["max_num_seqs"] == 256


def test_long_steps_do_not_take_the_cache() -> None:
    """Windows hold the tokens in flight too: steps of 16,384 would leave less than half of the contexts."""
    found = plan(CONFIGS / "deepseek-v4-flash", "8xb200")
    longer = plan(CONFIGS / "deepseek-v4-flash", "8xb200", "--max-num-batched-tokens", "16384")
    assert found.engine_report["max_concurrency"] > 2 * longer.engine_report["max_concurrency"]  # type: ignore[operator]


@pytest.mark.slow_but("qwen3.5-27b*")
@pytest.mark.parametrize(
    ("name", "cards", "flags"),
    [
        ("qwen3-30b-a3b", "2xrtx-3090", "--quantization fp8"),
        ("qwen3.5-27b-fp8", "rtx-5090", "--language-model-only"),
        ("gemma3-27b-text", "2xrtx-3090", "--quantization fp8"),
    ],
)
def test_weights_in_ram_are_told_what_would_need_none(name: str, cards: str, flags: str) -> None:
    found = plan(CONFIGS / name, cards, ram="128GiB")
    message = told(found)["offload-price"]
    told_tokens = re.search(rf"-- {flags} \(.*?\) holds ([0-9,]+) tokens", message)
    assert told_tokens is not None, message
    changed = plan(CONFIGS / name, cards, *flags.split(), ram="128GiB")
    assert changed.fits and "offload-price" not in told(changed)
    assert changed.context_tokens == int(told_tokens[1].replace(",", ""))


def test_what_does_not_fit_is_told_a_form_that_does() -> None:
    found = plan(CONFIGS / "llama3-70b", "gb10", ram="121.7GiB")
    assert not found.fits and "--quantization fp8" in told(found)["would-fit"]
    assert plan(CONFIGS / "llama3-70b", "gb10", "--quantization", "fp8", ram="121.7GiB").fits


def test_the_cheapest_change_comes_first(tmp_path: Path) -> None:
    """DeepSeek-V4-Pro on eight H200 keeps its 200,000 tokens with shorter steps; a shorter context would do too."""
    model = vllm_reports.write_checkpoint("deepseek-ai--DeepSeek-V4-Pro", tmp_path)
    flags = ("-dp", "8", "--enable-expert-parallel", "--max-model-len", "200000", "--gpu-memory-utilization", "0.95")
    short = check(model, "8xh200", *flags)
    assert not short.fits
    message = told(short)["would-fit"]
    assert message.startswith("nearest: --max-num-batched-tokens 2048") and "keeps 200,000 tokens" in message
    change = message.removeprefix("nearest: ").split(" starts")[0].split()
    assert check(model, "8xh200", *flags, *change).fits
    assert not any("--max-model-len" in finding.message for finding in short.findings)


@pytest.mark.parametrize(
    ("name", "cards", "flags", "change"),
    [
        ("qwen3.5-27b-fp8", "l40s", (), "--max-num-seqs 128 --kv-cache-dtype fp8"),
        ("qwen3-32b", "h100-80gb", ("--max-model-len", "40960"), "--max-num-batched-tokens 4096 --max-num-seqs 128"),
        ("qwen3-8b", "rtx-4090", (), "--max-num-seqs 32"),
    ],
)
def test_changes_go_together_where_one_is_not_enough(
    name: str, cards: str, flags: tuple[str, ...], change: str
) -> None:
    short = check(CONFIGS / name, cards, *flags)
    assert not short.fits and told(short)["would-fit"].startswith(f"nearest: {change} starts and keeps")
    assert check(CONFIGS / name, cards, *flags, *change.split()).fits


def test_less_than_all_of_unified_memory_is_the_first_change() -> None:
    machine = autofit.load_machine("gb10")
    short = autofit.check(["vllm", "serve", str(CONFIGS / "qwen3-8b")], machine, environ={})
    message = told(short)["would-fit"]
    assert not short.fits and message.startswith("nearest: --gpu-memory-utilization 0.8")
    words = message.removeprefix("nearest: ").split(" starts")[0].split()
    assert autofit.check(["vllm", "serve", str(CONFIGS / "qwen3-8b"), *words], machine, environ={}).fits


def test_a_command_that_nothing_helps_is_told_how_many_gpus_would() -> None:
    assert "16 GPUs like NVIDIA H100" in told(check(CONFIGS / "deepseek-v3", "8xh100-80gb", "-tp", "8"))["gpus-needed"]
    message = told(check(CONFIGS / "llama3-70b", "h100-80gb", "--max-model-len", "16384"))["would-fit"]
    assert message.startswith("nearest: -- --quantization fp8")


def test_a_model_that_embeds_decodes_nothing() -> None:
    for found in (
        plan(CONFIGS / "qwen3-8b", "rtx-4090", "--runner", "pooling"),
        check(CONFIGS / "qwen3-8b", "h100-80gb", "--runner", "pooling"),
    ):
        assert found.fits and found.speed is not None and not found.speed.decodes
        assert found.engine_report["total_tokens_per_s"] is None and "tokens/s" not in told(found)["kv-capacity"]
    assert plan(CONFIGS / "qwen3-8b", "rtx-4090").speed.decodes  # type: ignore[union-attr]


def test_what_needs_no_offloading_counts_an_8_bit_cache(tmp_path: Path) -> None:
    model = config("llama3-70b", tmp_path, quantization_config=FP8_BLOCKS)
    found = plan(model, "h100-80gb", ram="64GiB", context="128k")
    told_length = re.search(r"-c ([0-9]+) needs no offloading with an fp8 KV cache", told(found)["offload-price"])
    assert told_length is not None
    shorter = plan(model, "h100-80gb", ram="64GiB", context=told_length[1])
    assert shorter.fits and "offload-price" not in told(shorter)


def test_a_shorter_context_is_the_last_resort() -> None:
    long = check(CONFIGS / "llama3-8b", "rtx-4090", "--max-model-len", "131072", "--kv-cache-dtype", "fp8")
    assert "nearest: --max-model-len" in told(long)["would-fit"]
    few = check(CONFIGS / "qwen3-8b", "rtx-4090", "--max-model-len", "40960", "--max-num-seqs", "512")
    assert "--max-num-seqs" in told(few)["would-fit"] and "--max-model-len" not in told(few)["would-fit"]


def test_offloading_comes_with_its_price_and_what_would_spare_it(tmp_path: Path) -> None:
    """70 GiB of weights on a card of 80: 131,072 tokens only with weights in RAM, and an 8-bit cache first."""
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": {**weights, "strategy": "token"}}
    eight = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"a": group}}
    model = config("llama3-70b", tmp_path, quantization_config={**eight, "ignore": ["lm_head"]})
    found = plan(model, "a100-80gb", context="128k")
    assert found.fits and found.engine_report["kv_cache_dtype"] == "fp8"
    message = told(found)["offload-price"]
    assert "needs no offloading" in message and "2 GPUs like" in message
    assert "--cpu-offload-gb" not in plan(model, "a100-80gb", context="16k").argv
    assert "--kv bf16 keeps" in told(found)["lossy-cache"]


@pytest.mark.parametrize(
    ("name", "card", "context"), [("llama3-70b", "a100-80gb", None), ("qwen3-32b", "rtx-3090", "16k")]
)
def test_a_plan_with_weights_in_ram_says_one_rate_and_what_would_be_faster(
    name: str, card: str, context: str | None
) -> None:
    """It fits, so the exit code is 0; a figure beside the summary's own must be of another plan."""
    found = plan(CONFIGS / name, card, ram="256GiB", **({} if context is None else {"context": context}))
    message = told(found)["offload-price"]
    assert found.fits and found.speed is not None and found.speed.decode_tokens_per_s < 10
    rates = [float(rate) for rate in re.findall(r"~([\d.]+) tokens/s", message)]
    assert all(rate > 5 * found.speed.decode_tokens_per_s for rate in rates)
    assert re.search(r"\d GPUs like|needs no offloading|all on GPUs", message)


def test_a_plan_that_is_too_slow_shows_no_rate() -> None:
    found = plan(CONFIGS / "llama3-70b", "2xa100-80gb", min_tps=100)
    assert not found.fits and found.speed is None
    assert "--min-tps 100 is not reached" in told(found)["too-slow"]


def test_no_more_of_a_card_than_published_commands_take() -> None:
    for name, cards in (("llama3-8b", "rtx-4090"), ("llama3-70b", "2xa100-80gb"), ("gpt-oss-20b", "h100-80gb")):
        found = plan(CONFIGS / name, cards)
        assert found.fits and found.engine_report["gpu_memory_utilization"] <= 0.95  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "cards", "needed"),
    [
        ("deepseek-v3", "h200", "8 GPUs like NVIDIA H200 would hold it: -tp 8 -pp 1"),
        ("llama3-70b", "3xa100-40gb", "4 GPUs like NVIDIA A100-SXM4-40GB would hold it: -tp 4 -pp 1"),
        ("mixtral-8x7b", "rtx-3060-12gb", "16 GPUs like NVIDIA GeForce RTX 3060 in 2 machines of 8 would hold it"),
        ("qwen2.5-14b", "t4", "4 GPUs like Tesla T4 would hold it: -tp 4 -pp 1"),
    ],
)
def test_gpus_that_are_missing_are_counted_as_tensor_parallelism_takes_them(name: str, cards: str, needed: str) -> None:
    assert needed in told(plan(CONFIGS / name, cards, ram="16GiB"))["gpus-needed"]


def test_a_shorter_context_comes_with_a_smaller_batch_where_that_makes_it_much_longer() -> None:
    """Buffers of 1,024 sequences are most of what the cache lacks."""
    found = check(CONFIGS / "llama3-70b", "2xh100-80gb", "-tp", "2")
    words = told(found)["would-fit"].removeprefix("nearest: ").removesuffix(" starts").split()
    assert {"--max-num-seqs", "--max-num-batched-tokens", "--max-model-len"} < set(words)
    assert check(CONFIGS / "llama3-70b", "2xh100-80gb", "-tp", "2", *words).fits
    length = int(words[words.index("--max-model-len") + 1])
    alone = check(CONFIGS / "llama3-70b", "2xh100-80gb", "-tp", "2", "--max-model-len", str(length // 2))
    assert not alone.fits


def test_gpus_that_are_left_out_could_run_copies() -> None:
    found = plan(CONFIGS / "llama3-8b", "4xh100-80gb", "-tp", "1")
    assert "-- -dp 4" in told(found)["idle-gpus"]
    copies = plan(CONFIGS / "llama3-8b", "4xh100-80gb", "-tp", "1", "-dp", "4")
    assert copies.fits and "idle-gpus" not in told(copies)
    unlike = autofit.load_machine("h100-80gb", "rtx-4060-ti-8gb", ram="1TiB")
    one = autofit.plan("vllm", CONFIGS / "llama3-8b", unlike, engine_args=("-tp", "1"))
    assert "-dp" not in told(one)["idle-gpus"], "the small one holds no copy"


def test_a_plan_without_cuda_graphs_says_so() -> None:
    found = plan(CONFIGS / "qwen3-30b-a3b", "2xrtx-5090", kv="fp8")
    assert "--enforce-eager" in found.argv
    assert "--no-enforce-eager" in told(found)["no-graphs"]


@pytest.mark.parametrize(
    ("name", "cards"), [("gpt-oss-20b", "rtx-4060"), ("mixtral-8x7b", "a100-40gb"), ("qwen3-8b", "rtx-3090")]
)
def test_no_next_value_lacks_less_than_nothing(name: str, cards: str) -> None:
    """Beside weights that stay in RAM for a short context, the cache may have pages left for a longer one."""
    found = plan(CONFIGS / name, cards, ram="128GiB")
    steps = [(decision, decision.next_rejected) for decision in found.decisions if decision.next_rejected is not None]
    assert all(step.shortfall_bytes is None or step.shortfall_bytes > 0 for _, step in steps), steps
    (length,) = [decision for decision in found.decisions if decision.setting == "--max-model-len"]
    assert ("stay in RAM" in length.because) == any("cpu-offload" in word for word in found.argv)
