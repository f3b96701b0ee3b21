"""Where copies go: an exact search with bounds for fleets of a few models, and a greedy one for large ones. Pure.

A copy has shapes: on machines of one kind, so many devices of each class, with so many bytes on each. Devices of a
class are interchangeable, and so are machines of a kind: what differs is what they hold already. A pool takes copies
as long as the fullest allowed set of them, and the largest margin among them once, are within what is free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

from autofit.domain.values import NamedTuple, dataclass, field
from autofit.fleets.together import Together

MAX_TRIED = 200_000  #: places that an exact search looks at before it ends
MAX_EXACT = 24  #: copies
MAX_EXACT_DEVICES = 64
ENDLESS = 1 << 62  #: free memory that nobody knows


class Take(NamedTuple):
    """Devices of one class, and the bytes and the margin on each."""

    device_class: int
    n_devices: int
    n_bytes: int
    margin_bytes: int


class Shape(NamedTuple):
    """A way to place a copy on machines of one kind; the host is a pool as well. `key` is the caller's.

    `fixed` are devices by number, of a command that names them: no other ones will do."""

    kind: int
    takes: tuple[Take, ...]
    host_bytes: int
    host_margin_bytes: int
    cost: int
    key: object = None
    fixed: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Machines that are alike: the class and the free bytes of each device, and the free bytes of the host."""

    classes: tuple[int, ...]
    free_bytes: tuple[int, ...]
    host_bytes: int


Slots = tuple[int, ...]  #: of a pool: the largest margin, and then the bytes of each slot
State = tuple[Slots, ...]  #: of a machine: its devices', and the host's last


class Place(NamedTuple):
    """Where a copy goes: a machine, the devices there by number, and by which of its shapes."""

    machine: int
    devices: tuple[int, ...]
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """`machines` are the kinds of all machines; `shapes` are those of each copy, in the order of `together.copies`."""

    kinds: tuple[Kind, ...]
    machines: tuple[int, ...]
    shapes: tuple[tuple[Shape, ...], ...]
    together: Together
    forbidden: Mapping[int, frozenset[int]] = field(default_factory=dict)  #: copy -> machines that it must not be on


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The places of all copies, or `None`. `is_proven`: no better ones are there, or none at all."""

    places: tuple[Place, ...] | None
    cost: int
    is_proven: bool
    n_tried: int


def solve(problem: Problem, *, max_tried: int = MAX_TRIED) -> Outcome:
    """The places with the least cost in all; of equal ones, those that leave most free on the fullest devices."""
    first = greedy(problem)
    if first.is_proven:
        return first
    n_devices = sum(len(problem.kinds[kind].classes) + 1 for kind in problem.machines)
    if len(problem.shapes) > MAX_EXACT or n_devices > MAX_EXACT_DEVICES:
        return first
    return _Exact(problem, first, max_tried).outcome()


def greedy(problem: Problem) -> Outcome:
    """Each copy where it costs least, the largest first: on devices with most free, and else on those with least.

    It is proven where nothing can cost less, or where one copy has no place on empty machines.
    """
    if any(not shapes for shapes in problem.shapes):
        return Outcome(places=None, cost=0, is_proven=True, n_tried=0)
    least = sum(min(shape.cost for shape in shapes) for shapes in problem.shapes)
    best: Outcome | None = None
    n_tried = 0
    for spread in (True, False):
        found = _greedy(problem, spread=spread)
        n_tried += found.n_tried
        if found.places is not None and (best is None or found.cost < best.cost):
            best = found
        if best is not None and best.cost == least:
            break
    if best is None:
        alone = all(
            next(iter(_Board(problem).candidates(i, spread=False)), None) is not None
            for i in range(len(problem.shapes))
        )
        return Outcome(places=None, cost=0, is_proven=not alone, n_tried=n_tried)
    return Outcome(places=best.places, cost=best.cost, is_proven=best.cost == least, n_tried=n_tried)


def _greedy(problem: Problem, *, spread: bool) -> Outcome:
    board = _Board(problem)
    places: list[Place | None] = [None] * len(problem.shapes)
    cost = 0
    for i in largest_first(problem):
        found = next(iter(board.candidates(i, spread=spread)), None)
        if found is None:
            return Outcome(places=None, cost=0, is_proven=False, n_tried=board.n_tried)
        board.put(i, found)
        places[i] = found
        cost += found.shape.cost
    return Outcome(places=tuple(one for one in places if one), cost=cost, is_proven=False, n_tried=board.n_tried)


def largest_first(problem: Problem) -> list[int]:
    """Copies by the part of a machine's device that they take at least; copies alike stay neighbors."""

    def size(i: int) -> tuple[float, int]:
        parts = (
            max((take.n_bytes / (_capacity(problem, shape, take) or 1) for take in shape.takes), default=0.0)
            + len(shape.takes)
            + sum(take.n_devices for take in shape.takes)
            for shape in problem.shapes[i]
        )
        return (-min(parts, default=0.0), i)

    return sorted(range(len(problem.shapes)), key=size)


