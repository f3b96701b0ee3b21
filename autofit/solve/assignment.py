"""The exact search for where the blocks of a model run.

The `n` blocks, in the order in which a step passes them, are cut into contiguous spans: the first `head` blocks stay on
the host, then comes one span per site (a device), over any subset of the sites in any order. Of the blocks before
`n_cpu_ffn` the feed-forward weights (experts, or dense) stay on the host; those from there on are whole on their site.
The seconds of a step are a sum over blocks and cuts; bytes are a sum per site, held against the room that its place
among the sites leaves.

Exact over that space, with one rule of its own: a site all of whose blocks have their feed-forward weights on the host
is filled as far as it goes. O(blocks) for every head worth trying and every subset of unlike sites, since the windows
that a span may end in only ever move one way.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise, repeat
from math import inf, prod
from types import MappingProxyType

from autofit.domain.values import NamedTuple

HEAD = "host"
_MAX_STATES = 32  # with more subsets of unlike sites than this, they are tried in one order only
_SAME_S = 1e-12  # seconds that rounding may make of equal sums


class Room(NamedTuple):
    """Memory available for layers on a device, by its position (first, middle, last, only): overhead differs."""

    middle: int
    first: int
    last: int
    only: int

    @classmethod
    def same(cls, n_bytes: int) -> Room:
        return cls(n_bytes, n_bytes, n_bytes, n_bytes)

    def at(self, *, is_first: bool, is_last: bool) -> int:
        if is_first:
            return self.only if is_last else self.first
        return self.last if is_last else self.middle


class Site(NamedTuple):
    """One device: prefix sums over blocks (n + 1 entries each) of bytes and seconds, of whole blocks
    and of blocks whose feed-forward weights are on the host.

    Sites of one `kind` are interchangeable.
    """

    name: str
    kind: Hashable
    whole_bytes: Sequence[int]
    cpu_ffn_bytes: Sequence[int]
    whole_s: Sequence[float]
    cpu_ffn_s: Sequence[float]
    room: Room


class Span(NamedTuple):
    site: str
    start: int
    stop: int


class Placement(NamedTuple):
    """Blocks [0, head) on the host, then the spans; blocks before `n_cpu_ffn` have their feed-forward on the host."""

    head: int
    n_cpu_ffn: int
    spans: tuple[Span, ...]
    seconds: float

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(span.site for span in self.spans)


class LayerAssignment(NamedTuple):
    """The problem. `head_s`, `head_bytes` and `ffn_bytes` are prefix sums like those of the sites.

    A span may stop inside a block, at a position whose `skip_to` is the next block's: then the next span goes on
    from there, or `skip_s` seconds later from the next block, the rest being left to the host (which is not held
    against `head_room`).

    `heads` are the numbers of blocks that may stay on the host (`n`: all, no site is used); `cpu_ffn_min` and
    `cpu_ffn_max` bound `n_cpu_ffn`, which is `offload_min` at least where no block stays on the host. `transfer_s` is
    what handing over costs from one kind (or `HEAD`) to the next, `cut_s` what a cut at a position costs besides
    (infinite where none may be). `ordered` keeps the sites' order. `floor` is that of the sites and `tails` those of
    problems that differ in rooms, heads and `n_cpu_ffn` alone, where they are known.
    """

    n: int
    sites: tuple[Site, ...]
    head_s: Sequence[float]
    head_bytes: Sequence[int]
    ffn_bytes: Sequence[int]
    head_room: int | None = None
    heads: Sequence[int] = (0,)
    cpu_ffn_min: int = 0
    cpu_ffn_max: int | None = None
    offload_min: int = 0
    transfer_s: Mapping[tuple[Hashable, Hashable], float] = MappingProxyType({})
    cut_s: Sequence[float] = ()
    skip_to: Sequence[int] = ()
    skip_s: Sequence[float] = ()
    ordered: bool = False
    floor: Floor | None = None
    tails: Tails | None = None


def solve(assignment: LayerAssignment, *, below: float = inf) -> Placement | None:
    """The fastest placement that fits, or `None`. Of equal ones: least on the host, fewest sites.

    Only those that take less than `below` seconds are of interest, which may end the search sooner.
    """
    if assignment.sites:
        return _Search(assignment).best(below)
    fits = assignment.head_room is None or assignment.head_bytes[assignment.n] <= assignment.head_room
    return (
        Placement(assignment.n, assignment.n, (), assignment.head_s[assignment.n])
        if assignment.n in assignment.heads and fits
        else None
    )


def seconds(assignment: LayerAssignment, placement: Placement) -> float:
    """Seconds of one step through the placed blocks."""
    sites = {site.name: site for site in assignment.sites}
    total, previous, end = assignment.head_s[placement.head], HEAD, placement.head
    for name, start, stop in placement.spans:
        site, middle = sites[name], min(max(placement.n_cpu_ffn, start), stop)
        total += site.cpu_ffn_s[middle] - site.cpu_ffn_s[start] + site.whole_s[stop] - site.whole_s[middle]
        total += assignment.transfer_s.get((previous, site.kind), 0.0)
        if start > end:
            total += assignment.skip_s[end]
        elif previous is not HEAD and assignment.cut_s:
            total += assignment.cut_s[start]
        previous, end = site.kind, stop  # type: ignore[assignment]
    return total


def site_bytes(assignment: LayerAssignment, placement: Placement) -> dict[str, int]:
    """Bytes of the blocks on every site in use."""
    sites = {site.name: site for site in assignment.sites}
    used = {}
    for name, start, stop in placement.spans:
        site, middle = sites[name], min(max(placement.n_cpu_ffn, start), stop)
        n_cpu_ffn = site.cpu_ffn_bytes[middle] - site.cpu_ffn_bytes[start]
        used[name] = n_cpu_ffn + site.whole_bytes[stop] - site.whole_bytes[middle]
    return used


def host_bytes(assignment: LayerAssignment, placement: Placement) -> int:
    """What the host holds of the blocks: the head, feed-forward weights that stay here, and what is skipped."""
    ffn = assignment.ffn_bytes
    skipped = sum(ffn[b.start] - ffn[a.stop] for a, b in pairwise(placement.spans))
    return assignment.head_bytes[placement.head] + max(0, ffn[placement.n_cpu_ffn] - ffn[placement.head]) + skipped


def excess_bytes(assignment: LayerAssignment, placement: Placement) -> dict[str, int]:
    """By how much each site in use, and the host, is over its room; 0 or less: it fits."""
    sites = {site.name: site for site in assignment.sites}
    used, names = site_bytes(assignment, placement), placement.order
    over = {}
    for name in names:
        over[name] = used[name] - sites[name].room.at(is_first=name == names[0], is_last=name == names[-1])
    if assignment.head_room is not None:
        over[HEAD] = host_bytes(assignment, placement) - assignment.head_room
    return over


def balance(assignment: LayerAssignment, placement: Placement) -> Placement:
    """The placement of equal seconds, sites, head and n_cpu_ffn whose fullest site is emptiest.

    Devices of one speed leave the cuts open; what a longer context needs is room on all of them.
    """
    if len(placement.spans) < 2:
        return placement
    sites = {site.name: site for site in assignment.sites}
    order = tuple(sites[name] for name in placement.order)
    fixed = assignment._replace(
        ordered=True,
        heads=(placement.head,),
        cpu_ffn_min=placement.n_cpu_ffn,
        cpu_ffn_max=placement.n_cpu_ffn,
        head_room=None,
    )
    low, high, best = 0.0, 1.0, placement
    for _ in range(9):
        share = (low + high) / 2
        scaled = tuple(site._replace(room=Room(*(int(room * share) for room in site.room))) for site in order)
        found = solve(fixed._replace(sites=scaled))
        if found is None or found.order != placement.order or found.seconds > placement.seconds + _SAME_S:
            low = share
        else:
            high, best = share, found
    return best


_State = tuple[int, ...]


_Tail = dict[tuple[_State, int], list[float]]


class Tails:
    """The least seconds of whole blocks up to the end, by position, for what is left of the sites and a class."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[bool, tuple[Room, ...]], tuple[_Tail, _Tail]] = {}

    def of(self, ordered: bool, sites: Sequence[Site]) -> tuple[_Tail, _Tail]:
        """From a site of the class on, and from behind it; they differ by the rooms of the sites."""
        return self._known.setdefault((ordered, tuple(site.room for site in sites)), ({}, {}))


