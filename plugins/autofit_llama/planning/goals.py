"""What to ask the search for: context, cache types and micro-batch, by what the user prefers.

Goals are compared in order, and no goal looks at how much memory there is, so more memory never gives a
worse plan. `speed`: the decode rate at the asked context (or at the least useful one), then the context
that is free at that rate. `context`: the highest of `FLOORS` that the decode rate reaches, then the
context, then the rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from autofit.domain.machine import HOST_POOL
from autofit.errors import EngineRefusalError
from autofit.solve import largest

from autofit_llama.model.context import CELL_PADDING
from autofit_llama.planning.search import Candidate, Found, Search
from autofit_llama.planning.tables import Split

USEFUL_TOKENS = 4096
"""The context that `auto` gives up no decode rate for going beyond; the engine's own `--fit-ctx`."""
COMFORTABLE_TOKENS = 32_768
"""The context that `auto` takes of main memory at most, since other programs need it too."""
FLOORS = (1.0, 2.0, 5.0, 10.0)  #: tokens/s: barely usable, slow, reading speed, comfortable
KV_GAIN = 1.05  #: how much faster a lossy cache has to make decoding before it is chosen for that alone
CONTEXT_STEPS = 128
SMALL_UBATCHES = (256, 128)
LARGE_UBATCHES = (4096, 2048, 1024)


class Goals(NamedTuple):
    """The wish, with everything settled that does not depend on memory.

    `least` and `most` bound the context of one sequence; `exact` says that it is `least`, whatever else.
    Types are pairs for K and V in order of preference, lossless first. `rate` turns the seconds of a step
    into tokens/s.
    """

    prefer: Literal["speed", "context", "quality", "throughput"]
    least: int
    most: int
    kv_types: tuple[tuple[str, str], ...] = (("f16", "f16"),)
    floors: tuple[float, ...] = FLOORS  #: tokens/s that are not given up for a longer context
    most_on_host: int | None = None  #: where caches are in main memory, which others need too
    n_ubatch: int = 512
    n_batch: int = 2048
    free_ubatch: bool = True  #: neither -ub nor -b is pinned
    rate: Callable[[float], float] = (1.0).__truediv__

    def candidate(self, n_ctx_seq: int, kv: tuple[str, str]) -> Candidate:
        return Candidate(n_ctx_seq, *kv, self.n_ubatch, self.n_batch)

    def most_of(self, search: Search, found: Found) -> int:
        """The most tokens that a placement may be given."""
        shared = found.split.head > 0 or any(search.problem.pool_of[name] == HOST_POOL for name in found.split.order)
        if self.most_on_host is None or not shared:
            return self.most
        return max(found.candidate.n_ctx_seq, min(self.most, self.most_on_host))

    def score(self, found: Found) -> tuple[float, ...]:
        """More is better, the first first."""
        rate = self.rate(found.seconds)
        n_ctx = found.candidate.n_ctx_seq
        if self.prefer == "context":
            return (sum(rate >= floor for floor in self.floors), n_ctx, rate)
        return (rate, n_ctx)


def reach(search: Search, goals: Goals) -> Found | None:
    """The best answer to the goals, or `None` when nothing fits."""
    best: Found | None = None
    for kv in goals.kv_types:
        try:
            found = _with_types(search, goals, kv)
        except EngineRefusalError:
            if kv == goals.kv_types[0]:
                raise
            continue  # a lossy cache that the engine does not take here was only worth a try
        if found is None:
            continue
        if best is None or _is_worth(goals, found, best):
            best = found
        if best is found and _wants_no_more(search, goals, found):
            break
    return best


def _with_types(search: Search, goals: Goals, kv: tuple[str, str]) -> Found | None:
    if goals.prefer == "context" and goals.most > goals.least:
        return _longest(search, goals, kv)
    candidate = goals.candidate(goals.least, kv)
    if goals.most > goals.least:
        at_once = search.resident_up_to(candidate, lambda found: goals.most_of(search, found))
        if at_once is not None:
            return at_once
    found = _fastest(search, goals, candidate)
    if found is None or goals.most == goals.least:
        return found
    return stretch(search, found, goals.most_of(search, found))


def _is_worth(goals: Goals, lossy: Found, found: Found) -> bool:
    """Whether a lossy cache gives enough for what it takes."""
    if goals.prefer == "context":
        return goals.score(lossy)[:2] > goals.score(found)[:2]
    return goals.rate(lossy.seconds) > KV_GAIN * goals.rate(found.seconds)


