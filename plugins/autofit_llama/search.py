"""The placement for one context and one set of caches: exact search, then proof by the full estimate.

The search needs to know what stands beside the blocks on a device: compute buffers, runtime, what the
user fixed. That depends on the place of the device in the chain and on whether anything is left on the
host, hardly on the exact cuts. So it is learnt: solve, estimate the answer in full, take the difference,
and solve again until the answer stays the same and fits. Whatever is returned as fitting has been
estimated in full.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from autofit.domain.machine import HOST_POOL
from autofit.domain.memory import Memory
from autofit.solve import Chain, Room, balance, solve

from autofit_llama.placement import place_layers
from autofit_llama.search_polish import choices, split_of
from autofit_llama.search_tables import Split, Tables

MAX_ROUNDS = 12
PLAIN_GAIN = 1.02  #: how much faster than whole layers in RAM parts of them have to be, to be worth more flags
CACHE_GAIN = 1.5  #: how much faster caches on devices have to make it, to push more weights off them
_ENDLESS = 1 << 62


class Candidate(NamedTuple):
    """What is decided before the placement."""

    n_ctx_seq: int  #: tokens that each sequence may hold
    type_k: str
    type_v: str
    n_ubatch: int
    n_batch: int
    one_by_one: bool = False  #: micro-batches do not overlap on several devices, so no copies for that


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What pins leave open. `heads` in blocks; `order`: the devices as given, not as is best.

    `split` are the numbers of a pinned `-ts`; then only heads and lean blocks are left to find.
    """

    heads: Sequence[int]
    lean: tuple[int, int]
    order: tuple[str, ...] | None = None
    split: tuple[float, ...] | None = None
    parts: bool = True  #: blocks may be taken apart
    overflow: bool = True  #: parts may lie on another device than their block


class Problem(Protocol):
    """What the search asks for."""

    @property
    def bounds(self) -> Bounds: ...

    @property
    def pool_of(self) -> Mapping[str, str]:
        """Device -> pool; `host` on unified memory."""

    @property
    def budgets(self) -> Mapping[str, int | None]:
        """Pool -> what may be taken of it, `None` if nobody knows."""

    @property
    def can_overlap(self) -> bool:
        """Whether several devices work on micro-batches at the same time unless told not to."""

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


_Role = tuple[Hashable, bool, bool, bool]  # device kind, first, last, anything on the host