class _Found(NamedTuple):
    """Seconds from some block on, `n_cpu_ffn`, the spans up to the first whole block as (class, start, stop), and what
    is left of the sites behind them."""

    seconds: float
    n_cpu_ffn: int
    spans: tuple[tuple[int, int, int], ...]
    rest: _State

    @property
    def key(self) -> tuple[float, int, int]:
        return round(self.seconds, 12), self.n_cpu_ffn, len(self.spans)


class _Search:
    """One run of the search; tables by (what is left, what comes first) are filled as they are asked for."""

    def __init__(self, assignment: LayerAssignment) -> None:
        self.assignment, self.n = assignment, assignment.n
        kinds: dict[Hashable, list[Site]] = {}
        for site in assignment.sites:
            kinds.setdefault(site.kind, []).append(site)
        self.ordered = assignment.ordered or prod(len(sites) + 1 for sites in kinds.values()) > _MAX_STATES
        # Largest first, so that equal answers do not depend on the order in which sites were given.
        unlike = sorted(kinds.values(), key=lambda sites: (-sum(sites[0].room), sites[0].whole_s[-1]))
        if self.ordered:
            sites = assignment.sites if assignment.ordered else [site for members in unlike for site in members]
            self.classes = [[site] for site in sites]
        else:
            self.classes = unlike
        self.cut = assignment.cut_s or (0.0,) * (assignment.n + 1)
        self.whole, self.after = (assignment.tails or Tails()).of(self.ordered, assignment.sites)
        self.led: dict[tuple[_State, int, int, int | None], _Found | None] = {}
        kinds_of = [members[0].kind for members in self.classes]
        self.transfers = {
            (a, b): assignment.transfer_s.get((HEAD if a is None else kinds_of[a], kinds_of[b]), 0.0)
            for a in (None, *range(len(kinds_of)))
            for b in range(len(kinds_of))
        }
        self.floor = assignment.floor or Floor(assignment.sites)
        self.capacity = sum(max(0, *site.room) for site in assignment.sites)

    def best(self, below: float = inf) -> Placement | None:
        """The best over all heads, tried in the order of what they can give at least."""
        best: Placement | None = None
        best_key: tuple[float, int, int, int] | None = None
        for bound, head in sorted((self.bound(head), head) for head in self.assignment.heads):
            if bound >= below or (best is not None and bound > best.seconds + _SAME_S):
                break
            found = self.from_head(head)
            if found is None:
                continue
            key = (round(found.seconds, 12), head, found.n_cpu_ffn, len(found.spans))
            if best_key is None or key < best_key:
                best, best_key = found, key
        return best

    def bound(self, head: int) -> float:
        """Seconds that no placement with this head can go below."""
        if head == self.n:
            return self.assignment.head_s[head]
        least = self.cpu_ffn_least(head)
        if least > max(head, self.cpu_ffn_limit(head)):
            return inf
        return self.assignment.head_s[head] + self.floor.seconds(head, least)

    def from_head(self, head: int) -> Placement | None:
        assignment = self.assignment
        if assignment.head_room is not None and assignment.head_bytes[head] > assignment.head_room:
            return None
        if head == self.n:
            return Placement(head, head, (), assignment.head_s[head])
        start = (0,) if self.ordered else tuple(len(members) for members in self.classes)
        found = self.lead(start, head, head, None)
        if found is None:
            return None
        names = [[site.name for site in members] for members in self.classes]
        k, _, stop = found.spans[-1]
        every = (*found.spans, *self.walk(k, found.rest, stop))
        spans = tuple(Span(names[k].pop(0), start, stop) for k, start, stop in every)
        placement = Placement(head, found.n_cpu_ffn, spans, 0.0)
        return placement._replace(seconds=seconds(assignment, placement))

    def choices(self, state: _State) -> Iterator[tuple[int, _State]]:
        """The classes that may come next, with what is left after each."""
        if self.ordered:
            for k in range(state[0], len(self.classes)):
                yield k, (k + 1,)
        else:
            for k, count in enumerate(state):
                if count:
                    yield k, (*state[:k], count - 1, *state[k + 1 :])

    # Whole blocks

    def after_s(self, k: int, rest: _State) -> list[float]:
        """By position: the least seconds of all blocks from there on, cut and transfer from class `k` included."""
        found = self.after.get((rest, k))
        if found is None:
            rows = [[inf] * self.n]
            for after, left in self.choices(rest):
                transfer = self.transfers[k, after]
                rows.append([transfer + value for value in self.whole_s(after, left)])
            best = rows[0] if len(rows) == 1 else rows[1] if len(rows) == 2 else list(map(min, *rows))
            found = self.after[rest, k] = [value + cut for value, cut in zip(best, self.cut, strict=False)]
            for j, start in enumerate(self.assignment.skip_to):
                if j < start < self.n:
                    found[j] = min(found[j], best[start] + self.assignment.skip_s[j])
        return found

    def whole_s(self, k: int, rest: _State) -> list[float]:
        """By position i: the least seconds of blocks i..n, all whole: a site of class `k`, then `rest`."""
        found = self.whole.get((rest, k))
        if found is not None:
            return found
        site, n = self.classes[k][0], self.n
        size, time, after = site.whole_bytes, site.whole_s, self.after_s(k, rest)
        middle, all_from = site.room.middle, bisect_left(size, size[n] - site.room.last)
        found = [inf] * n
        window: deque[tuple[float, int]] = deque()  # cuts in reach, the least seconds at the right end
        reach = n - 1
        for i in range(n - 1, -1, -1):
            if i + 1 < n:
                entry = time[i + 1] + after[i + 1]
                while window and window[0][0] >= entry:
                    window.popleft()
                window.appendleft((entry, i + 1))
            limit = size[i] + middle
            while reach > i and size[reach] > limit:
                reach -= 1
            while window and window[-1][1] > reach:
                window.pop()
            best = window[-1][0] if window else inf
            if i >= all_from and time[n] < best:
                best = time[n]
            found[i] = best - time[i]
        self.whole[rest, k] = found
        return found

    def resume(self, k: int, state: _State, stop: int) -> int:
        """Where the next span starts behind one of class `k` that stops here."""
        start = self.assignment.skip_to[stop] if self.assignment.skip_to else stop
        if not stop < start < self.n:
            return stop

        def best(i: int) -> float:
            return min(
                (self.transfers[k, nxt] + self.whole_s(nxt, left)[i] for nxt, left in self.choices(state)), default=inf
            )

        return start if best(start) + self.assignment.skip_s[stop] < best(stop) + self.cut[stop] else stop

    def walk(self, k: int, state: _State, i: int) -> tuple[tuple[int, int, int], ...]:
        """The spans behind `after_s(k, state)[i]`."""
        spans: list[tuple[int, int, int]] = []
        while i < self.n:
            i = self.resume(k, state, i)
            options = [
                (self.transfers[k, nxt] + self.whole_s(nxt, left)[i], nxt, left) for nxt, left in self.choices(state)
            ]
            least = min(option[0] for option in options)
            _, k, state = next(option for option in options if option[0] <= least + _SAME_S)
            site = self.classes[k][0]
            size, time, after = site.whole_bytes, site.whole_s, self.after_s(k, state)
            reach = min(bisect_right(size, size[i] + site.room.middle) - 1, self.n - 1)
            ends = [(time[j] + after[j], j) for j in range(i + 1, reach + 1)]
            if size[self.n] - size[i] <= site.room.last:
                ends.append((time[self.n], self.n))
            least = min(end[0] for end in ends)
            stop = max(j for value, j in ends if value <= least + _SAME_S)
            spans.append((k, i, stop))
            i = stop
        return tuple(spans)

    # Blocks with their feed-forward on the host

    def lead(self, state: _State, i: int, head: int, previous: int | None) -> _Found | None:
        """The best way on from block `i` while feed-forward weights stay on the host."""
        key = (state, i, head, previous)
        if key in self.led:
            return self.led[key]
        best: _Found | None = None
        choices = [
            (k, rest, self.transfers[previous, k] + (0.0 if previous is None else self.cut[i]))
            for k, rest in self.choices(state)
        ]
        for k, rest, enter in choices:
            best = _better(best, self.turn(k, rest, i, head, previous), enter)
        for k, rest, enter in choices:
            j = self.cpu_ffn_reach(k, i, head, previous)
            if j > i and (best is None or self.floor.seconds(i, j) + enter < best.seconds):
                best = _better(best, self.all_cpu_ffn(k, rest, i, j, head), enter)
        self.led[key] = best
        return best

    def cpu_ffn_least(self, head: int) -> int:
        least = (
            self.assignment.cpu_ffn_min if head > 0 else max(self.assignment.cpu_ffn_min, self.assignment.offload_min)
        )
        return self.floor.cpu_ffn_least(head, least, self.capacity)

    def cpu_ffn_limit(self, head: int) -> int:
        """The largest `n_cpu_ffn` that is allowed and that the host has room for."""
        assignment = self.assignment
        limit = self.n if assignment.cpu_ffn_max is None else min(assignment.cpu_ffn_max, self.n)
        if assignment.head_room is not None:
            spare = assignment.head_room - assignment.head_bytes[head] + assignment.ffn_bytes[head]
            limit = min(limit, bisect_right(assignment.ffn_bytes, spare) - 1)
        return limit

    def cpu_ffn_reach(self, k: int, i: int, head: int, previous: int | None) -> int:
        """Up to which block class `k` can take all of them without their feed-forward and leave some."""
        site = self.classes[k][0]
        limit = site.cpu_ffn_bytes[i] + site.room.at(is_first=previous is None, is_last=False)
        j = min(bisect_right(site.cpu_ffn_bytes, limit) - 1, self.n - 1, self.cpu_ffn_limit(head))
        while j > i and self.cut[j] == inf:
            j -= 1
        return j

    def all_cpu_ffn(self, k: int, rest: _State, i: int, j: int, head: int) -> _Found | None:
        """Class `k` takes the blocks with their feed-forward on the host i..j, and the next site goes on."""
        found = self.lead(rest, j, head, k)
        if found is None:
            return None
        site = self.classes[k][0]
        time = site.cpu_ffn_s[j] - site.cpu_ffn_s[i]
        return found._replace(seconds=found.seconds + time, spans=((k, i, j), *found.spans))

    def turn(self, k: int, rest: _State, i: int, head: int, previous: int | None) -> _Found | None:
        """Class `k` takes blocks from `i`, without their feed-forward up to some `n_cpu_ffn`; whole ones follow."""
        site, n, is_first = self.classes[k][0], self.n, previous is None
        size, thin, time, slow = site.whole_bytes, site.cpu_ffn_bytes, site.whole_s, site.cpu_ffn_s
        after = self.after_s(k, rest)
        room = site.room.at(is_first=is_first, is_last=False)
        end_room = site.room.at(is_first=is_first, is_last=True)
        best, best_cpu_ffn, best_stop = inf, -1, -1
        window: deque[tuple[float, int]] = deque()  # cuts in reach, the least seconds at the left end
        nxt = i + 1
        low = max(i, min(self.cpu_ffn_least(head), n))
        for n_cpu_ffn in range(low, max(i, self.cpu_ffn_limit(head)) + 1):
            if best < inf and self.floor.seconds(i, n_cpu_ffn) > best + _SAME_S:
                break
            spare = thin[i] - thin[n_cpu_ffn] + size[n_cpu_ffn]
            nxt = max(nxt, n_cpu_ffn)
            while nxt < n and size[nxt] <= room + spare:
                entry = time[nxt] + after[nxt]
                while window and window[-1][0] > entry:
                    window.pop()
                window.append((entry, nxt))
                nxt += 1
            while window and window[0][1] < n_cpu_ffn:
                window.popleft()
            base = slow[n_cpu_ffn] - slow[i] - time[n_cpu_ffn]
            if window and window[0][0] + base < best - _SAME_S:
                best, best_cpu_ffn, best_stop = window[0][0] + base, n_cpu_ffn, window[0][1]
            if size[n] <= end_room + spare and time[n] + base < best - _SAME_S:
                best, best_cpu_ffn, best_stop = time[n] + base, n_cpu_ffn, n
        if best_cpu_ffn < 0:
            return None
        return _Found(best, best_cpu_ffn, ((k, i, best_stop),), rest)


