"""Verdicts of the vLLM plugin on public reports of real starts: the matrix, and every row that is wrong.

    python tools/accuracy/vllm_reports.py [REPORTS.jsonl CONFIGS]

Without arguments the rows are those of tests/data/vllm/reports.jsonl; CONFIGS is a folder of checkpoints'
configurations, one folder per name."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from support import vllm_reports


def main(arguments: list[str]) -> None:
    rows = vllm_reports.rows(Path(arguments[0])) if arguments else vllm_reports.rows()
    matrix: Counter[tuple[bool, bool]] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        for row in rows:
            given = Path(arguments[1]) / row["config"] if len(arguments) > 1 else None
            directory = given or vllm_reports.write_checkpoint(row["config"], Path(scratch))
            verdict = vllm_reports.judge(row, directory)
            matrix[verdict.ran, verdict.fits] += 1
            low = verdict.low_bytes
            print(
                f"{'' if verdict.ran == verdict.fits else 'WRONG':6}{'ran' if verdict.ran else 'failed':7}"
                f"{'fits' if verdict.fits else 'does not fit':13}"
                f"{'' if low is None else f'{low / vllm_reports.GIB:+.2f} GiB of cache':22}{verdict.label}"
            )
    print()
    for ran in (True, False):
        told = f"said to fit {matrix[ran, True]:3}, not to {matrix[ran, False]:3}"
        print(f"{'ran' if ran else 'failed':8}{matrix[ran, True] + matrix[ran, False]:3}: {told}")


if __name__ == "__main__":
    main(sys.argv[1:])
