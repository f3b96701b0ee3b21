"""The placement for one context and one set of caches: exact search, then proof by the full estimate.

The search needs to know what stands beside the blocks on a device: compute buffers, runtime, what the
user fixed. That depends on the place of the device in the chain and on whether anything is left on the
host, hardly on the exact cuts. So it is learnt: solve, estimate the answer in full, take the difference,
and solve again until the answer stays the same and fits. Whatever is returned as fitting has been
estimated in full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from autofit.domain.machine import HOST_POOL
from autofit.domain.memory import Memory
from autofit.solve import Chain, Room, balance, solve

from autofit_llama.search_tables import Split, Tables

MAX_ROUNDS = 12


class Candidate(NamedTuple):
    """What is decided before the placement."""

    n_ctx_seq: int  #: tokens that each sequence may hold
    type_k: str
    type_v: str
    n_ubatch: int
    n_batch: int
    one_by_one: bool = False  #: micro-batches do not overlap on several devices (no pipeline copies)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What pins leave open. `heads` in blocks; `order`: devices as given, not as is best."""

    heads: Sequence[int]
    lean: tuple[int, int]
    order: tuple[str, ...] | None = None
    parts: bool = True  #: blocks may be split


class Problem(Protocol):
    """What the search asks for."""

    bounds: Bounds
    pool_of: Mapping[str, str]  #: device -> pool; `host` on unified memory

    def tables(self, candidate: Candidate) -> Tables: ...

    def measure(self, candidate: Candidate, split: Split) -> Memory: ...


class Found(NamedTuple):
    """An answer, estimated in full."""

    candidate: Candidate
    split: Split
    memory: Memory

    @property
    def seconds(self) -> float:
        return self.split.seconds

    @property
    def fits(self) -> bool:
        return self.memory.fits


_Role = tuple[Any, bool, bool, bool]  # device kind, first, last, anything on the host


@dataclass(slots=True)
class Search:
    """Searches for one problem; remembers what stands beside the blocks, and every estimate."""

    problem: Problem
    beside: dict[_Role, int] = field(default_factory=dict)
    beside_host: dict[bool, int] = field(default_factory=dict)
    measured: dict[tuple[Candidate, Split], Memory] = field(default_factory=dict)
    n_estimates: int = 0

    def best(self, candidate: Candidate) -> Found | None:
        """The fastest placement that fits, or `None`."""
        tables = self.problem.tables(candidate)
        resident = self.resident(candidate, tables)
        if resident is not None and not self._host_is_faster(tables, resident):
            return resident
        spilled = self.spilled(candidate, tables)
        if spilled is None or (resident is not None and resident.seconds <= spilled.seconds):
            return resident
        return spilled

    def resident(self, candidate: Candidate, tables: Tables | None = None) -> Found | None:
        """Everything on devices, or `None`."""
        bounds = self.problem.bounds
        if 0 not in bounds.heads or bounds.lean[0] > 0 or not tables_targets(tables, self.problem, candidate):
            return None
        tables = tables or self.problem.tables(candidate)
        return self._settle(candidate, tables, spill=False)

    def spilled(self, candidate: Candidate, tables: Tables | None = None) -> Found | None:
        """Some of it on the host, first in whole blocks, then to the last tensor on the same devices."""
        tables = tables or self.problem.tables(candidate)
        found = self._settle(candidate, tables, spill=True)
        if found is None or not self.problem.bounds.parts or not found.split.rows:
            return found
        finer = self._settle(candidate, tables, spill=True, coarse=found.split)
        return finer if finer is not None and finer.seconds < found.seconds else found

    def measure(self, candidate: Candidate, split: Split) -> Memory:
        key = candidate, split._replace(seconds=0.0)
        memory = self.measured.get(key)
        if memory is None:
            self.n_estimates += 1
            memory = self.measured[key] = self.problem.measure(candidate, split)
        return memory

    def chain(
        self,
        candidate: Candidate,
        tables: Tables,
        memory: Memory,
        *,
        spill: bool,
        coarse: Split | None = None,
    ) -> Chain:
        """The problem as far as it is known; blocks are only taken apart about a `coarse` answer."""
        bounds = self.problem.bounds
        heads, order = bounds.heads if spill else (0,), bounds.order
        if coarse is not None:
            heads, order = [head for head in heads if abs(head - coarse.head) <= 1], coarse.order
        rooms = {target.id: self._room(target.id, target.kind, memory, spill) for target in tables.targets}
        host = memory.pool(HOST_POOL).budget_bytes
        head_room = None if host is None else host - self.beside_host.get(spill, 0)
        return tables.chain(
            rooms,
            head_room=head_room,
            heads=heads,
            lean=bounds.lean if spill else (0, 0),
            order=order,
            fine=coarse is not None,
            spill=spill,
        )

    def _settle(
        self, candidate: Candidate, tables: Tables, *, spill: bool, coarse: Split | None = None
    ) -> Found | None:
        memory = self._any_memory(candidate, tables)
        best: Found | None = None
        tried: set[Split] = set()
        for _ in range(MAX_ROUNDS):
            chain = self.chain(candidate, tables, memory, spill=spill, coarse=coarse)
            placement = solve(chain)
            if placement is None:
                break
            split = tables.split(placement if spill else balance(chain, placement), fine=coarse is not None)
            memory = self.measure(candidate, split)
            self._learn(tables, split, memory)
            found = Found(candidate, split, memory)
            if found.fits and (best is None or found.seconds < best.seconds):
                best = found
            if split in tried:
                break
            tried.add(split)
        return best

    def _learn(self, tables: Tables, split: Split, memory: Memory) -> None:
        kinds = {target.id: target.kind for target in tables.targets}
        blocks = tables.device_bytes(split)
        order = split.order
        for name in order:
            pool = self.problem.pool_of[name]
            if pool != HOST_POOL:
                role = kinds[name], name == order[0], name == order[-1], split.on_host
                self.beside[role] = memory.pool(pool).used_bytes - blocks[name]
        self.beside_host[split.on_host] = memory.pool(HOST_POOL).used_bytes - tables.host_bytes(split)

    def _room(self, name: str, kind: Any, memory: Memory, spill: bool) -> Room:
        budget = memory.pool(self.problem.pool_of[name]).budget_bytes
        if budget is None:
            return Room.same(1 << 62)

        def at(first: bool, last: bool) -> int:
            known = self.beside.get((kind, first, last, spill))
            if known is None:
                # Another device in the same place is the best guess; too little is found out, too much never
                # is.
                others = [n for (_, *role), n in self.beside.items() if role == [first, last, spill]]
                known = min(others, default=0)
            return budget - known

        return Room(middle=at(False, False), first=at(True, False), last=at(False, True), only=at(True, True))

    def _any_memory(self, candidate: Candidate, tables: Tables) -> Memory:
        """Any estimate: budgets do not depend on the placement."""
        if self.measured:
            return next(iter(self.measured.values()))
        return self.measure(candidate, Split(len(tables.blocks), ()))

    def _host_is_faster(self, tables: Tables, found: Found) -> bool:
        """Whether a device in use is so slow that the host may do better; then both have to be searched."""
        every = tables.all_on_host_seconds
        return found.seconds > every


def tables_targets(tables: Tables | None, problem: Problem, candidate: Candidate) -> bool:
    return bool((tables or problem.tables(candidate)).targets)
