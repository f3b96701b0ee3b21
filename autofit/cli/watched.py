"""An engine that is watched while it starts: its stages, what it reports, and another plan where memory ran out."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from autofit.cli.commands import program_path
from autofit.domain.machine import HOST_POOL
from autofit.domain.memory import KINDS
from autofit.domain.text import printable
from autofit.domain.units import MIB, format_bytes
from autofit.domain.values import replace
from autofit.host import host
from autofit.launch.parent import Child, end_as, kernel_kills
from autofit.launch.start import reap
from autofit.planning.compare import compare, pool_of

if TYPE_CHECKING:
    from autofit.backend import Backend
    from autofit.domain.machine import Machine
    from autofit.domain.memory import Kind, PoolUse
    from autofit.domain.observed import Failure, Observed, Stage
    from autofit.domain.plan import Plan
    from autofit.logs.watch import Watch
    from autofit.planning.compare import Difference

LEAST_BYTES = 64 * MIB  #: by which the next plan is smaller, at least, and by an eighth
DOING: Mapping[Stage, str] = {
    "start": "starting",
    "weights": "loading weights",
    "cache": "making caches",
    "compute": "reserving compute buffers",
    "ready": "ready",
}
#: what has been taken before memory of a kind is
BEFORE: Mapping[str, tuple[Kind, ...]] = {
    "weights": ("runtime",),
    "cache": ("runtime", "weights"),
    "compute": ("runtime", "weights", "cache"),
}


#: a command's plan and the machine that it is for, of pools with so many bytes at most; the exit code: it does not fit
Fill = Callable[[Sequence[str], Mapping[str, int]], "tuple[Plan, Machine] | int"]


def run_watched(
    args: argparse.Namespace, argv: Sequence[str], environ: Mapping[str, str], n_retries: int, fill: Fill
) -> int:
    """Start an engine as a child; the exit code, or the signal that ended it as one's own."""
    path = program_path(argv[0], environ)
    at_most: dict[str, int] = {}
    added: dict[str, tuple[str, ...]] = {}
    before: Plan | None = None
    for attempt in range(1 + n_retries):
        more = [word for words in added.values() for word in words]
        found = fill((*argv, *more), at_most)
        if isinstance(found, int):
            return found
        plan, machine = found
        kept = {one.setting for one in plan.decisions if one.origin == "wrapped command"} - added.keys()
        if before is not None:
            changes = _changes(before, plan, added)
            _say(f"changes: {changes or 'none that can be named'}" if changes or not added else "no other change")
        backend = host().backend(plan.backend)
        places, kills = backend.places(machine), kernel_kills()
        follower = Follower(backend.watch(), plan, places, is_quiet=args.quiet)
        follower.learn = partial(_learn, backend, machine, environ)
        reap()
        status = Child(path, plan.argv[1:], {**environ, **plan.env}, follower.feed).wait()
        was_killed = (kernel_kills() or 0) > (kills or 0)
        failure = follower.failure(status, was_killed=was_killed)
        if failure is None:
            break
        _say(f"out of memory while {DOING[failure.stage]}: {printable(failure.words, 200)}")
        if attempt == n_retries:
            break
        if failure.cause == "budget":
            assert follower.observed is not None  # which the failure is of
            flags = _advised(backend, follower.observed, plan, machine, kept)
            if flags is None:
                break
            added |= flags
            before = plan
            continue
        for pool, n_bytes in learnt(failure, plan, places, follower.differences).items():
            at_most[pool] = n_bytes
            _say(f"planning again, for {format_bytes(n_bytes)} on {pool} at most")
        before = plan
    return end_as(status)


def _advised(
    backend: Backend, observed: Observed, plan: Plan, machine: Machine, kept: Collection[str]
) -> Mapping[str, tuple[str, ...]] | None:
    """Flags by their names that help where the engine's own account of its budget says what is missing: free memory
    is not what it lacks. None of those that the command states is changed; `None`: no others help."""
    from autofit.domain.request import Request

    request = Request(engine_version=plan.engine_version, alternatives=False, explain=False)
    told = tuple(backend.devices_in(observed))
    repair = backend.repair(observed, plan.argv, replace(machine, devices=told or machine.devices), request)
    for change in () if repair is None else repair.changes:
        flags: dict[str, tuple[str, ...]] = {}
        for word in change.flags:
            name = word if word.startswith("-") else next(reversed(flags))
            flags[name] = (*flags.get(name, ()), word)
        if not flags.keys() & kept:
            shown = printable(" ".join(change.flags), 200) or "the same"
            _say(f"planning again, with {shown} ({printable(change.because, 200)})")
            return flags
    return None


