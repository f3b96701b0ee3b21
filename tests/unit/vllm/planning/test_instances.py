"""Instances behind a router: what each starts, what goes between them, and how many do what."""

from __future__ import annotations

import json
from typing import Any

import autofit
import pytest
from autofit.domain.plan import Plan
from autofit.errors import AutofitError, EngineRefusalError, UsageError
from autofit.settings.options import BY_NAME

from support import DATA

CONFIGS = DATA / "vllm/configs"
A3 = "gcp-a3-highgpu-8g"
REQUESTS = "3000:500"


def plan(config: str, *on: str, **options: Any) -> Plan:
    return autofit.plan("vllm", str(CONFIGS / config), on=list(on), **options)


def figures(found: Plan) -> dict[str, Any]:
    return dict(found.engine_report["instances"])  # type: ignore[call-overload, no-any-return]


def told(found: Plan) -> str:
    return next(one.message for one in found.findings if one.code == "instances")


def test_copies_are_the_plan_of_one_machine_on_each() -> None:
    one, found = plan("qwen3-8b", A3), plan("qwen3-8b", f"3x{A3}", replicas="auto")
    *copies, router = found.nodes
    assert [copy.role for copy in copies] == ["replica"] * 3 and {copy.commands for copy in copies} == {(one.argv,)}
    assert router.commands[0][-4:] == ("--worker-urls", *(f"http://node{at}:8000" for at in range(3)))
    assert (router.role, router.n_devices) == ("router", 0)
    pools = [pool for pool in found.memory.pools if pool.id != "host"]
    alone = [pool.used_bytes for pool in one.memory.pools if pool.id != "host"]
    assert [pool.used_bytes for pool in pools] == alone * 3
    assert [pool.id for pool in pools[8:9]] == ["node1/GPU0"] and len({pool.id for pool in pools}) == 24
    total = one.engine_report["total_tokens_per_s"]
    assert isinstance(total, float) and figures(found)["total_tokens_per_s"] == pytest.approx(3 * total, rel=1e-3)


def test_as_many_copies_as_are_asked_for() -> None:
    found = plan("qwen3-8b", f"3x{A3}", replicas=2)
    assert len(found.nodes) == 3 and "1 of 3 machines is not used" in [one.message for one in found.findings]
    with pytest.raises(EngineRefusalError, match="4 replicas are asked for, and 3 machines"):
        plan("qwen3-8b", f"3x{A3}", replicas=4)


def test_instances_that_read_prompts_hand_over_whole_pages() -> None:
    """64 layers with 8 heads of 128 numbers of 2 bytes each for K and V, in pages of 16 tokens."""
    found = plan("qwen3-32b", f"2x{A3}", disaggregate=REQUESTS)
    assert figures(found)["kv_bytes_per_prompt"] == 3008 * 64 * 2 * 8 * 128 * 2
    assert "752.0 MiB of KV cache" in told(found)
    reader, writer, router = found.nodes
    assert (reader.role, writer.role) == ("prefill", "decode")
    connector = "--kv-transfer-config.kv_connector NixlConnector --kv-transfer-config.kv_role"
    assert " ".join(reader.commands[0]).endswith(f"{connector} kv_producer")
    assert " ".join(writer.commands[0]).endswith(f"{connector} kv_consumer")
    assert writer.env == {"VLLM_NIXL_SIDE_CHANNEL_HOST": "node1"} and found.argv == reader.commands[0]
    words = ("--kv-connector", "nixl", "--prefill", "http://node0:8000", "--decode", "http://node1:8000")
    assert router.commands[0][-6:] == words and "--vllm-pd-disaggregation" in router.commands[0]


def test_a_rank_reads_a_whole_latent_cache_and_of_a_window_what_is_in_it() -> None:
    """DeepSeek V3: 61 layers of 576 numbers, on each of 8 ranks. Gemma 3: 10 of 62 layers keep all tokens, the others
    a window of 1024 and what lies across its edge."""
    latent = figures(plan("deepseek-v3", "2xazure-nd96isr-h200-v5", disaggregate=REQUESTS, engine_args=["-tp", "8"]))
    assert latent["kv_bytes_per_prompt"] == 8 * 61 * 3008 * 576 * 2
    sliding = figures(plan("gemma3-27b-text", f"2x{A3}", disaggregate=REQUESTS, engine_args=["-tp", "8"]))
    token = 2 * 16 * 128 * 2
    assert sliding["kv_bytes_per_prompt"] == token * (10 * 3008 + 52 * 1040)


@pytest.mark.parametrize(("requests", "more"), [("8000:50", "prefill"), ("100:2000", "decode")])
def test_what_requests_need_says_how_many_do_it(requests: str, more: str) -> None:
    found = figures(plan("qwen3-32b", f"6x{A3}", disaggregate=requests, link="400Gbit"))
    assert found["prefill"] + found["decode"] == 6 and found[more] > 3
    parts = [found[name] for name in ("prompts_per_s", "answers_per_s", "transfers_per_s")]
    assert found["requests_per_s"] == min(parts) <= found["requests_per_s_as_copies"]


