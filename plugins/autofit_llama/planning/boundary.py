"""The last tensor: which parts of the few blocks at the edge stay on the host, so that devices are full.

A search in one order of parts leaves up to one part's room on every device. Here sets of parts of the blocks
about the last with its feed-forward on the host are weighed, and where parts cannot overflow from one device to the
next, sets of the first blocks of the last device too. Parts come in few sizes, so that is quickly done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, product
from math import prod

from autofit.domain.machine import HOST_POOL
from autofit.domain.values import NamedTuple

from autofit_llama.planning.tables import Split, Tables

WINDOW = 6  #: blocks about the last with its feed-forward on the host
NARROW = 3  #: blocks at the start of the last device
_KEPT = 3  #: of the sets for another device, those that fill it best
_MORE = 2  #: blocks more on the last device
_MOST_SETS = 5000

RoomOf = Callable[[str], int]


class Choice(NamedTuple):
    """A set of parts to leave on the host: bytes of blocks there, how many parts, and seconds."""

    host_bytes: int
    n_offloaded: int
    seconds: float
    base: Split
    offloaded: tuple[tuple[int, str], ...]


def choices(tables: Tables, split: Split, heads: Sequence[int], room_of: RoomOf, *, overflow: bool) -> list[Choice]:
    """What fits the devices, the least on the host first. `room_of` is what a device has for blocks."""
    found: list[Choice] = []
    bases = [split] if overflow else [split, *_refilled(tables, split, room_of)]
    for base in bases:
        found += _at_edge(tables, base, heads, room_of)
    return sorted(found, key=lambda choice: choice[:3])


def split_of(tables: Tables, choice: Choice) -> Split:
    """The split of a choice; blocks that are wholly offloaded in front are counted, not listed."""
    base, left = choice.base, set(choice.offloaded)
    n_cpu_ffn = base.n_cpu_ffn
    slot = max(n_cpu_ffn, base.head)
    while slot < len(tables.blocks):
        whole = {(slot, part.projection) for part in tables.movable(slot)}
        if not whole <= left or (not whole and not left):
            break
        left -= whole
        n_cpu_ffn = slot + 1 if whole else n_cpu_ffn
        slot += 1
    return base._replace(n_cpu_ffn=n_cpu_ffn, offloaded=tuple(sorted({*left, *base.offloaded})))


def pieces(split: Split) -> tuple[int, int]:
    """How much there is to say: patterns, and parts in them."""
    by_slot: dict[int, list[str]] = {}
    for slot, projection in split.offloaded:
        by_slot.setdefault(slot, []).append(projection)
    return len(set(map(tuple, by_slot.values()))) + len(split.moved), len(split.offloaded)


def _at_edge(tables: Tables, split: Split, heads: Sequence[int], room_of: RoomOf) -> Iterator[Choice]:
    """About the last block with its feed-forward on the host, on its device; with none, at the start of the first."""
    at = _device_of(split, max(split.n_cpu_ffn - 1, split.head))
    device, count = split.rows[at]
    first = split.head + sum(n for _, n in split.rows[:at])
    end = first + count
    edge = max([slot + 1 for slot, _ in split.offloaded if first <= slot < end] + [split.n_cpu_ffn, split.head])
    for head in heads if at == 0 else (split.head,):
        if head >= end:
            continue
        start = max(head if at == 0 else first, edge - WINDOW + 1)
        rows = ((device, end - head), *split.rows[1:]) if at == 0 else split.rows
        base = split._replace(
            head=head,
            rows=rows,
            n_cpu_ffn=start if any(tables.movable(slot) for slot in range(head, start)) else 0,
            offloaded=tuple(key for key in split.offloaded if key[0] >= end),
        )
        window = range(start, min(start + WINDOW, end))
        room = room_of(device)
        here = tables.device_bytes(base)[device]
        seconds, on_host = tables.seconds(base), tables.host_bytes(base)
        for parts in _sets(tables, device, window):
            if here - parts.off_device <= room:
                n, more_s = len(parts.offloaded), parts.seconds
                yield Choice(on_host + parts.to_host, n, seconds + more_s, base, parts.offloaded)


def _device_of(split: Split, slot: int) -> int:
    """Which device, counted in the order of the split, a block is on."""
    ends = accumulate((count for _, count in split.rows), initial=split.head)
    return min(sum(end <= slot for end in ends), len(split.rows)) - 1


def _refilled(tables: Tables, split: Split, room_of: RoomOf) -> Iterator[Split]:
    """The same devices with some blocks more on the last, and some of their parts on the host instead."""
    if len(split.rows) < 2:
        return
    *before, (previous, n_previous), (last, n_last) = split.rows
    for more in range(min(_MORE, n_previous - 1) + 1):
        rows = (*before, (previous, n_previous - more), (last, n_last + more))
        start = len(tables.blocks) - n_last - more
        if start < split.n_cpu_ffn:
            return
        base = split._replace(rows=rows, offloaded=tuple(key for key in split.offloaded if key[0] < start))
        here, room = tables.device_bytes(base)[last], room_of(last)
        fitting = [
            (here - parts.off_device, parts.offloaded)
            for parts in _sets(tables, last, range(start, min(start + NARROW, len(tables.blocks))))
            if here - parts.off_device <= room
        ]
        for _, offloaded in sorted(fitting, reverse=True)[:_KEPT]:
            yield base._replace(offloaded=tuple(sorted({*base.offloaded, *offloaded})))


class _Set(NamedTuple):
    """Parts that stay on the host, and what comes of it."""

    offloaded: tuple[tuple[int, str], ...]
    seconds: float
    off_device: int
    to_host: int


def _sets(tables: Tables, device: str, window: Sequence[int]) -> Iterator[_Set]:
    """Sets of parts of these blocks, one for each number of parts of every size: the first of each size."""
    sizes: dict[tuple[float, int, int], list[tuple[int, str]]] = {}
    for slot in window:
        for part in tables.movable(slot):
            sizes.setdefault(tables.offloading(device, part), []).append((slot, part.projection))
    transfers = 2 * tables.transfer(device, HOST_POOL)
    if prod(len(parts) + 1 for parts in sizes.values()) > _MOST_SETS:
        return
    for counts in product(*(range(len(parts) + 1) for parts in sizes.values())):
        offloaded = [key for n, parts in zip(counts, sizes.values(), strict=True) for key in parts[:n]]
        costs = list(zip(counts, sizes, strict=True))
        yield _Set(
            tuple(sorted(offloaded)),
            sum(n * size[0] for n, size in costs) + transfers * len({slot for slot, _ in offloaded}),
            sum(n * size[1] for n, size in costs),
            sum(n * size[2] for n, size in costs),
        )
