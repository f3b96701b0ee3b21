"""What `check` says of commands that people reported, against how they ended."""

from __future__ import annotations

import autofit
import pytest
from autofit.domain.machine import HOST_POOL
from autofit.domain.units import MIB

from support import llama_reports

#: rows whose file or unit is a guess
NOT_COMPARED = ("guessed", "unknown", "unit unclear", "from another log")


@pytest.mark.slow_cases("B53", "B57", "B49", "B75", "B55")
@pytest.mark.parametrize("row", llama_reports.rows(), ids=lambda row: row["id"])
def test_verdicts(row: llama_reports.Row) -> None:
    verdict = llama_reports.judge(row)
    if verdict.ran:
        assert verdict.says in ("fits", "starts"), verdict
    else:
        assert verdict.says != "fits", verdict
    bound = any(word in row["limits"] for word in NOT_COMPARED)
    if verdict.over_bytes is not None and verdict.used_bytes and not bound:
        assert min(verdict.over_bytes) > -max(300 * MIB, verdict.used_bytes // 50), verdict


@pytest.mark.slow
@pytest.mark.parametrize("label", ["B05", "B17", "B19", "B31", "B37", "B39", "B61", "B67"])
def test_what_experts_published_is_planned_as_well_or_better(label: str) -> None:
    """For the published context and KV type: no more weights in main memory, and no lower rate."""
    row = next(row for row in llama_reports.rows() if row["id"] == label)
    machine, model = llama_reports.machine_of(row), llama_reports.model_of(row)
    theirs = autofit.check(llama_reports.words_of(row), machine, model=model, settings=None)
    kv = llama_reports.kv_of(row)
    ours = autofit.plan("llama", model, machine, context=theirs.context_tokens, kv=kv, settings=None)
    assert ours.fits
    assert theirs.speed is not None
    assert ours.speed is not None
    in_ram = [plan.memory.pool(HOST_POOL).sum_bytes("weights") for plan in (ours, theirs)]
    assert in_ram[0] <= in_ram[1]
    assert ours.speed.decode_tokens_per_s >= 0.99 * theirs.speed.decode_tokens_per_s


@pytest.mark.slow
def test_an_operation_that_a_build_runs_on_the_cpu_fills_the_cards_with_copies() -> None:
    """ggml-org/llama.cpp#16725: a compute buffer of 14136 MiB on the first card, from inputs of 80 xIELU."""
    row = next(row for row in llama_reports.rows() if row["id"] == "B53")
    words = ["llama-server", "-m", row["model"], *"-c 20480 -ngl 99 -fa on -ts 1,1".split()]
    options = {"model": llama_reports.model_of(row), "engine_version": "b6816", "settings": None}
    plan = autofit.check(words, llama_reports.machine_of(row), **options)
    assert plan.engine_report["devices"][0]["compute_bytes"] // MIB == 14_136
    assert plan.verdict == "does not fit"
