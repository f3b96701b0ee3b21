"""How the plan of a fleet grows: models from 1 to 500 and devices from 1 to 1000; time, memory, places looked at.

    python bench/fleet.py [--only search|whole|unlike] [--most N]

`search` is the search alone, over shapes that are made up: cards of two kinds, models of ten sizes that take 70 % of
all devices. `whole` plans embedded models on machines of 8 cards: estimates, search, proof and commands. `unlike` is
the search where it is hardest: eight cards of which no two are alike, each model with other costs on each; of 48 such
fleets the longest, the most places, and how many were proven. Seconds are those of a processor. Each case runs in a
process of its own; `MiB` is the most memory that it held.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import autofit
from autofit.domain.fleet import FleetPlan
from autofit.fleets.problem import Kind, Outcome, Problem, Shape, Take
from autofit.fleets.search import solve
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
UNLIKE = ((4, 4), (8, 8), (12, 8), (16, 8), (24, 8))


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


CARDS = (
    (24_000, 936),
    (24_500, 1008),
    (12_000, 360),
    (12_100, 504),
    (32_000, 1792),
    (16_000, 448),
    (15_500, 320),
    (16_200, 288),
)  #: MiB and GB/s
FILLS = (
    (0.35, False),
    (0.45, False),
    (0.55, False),
    (0.65, False),
    (0.5, True),
    (0.65, True),
    (0.8, True),
    (0.95, True),
)  #: of all devices; whether phases and groups keep apart
N_UNLIKE = 48  #: fleets


def unlike(n_models: int, n_cards: int, number: int) -> Problem:
    """Models on cards of which no two are alike; those that no card holds are shared by two."""
    fill, apart = FILLS[number % len(FILLS)]
    rng = random.Random(number)
    cards = [(int(free * rng.uniform(0.9, 1)), rate) for free, rate in CARDS[:n_cards]]
    parts = [rng.choice((1, 2, 3, 4, 5, 6, 8, 10, 14)) * rng.uniform(0.8, 1.2) for _ in range(n_models)]
    unit = sum(free for free, _ in cards) * fill / sum(parts)
    shapes = []
    for part in parts:
        size, priority = int(part * unit), rng.choice((10, 50, 50, 50, 80, 90))
        rates = [rate * rng.uniform(0.8, 1.2) for _, rate in cards]
        costs = [round(1000 * math.log2(max(rates) / rate)) * (1 + priority) for rate in rates]
        own = [Shape(0, (Take(i, 1, size, 300),), 200, 0, costs[i]) for i, (free, _) in enumerate(cards)
               if size + 300 <= free]  # fmt: skip
        pairs = [(i, j) for i in range(n_cards) for j in range(i) if size // 2 + 300 <= min(cards[i][0], cards[j][0])]
        shared = [Shape(0, tuple(Take(k, 1, size // 2, 300) for k in pair), 200, 0, max(costs[k] for k in pair))
                  for pair in pairs]  # fmt: skip
        shapes.append(tuple(own or shared))
    copies = [
        Copy(
            name=f"m{i}",
            model=i,
            group=rng.choice((None, None, None, "a", "b")) if apart else None,
            phases=rng.choice((1, 2, 3, 3)) if apart else 1,
        )
        for i in range(n_models)
    ]
    free = tuple(free for free, _ in cards)
    return Problem(
        kinds=(Kind(classes=tuple(range(n_cards)), free_bytes=free, host_bytes=1 << 40),),
        machines=(0,),
        shapes=tuple(shapes),
        together=Together(copies=tuple(copies)),
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
    if case == "unlike":
        return _all_unlike(n_models, n_devices)
    began = time.process_time()
    found = CASES[case](n_models, n_devices)
    seconds = time.process_time() - began
    if isinstance(found, Outcome):
        proof = ("best" if found.is_proven else "fits") if found.places is not None else "none"
    else:
        proof = found.proof
    return {"seconds": seconds, "mib": _mib(), "n_tried": found.n_tried, "proof": proof}


def _all_unlike(n_models: int, n_cards: int) -> dict[str, object]:
    seconds, found = [], []
    for number in range(N_UNLIKE):
        fleet = unlike(n_models, n_cards, number)
        began = time.process_time()
        found.append(solve(fleet))
        seconds.append(time.process_time() - began)
    proven = sum(one.is_proven for one in found)
    return {
        "seconds": max(seconds),
        "mib": _mib(),
        "n_tried": max(one.n_tried for one in found),
        "proof": f"{proven} of {N_UNLIKE} proven, median {sorted(seconds)[N_UNLIKE // 2]:.2f} s",
    }


def _mib() -> int:
    """The most memory of this program; what the system counts for a process has that of its parent in it."""
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=(*CASES, "unlike"))
    parser.add_argument("--most", type=int, default=500, help="models")
    parser.add_argument("--one", nargs=3, metavar=("CASE", "MODELS", "DEVICES"), help="one case, as JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]), int(args.one[2]))))
        return
    print(f"{'case':<8}{'models':>8}{'devices':>9}{'seconds':>10}{'MiB':>7}{'places':>10}  proof")
    for case in (*CASES, "unlike") if args.only is None else (args.only,):
        for n_models, n_devices in UNLIKE if case == "unlike" else SIZES:
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
