"""`--min-tps` and `--max-ttft`: what a plan gives up for them, and what is told where nothing is fast enough."""

from __future__ import annotations

import pytest
from autofit.domain.plan import Plan

from unit.llama.planning.test_decide import card, machine, plan, value

MODEL = "qwen3-30b-a3b-Q4_K_M"


def full_rate(found: Plan) -> float:
    assert found.speed is not None
    return found.speed.decode_tokens_per_s


def test_a_floor_of_the_decode_rate_shortens_the_context() -> None:
    on = machine(card(0, 12))
    free = plan(on, model=MODEL)
    floor = 1.2 * full_rate(free)
    held = plan(on, model=MODEL, min_tps=floor)
    assert held.fits
    assert full_rate(held) >= floor
    assert (held.context_tokens or 0) < (free.context_tokens or 0)


@pytest.mark.slow
def test_a_floor_that_f16_misses_is_reason_enough_for_a_smaller_cache() -> None:
    on = machine(card(0, 12))
    f16, q8 = (full_rate(plan(on, model=MODEL, context=32_768, kv=kv)) for kv in ("f16", "q8_0"))
    assert f16 < q8 < 1.3 * f16
    assert value(plan(on, model=MODEL, context=32_768), "-ctk") is None
    held = plan(on, model=MODEL, context=32_768, min_tps=(f16 + q8) / 2)
    assert held.fits
    assert value(held, "-ctk") == "q8_0"


@pytest.mark.parametrize("wish", [{"min_tps": 5000.0}, {"max_ttft": 0.001}])
def test_what_nothing_reaches_is_told_with_the_figure(wish: dict[str, float]) -> None:
    found = plan(machine(card(0, 12)), model=MODEL, context=8192, **wish)
    assert not found.fits
    (error,) = (finding for finding in found.findings if finding.code == "too-slow")
    assert error.severity == "error"
    assert next(iter(wish)).replace("_", "-") in error.message
    assert found.speed is not None


@pytest.mark.slow
def test_a_shorter_context_that_is_fast_enough_is_named() -> None:
    on = machine(card(0, 12))
    floor = 1.1 * full_rate(plan(on, model=MODEL, context=32_768))
    found = plan(on, model=MODEL, context=32_768, min_tps=floor, kv="f16")
    assert not found.fits
    message = next(finding.message for finding in found.findings if finding.code == "would-fit")
    n_ctx = int(message.split(" tokens")[0].split()[-1])
    assert plan(on, model=MODEL, context=n_ctx, min_tps=floor, kv="f16").fits


@pytest.mark.slow
def test_a_prompt_that_has_to_be_processed_sooner_gets_a_larger_micro_batch() -> None:
    on = machine(card(0, 12, fp16_flops_per_s=50_000_000_000_000))
    free = plan(on, "-ub", "512", model=MODEL, context=16_384)
    assert free.speed is not None
    seconds = 16_384 / (1.2 * (free.speed.prefill_tokens_per_s or 0))
    held = plan(on, model=MODEL, context=16_384, max_ttft=seconds)
    assert held.fits
    assert int(value(held, "-ub") or 512) > 512
