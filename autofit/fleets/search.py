"""Where copies go: an exact search with bounds for fleets of a few models, and a greedy one for large ones. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from autofit.domain.values import NamedTuple, replace
from autofit.fleets.board import Board
from autofit.fleets.prices import UNIT, Prices
from autofit.fleets.problem import Outcome, Place, Problem, Shape

MAX_TRIED = 500_000  #: shapes and places that an exact search looks at before it ends: some two seconds
MAX_EXACT = 24  #: copies
MAX_EXACT_DEVICES = 64


def solve(problem: Problem, *, max_tried: int = MAX_TRIED) -> Outcome:
    """The places with the least cost in all; of large problems, places for certain, and what none cost less than."""
    first = greedy(problem)
    if first.is_proven:
        return first
    n_pools = sum(len(problem.kinds[kind].classes) + 1 for kind in problem.machines)
    if len(problem.shapes) > MAX_EXACT or n_pools > MAX_EXACT_DEVICES:
        return _bounded(problem, first)
    return _Exact(problem, first, max_tried).outcome()


def _bounded(problem: Problem, first: Outcome) -> Outcome:
    """What is known, with the least that any places cost: where that is no less, it is proven."""
    known = _known(problem, first)
    least = Prices(problem, known).bound
    return replace(first, is_proven=least >= known, least_cost=min(least, known))


def _known(problem: Problem, first: Outcome) -> int:
    """The cost that is to be beaten; without places, more than any cost."""
    above_all = 1 + sum(max(shape.cost for shape in shapes) for shapes in problem.shapes)
    return above_all if first.places is None else first.cost


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
        board = Board(problem)
        alone = all(next(board.cheapest(i, spread=False), None) is not None for i in range(len(problem.shapes)))
        return Outcome(places=None, cost=0, is_proven=not alone, n_tried=n_tried)
    is_proven = best.cost == least
    return Outcome(places=best.places, cost=best.cost, is_proven=is_proven, n_tried=n_tried, least_cost=least)


def _greedy(problem: Problem, *, spread: bool) -> Outcome:
    board = Board(problem)
    places: list[Place | None] = [None] * len(problem.shapes)
    cost = 0
    for i in largest_first(problem):
        found = next(board.cheapest(i, spread=spread), None)
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
            max((take.n_bytes / (_capacity(problem, shape, take.device_class) or 1) for take in shape.takes), default=0)
            + len(shape.takes)
            + sum(take.n_devices for take in shape.takes)
            for shape in problem.shapes[i]
        )
        return (-min(parts, default=0.0), i)

    return sorted(range(len(problem.shapes)), key=size)


def _capacity(problem: Problem, shape: Shape, device_class: int) -> int:
    kind = problem.kinds[shape.kind]
    return kind.free_bytes[kind.classes.index(device_class)]


class Open(NamedTuple):
    """The shapes that a waiting copy still has room for, by number, with their price; the cheapest first."""

    copy: int
    shapes: tuple[tuple[int, int], ...]
    least_cost: int  #: of these shapes, without what is paid for bytes

    @property
    def least(self) -> int:
        return self.shapes[0][0]

    @property
    def regret(self) -> int:
        """What it costs more not to have its cheapest shape; without another one, more than anything."""
        return self.shapes[1][0] - self.least if len(self.shapes) > 1 else UNIT * UNIT


class _Exact:
    """Depth first over copies: next is the one that loses most if it does not get the best of what is open for it.

    At every step each copy that waits is asked for the shapes that still have room somewhere. Where one has none, or
    where the cheapest of all of them come to no less than the best that is known, with a price on bytes (`Prices`) or
    without one, nothing below is looked at; nor where the machines were in this state before with the same copies
    waiting, at no greater cost.
    """

    def __init__(self, problem: Problem, first: Outcome, max_tried: int) -> None:
        self.problem = problem
        self.board = Board(problem)
        self.board.n_tried = first.n_tried
        self.max_tried = max_tried + first.n_tried
        self.best = first.places
        self.cost = _known(problem, first)
        self.prices = Prices(problem, self.cost)
        self.places: list[Place | None] = [None] * len(problem.shapes)
        self.alike = _alike(problem)
        self.seen: dict[object, int] = {}

    def outcome(self) -> Outcome:
        is_whole = self._from(tuple(largest_first(self.problem)), 0, -self.prices.free)
        cost = 0 if self.best is None else self.cost
        return Outcome(
            places=self.best,
            cost=cost,
            is_proven=is_whole,
            n_tried=self.board.n_tried,
            least_cost=cost if is_whole else min(self.prices.bound, self.cost),
        )

    def _from(self, waiting: tuple[int, ...], cost: int, spent: int) -> bool:
        """Search on; whether everything below was looked at, or ruled out. `spent` is what those that have a place
        cost and paid, less the price of all that was free."""
        if not waiting:
            if cost < self.cost:
                self.best, self.cost = tuple(one for one in self.places if one), cost
            return True
        if self.board.n_tried > self.max_tried:
            return False
        key = (tuple(sorted(self.alike[copy] for copy in waiting)), self.board.key())
        if self.seen.get(key, cost + 1) <= cost:
            return True
        self.seen[key] = cost
        rows = self._open(waiting)
        if rows is None:
            return True
        bound = spent + sum(row.least for row in rows)
        if not self._is_better(bound) or cost + sum(row.least_cost for row in rows) >= self.cost:
            return True
        row = max(rows, key=lambda row: row.regret)
        rest = tuple(copy for copy in waiting if copy != row.copy)
        for price, number in row.shapes:
            if not self._is_better(bound - row.least + price):
                break  # the rest costs no less
            shape = self.problem.shapes[row.copy][number]
            for place in self.board.places(row.copy, (shape,), spread=True):
                margins = self._margins(place)
                before = self.board.put(row.copy, place)
                self.places[row.copy] = place
                is_whole = self._from(rest, cost + shape.cost, spent + price + margins)
                self.board.states[place.machine] = before
                self.places[row.copy] = None
                if not is_whole:
                    return False
        return True

    def _is_better(self, bound: int) -> bool:
        """Whether a cost that is at least this can be less than the best that is known."""
        return bound <= (self.cost - 1) * UNIT

    def _open(self, waiting: Sequence[int]) -> list[Open] | None:
        """What is open for each of the copies; `None`: nothing is for one of them."""
        rooms: dict[tuple[int, int, int], list[int]] = {}
        rows: dict[int, Open] = {}
        for copy in waiting:
            if self.alike[copy] in rows:
                continue
            shapes, prices = self.problem.shapes[copy], self.prices.shapes[copy]
            found = [number for number, shape in enumerate(shapes) if self._has_room(copy, shape, rooms)]
            if not found:
                return None
            least_cost = min(shapes[number].cost for number in found)
            rows[self.alike[copy]] = Open(copy, tuple(sorted((prices[n], n) for n in found)), least_cost)
        return [rows[self.alike[copy]] for copy in waiting]

    def _has_room(self, copy: int, shape: Shape, rooms: dict[tuple[int, int, int], list[int]]) -> bool:
        """Whether some machine may hold the shape; not all that this says is true of one and the same machine."""
        self.board.n_tried += 1
        slot = self.board.slots[copy]
        for take in (*shape.takes, shape.of_host):
            key = (slot, shape.kind, take.device_class)
            own = rooms.get(key)
            if own is None:
                own = rooms[key] = self.board.rooms(*key)
            if len(own) < take.n_devices or own[take.n_devices - 1] < take.n_bytes:
                return False
        return True

    def _margins(self, place: Place) -> int:
        """The price of what a place takes for margins that are not there yet."""
        kind, state = place.shape.kind, self.board.states[place.machine]
        total = 0
        for pool, take in self.board.takes(place):
            if take.margin_bytes > state[pool][0]:
                total += self.prices.margin(kind, take.device_class, take.margin_bytes - state[pool][0])
        return total


def _alike(problem: Problem) -> list[int]:
    """For each copy a number: those that are interchangeable have the same."""
    numbers: dict[object, int] = {}
    return [
        numbers.setdefault((id(shapes), slot, problem.forbidden.get(copy)), len(numbers))
        for copy, (shapes, slot) in enumerate(zip(problem.shapes, problem.together.slots, strict=True))
    ]
