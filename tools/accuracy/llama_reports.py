"""Verdicts of the llama plugin on public reports: the matrix, and how far the totals in use are off.

    python tools/accuracy/llama_reports.py [REPORTS.jsonl HARDWARE MODELS]

Without arguments the rows are those of tests/data/llama/reports.jsonl; HARDWARE is a folder of profiles, MODELS one of
GGUF files with the names of the rows."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from support import llama_reports

MIB = 1 << 20


def main(arguments: list[str]) -> None:
    rows = llama_reports.rows(Path(arguments[0])) if arguments else llama_reports.rows()
    others = {"hardware": Path(arguments[1]), "models": Path(arguments[2])} if arguments else {}
    matrix: Counter[tuple[bool, str]] = Counter()
    low = n_totals = 0
    for row in rows:
        verdict = llama_reports.judge(row, **others)
        matrix[verdict.ran, verdict.says] += 1
        right = (verdict.says == "fits") != (not verdict.ran) or (verdict.ran and verdict.says == "starts")
        over = ""
        if verdict.over_bytes is not None and verdict.used_bytes:
            worst, n_totals = min(verdict.over_bytes), n_totals + 1
            low += -worst > max(300 * MIB, verdict.used_bytes // 50)
            over = f"{worst / MIB:+.0f} MiB"
        outcome = "ran" if verdict.ran else "oom"
        print(f"{'' if right else 'WRONG':6}{outcome:5}{verdict.says:14}{over:12}{verdict.label}  {row['limits']}")
    print()
    for ran in (True, False):
        told = ", ".join(f"{says} {matrix[ran, says]}" for says in ("fits", "starts", "does not fit"))
        print(f"{'ran' if ran else 'ran out of memory'}: {told}")
    print(f"totals more than 2 % and 300 MiB low: {low} of {n_totals}")


if __name__ == "__main__":
    main(sys.argv[1:])
