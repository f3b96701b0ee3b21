"""A fleet as presets of llama-server's router, with the number of models that it may keep loaded.

The router loads any model that is asked for, and ends the one that was asked for longest ago where `--models-max` are
loaded (tools/server/server-models.cpp:unload_lru). It knows no groups: any choice of so many fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from autofit.domain.fleet import MAX_SETS, FleetFile, FleetPlan, FleetPool, Placement
from autofit.domain.machine import HOST_POOL
from autofit.domain.text import printable
from autofit.errors import UsageError
from autofit.render.fleet_parts import machines_of, path_of

from autofit_llama.command.presets import PROGRAM, section

ROUTER_BYTES = 128 << 20  #: of RAM, for the router's own process: it loads no model (assumed)
MAX_CHOICES = 20_000  #: sets of models that are looked up


def render_fleet(fleet: FleetPlan) -> tuple[FleetFile, ...]:
    """A file for each machine that runs llama-server: a section for each copy, those of the first set loaded at once.

    Raises:
        UsageError: no model of the fleet is llama-server's, a value that such a file cannot hold, or variables.
    """
    files = []
    for machine in machines_of(fleet):
        own = [one for one in fleet.on(machine) if one.plan.argv[:1] and _is_server(one)]
        if own:
            text = "\n".join(_rows(fleet, machine, own))
            files.append(FleetFile(path_of(fleet, machine, "models.ini"), text))
    if not files:
        raise UsageError("no model of this fleet is llama-server's", hint="--format llama-swap takes all engines")
    return tuple(files)


def _rows(fleet: FleetPlan, machine: str, own: Sequence[Placement]) -> Iterator[str]:
    most = at_once(fleet, machine, own)
    others = [one.name for one in fleet.on(machine) if one not in own]
    yield f"; made by autofit for {machine}: llama-server --models-preset models.ini --models-max {most}"
    if others:
        yield f"; beside it: {', '.join(others)}"
    loaded = [one.name for one in own if one.name in fleet.first_set][:most]
    for one in own:
        if one.plan.env:
            names = ", ".join(sorted(one.plan.env))
            raise UsageError(f"{one.name}: presets hold no variables ({names})", hint="--format llama-swap does")
        yield ""
        yield from section(one.plan, one.name)
        if one.name in loaded:
            yield "load-on-startup = true"


def at_once(fleet: FleetPlan, machine: str, own: Sequence[Placement]) -> int:
    """How many of these models may be loaded, whichever they are: all sets of so many are allowed, and fit into every
    pool beside the others of the machine.

    Raises:
        UsageError: not even one of each does.
    """
    names = {one.name for one in own}
    allowed = [frozenset(some) & names for some in fleet.sets]
    for n in range(len(own), 0, -1):
        pools = (pool for pool in fleet.pools if pool.machine == machine)
        if _all_allowed(names, allowed, n) and all(_holds(pool, names, n, fleet.sets) for pool in pools):
            return n
    raise UsageError(
        f"{printable(machine, 60)}: not every model fits beside the router", hint="--format llama-swap knows sets"
    )


def _all_allowed(names: set[str], allowed: Sequence[frozenset[str]], n: int) -> bool:
    if any(names <= some for some in allowed):
        return True
    for number, some in enumerate(combinations(sorted(names), n)):
        if number >= MAX_CHOICES or not any(set(some) <= one for one in allowed):
            return False
    return True


def _holds(pool: FleetPool, names: set[str], n: int, sets: Sequence[Sequence[str]]) -> bool:
    """Whether the `n` largest of the router's models fit beside all that the others of the machine hold at once."""
    if pool.budget_bytes is None:
        return True
    ours = sorted((share.claim_bytes for share in pool.shares if share.name in names), reverse=True)
    others = {share.name: share.claim_bytes for share in pool.shares if share.name not in names}
    beside = sum(others.values())
    if len(sets) < MAX_SETS:
        beside = max((sum(others.get(name, 0) for name in some) for some in sets), default=0)
    router = ROUTER_BYTES if pool.id == HOST_POOL else 0
    return sum(ours[:n]) + beside + router <= pool.budget_bytes


def _is_server(one: Placement) -> bool:
    return one.plan.argv[0].replace("\\", "/").rpartition("/")[2].removesuffix(".exe") == PROGRAM
