"""Blocks that repeat: which of them have to be built to know the whole graph's memory.

A model is a few kinds of block in a regular order. Blocks with the same weights (type, dimensions, place) and the same
hyperparameters give the same nodes, so after a few of them the allocator has seen all it will see. That is not taken
on trust: a shortened graph counts only if, at the cut, the allocator's state has repeated itself (see `is_periodic`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from autofit_llama.graph.allocator import Held
from autofit_llama.graph.scheduler import Schedule

LEAD = 3  #: periods built before a cut: one to settle, two to compare
MAX_PERIOD = 16


@dataclass(frozen=True, slots=True)
class Cut:
    """Blocks are left out after the first `after` built ones; `period` blocks repeat there."""

    after: int
    period: int


def choose_layers(signatures: Sequence[Hashable]) -> tuple[tuple[int, ...], tuple[Cut, ...]]:
    """The blocks to build, in order, and where some were left out.

    `signatures[i]` is equal for two blocks if they give the same nodes. Of every stretch that repeats with a period p
    the first `LEAD` periods and the last one are kept, and what does not make a full period.
    """
    n = len(signatures)
    order: list[int] = []
    cuts: list[Cut] = []
    i = 0
    while i < n:
        best_end, best_period = i, 1
        for period in range(1, min(MAX_PERIOD, (n - i) // (LEAD + 2)) + 1):
            end = i + period
            while end < n and signatures[end] == signatures[end - period]:
                end += 1
            if (end - i) // period >= LEAD + 2 and end - best_end > 0:
                best_end, best_period = end, period
                if end == n:
                    break
        length = best_end - i
        if length == 0:
            order.append(i)
            i += 1
            continue
        periods = length // best_period
        order += range(i, i + LEAD * best_period)
        cuts.append(Cut(len(order), best_period))
        order += range(i + (periods - 1) * best_period, best_end)
        i = best_end
    return tuple(order), tuple(cuts)


def is_periodic(
    schedule: Schedule,
    starts: Sequence[int],
    cut: Cut,
    before: tuple[tuple[object, ...], Held],
    at: tuple[tuple[object, ...], Held],
    *,
    n_copies: int,
) -> bool:
    """Whether the blocks left out at `cut` cannot change any buffer.

    `starts[i]` is the first node of the i-th built block; `before` and `at` are the allocator's states one period before
    the cut and at it. True if the last two periods and the one after the cut hold the same nodes on the same backends,
    ask for the same copies, and leave the same holes and the same living tensors behind: then each further period starts
    from the state it ends with.
    """
    nodes, position = schedule.nodes, schedule.position
    edges = [starts[cut.after + k * cut.period] for k in (-2, -1, 0, 1)]
    kinds = [
        [(t.op, t.type, t.ne, dev) for t, dev in nodes[position[first] : position[last]]]
        for first, last in zip(edges, edges[1:], strict=False)
    ]
    if not kinds[0] == kinds[1] == kinds[2]:
        return False
    asked: list[list[tuple[int, int]]] = [[], []]
    for split in schedule.splits:
        for i in split.first_use:
            for side, first in enumerate(edges[:2]):
                if first <= i < edges[side + 1]:
                    asked[side].append((i - first, split.start - first))
    if asked[0] != asked[1] or (asked[0] and n_copies > 1):
        return False
    if before[0] != at[0]:
        return False
    held, held_at = before[1], at[1]
    first, second = position[edges[1]], position[edges[2]]
    return _moving(held, held_at, first) == _moving(held_at, held, second)


def _moving(held: Held, other: Held, origin: int) -> list[tuple[int, int, int, int, int]]:
    """What lives at one moment and not at the other, relative to where the period starts."""
    return sorted((i - origin, *rest) for key, (i, *rest) in held.items() if key not in other)  # type: ignore[misc]