def _wants_no_more(search: Search, goals: Goals, found: Found) -> bool:
    """Whether the room that a smaller cache leaves could not make it any better."""
    if goals.prefer == "context":
        return found.candidate.n_ctx_seq >= goals.most and goals.rate(found.seconds) >= max(goals.floors, default=0.0)
    if found.split.on_host:
        return False
    tables = search.tables(found.candidate)
    alone = (tables.seconds(Split(0, ((target.id, len(tables.blocks)),))) for target in tables.targets)
    return goals.rate(min(alone)) <= KV_GAIN * goals.rate(found.seconds)


def _fastest(search: Search, goals: Goals, candidate: Candidate) -> Found | None:
    """The fastest placement; with a smaller micro-batch if only that gets all blocks onto devices."""
    found = search.best(candidate)
    if not goals.free_ubatch or (found is not None and not found.split.on_host):
        return found
    for n_ubatch in SMALL_UBATCHES:
        smaller = candidate._replace(n_ubatch=n_ubatch)
        resident = search.resident(smaller)
        if resident is not None and (found is None or resident.seconds < found.seconds):
            return resident
    if found is None:
        answers = [search.best(candidate._replace(n_ubatch=n_ubatch)) for n_ubatch in SMALL_UBATCHES]
        found = min(filter(None, answers), key=lambda answer: answer.seconds, default=None)
    return found


def _longest(search: Search, goals: Goals, kv: tuple[str, str]) -> Found | None:
    """The longest context at the highest floor that is reached at all."""
    known: dict[int, Found | None] = {}

    def at(n_ctx: int) -> Found | None:
        if n_ctx not in known:
            known[n_ctx] = _fastest(search, goals, goals.candidate(n_ctx, kv))
        return known[n_ctx]

    first = at(goals.least)
    if first is None:
        return None
    floor = max((floor for floor in goals.floors if goals.rate(first.seconds) >= floor), default=0.0)

    def passes(n_ctx: int) -> bool:
        found = at(n_ctx)
        return found is not None and goals.rate(found.seconds) >= floor

    steps = _steps(goals.least, goals.most)
    last = largest(lambda k: passes(steps[k]), 0, len(steps) - 1)
    found = at(steps[last or 0])
    return found if found is None else stretch(search, found, goals.most_of(search, found))


def _steps(least: int, most: int) -> Sequence[int]:
    """The contexts among which one is looked for, each longer than the one before by the same factor."""
    lengths = (int(least * (most / least) ** (k / CONTEXT_STEPS)) for k in range(CONTEXT_STEPS))
    padded = {n // CELL_PADDING * CELL_PADDING for n in lengths}
    return [least, *sorted(n for n in padded if least < n < most), most]


def stretch(search: Search, found: Found, most: int) -> Found:
    """The longest context, up to `most`, for which the same split still fits.

    What a pool takes grows with the context in straight pieces that only ever turn upwards, so the line
    between two known points is never below it: each guess on it fits, and the next one is closer.
    """
    if most <= found.candidate.n_ctx_seq:
        return found

    def at(n_ctx: int) -> Found:
        candidate = found.candidate._replace(n_ctx_seq=n_ctx)
        return found._replace(candidate=candidate, memory=search.measure(candidate, found.split))

    low, high = found, at(most)
    if high.fits:
        return high
    for _ in range(6):
        least, n_cells = low.candidate.n_ctx_seq, high.candidate.n_ctx_seq - low.candidate.n_ctx_seq
        if n_cells <= CELL_PADDING:
            break
        guess = (least + int(n_cells * _share(search.spare(low), search.spare(high)))) // CELL_PADDING * CELL_PADDING
        guess = max(guess, (least // CELL_PADDING + 1) * CELL_PADDING)
        if guess >= high.candidate.n_ctx_seq:
            guess = (high.candidate.n_ctx_seq - 1) // CELL_PADDING * CELL_PADDING
        if guess <= least:
            break
        between = at(guess)
        low, high = (between, high) if between.fits else (low, between)
    return low


def _share(low: Mapping[str, int], high: Mapping[str, int]) -> float:
    """How far from `low` (which fits) to `high` the first place is full, by what is spare at both."""
    return min(
        (spare / (spare - high[name]) for name, spare in low.items() if spare >= 0 and high[name] < 0), default=1.0
    )


def larger_ubatch(search: Search, goals: Goals, found: Found, sizes: Sequence[int] = LARGE_UBATCHES) -> Found:
    """The largest micro-batch for which the same split still fits: only prompts go faster."""
    if not goals.free_ubatch:
        return found
    for size in sizes:
        if size <= found.candidate.n_ubatch or size > found.candidate.n_ctx_seq:
            continue
        candidate = found.candidate._replace(n_ubatch=size, n_batch=max(size, found.candidate.n_batch))
        memory = search.measure(candidate, found.split)
        if memory.fits:
            return found._replace(candidate=candidate, memory=memory)
    return found
