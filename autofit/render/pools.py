"""Pools as they are shown: equal cards together, with what to call them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autofit.domain.memory import PoolUse
from autofit.domain.text import printable
from autofit.domain.units import format_bytes

ALIKE_FRACTION = 20  #: cards of one kind are shown together while they are used alike within one part in so many


def folded(pools: Sequence[PoolUse]) -> Iterator[tuple[str, Sequence[PoolUse]]]:
    """Neighbors that are alike together, with what to call them: `GPU0 to GPU7  8 × NVIDIA H200`."""
    for together in groups(pools):
        name = printable(together[0].name, 40)
        n = len(together)
        yield f"{ids(together)}  {name}" if n == 1 else f"{ids(together)}  {n} × {name}", together


def groups(pools: Sequence[PoolUse]) -> Iterator[Sequence[PoolUse]]:
    """Neighbors that are alike together."""
    at = 0
    while at < len(pools):
        n = 1
        while at + n < len(pools) and _alike(pools[at], pools[at + n]):
            n += 1
        yield pools[at : at + n]
        at += n


def group_of(pools: Sequence[PoolUse], pool_id: str) -> Sequence[PoolUse]:
    """The pools that are shown together with that of this id."""
    return next((some for some in groups(pools) if any(pool.id == pool_id for pool in some)), ())


def fullest(pools: Sequence[PoolUse]) -> PoolUse:
    """The one that most is used of."""
    return max(pools, key=lambda pool: pool.used_bytes)


def used(pools: Sequence[PoolUse]) -> Iterator[str]:
    """`GPU0 11.40 GiB`: what is used of each pool, or of each of several that are alike."""
    for some in groups(pools):
        yield f"{ids(some)} {format_bytes(fullest(some).used_bytes)}{' each' if len(some) > 1 else ''}"


def are_equal(pools: Sequence[PoolUse]) -> bool:
    """Whether the same is used of each, within 1 %."""
    used = [pool.used_bytes for pool in pools]
    return (max(used) - min(used)) * 100 <= max(used)


def ids(pools: Sequence[PoolUse]) -> str:
    """`GPU0 to GPU7` where they are in a row, else each."""
    runs: list[list[str]] = []
    for pool in pools:
        if runs and _follows(runs[-1][-1], pool.id):
            runs[-1].append(pool.id)
        else:
            runs.append([pool.id])
    *first, last = [name for run in runs for name in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else run)]
    return f"{', '.join(first)} and {last}" if first else last


def _follows(before: str, name: str) -> bool:
    """Whether a name is that before with the next number: `GPU1` after `GPU0`, `node1/GPU4` after `node1/GPU3`."""
    stem = before.rstrip("0123456789")
    return stem != before and name == f"{stem}{int(before[len(stem) :]) + 1}"


def _alike(one: PoolUse, other: PoolUse) -> bool:
    """Cards of one kind, used alike, both or none of them beyond what they have."""
    more, less = max(one.used_bytes, other.used_bytes), min(one.used_bytes, other.used_bytes)
    same = (one.name, one.total_bytes, one.free_bytes) == (other.name, other.total_bytes, other.free_bytes)
    is_short = one.shortfall_bytes > 0
    return (
        same
        and (more - less) * ALIKE_FRACTION <= more
        and is_short == (other.shortfall_bytes > 0)
        and not one.limits
        and not other.limits
    )