class Floor:
    """What no placement on some sites can go below: blocks on the fastest, in the form in which they are smallest.

    Prefix sums, so the same for problems that differ in rooms, heads and bounds.
    """

    __slots__ = ("ffn", "least_loss", "loss", "n", "size", "whole")

    def __init__(self, sites: Sequence[Site]) -> None:
        sites = list({site.kind: site for site in sites}.values())
        self.n = len(sites[0].whole_s) - 1

        def steps(table: Sequence[float]) -> list[float]:
            return [b - a for a, b in pairwise(table)]

        def least(tables: Sequence[Sequence[float]]) -> list[float]:
            unlike = list({id(table): table for table in tables}.values())
            if len(unlike) == 1:
                return list(unlike[0])
            return [0.0, *accumulate(map(min, *map(steps, unlike)))]

        self.whole = least([site.whole_s for site in sites])
        n_cpu_ffn = least([site.cpu_ffn_s for site in sites])
        self.loss = [b - a for a, b in zip(self.whole, n_cpu_ffn, strict=True)]
        self.least_loss = list(accumulate(reversed(self.loss), min))[::-1]
        self.size = least([site.whole_bytes for site in sites])
        pairs = {(id(site.whole_bytes), id(site.cpu_ffn_bytes)): site for site in sites}.values()
        ffns = [[w - t for w, t in zip(steps(s.whole_bytes), steps(s.cpu_ffn_bytes), strict=True)] for s in pairs]
        self.ffn = [0, *accumulate(map(max, *ffns, repeat(0)))]

    def cpu_ffn_least(self, head: int, cpu_ffn_min: int, capacity: int) -> int:
        """The least `n_cpu_ffn` with which the bytes of all sites together suffice; n + 1 if none does."""
        least = max(head, min(cpu_ffn_min, self.n))
        need = self.size[self.n] - self.size[head] - capacity
        return max(least, bisect_left(self.ffn, self.ffn[head] + need, head)) if need > 0 else least

    def seconds(self, i: int, n_cpu_ffn: int) -> float:
        """Lower bound in seconds for layers i..n when at least the layers before `n_cpu_ffn` are offloaded."""
        if n_cpu_ffn > self.n:
            return inf
        return self.whole[self.n] - self.whole[i] + self.least_loss[max(i, n_cpu_ffn)] - self.loss[i]


def _better(best: _Found | None, found: _Found | None, enter: float) -> _Found | None:
    """The better of the two, `found` entered at a cost."""
    if found is None:
        return best
    found = found._replace(seconds=found.seconds + enter)
    return found if best is None or found.key < best.key else best
