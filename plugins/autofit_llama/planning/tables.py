"""Build the layer-assignment problem from layer costs, and convert its solution to a `Split`.

A unit is a whole block, or (finer) a block's own part and each projection of its feed-forward: cut there, a device is
filled to the last tensor, and the rest of the block's feed-forward overflows to the next device or to RAM.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from math import inf
from typing import TypeVar

from autofit.domain.machine import HOST_POOL
from autofit.domain.values import NamedTuple, replace
from autofit.solve import HEAD, Floor, LayerAssignment, Placement, Room, Site, Tails
from autofit.speed import LayerWork, Place, Roofline, Step

from autofit_llama.graph.devices import DeviceRules
from autofit_llama.memory.weights import Weight
from autofit_llama.speed.costs import Block, Kind, Part, cache_bytes, reads, weights_bytes


class Target(NamedTuple):
    """One device to fill.

    Devices of one `kind` are interchangeable in every respect, those of one `make` but for their memory.
    """

    id: str
    kind: Hashable
    make: Hashable
    rules: DeviceRules


class Split(NamedTuple):
    """Where blocks run, in the engine's terms.

    The first `head` blocks are on the host; `rows` counts those that each device gets, in order, the
    output layer included. Of the first `n_cpu_ffn` blocks the feed-forward stays in RAM, and so do the parts in
    `offloaded`; `moved` parts lie on another device.
    """

    head: int
    rows: tuple[tuple[str, int], ...]
    n_cpu_ffn: int = 0
    offloaded: tuple[tuple[int, str], ...] = ()
    moved: tuple[tuple[int, str, str], ...] = ()
    seconds: float = 0.0

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.rows)

    @property
    def on_host(self) -> bool:
        """Whether any block, or any part of one, is on the host."""
        return self.head > 0 or self.n_cpu_ffn > 0 or bool(self.offloaded)


_Number = TypeVar("_Number", int, float)


class _Unit(NamedTuple):
    slot: int
    alike: int
    projection: str  #: empty: the block's own part, or all of it in a coarse table
    own: tuple[Part, ...]
    ffn: tuple[Part, ...]


class Tables:
    """Bytes and seconds of blocks on every kind of device and on the host, in one context."""

    def __init__(
        self,
        found: Sequence[Block],
        targets: Sequence[Target],
        roofline: Roofline,
        step: Step,
        *,
        ffn_kind: Kind,
        cache_on_host: bool = False,
        is_fixed: Callable[[Weight], bool] | None = None,
        result_bytes: int = 0,
    ) -> None:
        """`ffn_kind` may leave the device; weights for which `is_fixed` holds are placed by the user. `result_bytes`
        are the logits of a step, which the last device hands to the processor."""
        self.blocks = [_without(block, is_fixed) for block in found] if is_fixed else list(found)
        self.targets = tuple(targets)
        self.roofline, self.step = roofline, step
        self.ffn_kind, self.cache_on_host = ffn_kind, cache_on_host
        self.result_bytes = result_bytes
        self.hidden_bytes = next((b.own.work.hidden_bytes for b in found), 0) * step.n_tokens
        mask = next((b.own.work.mask_bytes for b in found if b.own.work.mask_bytes), 0)
        self.mask_bytes = mask * step.n_tokens * (step.n_filled + step.n_tokens // step.n_sequences)
        self._sizes: dict[tuple[int, DeviceRules | None], int] = {}
        self._times: dict[tuple[int, Place], float] = {}
        self._block_s: dict[tuple[int, str, str], float] = {}
        self._transfer_s: dict[tuple[str, str], float] = {}
        self._transfers_of: dict[tuple[str, ...], dict[tuple[Hashable, Hashable], float]] = {}
        self._made: dict[bool, _Columns] = {}

    def assignment(
        self,
        rooms: Mapping[str, Room],
        *,
        head_room: int | None = None,
        heads: Sequence[int] = (0,),
        n_cpu_ffn: tuple[int, int] = (0, 0),
        order: Sequence[str] | None = None,
        fine: bool = False,
        offload: bool = False,
        by_bytes: bool = False,
        overflow: bool = True,
        most_weights: int | None = None,
    ) -> LayerAssignment:
        """The problem for the search: `rooms` by device, `heads` and `n_cpu_ffn` (least, most) in blocks.

        `offload` asks for something on the host: at least one unit of ffn, or a whole block. `by_bytes` makes
        what is on the host count instead of time. Without `overflow` no part goes to the next device.
        `most_weights` bounds the weights on the host, instead of `head_room` for all that is there.
        """
        made = self._columns(fine)
        units, starts, ffn_bytes = made.units, made.starts, made.ffn_bytes
        # Where pins have moved all ffn, only whole blocks are left, and those that are n_cpu_ffn bring nothing.
        least = min(made.first_ffn, default=len(units) - 1 if n_cpu_ffn[1] else 0) + 1 if offload else 0
        targets = {target.id: target for target in self.targets}
        names = [target.id for target in self.targets] if order is None else order
        sites = [made.site(targets[name], rooms[name]) for name in names]
        head_s, skip_to = made.head_s, made.skip_to
        head_bytes = made.head_bytes if most_weights is None else made.head_weights
        assignment = LayerAssignment(
            n=len(units),
            sites=tuple(sites),
            head_s=head_s,
            head_bytes=head_bytes,
            ffn_bytes=ffn_bytes,
            head_room=head_room if most_weights is None else most_weights,
            heads=tuple(starts[head] for head in heads),
            cpu_ffn_min=starts[n_cpu_ffn[0]],
            cpu_ffn_max=starts[n_cpu_ffn[1]],
            offload_min=least,
            transfer_s=self._transfers(tuple(names)),
            cut_s=made.cuts(overflow=overflow) if fine else (),
            skip_to=skip_to if fine and offload else (),
            skip_s=made.skip_s if fine and offload else (),
            ordered=order is not None,
        )
        if not by_bytes:
            makes = frozenset(targets[name].make for name in names)
            floor = made.floors.get(makes) or made.floors.setdefault(makes, Floor(sites)) if sites else None
            alike = tuple(names), offload, overflow
            return assignment._replace(floor=floor, tails=made.tails.setdefault(alike, Tails()))
        nothing = [0.0] * (len(units) + 1)
        by_size = tuple(site._replace(whole_s=nothing, cpu_ffn_s=ffn_bytes) for site in sites)
        cuts = [inf if cut == inf else 0.0 for cut in assignment.cut_s]
        skips = [float(ffn_bytes[start] - ffn_bytes[i]) for i, start in enumerate(assignment.skip_to)]
        return assignment._replace(sites=by_size, head_s=head_bytes, transfer_s={}, cut_s=cuts, skip_s=skips)

    def seconds(self, split: Split) -> float:
        """Seconds of a step through the blocks as the split places them, without what every step costs."""
        elsewhere = _elsewhere(split)
        total, previous, slot = 0.0, HOST_POOL, 0
        for name, count in ((HOST_POOL, split.head), *split.rows):
            if not count:
                continue
            total += self.transfer(previous, name)
            previous = name
            for block in self.blocks[slot : slot + count]:
                ffn_at = HOST_POOL if block.slot < split.n_cpu_ffn else name
                total += self._block_seconds(block, name, ffn_at, elsewhere.get(block.slot))
            slot += count
        return total + self.exit(previous)

    def exit(self, name: str) -> float:
        """Seconds to have the logits from the device of the last block."""
        return self.roofline.exit_seconds(name, self.result_bytes)

    def _block_seconds(self, block: Block, name: str, ffn_at: str, elsewhere: Mapping[str, str] | None) -> float:
        """Seconds of a block on a device, with its feed-forward at `ffn_at` but for what is `elsewhere`."""
        key = block.alike, name, ffn_at
        if elsewhere is None and key in self._block_s:
            return self._block_s[key]
        total, away = 0.0, set()
        for part in block.ffn:
            home = ffn_at if part.kind == self.ffn_kind else name
            if elsewhere is not None:
                home = elsewhere.get(part.projection, home)
            total += self._time(part.work, Place(home))
            away.add(home)
        total += self._time(block.own.work, Place(name, cache=HOST_POOL if self.cache_on_host else None))
        total += sum(2 * self.transfer(name, home) for home in sorted(away - {name}))
        if elsewhere is None:
            self._block_s[key] = total
        return total

    @property
    def all_on_host_seconds(self) -> float:
        """Seconds of a step that no device takes part in."""
        return sum(self.unit_seconds(unit, HOST_POOL, HOST_POOL) for unit in self._columns(False).units)

    @property
    def least_bytes(self) -> int:
        """What all blocks take at least, wherever they are."""
        made = self._columns(False)
        places = [made.head_bytes, *(made.of(target)[0] for target in self.targets)]
        return sum(min(b - a for a, b in steps) for steps in zip(*map(pairwise, places), strict=True))

    @property
    def ffn_share(self) -> float:
        """How much of all blocks may leave the devices, in bytes."""
        made = self._columns(False)
        return float(made.ffn_bytes[-1] / max(made.head_bytes[-1], 1))

    def split(self, placement: Placement, *, fine: bool = False) -> Split:
        """The answer in the engine's terms."""
        units = self._columns(fine).units
        home: list[str] = [HOST_POOL] * len(units)
        for name, start, stop in placement.spans:
            home[start:stop] = [name] * (stop - start)
        owner: dict[int, str] = {}
        rows: dict[str, int] = {}
        for unit, name in zip(units, home, strict=True):
            if not unit.projection:
                owner[unit.slot] = name
                if name != HOST_POOL:
                    rows[name] = rows.get(name, 0) + 1
        head = sum(name == HOST_POOL for name in owner.values())
        if not fine:
            n_cpu_ffn = placement.n_cpu_ffn if self._offloads(range(placement.head, placement.n_cpu_ffn)) else head
            return Split(head, tuple(rows.items()), n_cpu_ffn if n_cpu_ffn > head else 0, seconds=placement.seconds)
        # A device that would hold parts alone is not among those that the engine is given.
        away = {
            (unit.slot, unit.projection): HOST_POOL if i < placement.n_cpu_ffn or name not in rows else name
            for i, (unit, name) in enumerate(zip(units, home, strict=True))
            if unit.projection
            and owner[unit.slot] != HOST_POOL
            and (i < placement.n_cpu_ffn or name != owner[unit.slot])
        }
        offloaded = {key for key, name in away.items() if name == HOST_POOL}
        n_cpu_ffn = head
        while n_cpu_ffn < len(self.blocks) and all(
            (n_cpu_ffn, part.projection) in offloaded
            for part in self.blocks[n_cpu_ffn].ffn
            if part.kind == self.ffn_kind
        ):
            n_cpu_ffn += 1
        n_cpu_ffn = max((slot + 1 for slot, _ in offloaded if slot < n_cpu_ffn), default=0)
        return Split(
            head,
            tuple(rows.items()),
            n_cpu_ffn,
            tuple(sorted(key for key in offloaded if key[0] >= n_cpu_ffn)),
            tuple(sorted((*key, name) for key, name in away.items() if name != HOST_POOL)),
            placement.seconds,
        )

    def device_bytes(self, split: Split) -> dict[str, int]:
        """Bytes of blocks (weights and caches) on every device that the split uses."""
        columns, targets = self._columns(False), {target.id: target for target in self.targets}
        used = dict.fromkeys(split.order, 0)
        start = split.head
        for name, count in split.rows:
            whole, n_cpu_ffn, _, _ = columns.of(targets[name])
            stop = start + count
            middle = min(max(split.n_cpu_ffn, start), stop)
            used[name] += n_cpu_ffn[middle] - n_cpu_ffn[start] + whole[stop] - whole[middle]
            for slot, places in self._away(split, range(middle, stop)):
                for part in self.movable(slot):
                    home = places.get(part.projection, name)
                    if home != name:
                        used[name] -= self.size(part, targets[name].rules)
                        if home != HOST_POOL:
                            used[home] += self.size(part, targets[home].rules)
            start = stop
        return used

    def _away(self, split: Split, slots: range) -> list[tuple[int, Mapping[str, str]]]:
        return [(slot, places) for slot, places in _elsewhere(split).items() if slot in slots]

    def host_bytes(self, split: Split) -> int:
        """Bytes of blocks, caches included, that the split leaves on the host."""
        made = self._columns(False)
        return self.host_weights(split) + made.head_bytes[split.head] - made.head_weights[split.head]

    def host_weights(self, split: Split) -> int:
        """Bytes of the blocks' weights that the split leaves on the host."""
        made, start = self._columns(False), max(split.head, split.n_cpu_ffn)
        used = made.head_weights[split.head] + made.ffn_bytes[start] - made.ffn_bytes[split.head]
        offloaded = {key for key in split.offloaded if key[0] >= start}
        parts = ((slot, part) for slot in {slot for slot, _ in offloaded} for part in self.movable(slot))
        return used + sum(self.size(part, None) for slot, part in parts if (slot, part.projection) in offloaded)

    def movable(self, slot: int) -> tuple[Part, ...]:
        """The parts of a block that may leave its device."""
        return tuple(part for part in self.blocks[slot].ffn if part.kind == self.ffn_kind)

    def offloading(self, device: str, part: Part) -> tuple[float, int, int]:
        """What leaving a part to the host costs: seconds without transfers, bytes off the device, bytes on the host."""
        rules = next(target.rules for target in self.targets if target.id == device)
        there, here = self._time(part.work, Place(HOST_POOL)), self._time(part.work, Place(device))
        return there - here, self.size(part, rules), self.size(part, None)

    def transfer(self, a: str, b: str) -> float:
        """Seconds to hand a step's hidden state over."""
        seconds = self._transfer_s.get((a, b))
        if seconds is None:
            seconds = self.roofline.transfer_seconds(a, b, self.hidden_bytes, self.mask_bytes)
            self._transfer_s[a, b] = seconds
        return seconds

    def _offloads(self, slots: range) -> bool:
        return any(part.kind == self.ffn_kind for slot in slots for part in self.blocks[slot].ffn)

    def _columns(self, fine: bool) -> _Columns:
        made = self._made.get(fine)
        if made is None:
            made = self._made[fine] = _Columns(self, self._units(fine))
        return made

    def _units(self, fine: bool) -> list[_Unit]:
        units = []
        for block in self.blocks:
            ffn = tuple(part for part in block.ffn if part.kind == self.ffn_kind)
            own = (block.own, *(part for part in block.ffn if part.kind != self.ffn_kind))
            if fine:
                units.append(_Unit(block.slot, block.alike, "", own, ()))
                units += [_Unit(block.slot, block.alike, part.projection, (), (part,)) for part in ffn]
            else:
                units.append(_Unit(block.slot, block.alike, "", own, ffn))
        return units

    def cache(self, unit: _Unit, rules: DeviceRules | None) -> int:
        if unit.projection or self.cache_on_host:
            return 0
        return cache_bytes(self.blocks[unit.slot].cache, rules)

    def size(self, part: Part, rules: DeviceRules | None) -> int:
        key = id(part), rules
        size = self._sizes.get(key)
        if size is None:
            size = self._sizes[key] = weights_bytes(part.weights, rules)
        return size

    def unit_seconds(self, unit: _Unit, own_at: str, ffn_at: str) -> float:
        cache = HOST_POOL if self.cache_on_host and not unit.projection else None
        own = sum(self._time(part.work, Place(own_at, cache=cache)) for part in unit.own)
        return own + sum(self._time(part.work, Place(ffn_at)) for part in unit.ffn)

    def _time(self, work: LayerWork, place: Place) -> float:
        key = id(work), place
        time = self._times.get(key)
        if time is None:
            time = self._times[key] = self.roofline.layer_seconds(work, place, self.step)
        return time

    def _transfers(self, names: tuple[str, ...]) -> dict[tuple[Hashable, Hashable], float]:
        if names not in self._transfers_of:
            self._transfers_of[names] = self._new_transfers(names)
        return self._transfers_of[names]

    def _new_transfers(self, names: Sequence[str]) -> dict[tuple[Hashable, Hashable], float]:
        kind = {target.id: target.kind for target in self.targets}
        one = {kind[name]: name for name in names}
        other = {kind[name]: name for name in reversed(names)}
        transfers: dict[tuple[Hashable, Hashable], float] = {
            (HEAD, k): self.transfer(HOST_POOL, name) for k, name in one.items()
        }
        for a in one:
            for b in one:
                transfers[a, b] = self.transfer(one[a], other[b])
        return transfers