class Follower:
    """Reads an engine's output as it comes, tells of its stages, and knows in the end what went wrong."""

    def __init__(self, watch: Watch | None, plan: Plan, places: Mapping[str, str], *, is_quiet: bool) -> None:
        self.watch, self.plan, self.places = watch, plan, places
        self.tells, self.tells_stages = not is_quiet, not is_quiet and sys.stderr.isatty()
        self.was_ready = False
        self.observed: Observed | None = None  #: all of it, where it ended before it was ready
        self.differences: tuple[Difference, ...] = ()
        self.learn: Callable[[Observed, Sequence[Difference]], object] | None = None
        self._n_lines, self._stage = 0, "start"
        self._began = time.monotonic()
        self._news: list[str] = []

    def feed(self, data: bytes) -> None:
        """The next piece of output, which has been passed on. Of an engine that serves none is read."""
        if self.watch is None:
            return
        if not self.was_ready:
            self.watch.feed(data)
            self._look(self.watch)
        if data.endswith(b"\n"):  # else a line of the engine would go on behind ours
            self._tell()

    def _tell(self) -> None:
        for text in self._news:
            _say(text)
        self._news.clear()

    def _look(self, watch: Watch) -> None:
        if watch.n_lines == self._n_lines:
            return
        self._n_lines = watch.n_lines
        observed = watch.observed
        if observed.stage == self._stage:
            return
        self._stage = observed.stage
        self.was_ready = observed.is_ready
        if self.tells_stages or (self.was_ready and self.tells):
            self._news.append(f"{DOING[observed.stage]} after {time.monotonic() - self._began:.1f} s")
        if self.was_ready:
            self._compare(observed)

    def failure(self, status: int, *, was_killed: bool) -> Failure | None:
        """Why the engine ended, where that was during its start and for lack of memory."""
        if self.watch is None or self.was_ready:
            self._tell()
            return None
        self.observed = observed = self.watch.close(os.waitstatus_to_exitcode(status))
        found = observed.failure
        if found is not None and found.is_memory:
            self._compare(observed)
        self._tell()
        return found if found is not None and _is_for_memory(found, was_killed=was_killed) else None

    def _compare(self, observed: Observed) -> None:
        """What the engine reported beside what was predicted."""
        self.differences = compare(self.plan.memory, observed, self.places)
        if observed.is_ready and self.learn is not None:
            self.learn(observed, self.differences)
        if not self.tells:
            return
        same = ", ".join(f"{one.pool} {one.kind}" for one in self.differences if not one.over_bytes)
        if same:
            self._news.append(f"reported as predicted: {same}")
        for one in self.differences:
            if one.over_bytes:
                sign = "+" if one.over_bytes > 0 else "-"
                self._news.append(
                    f"{one.pool} {one.kind}: {format_bytes(one.reported_bytes)} reported, "
                    f"{format_bytes(one.predicted_bytes)} predicted ({sign}{format_bytes(abs(one.over_bytes))})"
                )


def _learn(
    backend: Backend,
    machine: Machine,
    environ: Mapping[str, str],
    observed: Observed,
    differences: Sequence[Difference],
) -> None:
    """Count the start for later plans (docs/calibration.md); what goes wrong with that is no matter of the engine's."""
    from autofit.calibration.apply import record

    with suppress(Exception):
        record(backend.name, machine, observed, differences, backend.calibrates, environ)


def _is_for_memory(failure: Failure, *, was_killed: bool) -> bool:
    """Whether a plan with less memory helps; a process that was killed without a word may have been by anybody."""
    if failure.cause in ("other", "limit"):
        return False
    return failure.is_certain or was_killed


def learnt(
    failure: Failure, plan: Plan, places: Mapping[str, str], differences: Sequence[Difference]
) -> dict[str, int]:
    """Bytes that pools have for this engine at most, as its failure shows.

    Where an allocation failed, what was taken before it and the allocation are more than there is. What was taken is
    what was predicted of the stages before, if it is known in which it was; else all of the plan but what comes after
    the start. What was reported beyond the prediction is left out as well.
    """
    if failure.cause in ("RAM", "killed"):
        named: str | None = HOST_POOL
    else:
        named = pool_of(failure.place or "", places)
    pools = [pool for pool in plan.memory.pools if pool.used_bytes and (pool.id == named or named is None)]
    pools = [pool for pool in pools if named is not None or pool.id != HOST_POOL] or pools
    found = {}
    for pool in pools:
        over = sum(max(0, one.over_bytes) for one in differences if one.pool == pool.id)
        before_it = BEFORE.get(_kind_of(failure, pool))
        if named is None or not failure.requested_bytes or before_it is None:
            most = _less(pool.used_bytes - pool.sum_bytes("transient"))
        else:
            before = sum(pool.sum_bytes(kind) for kind in before_it)
            there = failure.requested_bytes - 1
            if failure.free_bytes is not None:
                there = min(there, failure.free_bytes)
            most = min(_less(pool.used_bytes), before + there)
        found[pool.id] = max(0, most - over)
    return found


def _less(n_bytes: int) -> int:
    return n_bytes - max(LEAST_BYTES, n_bytes // 8)


def _kind_of(failure: Failure, pool: PoolUse) -> Kind | Stage:
    """What the allocation was for: as the log says it, or as the part of the plan that is as large to the byte."""
    planned: dict[int, Kind] = {pool.sum_bytes(kind): kind for kind in KINDS if kind in BEFORE}
    planned |= {item.n_bytes: item.kind for item in pool.items}
    return failure.kind or planned.get(failure.requested_bytes or -1) or failure.stage


def _changes(before: Plan, after: Plan, added: Collection[str] = ()) -> str:
    """The settings that another plan has otherwise, as the engine spells them, beside those that were `added`."""
    old = {one.setting: one.value for one in before.decisions if one.argv}
    new = {one.setting: one.value for one in after.decisions if one.argv}
    names = [*new, *(name for name in old if name not in new)]
    changed = [
        f"{name} {old[name]} -> {new[name]}" if name in old and name in new
        else f"{name} {new[name]}" if name in new
        else f"no {name}"
        for name in names
        if old.get(name) != new.get(name) and name not in added
    ]  # fmt: skip
    return printable(", ".join(changed), 400)


def _say(text: str) -> None:
    print(f"autofit: {text}", file=sys.stderr, flush=True)
