"""How the plan of a fleet grows: models from 1 to 500 and devices from 1 to 1000; time, memory, places looked at.

    python bench/fleet.py [--only search|whole] [--most N]

`search` is the search alone, over shapes that are made up: cards of two kinds, models of ten sizes that take 70 % of
all devices. `whole` plans embedded models on machines of 8 cards: estimates, search, proof and commands. Each case runs
in a process of its own; `MiB` is the most memory that it held.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import autofit
from autofit.domain.fleet import FleetPlan
from autofit.fleets.search import Kind, Outcome, Problem, Shape, Take, solve
from autofit.fleets.together import Copy, Together

PER_MACHINE = 8
SIZES = (
    (1, 1),
    (2, 1),
    (4, 4),
    (8, 4),
    (8, 8),
    (12, 8),
    (16, 8),
    (24, 16),
    (50, 64),
    (100, 200),
    (250, 500),
    (500, 1000),
)


def problem(n_models: int, n_devices: int) -> Problem:
    """Machines of up to 8 cards, every other one with larger cards; sizes that leave three tenths over."""
    n_machines = -(-n_devices // PER_MACHINE)
    per = min(PER_MACHINE, n_devices)
    kinds = tuple(Kind(classes=(0,) * per, free_bytes=(free,) * per, host_bytes=1 << 40) for free in (24_000, 48_000))
    machines = tuple(number % 2 for number in range(n_machines))
    room = sum(sum(kinds[kind].free_bytes) for kind in machines)
    sizes = [5 + i * 7 % 10 for i in range(n_models)]
    unit = min(room * 7 // 10 // sum(sizes), 22_000 // max(sizes))
    return Problem(
        kinds=kinds,
        machines=machines,
        shapes=tuple(
            tuple(Shape(kind, (Take(0, 1, size * unit, 300),), 1, 0, (1 - kind) * (10 + size)) for kind in (0, 1))
            for size in sizes
        ),
        together=Together(copies=tuple(Copy(name=f"m{i}", model=i, group=None, phases=1) for i in range(n_models))),
    )


def searched(n_models: int, n_devices: int) -> Outcome:
    return solve(problem(n_models, n_devices))


def whole(n_models: int, n_devices: int) -> FleetPlan:
    """Copies of one 8B model with contexts that differ, on as many cards of 80 GB."""
    per = min(PER_MACHINE, n_devices)
    box = {"name": "box", "on": [f"{per}x a100-80gb"], "ram": "2TiB", "count": -(-n_devices // per)}
    rows = [
        {"name": f"m{i}", "model": "example:llama-3.1-8b-q4_k_m", "context": f"{4 + i % 8}k"} for i in range(n_models)
    ]
    return autofit.fleet({"machine": [box], "model": rows}, settings=None)


CASES: dict[str, Callable[[int, int], Outcome | FleetPlan]] = {"search": searched, "whole": whole}


def measure(case: str, n_models: int, n_devices: int) -> dict[str, object]:
    began = time.perf_counter()
    found = CASES[case](n_models, n_devices)
    seconds = time.perf_counter() - began
    if isinstance(found, Outcome):
        proof = ("best" if found.is_proven else "fits") if found.places is not None else "none"
    else:
        proof = found.proof
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"seconds": seconds, "mib": mib, "n_tried": found.n_tried, "proof": proof}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--most", type=int, default=500, help="models")
    parser.add_argument("--one", nargs=3, metavar=("CASE", "MODELS", "DEVICES"), help="one case, as JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]), int(args.one[2]))))
        return
    print(f"{'case':<8}{'models':>8}{'devices':>9}{'seconds':>10}{'MiB':>7}{'places':>10}  proof")
    for case in CASES if args.only is None else (args.only,):
        for n_models, n_devices in SIZES:
            if n_models <= args.most:
                words = [sys.executable, __file__, "--one", case, str(n_models), str(n_devices)]
                one = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
                print(
                    f"{case:<8}{n_models:>8}{n_devices:>9}{one['seconds']:>10.2f}{one['mib']:>7}{one['n_tried']:>10,}"
                    f"  {one['proof']}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
