"""The placement for one context and one set of caches: exact search, then proof by the full estimate.

The overhead of a device, everything but layers, is learned on the way: propose a split, estimate it in full, and
propose again with what that has shown, until the answer stays the same and fits. Whatever is returned as
fitting has been estimated in full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import ClassVar

from autofit.domain.machine import HOST_POOL
from autofit.domain.memory import Memory
from autofit.domain.values import NamedTuple, dataclass, field
from autofit.solve import Placement, Span, balance, excess_bytes, host_bytes, seconds, solve

from autofit_llama.memory.placement import place_layers
from autofit_llama.planning.overheads import Bounds, Candidate, OverheadModel, Problem
from autofit_llama.planning.tables import Split, Tables

__all__ = ["Bounds", "Candidate", "Found", "Problem", "Search", "shortfall_bytes"]

MAX_ROUNDS = 10


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


@dataclass(slots=True)
class Search:
    """Searches for one problem; remembers what stands beside the blocks, and every estimate."""

    learns: ClassVar[bool] = True  #: whether what estimates have shown decides what is proposed next
    problem: Problem
    offloads: bool = True  #: blocks may stay on the host
    known: OverheadModel = field(init=False)
    measured: dict[tuple[Candidate, Split], Memory] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.known = OverheadModel(self.problem)

    def best(self, candidate: Candidate) -> Found | None:
        """The fastest placement that fits, or `None`."""
        resident = self.resident(candidate)
        if not self.offloads:
            return resident
        if self.problem.bounds.split is not None:
            return resident or self._at_pinned_split(candidate, nearest=False)
        # Only a device slower than the host could make leaving blocks there the better choice.
        if resident is not None and resident.seconds < self.tables(candidate).all_on_host_seconds:
            return resident
        offloaded = self.offloaded(candidate)
        if offloaded is None or (resident is not None and resident.seconds <= offloaded.seconds):
            offloaded = resident
        if offloaded is None or offloaded.seconds <= self.tables(candidate).all_on_host_seconds:
            return offloaded
        return self.on_host(candidate) or offloaded

    def on_host(self, candidate: Candidate) -> Found | None:
        """Nothing on devices, or `None`: pins or RAM have it otherwise."""
        tables = self.tables(candidate)
        n = len(tables.blocks)
        if n not in self.problem.bounds.heads or self.problem.bounds.n_cpu_ffn[0] > 0:
            return None
        found, _ = self._prove(candidate, tables, Split(n, ()))
        return found if found.fits else None

    def resident(self, candidate: Candidate) -> Found | None:
        """Everything on devices, or `None`."""
        if not self._may_be_resident(candidate):
            return None
        find = self._resident if self.problem.bounds.split is None else self._resident_at_pinned_split
        found = find(candidate)
        if found is None and self.problem.can_overlap and len(self.tables(candidate).targets) > 1:
            found = find(candidate._replace(one_by_one=True))
        return found

    def resident_up_to(self, candidate: Candidate, n_ctx: int) -> Found | None:
        """What `best` and then more context come to where all that is wished for fits, for a single estimate.

        The first proposal, if it holds `n_ctx` tokens, the most that it may be given; `None` says nothing.
        """
        tables, bounds = self.tables(candidate), self.problem.bounds
        if self.known.has_seen(candidate) or bounds.split is not None or not self._may_be_resident(candidate):
            return None
        split = self._propose_resident(candidate, tables)
        if split is None:
            return None
        split = split._replace(seconds=tables.seconds(split))
        most = candidate._replace(n_ctx_seq=n_ctx)
        limits = [self.problem.limits[name] for name in split.order]
        more = self.problem.cache_bytes(most) - self.problem.cache_bytes(candidate)
        if None not in limits and tables.least_bytes + more > sum(filter(None, limits)):
            return None
        found = Found(most, split, self.measure(most, split))
        return found if found.fits and found.seconds < tables.all_on_host_seconds else None

    def offloaded(self, candidate: Candidate) -> Found | None:
        """Some of it on the host; where the fastest is too much for the host, as little as can be."""
        from autofit_llama.planning.offload import propose

        tables = self.tables(candidate)

        def least_on_host(failed: set[Split]) -> Split | None:
            placement = solve(self.known.assignment(candidate, tables, offload=True, by_bytes=True))
            return None if placement is None else tables.split(placement)

        found = self._settle(candidate, tables, lambda failed: propose(self.known, candidate, tables, failed))
        return found or self._settle(candidate, tables, least_on_host)

    def nearest(self, candidate: Candidate) -> Found | None:
        """What comes closest when nothing fits: the least that is missing, over all pools.

        Either devices are as full as they go and the host holds the rest, or (where pins or a small host
        force it) every device is over by the same share of its budget.
        """
        bounds = self.problem.bounds
        if bounds.split is not None:
            return self._at_pinned_split(candidate, nearest=True)
        if not self.offloads:
            return self._evenly(candidate) or self._overfull(candidate, offload=True)
        answers = []
        if len(bounds.heads) > 1 or bounds.n_cpu_ffn[1] > 0 or 0 not in bounds.heads:
            answers.append(self._overfull(candidate, offload=True))
        if 0 in bounds.heads and bounds.n_cpu_ffn[0] == 0:
            answers.append(self._overfull(candidate, offload=False))
        found = [answer for answer in answers if answer is not None]
        return min(found, key=lambda answer: shortfall_bytes(answer.memory), default=None)

    def tables(self, candidate: Candidate) -> Tables:
        return self.problem.tables(candidate)

    def measure(self, candidate: Candidate, split: Split) -> Memory:
        key = candidate, split._replace(seconds=0.0)
        memory = self.measured.get(key)
        if memory is None:
            memory = self.measured[key] = self.problem.measure(candidate, split)
        return memory

    def spare(self, found: Found) -> dict[str, int]:
        """What every device in use, and the host, has left; less than nothing where it lacks."""
        used = dict(self.problem.device_bytes(found.candidate, found.split))
        used[HOST_POOL] = found.memory.pool(HOST_POOL).used_bytes
        limits = self.problem.limits
        return {name: limit - n_bytes for name, n_bytes in used.items() if (limit := limits[name]) is not None}

    def narrowed(self, found: Found) -> Search:
        """The same search with no more memory on devices than `found` takes."""
        spare = {name: max(0, n_bytes) for name, n_bytes in self.spare(found).items() if name != HOST_POOL}
        return type(self)(self.problem.narrowed(spare), self.offloads)

    def lessened(self, share: float) -> Search:
        """The same search with that share of the memory of every device taken away."""
        limits = self.problem.limits
        less = {name: int(share * n) for name, n in limits.items() if name != HOST_POOL and n is not None}
        return type(self)(self.problem.narrowed(less), self.offloads)

    def _may_be_resident(self, candidate: Candidate) -> bool:
        """Whether pins leave all blocks to devices, and these have room for them at all."""
        bounds, tables = self.problem.bounds, self.tables(candidate)
        if 0 not in bounds.heads or bounds.n_cpu_ffn[0] > 0 or not tables.targets:
            return False
        rooms = [self.known.room(candidate, t.id, t.kind, offload=False) for t in tables.targets]
        return sum(max(0, *room) for room in rooms) >= tables.least_bytes

    def _resident(self, candidate: Candidate) -> Found | None:
        tables = self.tables(candidate)

        return self._settle(candidate, tables, lambda failed: self._propose_resident(candidate, tables))

    def _propose_resident(self, candidate: Candidate, tables: Tables) -> Split | None:
        assignment = self.known.assignment(candidate, tables, offload=False)
        placement = solve(assignment)
        if placement is None:
            return None
        as_given = None if assignment.ordered or len(placement.spans) < 2 else solve(assignment._replace(ordered=True))
        if as_given is not None and as_given.seconds <= placement.seconds * (1 + 1e-9):
            placement = as_given  # without `-dev`, or with less of it
        return tables.split(balance(assignment, placement))

    def _settle(
        self, candidate: Candidate, tables: Tables, proposed: Callable[[set[Split]], Split | None]
    ) -> Found | None:
        """Propose and estimate until the answer stays; the fastest that was seen to fit.

        When a proposal comes back that has failed, the most that was seen beside the blocks counts from then on.
        """
        best: Found | None = None
        tried: set[Split] = set()
        failed: set[Split] = set()
        self.known.cautious = False
        for _ in range(MAX_ROUNDS):
            split = proposed(failed)
            if split is None and not self.known.cautious:
                break
            if split is None or split._replace(seconds=0.0) in tried:
                if self.known.cautious or best is not None or not failed:
                    break
                self.known.cautious = True
                continue
            found, is_news = self._prove(candidate, tables, split)
            plain = found.split._replace(seconds=0.0)
            tried.add(plain)
            if not found.fits:
                failed.add(plain)
            elif best is None or found.seconds < best.seconds:
                best = found
            if found.fits and not is_news:
                break  # the same would be proposed again
        self.known.cautious = False
        return best

    def _prove(self, candidate: Candidate, tables: Tables, split: Split) -> tuple[Found, bool]:
        """Estimate a split in full, and learn from it; whether there was anything to learn."""
        split = split._replace(seconds=tables.seconds(split))
        memory = self.measure(candidate, split)
        return Found(candidate, split, memory), self.known.learn(candidate, tables, split, memory)

    def _resident_at_pinned_split(self, candidate: Candidate) -> Found | None:
        whole = [p for p in self._placements_at_pinned_split(candidate) if not (p.head or p.n_cpu_ffn)]
        return self._least_short(candidate, whole, nearest=False)

    def _at_pinned_split(self, candidate: Candidate, *, nearest: bool) -> Found | None:
        """Of the splits that a pinned `-ts` allows, the fastest that fits, or the one that comes `nearest`."""
        assignment = self.known.assignment(candidate, self.tables(candidate), offload=True)
        placements = self._placements_at_pinned_split(candidate)
        placements.sort(key=lambda placement: (seconds(assignment, placement), host_bytes(assignment, placement)))
        return self._least_short(candidate, placements, nearest=nearest)

    def _placements_at_pinned_split(self, candidate: Candidate) -> list[Placement]:
        bounds, tables = self.problem.bounds, self.tables(candidate)
        placements = []
        for head in bounds.heads:
            most = bounds.n_cpu_ffn[1] if tables.ffn_kind == "experts" and head == 0 else bounds.n_cpu_ffn[0]
            rows = self.rows_at(head)
            cuts = pairwise(accumulate((count for _, count in rows), initial=head))
            spans = tuple(Span(name, start, stop) for (name, _), (start, stop) in zip(rows, cuts, strict=True))
            placements += [Placement(head, n_cpu_ffn, spans, 0.0) for n_cpu_ffn in range(bounds.n_cpu_ffn[0], most + 1)]
        return placements

    def _least_short(self, candidate: Candidate, placements: Sequence[Placement], *, nearest: bool) -> Found | None:
        """The first that fits; or with `nearest` that which lacks least.

        Which to estimate follows from what estimates have shown, as long as that changes.
        """
        tables = self.tables(candidate)
        tried: dict[Placement, Found] = {}
        while placements:
            assignments = {
                offload: self.known.assignment(candidate, tables, offload=offload) for offload in (False, True)
            }
            missing = [
                shortfall_bytes(tried[p].memory)
                if p in tried
                else sum(max(0, over) for over in excess_bytes(assignments[p.head > 0 or p.n_cpu_ffn > 0], p).values())
                for p in placements
            ]
            least = min(missing)
            placement = placements[missing.index(least)]
            if least > 0 and not nearest:
                break
            if placement in tried:
                return tried[placement]
            split = Split(
                placement.head, tuple((s.site, s.stop - s.start) for s in placement.spans), placement.n_cpu_ffn
            )
            found, _ = self._prove(candidate, tables, split)
            if found.fits:
                return found
            tried[placement] = found
        return None

    def rows_at(self, head: int) -> tuple[tuple[str, int], ...]:
        """Rows per device that a pinned `-ts` gives when `head` blocks stay on the host."""
        bounds, n = self.problem.bounds, self.problem.n_rows
        names = bounds.order or tuple(self.problem.pool_of)
        placement = place_layers(n - 1, n - head, bounds.split or (), len(names))
        homes = [*placement.blocks, placement.output]
        return tuple((name, homes.count(d)) for d, name in enumerate(names) if d in homes)

    def _evenly(self, candidate: Candidate) -> Found | None:
        """Everything on devices, whatever these lack, for a single estimate."""
        tables = self.tables(candidate)
        assignment = self.known.assignment(candidate, tables, offload=False, by_bytes=True, share=float(1 << 12))
        placement = solve(assignment) if tables.targets else None
        return None if placement is None else self._prove(candidate, tables, tables.split(placement))[0]

    def _overfull(self, candidate: Candidate, *, offload: bool) -> Found | None:
        """The placement that needs the smallest enlargement of all budgets, with the least on the host."""
        tables = self.tables(candidate)
        if not tables.targets:
            return self._prove(candidate, tables, Split(len(tables.blocks), ()))[0] if offload else None

        def placed(share: float) -> Split | None:
            placement = solve(self.known.assignment(candidate, tables, offload=offload, by_bytes=True, share=share))
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
            proven, _ = self._prove(candidate, tables, split)
            if found is not None and _lacks(proven) >= _lacks(found):
                break
            found = proven
        return found


def shortfall_bytes(memory: Memory) -> int:
    """What is missing in all pools together."""
    return sum(max(0, pool.shortfall_bytes) for pool in memory.pools)


def _lacks(found: Found) -> tuple[int, int]:
    """What is missing on devices, then what is in all: RAM takes what devices have no room for."""
    missing = shortfall_bytes(found.memory)
    return missing - max(0, found.memory.pool(HOST_POOL).shortfall_bytes), missing
