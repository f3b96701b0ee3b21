"""Public reports of starts that worked and of starts that did not, beside autofit's verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support import vllm_reports

ROWS = vllm_reports.rows()


def label(row: dict[str, Any]) -> str:
    return f"{row['config']} {row['n']}x {row['on']} {' '.join(row['args'])}"


@pytest.mark.parametrize("row", ROWS, ids=label)
def test_what_failed_does_not_fit_and_what_ran_does(row: dict[str, Any], tmp_path: Path) -> None:
    verdict = vllm_reports.judge(row, vllm_reports.write_checkpoint(row["config"], tmp_path))
    assert verdict.fits == verdict.ran
    if verdict.ran and verdict.low_bytes is not None:
        total = verdict.plan.memory.pools[0].total_bytes  # type: ignore[union-attr]
        assert verdict.low_bytes <= max(0.02 * (total or 0), 300 << 20)


def test_blocks_of_recurrent_models(tmp_path: Path) -> None:
    """1024 sequences on RTX PRO 6000: 939 blocks were left, two percent of the memory in use are 35 blocks."""
    row = next(row for row in ROWS if row["on"] == "rtx-pro-6000-max-q")
    verdict = vllm_reports.judge(row, vllm_reports.write_checkpoint(row["config"], tmp_path))
    assert verdict.plan is not None
    blocks = verdict.plan.engine_report["num_gpu_blocks"]
    assert isinstance(blocks, int) and blocks <= row["truth"]["mamba_blocks"] + 35
    assert "too-many-sequences" in {finding.code for finding in verdict.plan.findings}
