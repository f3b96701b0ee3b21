"""How long `autofit advise` looks at all hardware before it plans: profiles, prices, bounds and order.

    python bench/advise_speed.py [--model example:mixtral-8x7b-q4_k_m] [--repeat 5]

Processor time, the best of the repeats, with the model read: the limit is 300 ms for every profile. The plans of the
rows that are shown come on top, and are printed beside it; so are a budget just above the bound, where most of what the
bounds leave does not hold the model, and waits for the first token that few reach.
"""

from __future__ import annotations

import argparse
import sys
import time

from autofit.advice.candidates import candidates
from autofit.advice.hardware import Bounds, HardwareAdvice, Limits, advise_hardware, in_order
from autofit.advice.prices import load_prices
from autofit.advice.subject import Subject
from autofit.domain.units import GIB

LIMIT_S = 0.300


def bounded(subject: Subject) -> tuple[int, int]:
    """Candidates, and those that the bounds leave, in order."""
    choice = candidates(load_prices())
    needs = subject.needs(choice)
    bounds = Bounds(needs=needs, ram_bytes=subject.ram_bytes, at_once=subject.at_once)
    possible = [one for one in choice if Limits().admits(one, bounds)]
    return len(choice), len(in_order(possible, at_once=subject.at_once))


def advised(model: str, limits: Limits) -> tuple[float, HardwareAdvice]:
    """Seconds of all of it, and what came of it."""
    start = time.process_time()
    asked = {} if limits.max_first_s is None else {"max_ttft": limits.max_first_s}
    found = advise_hardware(Subject(model, None, asked, None), load_prices(), limits)
    return time.process_time() - start, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="example:mixtral-8x7b-q4_k_m")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    best, counts = float("inf"), (0, 0)
    for _ in range(args.repeat):
        subject = Subject(args.model, None, {}, None)
        start = time.process_time()
        counts = bounded(subject)
        best = min(best, time.process_time() - start)
    print(f"bounds: {1000 * best:.0f} ms for {counts[0]} choices, {counts[1]} possible (limit {1000 * LIMIT_S:.0f} ms)")
    whole, found = advised(args.model, Limits())
    print(f"with the model read and {found.n_planned} plans for {len(found.rows)} rows: {1000 * whole:.0f} ms")
    budget = (11 * found.needs.device_bytes // (10 * GIB) + 1) * GIB
    tight, found = advised(args.model, Limits(budget_bytes=budget))
    print(f"--budget {budget // GIB}GiB: {1000 * tight:.0f} ms, {found.n_possible} possible, {len(found.rows)} rows")
    for soon in (0.5, 2.0):
        late, found = advised(args.model, Limits(max_first_s=soon))
        told = f"{found.n_possible} possible, {found.n_planned} planned, {len(found.rows)} rows"
        print(f"--max-ttft {soon:g}: {1000 * late:.0f} ms, {told}")
    return 0 if best <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
