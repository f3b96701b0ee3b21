"""What `check` says of commands that people reported, against how they ended."""

from __future__ import annotations

import pytest
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
