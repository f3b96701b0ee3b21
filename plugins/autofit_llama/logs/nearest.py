"""A command that does not fit: the cheapest changes of its flags with which it would, or how much more memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from autofit.domain.memory import Memory
from autofit.domain.plan import Finding
from autofit.domain.repair import Change
from autofit.domain.units import format_bytes
from autofit.text.shell import shown

from autofit_llama.engine.codes import finding
from autofit_llama.logs.repair import Case, changes

MOST = 2  #: changes that are told


def nearest_changes(case: Case, memory: Memory, *, fitted: bool) -> tuple[Finding, ...]:
    """At least one: changes of flags, each proven by a check of its own, or else more memory.

    `fitted`: the engine's own `--fit` has tried fewer tokens and layers already, and what it comes to lacks `memory`.
    """
    proven = () if fitted else islice(_proven(case), MOST)
    found = [finding("would-fit", f"nearest: {shown(one.flags)} fits: {one.because}") for one in proven]
    if found:
        return tuple(found)
    lacks = [f"{format_bytes(p.shortfall_bytes)} more on {p.id}" for p in memory.pools if p.shortfall_bytes > 0]
    tried = "--fit finds no context and no layers that fit" if fitted else "no change of one to three flags is enough"
    return (finding("would-fit", f"nearest: {' and '.join(lacks)}; {tried}"),)


def _proven(case: Case) -> Iterator[Change]:
    yield from (change for change in changes(case, None) if change.plan is not None and change.plan.fits)
