"""Errors of the speed model on public runs that its fit did not see.

    python tools/speed/accuracy.py RUNS.json [--by-source | --fitted] [--worst N]

Groups of a machine and a model are left out in turn (`fit.py`). `--by-source` leaves out all public runs at once, then
all cited measurements: what people measure on a server, and what they publish of a bench. `--fitted` shows the errors
of the committed table instead, which has seen them all.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from autofit.speed.roofline import placement
from fit import Residual, across_sources, cross_validate, fit, residuals, row_of, shipped
from runs import anchors, load


def is_in_band(item: Residual) -> bool:
    """Whether a run is as near to the prediction as the band of the committed table says that nine of ten are."""
    told = shipped()
    kind = placement([place for _, place in item.run.layers])
    spread = told.draft if item.what == "draft" else (told.decode if item.what == "decode" else told.prefill)[kind]
    return abs(item.value) <= math.log(spread.factor)


def line(name: str, items: Sequence[Residual]) -> str:
    """Count, groups, median error, share within 1.25x, 1.5x and the band, and bias of measured over predicted."""
    sizes = [abs(item.value) for item in items]
    shares = [sum(size <= math.log(factor) for size in sizes) / len(sizes) for factor in (1.25, 1.5)]
    shares.append(sum(map(is_in_band, items)) / len(items))
    bias = math.exp(statistics.median(item.value for item in items))
    n_groups = len({item.run.group for item in items})
    median = math.exp(statistics.median(sizes)) - 1
    within = " ".join(f"{share:7.1%}" for share in shares)
    return f"{name:34} {len(items):4} {n_groups:4} {median:7.1%} {within} {bias:6.2f}"


def table(title: str, items: Sequence[Residual], key: Callable[[Residual], str]) -> None:
    print(f"\n{title:34} {'runs':>4} {'grps':>4} {'median':>7} {'<1.25x':>7} {'<1.5x':>7} {'band':>7} {'bias':>6}")
    for name in sorted({key(item) for item in items}):
        print(line(name, [item for item in items if key(item) == name]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, help="the public runs, a JSON list")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--by-source", action="store_true", help="leave out one of the two sources at a time")
    how.add_argument("--fitted", action="store_true", help="errors of the committed table")
    parser.add_argument("--worst", type=int, default=0, metavar="N", help="list the N worst decode runs")
    arguments = parser.parse_args()
    runs, left_out = load(arguments.runs)
    cited = anchors()
    print(f"{len(runs)} runs and {len(cited)} cited measurements; {len(left_out)} left out")
    if arguments.by_source:
        items = across_sources([*runs, *cited], fit([*runs, *cited]))
    elif arguments.fitted:
        items = residuals([*runs, *cited], shipped())
    else:
        items = cross_validate([*runs, *cited], fit([*runs, *cited]))
    decode = [item for item in items if item.what == "decode"]
    table("all", items, lambda item: item.what)
    table("public runs only", [item for item in items if item.run.index >= 0], lambda item: item.what)
    table("cited measurements only", [item for item in items if item.run.index < 0], lambda item: item.what)
    table("decode, by engine and API", decode, lambda item: row_of(item.run))
    table("decode, by placement", decode, lambda item: placement([place for _, place in item.run.layers]))
    table("decode, by device", decode, lambda item: item.run.group.partition("|")[0])
    for item in sorted(decode, key=lambda item: -abs(item.value))[: arguments.worst]:
        print(f"{math.exp(item.value):6.2f} {item.run.label}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