@dataclass(slots=True)
class Search:
    """Searches for one problem; remembers what stands beside the blocks, and every estimate."""

    problem: Problem
    beside: dict[Candidate, dict[_Role, int]] = field(default_factory=dict)
    measured: dict[tuple[Candidate, Split], Memory] = field(default_factory=dict)

    def best(self, candidate: Candidate) -> Found | None:
        """The fastest placement that fits, or `None`."""
        if self.problem.bounds.split is not None:
            return next((found for found in self._at_pinned_split(candidate) if found.fits), None)
        resident = self.resident(candidate)
        tables = self.tables(candidate)
        # Only a device slower than the host could make leaving blocks there the better choice.
        if resident is not None and resident.seconds < tables.all_on_host_seconds:
            return resident
        spilled = self.spilled(candidate) or self._settle(candidate, tables, spill=True, by_bytes=True)
        if spilled is None or (resident is not None and resident.seconds <= spilled.seconds):
            return resident
        return spilled

    def resident(self, candidate: Candidate) -> Found | None:
        """Everything on devices, or `None`."""
        bounds, tables = self.problem.bounds, self.tables(candidate)
        if 0 not in bounds.heads or bounds.lean[0] > 0 or not tables.targets:
            return None
        found = self._settle(candidate, tables, spill=False)
        if found is None and self.problem.can_overlap and len(tables.targets) > 1:
            found = self._settle(candidate._replace(one_by_one=True), tables, spill=False)
        return found

    def spilled(self, candidate: Candidate) -> Found | None:
        """Some of it on the host: in whole blocks, then to the last tensor on the same devices.

        Of a dense model whole blocks are the plainest (`-ngl` alone). Parts of them have to be worth it,
        and may leave more weights on the host than that, to have more of the cache on devices, only where
        it pays.
        """
        tables, bounds = self.tables(candidate), self.problem.bounds
        plain, most_weights = None, None
        if tables.bulk_kind == "dense" and bounds.lean == (0, len(tables.blocks)):
            plain = self._settle(candidate, tables, spill=True, plain=True)
            most_weights = None if plain is None else tables.host_weights(plain.split)
        found = self._settle(candidate, tables, spill=True, most_weights=most_weights)
        if most_weights is not None and found is not None:
            free = solve(self.chain(candidate, tables, spill=True))
            if free is not None and free.seconds * CACHE_GAIN < found.seconds:
                found, most_weights = self._settle(candidate, tables, spill=True) or found, None
        if found is not None and bounds.parts and found.split.rows:
            finer = self._settle(candidate, tables, spill=True, most_weights=most_weights, coarse=found.split)
            if finer is not None and finer.seconds < found.seconds:
                found = finer
            found = self._polish(candidate, tables, found, most_weights)
        if plain is not None and (found is None or plain.seconds <= found.seconds * PLAIN_GAIN):
            return plain
        return found

    def nearest(self, candidate: Candidate) -> Found | None:
        """What comes closest when nothing fits: the least that is missing, over all pools.

        Either devices are as full as they go and the host holds the rest, or (where pins or a small host
        force it) every device is over by the same share of its budget.
        """
        bounds = self.problem.bounds
        if bounds.split is not None:
            every = self._at_pinned_split(candidate)
            return min(every, key=lambda answer: shortfall_bytes(answer.memory), default=None)
        answers = []
        if len(bounds.heads) > 1 or bounds.lean[1] > 0 or 0 not in bounds.heads:
            answers.append(self._overfull(candidate, spill=True))
        if 0 in bounds.heads and bounds.lean[0] == 0:
            answers.append(self._overfull(candidate, spill=False))
        found = [answer for answer in answers if answer is not None]
        return min(found, key=lambda answer: shortfall_bytes(answer.memory), default=None)

    def _at_pinned_split(self, candidate: Candidate) -> Iterator[Found]:
        """The splits that a pinned `-ts` allows and that look like fitting, the least on the host first.

        The last is tried whatever it looks like, so that there is always one to say what is missing of.
        """
        bounds, tables = self.problem.bounds, self.tables(candidate)
        names = bounds.order or tuple(target.id for target in tables.targets)
        n = len(tables.blocks)
        splits = []
        for head in bounds.heads:
            placement = place_layers(n - 1, n - head, bounds.split or (), len(names))
            homes = [*placement.blocks, placement.output]
            rows = tuple((name, homes.count(d)) for d, name in enumerate(names) if d in homes)
            most = bounds.lean[1] if tables.bulk_kind == "experts" and head == 0 else bounds.lean[0]
            splits += [Split(head, rows, n_lean) for n_lean in range(bounds.lean[0], most + 1)]
        splits.sort(key=tables.host_bytes)
        for i, split in enumerate(splits):
            if i == len(splits) - 1 or self._looks_fitting(candidate, tables, split):
                found = self._prove(candidate, tables, split)
                yield found
                if found.fits:
                    return

    def _looks_fitting(self, candidate: Candidate, tables: Tables, split: Split) -> bool:
        kinds = {target.id: target.kind for target in tables.targets}
        order = split.order
        for name, n_bytes in tables.device_bytes(split).items():
            budget = self.problem.budgets[self.problem.pool_of[name]]
            role = kinds[name], name == order[0], name == order[-1], split.on_host
            if budget is not None and n_bytes + self._least_beside(candidate, role) > budget:
                return False
        return True

    def tables(self, candidate: Candidate) -> Tables:
        return self.problem.tables(candidate)

    def measure(self, candidate: Candidate, split: Split) -> Memory:
        key = candidate, split._replace(seconds=0.0)
        memory = self.measured.get(key)
        if memory is None:
            memory = self.measured[key] = self.problem.measure(candidate, split)
        return memory

    def _settle(
        self,
        candidate: Candidate,
        tables: Tables,
        *,
        spill: bool,
        coarse: Split | None = None,
        plain: bool = False,
        by_bytes: bool = False,
        most_weights: int | None = None,
    ) -> Found | None:
        """Solve and estimate until the answer stays; the fastest that was seen to fit."""
        best: Found | None = None
        tried: set[Split] = set()
        for _ in range(MAX_ROUNDS):
            chain = self.chain(
                candidate,
                tables,
                spill=spill,
                coarse=coarse,
                plain=plain,
                by_bytes=by_bytes,
                most_weights=most_weights,
            )
            placement = solve(chain)
            if placement is None:
                break
            if not spill:
                placement = balance(chain, placement)
            found = self._prove(candidate, tables, tables.split(placement, fine=coarse is not None))
            if found.fits and (best is None or found.seconds < best.seconds):
                best = found
            if found.split in tried:
                break
            tried.add(found.split)
        return best

    def _polish(self, candidate: Candidate, tables: Tables, found: Found, most_weights: int | None) -> Found:
        """The same devices, with the parts at the edges chosen so that the least stays on the host.

        Never slower: a part more on a device can mean two hops more.
        """
        bounds, split = self.problem.bounds, found.split
        if bounds.lean[1] == 0 or any(self.problem.pool_of[name] == HOST_POOL for name in split.order):
            return found
        heads = sorted({head for head in (0, split.head - 1, split.head) if head in bounds.heads})
        tried: set[Split] = {split._replace(seconds=0.0)}
        for _ in range(MAX_ROUNDS):
            better = self._next_choice(candidate, tables, found, heads, most_weights, tried)
            if better is None:
                break
            tried.add(better)
            proven = self._prove(candidate, tables, better)
            if proven.fits and proven.seconds <= found.seconds:
                return proven
        return found

    def _next_choice(
        self,
        candidate: Candidate,
        tables: Tables,
        found: Found,
        heads: Sequence[int],
        most_weights: int | None,
        tried: set[Split],
    ) -> Split | None:
        """The choice of parts with the least on the host that looks like fitting and was not tried."""
        kinds, order = {target.id: target.kind for target in tables.targets}, found.split.order

        def room_of(name: str) -> int:
            room = self._room(candidate, name, kinds[name], True, 1.0)
            return room.at(is_first=name == order[0], is_last=name == order[-1])

        budget = self.problem.budgets[HOST_POOL]
        least = self._least_beside(candidate, (HOST_POOL, False, False, True))
        on_host = tables.host_bytes(found.split)
        for choice in choices(tables, found.split, heads, room_of, overflow=self.problem.bounds.overflow):
            if choice.host_bytes >= on_host:
                return None
            if choice.seconds > found.seconds or (budget is not None and choice.host_bytes + least > budget):
                continue
            split = split_of(tables, choice)
            if split in tried or not split.on_host:
                continue
            if most_weights is None or tables.host_weights(split) <= most_weights:
                return split
        return None

    def _prove(self, candidate: Candidate, tables: Tables, split: Split) -> Found:
        """Estimate a split in full, and learn from it."""
        split = split._replace(seconds=tables.seconds(split))
        memory = self.measure(candidate, split)
        kinds = {target.id: target.kind for target in tables.targets}
        blocks = tables.device_bytes(split)
        order, known = split.order, self.beside.setdefault(candidate, {})
        for name in order:
            pool = self.problem.pool_of[name]
            if pool != HOST_POOL:
                role = kinds[name], name == order[0], name == order[-1], split.on_host
                known[role] = memory.pool(pool).used_bytes - blocks[name]
        host = memory.pool(HOST_POOL).used_bytes - tables.host_bytes(split)
        host -= sum(blocks[name] for name in order if self.problem.pool_of[name] == HOST_POOL)
        known[HOST_POOL, False, False, split.on_host] = host
        return Found(candidate, split, memory)

    def chain(
        self,
        candidate: Candidate,
        tables: Tables,
        *,
        spill: bool,
        coarse: Split | None = None,
        plain: bool = False,
        by_bytes: bool = False,
        most_weights: int | None = None,
        share: float = 1.0,
    ) -> Chain:
        """The problem as far as it is known; blocks are only taken apart about a `coarse` answer.

        `plain`: no lean blocks. `by_bytes`: the least on the host instead of the fastest. `most_weights`
        bounds the weights on the host. `share` enlarges budgets.
        """
        bounds = self.problem.bounds
        heads, order = bounds.heads if spill else (0,), bounds.order
        if coarse is not None:
            heads, order = [head for head in heads if abs(head - coarse.head) <= 1], coarse.order
        budget = self.problem.budgets[HOST_POOL]
        head_room = None
        if budget is not None and not by_bytes:
            head_room = budget - self._least_beside(candidate, (HOST_POOL, False, False, spill))
        return tables.chain(
            {target.id: self._room(candidate, target.id, target.kind, spill, share) for target in tables.targets},
            head_room=head_room,
            heads=heads,
            lean=bounds.lean if spill and not plain else (0, 0),
            order=order,
            fine=coarse is not None,
            spill=spill,
            by_bytes=by_bytes,
            overflow=bounds.overflow,
            most_weights=most_weights,
        )

    def _room(self, candidate: Candidate, name: str, kind: Hashable, spill: bool, share: float) -> Room:
        pool = self.problem.pool_of[name]
        budget = self.problem.budgets[pool]
        if budget is None or pool == HOST_POOL:
            return Room.same(_ENDLESS)
        budget = int(budget * share)

        def at(first: bool, last: bool) -> int:
            return budget - self._least_beside(candidate, (kind, first, last, spill))

        return Room(middle=at(False, False), first=at(True, False), last=at(False, True), only=at(True, True))

    def _least_beside(self, candidate: Candidate, role: _Role) -> int:
        """What stands beside the blocks, as learnt; or what it surely is not below, so that nothing is
        missed.

        Compute buffers grow with the micro-batch and the context, at most in proportion.
        """
        known = self.beside.get(candidate, {})
        if role in known:
            return known[role]
        least = 0
        for other, roles in self.beside.items():
            if role not in roles or (other.type_k, other.type_v) != (candidate.type_k, candidate.type_v):
                continue
            scale = min(1.0, candidate.n_ubatch / other.n_ubatch) * min(1.0, candidate.n_ctx_seq / other.n_ctx_seq)
            least = max(least, int(roles[role] * scale))
        same_place = [n for (kind, *place), n in known.items() if kind != HOST_POOL and place == list(role[1:])]
        return max(least, min(same_place, default=0)) if role[0] != HOST_POOL else least

    def _overfull(self, candidate: Candidate, *, spill: bool) -> Found | None:
        """The placement that needs the smallest enlargement of all budgets, with the least on the host."""
        tables = self.tables(candidate)
        if not tables.targets:
            return self._prove(candidate, tables, Split(len(tables.blocks), ())) if spill else None

        def placed(share: float) -> Split | None:
            chain = self.chain(candidate, tables, spill=spill, by_bytes=True, share=share)
            placement = solve(chain)
            return None if placement is None else tables.split(placement)

        found: Found | None = None
        for _ in range(3):
            low, high = 1.0, 1.0
            while (split := placed(high)) is None and high < 1 << 12:
                low, high = high, 1.0 + 2 * (high - 1.0) + 1 / 16
            if split is None:
                break
            for _ in range(10 if high > 1.0 else 0):
                middle = (low + high) / 2
                closer = placed(middle)
                if closer is None:
                    low = middle
                else:
                    high, split = middle, closer
            proven = self._prove(candidate, tables, split)
            if found is not None and shortfall_bytes(proven.memory) >= shortfall_bytes(found.memory):
                break
            found = proven
        return found


def shortfall_bytes(memory: Memory) -> int:
    """What is missing in all pools together."""
    return sum(max(0, pool.shortfall_bytes) for pool in memory.pools)
