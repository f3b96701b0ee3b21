"""What `check` says of commands that people reported, against how they ended."""

from __future__ import annotations

import pytest
from autofit.domain.units import MIB

from support import llama_reports

#: what no public figure explains: 2026-06 without a build number; a V100 that ran out at a long prompt only
UNEXPLAINED = frozenset(("B27", "B53", "B57"))
#: rows whose file or unit is a guess, or that a binding ran
NOT_COMPARED = ("guessed", "unknown", "unit unclear", "from another log")


@pytest.mark.parametrize("row", llama_reports.rows(), ids=lambda row: row["id"])
def test_verdicts(row: llama_reports.Row) -> None:
    verdict = llama_reports.judge(row)
    if verdict.ran:
        assert verdict.says in ("fits", "starts"), verdict
    elif row["id"] not in UNEXPLAINED:
        assert verdict.says != "fits", verdict
    bound = any(word in row["limits"] for word in NOT_COMPARED) or "rows of logits" in row["note"]
    if verdict.over_bytes is not None and verdict.used_bytes and not bound:
        assert min(verdict.over_bytes) > -max(300 * MIB, verdict.used_bytes // 50), verdict
