"""Decode rates of many sequences at a time, as planned, against public runs of vLLM.

    python tools/accuracy/vllm_rates.py [--worst N] [--steps]

The rows are those of tests/data/vllm/batch_rates.csv: milliseconds of a step of `n_sequences` sequences that hold
`n_filled` tokens each. `--steps` prints every row. The band is the one that a plan tells.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from autofit.domain.plan import Speed

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from support import vllm_rates


class Row(NamedTuple):
    """A run, and the rate of each of its sequences as it was and as it is told."""

    run: vllm_rates.Run
    measured: float
    speed: Speed

    @property
    def error(self) -> float:
        """Logarithm of measured over told."""
        return math.log(self.measured / self.speed.decode_tokens_per_s)

    @property
    def is_in_band(self) -> bool:
        return self.speed.low <= self.measured <= self.speed.high


def line(name: str, rows: Sequence[Row]) -> str:
    sizes = [abs(row.error) for row in rows]
    within = sum(size <= math.log(1.5) for size in sizes) / len(sizes)
    band = sum(row.is_in_band for row in rows) / len(rows)
    median = math.exp(statistics.median(sizes)) - 1
    bias = math.exp(statistics.median(row.error for row in rows))
    return f"{name:24} {len(rows):4} {median:7.1%} {within:7.1%} {band:7.1%} {bias:6.2f}"


def table(title: str, rows: Sequence[Row], key: Callable[[vllm_rates.Run], str]) -> None:
    print(f"\n{title:24} {'runs':>4} {'median':>7} {'<1.5x':>7} {'band':>7} {'bias':>6}")
    for name in sorted({key(row.run) for row in rows}):
        print(line(name, [row for row in rows if key(row.run) == name]))


def size_of(run: vllm_rates.Run) -> str:
    n = run.n_sequences
    return "1" if n == 1 else "2 to 12" if n <= 12 else "13 to 48" if n <= 48 else "more"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worst", type=int, default=0, metavar="N")
    parser.add_argument("--steps", action="store_true")
    options = parser.parse_args()
    rows = [Row(run, 1000 / run.step_ms, vllm_rates.speed_of_run(run)) for run in vllm_rates.runs()]
    table("all", rows, lambda run: "all")
    table("release", rows, lambda run: run.version)
    table("sequences", rows, size_of)
    table("card", rows, lambda run: f"{run.count} x {run.card}")
    table("model", rows, lambda run: f"{run.model} {run.form or 'BF16'}")
    ranked = sorted(rows, key=lambda row: -abs(row.error))
    for row in rows if options.steps else ranked[: options.worst]:
        told = 1000 / row.speed.decode_tokens_per_s
        print(f"{row.run.step_ms:7.2f} ms, told {told:7.2f}  {row.run.label}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
