"""A plan for which nobody named a build: one line where the newest recorded build would not fit into it."""

from __future__ import annotations

import autofit
import pytest
from autofit.domain.plan import Plan

from autofit_llama.engine.versions import NEWEST

MODEL = autofit.read_model("example:llama-3.1-8b-q4_k_m")


def check(*mib: int, version: str | None = None) -> Plan:
    on = autofit.load_machine(*(f"generic-cuda:{each}MiB" for each in mib), ram="64GiB")
    words = ["llama-server", "-m", "m.gguf", "-c", "8192", "-ngl", "99", "-fit", "off"]
    return autofit.check(words, on, model=MODEL, engine_version=version)


def said(plan: Plan) -> list[str]:
    return [one.message for one in plan.findings if one.code == "newest-build-short"]


def needed(*mib: int) -> list[int]:
    """MiB that b11311 takes of each card."""
    return [(pool.used_bytes >> 20) + 1 for pool in check(*mib, version="b11311").memory.pools[:-1]]


@pytest.fixture(scope="module")
def tight() -> int:
    """b11434 takes 8 MiB more, for tokens beside embeddings."""
    return needed(12288)[0] + 2


def test_it_is_told_where_nothing_is_left_for_a_newer_build(tight: int) -> None:
    found = check(tight)
    assert found.fits
    (message,) = said(found)
    assert message.startswith(f"llama.cpp b{NEWEST} would take 8")
    assert f"--engine-version b{NEWEST}" in message
    assert not check(tight, version=f"b{NEWEST}").fits


def test_it_is_not_told_where_the_build_is_named_or_there_is_room(tight: int) -> None:
    assert not said(check(tight, version="b11311"))
    assert not said(check(tight + 16))
    assert not said(check(tight - 20))  # it does not fit at all


def test_copies_that_the_engine_does_without_are_not_lacking() -> None:
    first, second = needed(12288, 12288)
    found = check(first + 9, second + 9)  # b11549 takes 72 MiB more on the first, with several micro-batches in flight
    assert found.fits
    assert not said(found)
    assert check(first + 9, second + 9, version=f"b{NEWEST}").fits


@pytest.mark.parametrize("more", [0, 8, 40])
def test_a_plan_holds_with_the_newest_or_says_so(tight: int, more: int) -> None:
    on = autofit.load_machine(f"generic-cuda:{tight + more}MiB", ram="64GiB")
    plan = autofit.plan("llama", MODEL, on, context="8k", settings=None)
    newest = autofit.check(plan.argv, on, model=MODEL, engine_version=f"b{NEWEST}")
    assert plan.fits
    assert newest.fits is not bool(said(plan))
