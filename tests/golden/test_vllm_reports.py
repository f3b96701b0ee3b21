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


def test_two_gh200_lack_what_vllm_lacked(tmp_path: Path) -> None:
    """vllm/issues/44376, release 0.22: 5.44 GiB were left, 6.66 are needed for 30,000 tokens. It is a command of the
    class LLM, whose steps are of 16,384 tokens and 1,024 sequences."""
    row = next(row for row in ROWS if row["on"] == "h20")
    args = (
        row["args"][: row["args"].index("--max-model-len")]
        + (
            "--max-model-len 30000 --gpu-memory-utilization 0.95 --kv-cache-dtype fp8 --block-size 256 "
            "--max-num-batched-tokens 16384 --max-num-seqs 1024"
        ).split()
    )
    case = {**row, "on": "gh200-96gb", "args": args, "version": "0.22.0", "real": "failed", "truth": {"kv_gib": 5.44}}
    verdict = vllm_reports.judge(case, vllm_reports.write_checkpoint(row["config"], tmp_path))
    assert not verdict.fits
    assert verdict.low_bytes is not None and verdict.low_bytes <= 0.02 * 90.2 * (1 << 30)  # of what is in use
