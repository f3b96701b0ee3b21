"""What every machine of a problem holds, and the places that a copy still fits into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from autofit.fleets.problem import Place, Problem, Shape, Take

Slots = tuple[int, ...]  #: of a pool: the largest margin, and then the bytes of each slot
State = tuple[Slots, ...]  #: of a machine: its devices', and the host's last


class Board:
    """The state of each machine, as copies are put on it and taken away again."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.n_tried = 0  #: shapes and places that were looked at
        self.classes = [tuple(own for own, _ in kind.pools()) for kind in problem.kinds]
        self.free = [tuple(free for _, free in kind.pools()) for kind in problem.kinds]
        self.slots = [slot + 1 for slot in problem.together.slots]
        empty = (0,) * (problem.together.n_slots + 1)
        self.states: list[State] = [(empty,) * len(self.free[kind]) for kind in problem.machines]
        self.machines_of: dict[int, list[int]] = {}
        for machine, kind in enumerate(problem.machines):
            self.machines_of.setdefault(kind, []).append(machine)
        self.alike = _alike(problem)
        self._named = _named(problem)
        self._sums: dict[tuple[Slots, int], tuple[int, int]] = {}

    def put(self, copy: int, place: Place) -> State:
        """Put a copy there; the machine's state before it."""
        before = self.states[place.machine]
        state = list(before)
        for pool, take in self.takes(place):
            state[pool] = _added(state[pool], self.slots[copy], take.n_bytes, take.margin_bytes)
        self.states[place.machine] = tuple(state)
        return before

    def takes(self, place: Place) -> Iterator[tuple[int, Take]]:
        """(number of the pool, what is taken of it), the host last."""
        shape = place.shape
        classes = self.classes[shape.kind]
        for device in place.devices:
            yield device, next(take for take in shape.takes if take.device_class == classes[device])
        yield len(classes) - 1, shape.of_host

    def key(self) -> object:
        """The state of all machines, those alike in any order, and so their devices."""
        machines = []
        for machine, (kind, state) in enumerate(zip(self.problem.machines, self.states, strict=True)):
            named, classes = self._named[kind], self.classes[kind]
            pools = sorted((classes[i], i if i in named else -1, slots) for i, slots in enumerate(state))
            machines.append((self.alike[machine], tuple(pools)))
        return tuple(sorted(machines))

    # -- places --------------------------------------------------------------------------------------------

    def cheapest(self, copy: int, *, spread: bool) -> Iterator[Place]:
        """Places that a copy fits into, one of those that are alike; the cheapest first, and then as `places`."""
        by_cost: dict[int, list[Shape]] = {}
        for shape in self.problem.shapes[copy]:
            by_cost.setdefault(shape.cost, []).append(shape)
        for cost in sorted(by_cost):
            yield from self.places(copy, by_cost[cost], spread=spread)

    def places(self, copy: int, shapes: Sequence[Shape], *, spread: bool) -> list[Place]:
        """Places of these shapes, one of those that are alike. `spread`: where most is left on the fullest device
        comes first; else where least is."""
        found = [pair for shape in shapes for pair in self._of_shape(copy, shape)]
        found.sort(key=lambda pair: pair[0] if spread else -pair[0])
        return [place for _, place in found]

    def _of_shape(self, copy: int, shape: Shape) -> Iterator[tuple[int, Place]]:
        """(parts per million of the fullest device that are then taken, the place)."""
        forbidden = self.problem.forbidden.get(copy, ())
        seen: set[tuple[int, State]] = set()
        for machine in self.machines_of.get(shape.kind, ()):
            like = self.alike[machine], self.states[machine]
            if machine in forbidden or like in seen:
                continue
            seen.add(like)
            for devices in self._devices(machine, shape):
                place = Place(machine, devices, shape)
                fill = self._fill(copy, place)
                if fill is not None:
                    yield fill, place

    def _devices(self, machine: int, shape: Shape) -> Iterator[tuple[int, ...]]:
        """Devices for a shape: of those in the same state that nobody names, always the first."""
        if shape.fixed is not None:
            yield shape.fixed
            return
        classes, state, named = self.problem.kinds[shape.kind].classes, self.states[machine], self._named[shape.kind]

        def like(device: int) -> tuple[Slots, int]:
            return state[device], device if device in named else -1

        chosen: list[list[tuple[int, ...]]] = []
        for take in shape.takes:
            own = sorted((i for i, one in enumerate(classes) if one == take.device_class), key=lambda i: (like(i), i))
            distinct: dict[object, tuple[int, ...]] = {}
            for some in combinations(own, take.n_devices):
                distinct.setdefault(tuple(map(like, some)), some)
            chosen.append(list(distinct.values()))
        yield from _joined(chosen)

    def _fill(self, copy: int, place: Place) -> int | None:
        """How full the fullest device of a place then is; `None`: something does not fit."""
        self.n_tried += 1
        free, state, slot = self.free[place.shape.kind], self.states[place.machine], self.slots[copy]
        fill = 0
        for pool, take in self.takes(place):
            taken = self._taken(state[pool], slot, take)
            if taken > free[pool]:
                return None
            if pool < len(free) - 1 or not place.devices:
                fill = max(fill, taken * 1_000_000 // (free[pool] or 1))
        return fill

    def _taken(self, slots: Slots, slot: int, take: Take) -> int:
        """What a pool then gives in its fullest allowed set, with its margin."""
        most, beside = self._sums_of(slots, slot)
        return max(slots[0], take.margin_bytes) + max(most, beside + take.n_bytes)

    def _sums_of(self, slots: Slots, slot: int) -> tuple[int, int]:
        """The most bytes of an allowed set, and of one in which copies of this slot run."""
        found = self._sums.get((slots, slot))
        if found is None:
            together = self.problem.together
            found = together.most(slots[1:]), together.most_with(slots[1:], slot - 1)
            self._sums[slots, slot] = found
        return found

    # -- shapes that are still open ------------------------------------------------------------------------

    def rooms(self, slot: int, kind: int, device_class: int) -> list[int]:
        """Bytes that devices of a class have for copies of a slot, the largest first: on the machine of the kind that
        has most for one device, for two, and so on. No copy finds more."""
        free = [(i, n) for i, n in enumerate(self.free[kind]) if self.classes[kind][i] == device_class]
        best: list[int] = []
        for state in {self.states[machine] for machine in self.machines_of.get(kind, ())}:
            own = sorted((n - state[i][0] - self._sums_of(state[i], slot)[1] for i, n in free), reverse=True)
            best = own if not best else [max(pair) for pair in zip(best, own, strict=True)]
        return best


def _alike(problem: Problem) -> list[int]:
    """For each machine a number: those of one kind that the same copies may be on have the same."""
    numbers: dict[object, int] = {}
    found = []
    for machine, kind in enumerate(problem.machines):
        forbidden = frozenset(copy for copy, machines in problem.forbidden.items() if machine in machines)
        found.append(numbers.setdefault((kind, forbidden), len(numbers)))
    return found


def _named(problem: Problem) -> list[frozenset[int]]:
    """For each kind the devices that some shape names: nothing else is like them."""
    named: list[set[int]] = [set() for _ in problem.kinds]
    for shapes in problem.shapes:
        for shape in shapes:
            named[shape.kind].update(shape.fixed or ())
    return [frozenset(some) for some in named]


def _joined(chosen: Sequence[Sequence[tuple[int, ...]]]) -> Iterator[tuple[int, ...]]:
    if not chosen:
        yield ()
        return
    for first in chosen[0]:
        for rest in _joined(chosen[1:]):
            yield (*first, *rest)


def _added(slots: Slots, slot: int, n_bytes: int, margin_bytes: int) -> Slots:
    if not n_bytes and not margin_bytes:
        return slots
    return (max(slots[0], margin_bytes), *slots[1:slot], slots[slot] + n_bytes, *slots[slot + 1 :])
