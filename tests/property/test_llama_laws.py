"""What more of anything may do to a plan for llama.cpp: never take away from it."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import pytest
from autofit.domain.machine import Device, Host, Machine
from autofit.domain.plan import Plan
from autofit.domain.request import Margin, Request
from autofit.domain.units import GIB, MIB, format_rate
from autofit.errors import AutofitError

from autofit_llama.backend import LlamaBackend
from autofit_llama.planning.goals import LOSSY_GAIN
from autofit_llama.planning.problem import FILLED_TOKENS
from support.descriptors import names, spec

BACKEND = LlamaBackend()
#: more of them, as many as time allows: AUTOFIT_EXAMPLES=1000 pytest tests/property/test_llama_laws.py
SEEDS = range(int(os.environ.get("AUTOFIT_EXAMPLES", "5")))
MODELS = [name for name in names("models") if "-of-" not in name and name != "phi-3-mini-4k-F16"]


class Job(NamedTuple):
    model: str
    cards: tuple[tuple[int, int], ...]  #: MiB and bytes/s of each
    ram_gib: int
    request: Request


class Worth(NamedTuple):
    """What a plan is good for, each more the better; `rate` is that of decoding where the policy compares it."""

    n_ctx: int
    rate: float
    full: float
    prompts: float
    is_lossless: bool
    says_price: bool = False  #: what a lossless cache costs is in the summary


def job_of(seed: int) -> Job:
    rng = random.Random(seed)
    model = rng.choice(MODELS)
    n_cards, rate = rng.choice((1, 1, 2, 3, 4)), rng.choice((936, 360, 600)) * 10**9
    share = spec("models", model).weights_bytes / MIB / n_cards
    cards = tuple(
        (
            600 + max(700, int(share * rng.choice((0.1, 0.3, 0.6, 0.9, 1.2)) * rng.uniform(0.7, 1.3))),
            rate if rng.random() < 0.7 else 360 * 10**9,
        )
        for _ in range(n_cards)
    )
    request = Request(
        context=rng.choice((None, None, None, 0, 16_384)),
        parallel=rng.choice((None, None, 4, 8)),
        kv=rng.choice((None, "f16")),
        alternatives=False,
        explain=False,
    )
    return Job(model, cards, rng.choice((8, 16, 24, 32, 48, 64, 128)), request)


def _card(i: int, mib: int, rate: int) -> Device:
    return Device(
        id=f"GPU{i}",
        index=i,
        name="card",
        api="cuda",
        total_bytes=mib * MIB,
        free_bytes=mib * MIB,
        runtime_bytes=0,
        compute_capability=(8, 9),
        bandwidth_bytes_per_s=rate,
        link_bytes_per_s=16_000_000_000,
    )


def worth(job: Job) -> Worth | None:
    """`None`: nothing fits."""
    model = spec("models", job.model)
    devices = tuple(_card(i, mib, rate) for i, (mib, rate) in enumerate(job.cards))
    ram = job.ram_gib * GIB
    machine = Machine(host=Host(total_bytes=ram, available_bytes=ram, n_cores_physical=8), devices=devices)
    try:
        plan: Plan = BACKEND.plan(
            BACKEND.parse(["llama-server"], {}, model=model.files[0].path), model, machine, job.request
        )
    except AutofitError:
        pytest.skip("the engine takes no such command")
    if not plan.fits:
        return None
    assert plan.speed is not None
    full = plan.speed.decode_tokens_per_s
    start = plan.speed.start_tokens_per_s or full
    n_ctx = plan.context_tokens or 0
    filled = 1.0 if job.request.context == 0 else min(1.0, FILLED_TOKENS / n_ctx)
    rate = 1 / ((1 - filled) / start + filled / full)  # seconds of a token grow evenly with what is in the context
    says = any(finding.code == "lossless-cache" for finding in plan.findings)
    return Worth(n_ctx, rate, full, plan.speed.prefill_tokens_per_s or 0.0, "-ctk" not in plan.argv, says)


def assert_no_worse(less: Worth | None, more: Worth | None) -> None:
    """More of something gives a plan wherever less does, and one that is better in something if it is worse in any.

    A cache may become lossless for at most `LOSSY_GAIN` of the rate, with its price said, or none that shows. That is
    the policy: with less memory a lossless one was no choice, or left weights in RAM, with more the rule of KV types
    takes it.
    """
    if less is None:
        return
    assert more is not None, "a plan is lost"
    is_worse = more.n_ctx < less.n_ctx or more.rate < 0.98 * less.rate  # given up for the plainest flags
    assert not is_worse or any(b > a for a, b in zip(less[:5], more[:5], strict=True)), f"{less} -> {more}"
    assert more.n_ctx >= less.n_ctx or more.rate > less.rate, f"{less} -> {more}"
    kept = 0.95
    shows = format_rate(more.rate) != format_rate(less.rate)
    if more.is_lossless and not less.is_lossless and (more.says_price or not shows):
        kept /= LOSSY_GAIN
    assert more.n_ctx > less.n_ctx or more.rate >= kept * less.rate, f"{less} -> {more}"


@pytest.mark.slow_cases("2")
@pytest.mark.parametrize("seed", SEEDS)
def test_more_memory_on_a_device(seed: int) -> None:
    job, rng = job_of(seed), random.Random(-seed - 1)
    at, mib = rng.randrange(len(job.cards)), rng.choice((100, 300, 1000, 4000))
    cards = tuple((old + mib * (i == at), rate) for i, (old, rate) in enumerate(job.cards))
    assert_no_worse(worth(job), worth(job._replace(cards=cards)))


@pytest.mark.slow_cases("0")
@pytest.mark.parametrize("seed", SEEDS)
def test_more_main_memory(seed: int) -> None:
    job = job_of(1000 + seed)
    more = job._replace(ram_gib=job.ram_gib + random.Random(seed).choice((4, 8, 16, 32)))
    assert_no_worse(worth(job), worth(more))


def test_more_main_memory_where_checkpoints_of_many_slots_fill_it() -> None:
    cards = ((11_900, 360 * 10**9),) * 4
    job = Job("gemma-2-27b-Q5_K_M", cards, 16, Request(context=32_768, parallel=8, alternatives=False, explain=False))
    plans = [worth(job._replace(ram_gib=gib)) for gib in (16, 24, 32, 48, 64, 128)]
    for less, more in pairwise(plans):
        assert_no_worse(less, more)


@pytest.mark.slow
def test_one_more_card_that_holds_the_model_keeps_the_context_that_fewer_had() -> None:
    """With two cards the f16 cache of eight sequences has room for less than 16,384 tokens each beside all weights."""
    job = Job("mixtral-8x7b-Q4_K_M", ((18_874, 360 * 10**9),), 128, Request(parallel=8, alternatives=False))
    less, more = worth(job), worth(job._replace(cards=job.cards * 2))
    assert_no_worse(less, more)
    assert less is not None and more is not None and more.n_ctx >= less.n_ctx


def test_a_cache_that_becomes_lossless_on_a_device_says_what_it_costs() -> None:
    """4,096 tokens of Llama 2 7B fill 2 GiB: with 5 GiB f16 leaves weights in RAM, with 9 it is all on the card, where
    a q8_0 cache would still be a fifth faster once the context is full."""
    job = Job("llama-2-7b-Q4_K_M", ((5224, 360 * 10**9),), 16, Request(context=0, alternatives=False, explain=False))
    less, more = worth(job), worth(job._replace(cards=((9224, 360 * 10**9),)))
    assert less is not None and more is not None and not less.is_lossless
    assert more.is_lossless and more.says_price and more.rate >= less.rate / LOSSY_GAIN
    assert_no_worse(less, more)


@pytest.mark.slow_but("qwen3-32b-Q4_K_M-32768-*")
@pytest.mark.parametrize(
    ("model", "context", "ladder"),
    [
        ("qwen3-32b-Q4_K_M", 32_768, range(9, 25, 3)),
        ("mixtral-8x7b-Q4_K_M", 32_768, range(8, 33, 6)),
        ("qwen3-32b-Q4_K_M", 0, range(9, 25, 5)),
    ],
)
def test_a_cache_type_changes_with_memory_and_no_rate_is_lost_for_it(model: str, context: int, ladder: range) -> None:
    """From a card that holds little of the weights to one that holds nearly all of them, in steps."""
    request = Request(context=context, alternatives=False, explain=False)
    plans = [worth(Job(model, ((gib * 1024, 936 * 10**9),), 64, request)) for gib in ladder]
    for less, more in pairwise(plans):
        assert_no_worse(less, more)
        assert less is not None and more is not None and more.rate >= 0.95 * less.rate, f"{less} -> {more}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_one_more_equal_card(seed: int) -> None:
    job = job_of(2000 + seed)
    assert_no_worse(worth(job), worth(job._replace(cards=(*job.cards, job.cards[-1]))))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_smaller_margin(seed: int) -> None:
    job = job_of(3000 + seed)
    wide, narrow = (replace(job.request, margin=(Margin(n_bytes=mib * MIB),)) for mib in (400, 100))
    assert_no_worse(worth(job._replace(request=wide)), worth(job._replace(request=narrow)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_of_devices(seed: int) -> None:
    job = job_of(4000 + seed)
    shuffled = list(job.cards)
    random.Random(seed).shuffle(shuffled)
    one, other = worth(job), worth(job._replace(cards=tuple(shuffled)))
    if one is None or other is None:
        assert one is other
        return
    assert one.n_ctx == other.n_ctx
    assert one.rate == pytest.approx(other.rate, rel=1e-6)
