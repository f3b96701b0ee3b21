"""What copies cost at least, by Lagrange: scarce bytes have a price, and each copy takes what is cheapest then.

In every allowed set the copies of each class of devices are within what is free there. Weighed with prices and left out
of the problem, these limits make the copies independent: the sum of each one's cheapest shape, bytes paid, less the
price of all that is free, is a cost that no placement goes below. One allowed set of each phase is counted, the fullest
as far as that is known. All is in whole numbers, so that it is exact whatever the prices are.
"""

from __future__ import annotations

from autofit.fleets.problem import HOST, Problem, Shape

UNIT = 1 << 60  #: of a cost
ROUNDS = 120  #: in which prices are improved
PATIENCE = 4  #: rounds without a better bound, behind which steps get smaller

Pool = tuple[int, int, int]  #: number of the set, kind of machine, class of device


class Prices:
    """Prices that make the bound large, and each shape's cost with them.

    `known` is a cost that is of interest no longer: prices are good enough where the bound comes up to it.
    """

    def __init__(self, problem: Problem, known: int) -> None:
        self.problem = problem
        least = {i: min(shape.device_bytes for shape in shapes) for i, shapes in enumerate(problem.shapes)}
        self._sets = problem.together.fullest(least)
        self._copies = [self._ways(copy) for copy in range(len(problem.shapes))]
        self._free = self._scarce()
        self._prices: dict[Pool, int] = dict.fromkeys(self._free, 0)
        self._improve(known * UNIT)
        #: each copy's shapes: cost and bytes paid
        self.shapes = [tuple(self._paid(way) for way in ways) for ways in self._copies]
        self.free = sum(self._prices[pool] * n for pool, n in self._free.items())  #: the price of all that is free
        by_class: dict[tuple[int, int], int] = {}
        for (_, kind, own), price in self._prices.items():
            by_class[kind, own] = by_class.get((kind, own), 0) + price
        self._of_margins = by_class

    @property
    def bound(self) -> int:
        """What all copies cost at least."""
        return -(-(sum(map(min, self.shapes)) - self.free) // UNIT)

    def margin(self, kind: int, device_class: int, n_bytes: int) -> int:
        """The price of bytes that a margin takes of what is free."""
        return self._of_margins.get((kind, device_class), 0) * n_bytes

    # -- parts ---------------------------------------------------------------------------------------------

    def _ways(self, copy: int) -> list[tuple[int, list[tuple[Pool, int]]]]:
        """Each shape's cost, and the bytes that it takes of each pool."""
        numbers = [number for number, some in enumerate(self._sets) if copy in some]
        return [
            (
                shape.cost * UNIT,
                [
                    ((number, shape.kind, own), n_bytes)
                    for number in numbers
                    for own, n_bytes in _bytes_of(shape)
                    if n_bytes
                ],
            )
            for shape in self.problem.shapes[copy]
        ]

    def _scarce(self) -> dict[Pool, int]:
        """Free bytes of the pools that are not enough for all that could be there."""
        free: dict[tuple[int, int], int] = {}
        for kind in self.problem.machines:
            for own, n_bytes in self.problem.kinds[kind].pools():
                free[kind, own] = free.get((kind, own), 0) + n_bytes
        most: dict[Pool, int] = {}
        for ways in self._copies:
            of_copy: dict[Pool, int] = {}
            for _, takes in ways:
                for pool, n_bytes in takes:
                    of_copy[pool] = max(of_copy.get(pool, 0), n_bytes)
            for pool, n_bytes in of_copy.items():
                most[pool] = most.get(pool, 0) + n_bytes
        return {pool: free.get(pool[1:], 0) for pool, n_bytes in most.items() if n_bytes > free.get(pool[1:], 0)}

    def _paid(self, way: tuple[int, list[tuple[Pool, int]]]) -> int:
        cost, takes = way
        return cost + sum(self._prices[pool] * n_bytes for pool, n_bytes in takes if pool in self._prices)

    def _improve(self, known: int) -> None:
        """Raise prices of pools that are wanted more than there is of them, and lower the others."""
        best, kept, step, n_worse = -1, dict(self._prices), 1.0, 0
        for _ in range(ROUNDS):
            bound, wanted = self._demand()
            if bound > best:
                best, kept, n_worse = bound, dict(self._prices), 0
            elif (n_worse := n_worse + 1) % PATIENCE == 0:
                step *= 0.6
            over = {pool: wanted.get(pool, 0) - free for pool, free in self._free.items()}
            over = {pool: n for pool, n in over.items() if n > 0 or self._prices[pool]}
            size = sum(n * n for n in over.values())
            if bound >= known or not size:
                break
            for pool, n in over.items():
                self._prices[pool] = max(0, self._prices[pool] + int(step * (known - bound) * n / size))
        self._prices = kept

    def _demand(self) -> tuple[int, dict[Pool, int]]:
        """The bound at these prices, and the bytes of each pool that copies would take."""
        bound = -sum(self._prices[pool] * free for pool, free in self._free.items())
        wanted: dict[Pool, int] = {}
        for ways in self._copies:
            paid = [self._paid(way) for way in ways]
            least = min(paid)
            bound += least
            for pool, n_bytes in ways[paid.index(least)][1]:
                wanted[pool] = wanted.get(pool, 0) + n_bytes
        return bound, wanted


def _bytes_of(shape: Shape) -> list[tuple[int, int]]:
    takes = [(take.device_class, take.n_devices * take.n_bytes) for take in shape.takes]
    return [*takes, (HOST, shape.host_bytes)]
