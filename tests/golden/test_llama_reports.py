"""What `check` says of commands that people reported, against how they ended."""

from __future__ import annotations

import autofit
import pytest
from autofit.domain.machine import HOST_POOL
from autofit.domain.units import MIB

from support import llama_reports

#: XIELU ran on the CPU in ROCm builds of that time, with its inputs copied back and forth
UNEXPLAINED = frozenset(("B53",))
#: rows whose file or unit is a guess
NOT_COMPARED = ("guessed", "unknown", "unit unclear", "from another log")


@pytest.mark.parametrize("row", llama_reports.rows(), ids=lambda row: row["id"])
def test_verdicts(row: llama_reports.Row) -> None:
    verdict = llama_reports.judge(row)
    if verdict.ran:
        assert verdict.says in ("fits", "starts"), verdict
    elif row["id"] not in UNEXPLAINED:
        assert verdict.says != "fits", verdict
    bound = any(word in row["limits"] for word in NOT_COMPARED)
    if verdict.over_bytes is not None and verdict.used_bytes and not bound:
        assert min(verdict.over_bytes) > -max(300 * MIB, verdict.used_bytes // 50), verdict


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
