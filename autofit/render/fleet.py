"""A fleet for people: what each pool holds, who runs beside whom, in which order they start, and what is proven."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from autofit.domain.fleet import FleetPlan, FleetPool, Placement
from autofit.domain.machine import HOST_POOL
from autofit.domain.memory import KINDS
from autofit.domain.text import printable
from autofit.domain.units import format_bytes
from autofit.render.picture import LEAST_COLUMNS, MOST_BAR, Terminal
from autofit.render.text import speed

MARKS = tuple(kind for kind in KINDS if kind != "reserve")
MAX_MACHINES = 16  #: that are shown
PROOFS = {
    "best": "no placement is better",
    "fits": "fits for certain; whether another placement is better is not proven",
    "impossible": "no placement fits: all were looked at, or ruled out",
    "not found": "none was found; that there is none is not proven",
}


def summary(fleet: FleetPlan) -> Iterator[str]:
    """Plain lines: each pool of each machine, then each model, and what is proven."""
    for machine, pools in _machines(fleet):
        yield machine
        for pool in pools:
            held = f"{format_bytes(pool.peak_bytes)} held at most of {_free(pool)}"
            parts = [f"{_share(pool, name)} {format_bytes(n)}" for name, n in _sizes(pool)]
            yield f"  {pool.id}  {printable(pool.name, 40)}  {held}  {' · '.join(parts)}".rstrip()
        yield from (f"  {_model(one)}" for one in fleet.on(machine))
    yield from _left(fleet)
    yield from facts(fleet)


def picture(fleet: FleetPlan, terminal: Terminal) -> Iterator[str]:
    """The same with a bar for each pool, no line wider than the terminal."""
    for machine, pools in _machines(fleet):
        yield machine
        for pool in pools:
            yield from _bar(pool, terminal)
        for one in fleet.on(machine):
            yield from _wrapped(_model(one), terminal.columns)
    for line in (*_left(fleet), *facts(fleet)):
        yield from _wrapped(line.strip(), terminal.columns)


def facts(fleet: FleetPlan) -> Iterator[str]:
    """Who runs beside whom, the order, what is missing, what helps, and the proof."""
    if len(fleet.sets) > 1:
        shown = [" + ".join(names) for names in fleet.sets[:4]]
        more = f", and {len(fleet.sets) - 4} more" if len(fleet.sets) > 4 else ""
        yield f"  may run at once: {' or '.join(shown)}{more}"
    for one in fleet.placements:
        here = [other.name for other in fleet.placements if other.name in one.evicts and other.machine == one.machine]
        if here and len(fleet.placements) <= MAX_MACHINES:
            yield f"  before {one.name} starts, {', '.join(here)} must have ended"
    measuring = [one.name for one in fleet.placements if one.measures]
    if measuring and len(fleet.order) > 1:
        yield f"  start order: {', '.join(fleet.order)}; {_alone(measuring, len(fleet.order))}"
    if fleet.shortfall is not None:
        yield f"  error: {printable(fleet.shortfall, 400)}"
    for change in fleet.changes:
        yield f"  note: {printable(change.message, 400)}"
    for said in fleet.findings:
        yield f"  note: {printable(said, 400)}"
    gap = f"; in the mean none is faster by more than {fleet.gap_fraction:.1%}" if fleet.gap_fraction else ""
    yield f"  proof: {PROOFS[fleet.proof]}{gap} ({fleet.n_tried:,} places looked at)"


def _alone(names: Sequence[str], n_copies: int) -> str:
    who = "each measures" if len(names) == n_copies else f"{', '.join(names)} measure{'s' if len(names) == 1 else ''}"
    return f"{who} free memory while starting: nothing else starts on the same devices meanwhile"


def _machines(fleet: FleetPlan) -> Iterator[tuple[str, list[FleetPool]]]:
    """Machines that hold something, with the pools that do."""
    names = [one.name for one in fleet.fleet.machines if fleet.on(one.name)]
    for name in names[:MAX_MACHINES]:
        yield name, [pool for pool in fleet.pools if pool.machine == name and pool.shares]


def _left(fleet: FleetPlan) -> Iterator[str]:
    used = {one.machine for one in fleet.placements}
    if len(used) > MAX_MACHINES:
        yield f"  and {len(used) - MAX_MACHINES} more machines; --format json has all"
    idle = [one.name for one in fleet.fleet.machines if one.name not in used]
    if idle and fleet.placements:
        more = f" and {len(idle) - 4} more" if len(idle) > 4 else ""
        yield f"  nothing on {', '.join(idle[:4])}{more}"
    if fleet.left_out:
        yield f"  no place for {', '.join(fleet.left_out[:MAX_MACHINES])}"


def _sizes(pool: FleetPool) -> list[tuple[str, int]]:
    sizes = [(share.name, share.claim_bytes) for share in pool.shares]
    return [*sizes, ("margin", pool.margin_bytes)] if pool.margin_bytes else sizes


def _share(pool: FleetPool, name: str) -> str:
    """A model's name; one that does not run in the fullest set is in brackets."""
    return name if name in pool.together or name == "margin" else f"({name})"


def _free(pool: FleetPool) -> str:
    return "an unknown amount" if pool.free_bytes is None else f"{format_bytes(pool.free_bytes)} free"


def _model(one: Placement) -> str:
    where = "+".join(device.id for device in one.devices) or HOST_POOL
    said = [f"{one.name}: {where}" + (f", port {one.port}" if one.port is not None else "")]
    if one.plan.context_tokens:
        said.append(f"context {one.plan.context_tokens:,} tokens")
    if one.plan.speed and (rates := speed(one.plan.speed)):
        said.append(f"alone {rates}")
    return " · ".join(said)


def _bar(pool: FleetPool, terminal: Terminal) -> Iterator[str]:
    width = min(terminal.columns - 4, MOST_BAR)
    sizes = [(name, n) for name, n in _sizes(pool) if name in pool.together or name == "margin"]
    whole = max(pool.free_bytes or 0, sum(n for _, n in sizes), 1)
    yield from _wrapped(
        f"{pool.id}  {printable(pool.name, 40)}  {format_bytes(pool.peak_bytes)} held at most of {_free(pool)}",
        terminal.columns,
    )
    drawn, legend, before, n_drawn = "", [], 0, 0
    for at, (name, n_bytes) in enumerate(sizes):
        kind = "reserve" if name == "margin" else MARKS[at % len(MARKS)]
        before += n_bytes
        n = min(max(before * width // whole - n_drawn, 1 if n_bytes else 0), width - n_drawn)
        drawn += terminal.marked(kind, n)
        n_drawn += n
        legend.append((terminal.marked(kind, 1), f"{name} {format_bytes(n_bytes)}"))
    yield f"  [{drawn}{' ' * (width - n_drawn)}]"
    others = [
        f"({name}) {format_bytes(n)}" for name, n in _sizes(pool) if name not in pool.together and name != "margin"
    ]
    line, length = "  ", 2
    for mark, said in (*legend, *(("", text) for text in others)):
        part = f"{mark} {said}  " if mark else f"{said}  "
        n = len(said) + (4 if mark else 2)
        if length > 2 and length + n > terminal.columns:
            yield line.rstrip()
            line, length = "  ", 2
        line, length = line + part, length + n
    if length > 2:
        yield line.rstrip()


def _wrapped(words: str, columns: int) -> Iterator[str]:
    yield from textwrap.wrap(words, max(columns, LEAST_COLUMNS), initial_indent="  ", subsequent_indent="    ")
