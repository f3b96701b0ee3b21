"""Blocks that repeat: which of them have to be built to know the whole graph's memory.

A model is a few kinds of block in a regular order. Blocks with the same weights (type, dimensions, place) and
the same hyperparameters give the same nodes, so after a few of them the allocator has seen all it will see.
That is not taken on trust: a shortened graph counts only if, at the cut, the allocator's state has repeated
itself (see `is_periodic`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise

from autofit.domain.values import dataclass, field

from autofit_llama.graph.allocator import Held
from autofit_llama.graph.scheduler import Schedule

MAX_PERIOD = 16

State = tuple[tuple[object, ...], Held]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of a stretch is built: `lead` periods before the cut, and so many after it that a multiple of
    `skip` periods is left out. The allocator's state may come back after 1 to `cycle` periods."""

    lead: int
    skip: int
    cycle: int

    @property
    def fewest(self) -> int:
        """Periods of a stretch of which any can be left out."""
        return self.lead + 1 + self.skip


#: tried in turn for every stretch; where none is enough, everything is built
EFFORTS = (Effort(3, 1, 1), Effort(6, 6, 3))

Edge = tuple[Hashable, Hashable]
"""How a stretch begins: the block before it, and its first."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Blocks are left out after the first `after` built ones; `period` blocks repeat there.

    `level` is the effort's, `edge` how the stretch begins.
    """

    after: int
    period: int
    level: int = 0
    edge: Edge = field(default=(None, None), compare=False)

    @property
    def effort(self) -> Effort:
        return EFFORTS[self.level]


_EASY: Mapping[Edge, int] = {}


def choose_layers(
    signatures: Sequence[Hashable], levels: Mapping[Edge, int] = _EASY
) -> tuple[tuple[int, ...], tuple[Cut, ...]]:
    """The blocks to build, in order, and where some were left out.

    `signatures[i]` is equal for two blocks if they give the same nodes. Of every stretch that repeats with a
    period the first periods (as many as the effort says) and at least one more are kept, and what does not make a full
    period. `levels` are the efforts of stretches for which the first is not enough.
    """
    n, fewest = len(signatures), EFFORTS[0].fewest
    order: list[int] = []
    cuts: list[Cut] = []
    i = 0
    while i < n:
        best_end, best_period = i, 1
        for period in range(1, min(MAX_PERIOD, (n - i) // fewest) + 1):
            end = i + period
            while end < n and signatures[end] == signatures[end - period]:
                end += 1
            if (end - i) // period >= fewest and end > best_end:
                best_end, best_period = end, period
        if best_end == i:
            order.append(i)
            i += 1
            continue
        edge = signatures[i - 1] if i else None, signatures[i]
        level, n_periods = levels.get(edge, 0), (best_end - i) // best_period
        if level < len(EFFORTS) and n_periods >= EFFORTS[level].fewest:
            effort = EFFORTS[level]
            order += range(i, i + effort.lead * best_period)
            cuts.append(Cut(len(order), best_period, level, edge))
            i += (effort.lead + (n_periods - effort.lead - 1) // effort.skip * effort.skip) * best_period
        order += range(i, best_end)
        i = best_end
    return tuple(order), tuple(cuts)


def moments(cut: Cut) -> list[int]:
    """At which built blocks the allocator's state is needed: up to `cycle` periods before the cut, and there."""
    return [cut.after - k * cut.period for k in range(cut.effort.cycle, -1, -1)]


def is_periodic(schedule: Schedule, starts: Sequence[int], cut: Cut, states: Sequence[State], *, n_copies: int) -> bool:
    """Whether the blocks left out at `cut` cannot change any buffer.

    `starts[i]` is the first node of the i-th built block; `states` are those that `moments` asks for. True if
    the last two periods and the one after the cut hold the same nodes on the same backends and ask for the
    same copies, and if the allocator's holes and living tensors at the cut are those of one of the moments
    before, moved along: then what was left out goes through the same states again.
    """
    nodes, position = schedule.nodes, schedule.position
    edges = [starts[cut.after + k * cut.period] for k in (-2, -1, 0, 1)]
    before, last, after = (
        [(t.op, t.type, t.ne, dev) for t, dev in nodes[position[first] : position[end]]]
        for first, end in pairwise(edges)
    )
    if not before == last == after:
        return False
    asked: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    for split in schedule.splits:
        for i in split.first_use:
            if edges[0] <= i < edges[2]:
                side = int(i >= edges[1])
                asked[side].append((i - edges[side], split.start - edges[side]))
    if asked[0] != asked[1] or (asked[0] and n_copies > 1):
        return False
    at = states[-1]
    return any(
        then[0] == at[0]
        and _moving(then[1], at[1], position[starts[cut.after - k * cut.period]])
        == _moving(at[1], then[1], position[edges[2]])
        for k, then in enumerate(reversed(states[:-1]), start=1)
    )


def _moving(held: Held, other: Held, origin: int) -> list[tuple[int, ...]]:
    """What lives at one moment and not at the other, relative to where the period starts."""
    return sorted((value[0] - origin, *value[1:]) for key, value in held.items() if key not in other)
