"""More of anything never makes a plan worse: no fit, length or rate is lost, whatever tier or layout it falls into."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import autofit
import pytest
from autofit.domain.request import Margin
from autofit.errors import EngineRefusalError
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from autofit_vllm.planning.problem import Candidate, Problem
from autofit_vllm.planning.search import solve
from support import DATA, vllm_models
from support.vllm_models import GIB, VllmModel
from support.vllm_problems import problem

#: more of them, as many as time allows: AUTOFIT_EXAMPLES=1000 pytest tests/property/test_vllm_laws.py
LAWS = settings(
    max_examples=int(os.environ.get("AUTOFIT_EXAMPLES", "25")),
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)
CARDS = ("rtx-3060-12gb", "rtx-4090", "a100-40gb", "h100-80gb", "h200")


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """A model, its weights, cards, RAM and wishes."""
    kind = draw(st.sampled_from(["dense", "few heads", "experts", "hybrid"]))
    n_layers = draw(st.sampled_from([28, 48, 60]))
    heads, kv_heads = (56, 8) if kind == "few heads" else (32, 8)
    experts = 64 if kind == "experts" else 0
    model = (
        vllm_models.qwen3_6_27b()
        if kind == "hybrid"
        else vllm_models.model(
            tuple(vllm_models.full(i, heads=heads, kv_heads=kv_heads) for i in range(n_layers)),
            n_heads=heads,
            n_kv_heads=kv_heads,
            n_experts=experts,
            n_experts_per_token=4 if experts else 0,
            moe_intermediate_size=1024 if experts else 0,
        )
    )
    return {
        "model": model,
        "size": draw(st.floats(2.0, 90.0)),
        "card": draw(st.sampled_from(CARDS)),
        "n": draw(st.integers(1, 5)),
        "ram": draw(st.sampled_from([16, 48, 256])),
        "wishes": {
            "context": draw(st.sampled_from([None, 0, 16384])),
            "parallel": draw(st.sampled_from([None, 8])),
            "kv": draw(st.sampled_from([None, "auto", "bf16"])),
            "prefer": draw(st.sampled_from(["speed", "speed", "context", "throughput", "quality"])),
        },
    }


def ask(case: dict[str, Any], **more: Any) -> Problem:
    case = {**case, **more}
    model: VllmModel = case["model"]
    cards = [case["card"]] * case["n"]
    asked = problem(model, int(case["size"] * GIB), *cards, ram=f"{case['ram']}GiB", **case["wishes"])
    extra = int(case.get("extra_gib", 0) * GIB)
    devices = tuple(
        dataclasses.replace(
            device, total_bytes=(device.total_bytes or 0) + extra, free_bytes=(device.free_bytes or 0) + extra
        )
        for device in asked.devices
    )
    machine = dataclasses.replace(asked.machine, devices=devices)
    return dataclasses.replace(asked, devices=devices, machine=machine)


def found(asked: Problem) -> Candidate | None:
    try:
        return solve(asked)[0]
    except EngineRefusalError:
        return None


def no_worse(case: dict[str, Any], before: Candidate | None, after: Candidate | None) -> None:
    """No plan is lost, and of length and rate one is lost only where the other grows."""
    if before is None or not before.fits:
        return
    assert after is not None and after.fits
    prefer = case["wishes"]["prefer"]
    useful = 32768 if case["wishes"]["context"] is None else before.length
    assert after.length >= (before.length if prefer == "context" else min(before.length, useful))
    rates = (before.total_speed, after.total_speed) if prefer == "throughput" else (before.pace, after.pace)
    assert after.length >= before.length or rates[1] > rates[0], "a shorter context only for a higher rate"
    assert after.length > before.length or rates[1] >= 0.999 * rates[0], "a lower rate only for more context"


@LAWS
@given(cases(), st.sampled_from([0.3, 1.0, 4.0, 40.0]))
def test_more_gpu_memory(case: dict[str, Any], extra: float) -> None:
    no_worse(case, found(ask(case)), found(ask(case, extra_gib=extra)))


@pytest.mark.slow
@LAWS
@given(cases(), st.sampled_from([256, 2048, 4096, 12_000, 33_000, 65_536, 131_072]))
def test_the_longest_context_is_no_shorter_than_any_that_plans(case: dict[str, Any], context: int) -> None:
    """Of one that serves as many sequences at a time."""
    wishes = case["wishes"]
    one = found(ask(case, wishes={**wishes, "context": context}))
    longest = found(ask(case, wishes={**wishes, "context": 0}))
    if one is None or not one.fits:
        return
    assert longest is not None and longest.fits
    assert longest.length >= one.length or longest.served > one.served


@pytest.mark.slow
@LAWS
@given(cases())
def test_one_more_card(case: dict[str, Any]) -> None:
    no_worse(case, found(ask(case)), found(ask(case, n=case["n"] + 1)))


@pytest.mark.slow
@LAWS
@given(cases(), st.sampled_from([8, 64, 512]))
def test_more_main_memory(case: dict[str, Any], extra: int) -> None:
    no_worse(case, found(ask(case)), found(ask(case, ram=case["ram"] + extra)))


@pytest.mark.slow
@LAWS
@given(cases(), st.integers(1, 6))
def test_a_larger_margin_uses_no_more(case: dict[str, Any], gib: int) -> None:
    """On a layout that does not change: another may need more cards."""
    asked = ask(case)
    margin = (Margin(n_bytes=gib * GIB),)
    more = (Margin(n_bytes=(gib + 1) * GIB),)
    first = found(dataclasses.replace(asked, request=dataclasses.replace(asked.request, margin=margin)))
    second = found(dataclasses.replace(asked, request=dataclasses.replace(asked.request, margin=more)))
    if first is None or second is None or not (first.fits and second.fits):
        return
    assert second.length <= first.length
    if len(first.evaluation.ranks) == len(second.evaluation.ranks):
        assert second.evaluation.utilization <= first.evaluation.utilization


@pytest.mark.slow
@LAWS
@given(st.lists(st.sampled_from(("rtx-3090", "rtx-4090", "a100-40gb")), min_size=2, max_size=4), st.floats(4.0, 60.0))
def test_the_order_of_cards(names: list[str], size: float) -> None:
    ordered = found(problem(vllm_models.llama_8b(), int(size * GIB), *sorted(names)))
    mixed = found(problem(vllm_models.llama_8b(), int(size * GIB), *names))
    assert (ordered is None) == (mixed is None)
    if ordered is not None and mixed is not None:
        assert mixed.fits == ordered.fits
        assert mixed.length == ordered.length
        assert mixed.rate == pytest.approx(ordered.rate, rel=0.001)


@pytest.mark.slow
@pytest.mark.parametrize("prefer", ["speed", "context", "throughput", "quality"])
@pytest.mark.parametrize(
    ("name", "cards"),
    [
        ("llama3-8b", "rtx-4090"),
        ("qwen3-30b-a3b", "2xa100-80gb"),
        ("llama3-70b", "3xa100-80gb"),
        ("deepseek-v3", "8xh200"),
        ("deepseek-v4-flash", "8xb200"),
        ("gemma3-27b-text", "2xrtx-5090"),
        ("qwen3-next-80b", "4xh100-80gb"),
    ],
)
def test_the_printed_command_checks_to_the_same_bytes_and_rates(name: str, cards: str, prefer: str) -> None:
    machine = autofit.load_machine(cards, ram="512GiB")
    model = DATA / "vllm" / "configs" / name
    planned = autofit.plan("vllm", model, machine, prefer=prefer, parallel=8)
    assert planned.fits
    checked = autofit.check(planned.argv, machine, environ=planned.env)
    assert checked.fits
    for before, after in zip(planned.memory.pools, checked.memory.pools, strict=True):
        assert after.used_bytes == before.used_bytes
    assert planned.speed == checked.speed
    for figure in ("kv_cache_tokens", "mean_tokens", "sequences_at_mean", "total_tokens_per_s"):
        assert planned.engine_report[figure] == checked.engine_report[figure]