def test_no_other_split_lets_more_requests_through() -> None:
    one = figures(plan("qwen3-32b", f"2x{A3}", disaggregate=REQUESTS, link="400Gbit"))
    found = figures(plan("qwen3-32b", f"5x{A3}", disaggregate=REQUESTS, link="400Gbit"))
    each = {name: one[name] for name in ("prompts_per_s", "answers_per_s", "transfers_per_s")}
    every = (
        min(n * each["prompts_per_s"], (5 - n) * each["answers_per_s"], min(n, 5 - n) * each["transfers_per_s"])
        for n in range(1, 5)
    )
    assert found["requests_per_s"] == pytest.approx(max(every))


def test_a_slow_network_is_what_decides_and_is_said() -> None:
    slow, fast = (plan("qwen3-32b", f"4x{A3}", disaggregate=REQUESTS, link=link) for link in ("1Gbit", "400Gbit"))
    assert figures(slow)["requests_per_s"] == figures(slow)["transfers_per_s"]
    assert figures(slow)["kv_seconds_per_prompt"] == pytest.approx(400 * figures(fast)["kv_seconds_per_prompt"], 1e-2)
    assert "at 1 Gbit/s" in told(slow) and "No such run stands behind" in told(slow)
    assert "10 Gbit/s (assumed: --link states it)" in told(plan("qwen3-32b", f"2x{A3}", disaggregate=REQUESTS))


def test_unlike_machines_do_what_they_are_better_at() -> None:
    """More computing for its bandwidth reads prompts."""
    found = plan("qwen3-8b", "8xa100-80gb", nodes=2, disaggregate=REQUESTS, context="8k")
    assert [one.role for one in found.nodes] == ["prefill", "decode", "router"]
    mixed = plan("qwen3-32b", "aws-p4de-24xlarge", A3, disaggregate=REQUESTS, context="8k", engine_args=["-tp", "8"])
    assert {one.role: one.node for one in mixed.nodes}["prefill"] == "node1"


def test_a_request_fits_into_each_instance() -> None:
    found = plan("qwen3-32b", f"2x{A3}", disaggregate="30000:2000", max_context="33k")
    assert 32000 <= (found.context_tokens or 0) <= 33000 * 1.024
    assert found.engine_report["mean_tokens"] == 31000


@pytest.mark.parametrize(
    ("on", "options", "message"),
    [
        ((A3,), {"replicas": "auto"}, "two machines or more"),
        ((A3,), {"disaggregate": REQUESTS}, "two machines or more"),
        ((f"2x{A3}",), {"replicas": 1}, "two machines or more"),
        ((f"2x{A3}",), {"replicas": 2, "disaggregate": REQUESTS}, "contradict each other"),
        ((f"2x{A3}",), {"replicas": 2, "engine_args": ["--nnodes", "2"]}, "--nnodes says where the ranks"),
        ((f"2x{A3}",), {"disaggregate": REQUESTS, "mean_tokens": 100}, "--mean-tokens contradicts"),
        ((f"2x{A3}",), {"disaggregate": REQUESTS, "fill": "full"}, "--fill full contradicts"),
        ((f"2x{A3}",), {"disaggregate": REQUESTS, "context": "2k"}, "below the 3500 tokens"),
        ((f"2x{A3}",), {"disaggregate": REQUESTS, "engine_args": ["-pp", "2"]}, "2 pipeline stages"),
        ((f"2x{A3}",), {"disaggregate": REQUESTS, "engine_args": ["--kv-transfer-config", "{}"]}, "hand over"),
        ((A3, "gb10"), {"replicas": "auto"}, "share RAM"),
        (("8xnvidia:80GiB",), {"disaggregate": REQUESTS, "nodes": 2}, "rates of node0 are not known"),
    ],
)
def test_what_cannot_be_is_refused(on: tuple[str, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(AutofitError, match=message):
        plan("qwen3-32b", *on, **options)


@pytest.mark.slow
def test_a_context_that_not_all_have_is_stated_or_refused() -> None:
    with pytest.raises(UsageError, match="node0 and node1 would have max_model_len 32768 and 4096"):
        plan("mixtral-8x7b", A3, "aws-g6-12xlarge", replicas=2)
    assert plan("mixtral-8x7b", A3, "aws-g6-12xlarge", replicas=2, context="4k").fits


@pytest.mark.parametrize("text", ["3000", "3000:", ":5", "a:b", "0:5", "3000:500:1"])
def test_requests_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError):
        BY_NAME["disaggregate"].parse(text)


def test_a_machine_that_holds_none_is_the_answer() -> None:
    found = plan("deepseek-v3", "gb10", nodes=2, replicas=2)
    assert not found.fits and found.nodes == ()


def test_another_engine_has_no_instances() -> None:
    with pytest.raises(UsageError, match="--replicas"):
        autofit.plan("llama", "example:qwen3-8b-q4_k_m", on=["rtx-3090"], replicas=2)


def test_the_plan_is_json() -> None:
    found = plan("qwen3-8b", f"2x{A3}", disaggregate=REQUESTS, link="100Gbit")
    assert json.loads(json.dumps(found.to_dict()))["engine_report"]["instances"] == figures(found)