def _capacity(problem: Problem, shape: Shape, take: Take) -> int:
    kind = problem.kinds[shape.kind]
    return kind.free_bytes[kind.classes.index(take.device_class)]


class _Board:
    """What every machine holds."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.n_tried = 0
        self.is_plain = problem.together.is_plain
        empty = (0,) * (problem.together.n_slots + 1)
        self.states: list[State] = [(empty,) * (len(problem.kinds[kind].classes) + 1) for kind in problem.machines]
        self.machines_of: dict[int, list[int]] = {}
        for number, kind in enumerate(problem.machines):
            self.machines_of.setdefault(kind, []).append(number)

    def put(self, copy: int, place: Place) -> State:
        """Put a copy there; the machine's state before it."""
        before = self.states[place.machine]
        self.states[place.machine] = self._with(copy, place)
        return before

    def _with(self, copy: int, place: Place) -> State:
        state = list(self.states[place.machine])
        slot = self.problem.together.slots[copy] + 1
        kind = self.problem.kinds[place.shape.kind]
        by_class = {take.device_class: take for take in place.shape.takes}
        for device in place.devices:
            take = by_class[kind.classes[device]]
            state[device] = _added(state[device], slot, take.n_bytes, take.margin_bytes)
        state[-1] = _added(state[-1], slot, place.shape.host_bytes, place.shape.host_margin_bytes)
        return tuple(state)

    def candidates(self, copy: int, *, spread: bool) -> Iterator[Place]:
        """Places that a copy fits into, one of those that are alike; the cheapest first.

        Among equal costs, `spread` takes devices with most free first, and else those with least.
        """
        by_cost: dict[int, list[Shape]] = {}
        for shape in self.problem.shapes[copy]:
            by_cost.setdefault(shape.cost, []).append(shape)
        for cost in sorted(by_cost):
            found = [pair for shape in by_cost[cost] for pair in self._of_shape(copy, shape)]
            found.sort(key=lambda pair: pair[0] if spread else -pair[0])
            yield from (place for _, place in found)

    def _of_shape(self, copy: int, shape: Shape) -> Iterator[tuple[int, Place]]:
        """(parts per million of the fullest device that are then taken, the place)."""
        forbidden = self.problem.forbidden.get(copy, ())
        seen: set[State] = set()
        for machine in self.machines_of.get(shape.kind, ()):
            state = self.states[machine]
            if machine in forbidden:
                continue
            if state in seen:
                continue
            seen.add(state)
            for devices in self._devices(machine, shape):
                place = Place(machine, devices, shape)
                fill = self._fill(copy, place)
                if fill is not None:
                    yield fill, place

    def _devices(self, machine: int, shape: Shape) -> Iterator[tuple[int, ...]]:
        """Devices for a shape: of those in the same state, always the first."""
        if shape.fixed is not None:
            yield shape.fixed
            return
        kind, state = self.problem.kinds[shape.kind], self.states[machine]
        chosen: list[list[tuple[int, ...]]] = []
        for take in shape.takes:
            own = [i for i, one in enumerate(kind.classes) if one == take.device_class]
            distinct: dict[tuple[Slots, ...], tuple[int, ...]] = {}
            if take.n_devices == 1:
                for i in own:
                    distinct.setdefault((state[i],), (i,))
            else:
                for some in combinations(sorted(own, key=lambda i: (state[i], i)), take.n_devices):
                    distinct.setdefault(tuple(state[i] for i in some), some)
            chosen.append(list(distinct.values()))
        yield from _joined(chosen)

    def _fill(self, copy: int, place: Place) -> int | None:
        """How full the fullest device of a place then is; `None`: something does not fit."""
        self.n_tried += 1
        kind, shape = self.problem.kinds[place.shape.kind], place.shape
        state, slot = self.states[place.machine], self.problem.together.slots[copy] + 1
        taken = self._taken(state[-1], slot, shape.host_bytes, shape.host_margin_bytes)
        if taken > kind.host_bytes:
            return None
        fill = 0 if place.devices else taken * 1_000_000 // (kind.host_bytes or 1)
        for device in place.devices:
            own = kind.classes[device]
            take = next(one for one in shape.takes if one.device_class == own)
            taken = self._taken(state[device], slot, take.n_bytes, take.margin_bytes)
            if taken > kind.free_bytes[device]:
                return None
            fill = max(fill, taken * 1_000_000 // (kind.free_bytes[device] or 1))
        return fill

    def _taken(self, slots: Slots, slot: int, n_bytes: int, margin_bytes: int) -> int:
        """What a pool then gives in its fullest allowed set, with its margin."""
        if self.is_plain:
            return max(slots[0], margin_bytes) + slots[1] + n_bytes
        after = _added(slots, slot, n_bytes, margin_bytes)
        return after[0] + self.problem.together.most(after[1:])


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
    return (
        max(slots[0], margin_bytes),
        *slots[1:slot],
        slots[slot] + n_bytes,
        *slots[slot + 1 :],
    )


class _Exact:
    """Depth first over copies, the largest first, with the cheapest places first.

    Cut off are: what cannot get cheaper than the best that is known (`_Prices`); states of the machines that were seen
    at the same depth at no greater cost, machines and devices alike in any order; and what cannot hold the bytes that
    are left. Bytes are counted of one allowed set of copies, which are all there at once.
    """

    def __init__(self, problem: Problem, first: Outcome, max_tried: int) -> None:
        self.problem = problem
        self.order = largest_first(problem)
        self.board = _Board(problem)
        self.board.n_tried = first.n_tried
        self.max_tried = max_tried + first.n_tried
        self.best: tuple[Place, ...] | None = first.places
        self.cost = first.cost if first.places is not None else ENDLESS
        self.places: list[Place | None] = [None] * len(problem.shapes)
        self.seen: list[dict[object, int]] = [{} for _ in self.order]
        self.counted = _fullest_set(problem)
        own = [i for i in self.order if i in self.counted]
        self.least_cost = _sums(self.order, lambda i: min(shape.cost for shape in problem.shapes[i]))
        self.least_bytes = _sums(
            self.order, lambda i: min(map(_device_bytes, problem.shapes[i])) if i in self.counted else 0
        )
        self.smallest = [
            min((_smallest(problem, i) for i in self.order[at:] if i in self.counted), default=0)
            for at in range(len(self.order))
        ]
        self.prices = _Prices(problem, self.order, own, self.cost) if first.places is not None else None

    def outcome(self) -> Outcome:
        is_whole = self._from(0, 0)
        return Outcome(
            places=self.best,
            cost=0 if self.best is None else self.cost,
            is_proven=is_whole,
            n_tried=self.board.n_tried,
        )

    def _from(self, depth: int, cost: int) -> bool:
        """Search on; whether everything below was looked at, or ruled out."""
        if cost + self.least_cost[depth] >= self.cost:
            return True
        if depth == len(self.order):
            self.best, self.cost = tuple(one for one in self.places if one), cost
            return True
        rooms = self._rooms()
        if sum(n for _, n in rooms if n >= self.smallest[depth]) < self.least_bytes[depth]:
            return True
        if self.prices is not None and cost + self.prices.least(depth, rooms) >= self.cost:
            return True
        key = self._key(depth)
        if self.seen[depth].get(key, ENDLESS) <= cost:
            return True
        self.seen[depth][key] = cost
        copy = self.order[depth]
        for place in self.board.candidates(copy, spread=self.best is None):
            if cost + place.shape.cost + self.least_cost[depth + 1] >= self.cost:
                break  # the rest costs no less
            if self.board.n_tried > self.max_tried:
                return False
            before = self.board.put(copy, place)
            self.places[copy] = place
            is_whole = self._from(depth + 1, cost + place.shape.cost)
            self.board.states[place.machine] = before
            self.places[copy] = None
            if not is_whole:
                return False
        return self.board.n_tried <= self.max_tried

    def _rooms(self) -> list[tuple[tuple[int, int], int]]:
        """What is left of each device beside the copies that are counted: ((machine, class), bytes)."""
        held: dict[tuple[int, int], int] = {}
        for copy in self.counted:
            place = self.places[copy]
            if place is None:
                continue
            classes = self.problem.kinds[place.shape.kind].classes
            for device in place.devices:
                take = next(one for one in place.shape.takes if one.device_class == classes[device])
                held[place.machine, device] = held.get((place.machine, device), 0) + take.n_bytes
        rooms = []
        for machine, number in enumerate(self.problem.machines):
            kind, state = self.problem.kinds[number], self.board.states[machine]
            for device, free in enumerate(kind.free_bytes):
                left = free - state[device][0] - held.get((machine, device), 0)
                rooms.append(((number, kind.classes[device]), left))
        return rooms

    def _key(self, depth: int) -> object:
        """The state of all machines, those alike in any order, and so their devices."""
        left = self.order[depth:]
        if any(shape.fixed is not None for i in left for shape in self.problem.shapes[i]):
            return tuple(self.board.states)
        own = self.problem.forbidden.keys() & set(left)
        machines = []
        for number, (kind, state) in enumerate(zip(self.problem.machines, self.board.states, strict=True)):
            classes = self.problem.kinds[kind].classes
            devices = tuple(sorted(zip(classes, state[:-1], strict=True)))
            machines.append((number if own else kind, devices, state[-1]))
        return tuple(sorted(machines))


class _Prices:
    """What the copies that are left cost at least, by Lagrange: bytes of each class of devices have a price, each copy
    takes the shape that is cheapest with it, and what is left free is paid back. In whole numbers, so that it is exact.

    Prices are improved a few times from nothing, toward classes that are wanted more than there is of them.
    """

    UNIT = 1 << 60
    ROUNDS = 60

    def __init__(self, problem: Problem, order: Sequence[int], counted: Sequence[int], known: int) -> None:
        self.problem = problem
        self.free: dict[tuple[int, int], int] = {}
        for number in problem.machines:
            kind = problem.kinds[number]
            for own, free in zip(kind.classes, kind.free_bytes, strict=True):
                self.free[number, own] = self.free.get((number, own), 0) + free
        self.prices: dict[tuple[int, int], int] = dict.fromkeys(self.free, 0)
        best, kept = self._bound(order, counted), dict(self.prices)
        step = 1.0
        for _ in range(self.ROUNDS if counted else 0):
            wanted = self._wanted(counted)
            over = {one: wanted.get(one, 0) - free for one, free in self.free.items()}
            size = sum(n * n for n in over.values())
            gap = known * self.UNIT - self._bound(order, counted)
            if gap <= 0 or not size:
                break
            for one, n in over.items():
                self.prices[one] = max(0, self.prices[one] + int(step * gap * n / size))
            now = self._bound(order, counted)
            if now > best:
                best, kept = now, dict(self.prices)
            else:
                step *= 0.9
        self.prices = kept
        self.sums = _sums(order, lambda i: self._least(i, i in counted))

    def least(self, depth: int, rooms: Sequence[tuple[tuple[int, int], int]]) -> int:
        """The least cost of the copies from a depth on."""
        total = self.sums[depth] - sum(self.prices[one] * left for one, left in rooms)
        return -(-total // self.UNIT)

    def _price(self, shape: Shape) -> int:
        bytes_paid = sum(
            self.prices.get((shape.kind, take.device_class), 0) * take.n_devices * take.n_bytes for take in shape.takes
        )
        return shape.cost * self.UNIT + bytes_paid

    def _least(self, copy: int, is_counted: bool) -> int:
        shapes = self.problem.shapes[copy]
        return min(map(self._price, shapes)) if is_counted else min(one.cost for one in shapes) * self.UNIT

    def _bound(self, order: Sequence[int], counted: Sequence[int]) -> int:
        paid = sum(self.prices[one] * free for one, free in self.free.items())
        return sum(self._least(i, i in counted) for i in order) - paid

    def _wanted(self, counted: Sequence[int]) -> dict[tuple[int, int], int]:
        """Bytes of each class that copies would take at these prices."""
        wanted: dict[tuple[int, int], int] = {}
        for i in counted:
            shape = min(self.problem.shapes[i], key=self._price)
            for take in shape.takes:
                one = (shape.kind, take.device_class)
                wanted[one] = wanted.get(one, 0) + take.n_devices * take.n_bytes
        return wanted


def _sums(order: Sequence[int], of: Callable[[int], int]) -> list[int]:
    """For each depth the sum over the copies that are left."""
    sums = [0]
    for i in reversed(order):
        sums.append(sums[-1] + of(i))
    return sums[::-1]


def _fullest_set(problem: Problem) -> frozenset[int]:
    """An allowed set of copies that takes most at least."""
    least = {i: min(map(_device_bytes, shapes)) for i, shapes in enumerate(problem.shapes)}
    return frozenset(problem.together.peak({i: n for i, n in least.items() if n})[1])


def _smallest(problem: Problem, copy: int) -> int:
    return min((take.n_bytes for shape in problem.shapes[copy] for take in shape.takes), default=0)


def _device_bytes(shape: Shape) -> int:
    return sum(take.n_devices * take.n_bytes for take in shape.takes)