class _Columns:
    """Prefix sums over units: of the host, and of every make of device as it is asked for."""

    def __init__(self, tables: Tables, units: list[_Unit]) -> None:
        self.tables, self.units = tables, units
        self.starts = [i for i, unit in enumerate(units) if not unit.projection] + [len(units)]
        self.skip_to = [self.starts[bisect_left(self.starts, i)] for i in range(len(units) + 1)]
        own, ffn = self._bytes(None)
        cached = self._each(lambda unit: tables.cache(unit, None))
        self.head_bytes: list[int] = _prefix([a + b for a, b in zip(own, ffn, strict=True)])
        self.head_weights: list[int] = _prefix([a + b - c for a, b, c in zip(own, ffn, cached, strict=True)])
        self.ffn_bytes: list[int] = _prefix(ffn)
        self.head_s: list[float] = _prefix(self._each(lambda unit: tables.unit_seconds(unit, HOST_POOL, HOST_POOL)))
        firsts: dict[int, int] = {}
        for i, unit in enumerate(units):
            if unit.ffn:
                firsts.setdefault(unit.slot, i)
        self.first_ffn = set(firsts.values())
        self._by_rules: dict[DeviceRules | None, tuple[list[int], list[int]]] = {None: (own, ffn)}
        self.floors: dict[frozenset[Hashable], Floor] = {}  #: by the makes of all sites
        self.tails: dict[Hashable, Tails] = {}
        self._by_make: dict[Hashable, tuple[list[int], list[int], list[float], list[float]]] = {}

    @cached_property
    def skip_s(self) -> list[float]:
        """Seconds of what is left to the host from a position to the end of its block."""
        tables, there = self.tables, self.head_s
        transfers = 2 * max((tables.transfer(target.id, HOST_POOL) for target in tables.targets), default=0.0)
        return [there[start] - there[i] + (transfers if start > i else 0.0) for i, start in enumerate(self.skip_to)]

    def cuts(self, *, overflow: bool) -> list[float]:
        """Inside a block, what overflows is fetched from the next device and handed back."""
        back = inf
        if overflow:
            pairs = pairwise(self.tables.targets)
            back = 2 * max((self.tables.transfer(a.id, b.id) for a, b in pairs), default=0.0)
        return [back if unit.projection else 0.0 for unit in self.units] + [inf]

    def site(self, target: Target, room: Room) -> Site:
        """A device of the search, with `room` for layers."""
        whole_bytes, cpu_ffn_bytes, whole_s, cpu_ffn_s = self.of(target)
        return Site(
            name=target.id,
            kind=target.kind,
            whole_bytes=whole_bytes,
            cpu_ffn_bytes=cpu_ffn_bytes,
            whole_s=whole_s,
            cpu_ffn_s=cpu_ffn_s,
            room=room,
        )

    def of(self, target: Target) -> tuple[list[int], list[int], list[float], list[float]]:
        """Bytes whole and without the feed-forward, seconds whole and with the feed-forward on the host."""
        found = self._by_make.get(target.make)
        if found is None:
            found = self._by_make[target.make] = self._columns(target)
        return found

    def _columns(self, target: Target) -> tuple[list[int], list[int], list[float], list[float]]:
        tables = self.tables
        if target.rules not in self._by_rules:
            self._by_rules[target.rules] = self._bytes(target.rules)
        own, ffn = self._by_rules[target.rules]
        whole_s = self._each(lambda unit: tables.unit_seconds(unit, target.id, target.id))
        cpu_ffn_s = self._each(lambda unit: tables.unit_seconds(unit, target.id, HOST_POOL))
        transfers = 2 * tables.transfer(target.id, HOST_POOL)
        for i in self.first_ffn:
            cpu_ffn_s[i] += transfers
        for seconds in (whole_s, cpu_ffn_s):
            seconds[-1] += tables.exit(target.id)
        whole = [a + b for a, b in zip(own, ffn, strict=True)]
        return _prefix(whole), _prefix(own), _prefix(whole_s), _prefix(cpu_ffn_s)

    def _bytes(self, rules: DeviceRules | None) -> tuple[list[int], list[int]]:
        """Bytes of own parts with caches, and of ffn."""
        tables = self.tables
        own = self._each(lambda unit: sum(tables.size(p, rules) for p in unit.own) + tables.cache(unit, rules))
        return own, self._each(lambda unit: sum(tables.size(part, rules) for part in unit.ffn))

    def _each(self, value: Callable[[_Unit], _Number]) -> list[_Number]:
        """A value for every unit, found once for those of blocks that are alike."""
        known: dict[tuple[int, str], _Number] = {}
        values = []
        for unit in self.units:
            key = unit.alike, unit.projection
            if key not in known:
                known[key] = value(unit)
            values.append(known[key])
        return values


def _prefix(values: Sequence[float]) -> list:  # type: ignore[type-arg]
    return [0, *accumulate(values)]


def _elsewhere(split: Split) -> dict[int, dict[str, str]]:
    """By block: where single parts of it lie, host or another device."""
    places: dict[int, dict[str, str]] = {}
    for slot, projection, name in (*((*key, HOST_POOL) for key in split.offloaded), *split.moved):
        places.setdefault(slot, {})[projection] = name
    return places


def _without(block: Block, is_fixed: Callable[[Weight], bool]) -> Block:
    """The block without the weights that the user has placed."""

    def rest(part: Part) -> Part:
        weights = tuple(weight for weight in part.weights if not is_fixed(weight))
        if len(weights) == len(part.weights):
            return part
        if part.kind == "experts":
            return part._replace(weights=weights, work=replace(part.work, experts=reads(weights)))
        return part._replace(weights=weights, work=replace(part.work, dense=reads(weights)))

    own, ffn = rest(block.own), tuple(part for part in map(rest, block.ffn) if part.weights)
    if own is block.own and all(a is b for a, b in zip(ffn, block.ffn, strict=False)) and len(ffn) == len(block.ffn):
        return block
    return block._replace(own=own, ffn=ffn, alike=-1 - block.slot)
