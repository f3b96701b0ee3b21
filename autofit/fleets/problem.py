"""What a search for places is asked, and what it answers: copies with their shapes, and machines of some kinds.

A copy has shapes: on machines of one kind, so many devices of each class, with so many bytes on each. Devices of a
class are interchangeable, and so are machines of a kind: what differs is what they hold already. A pool takes copies
as long as the fullest allowed set of them, and the largest margin among them once, are within what is free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from autofit.domain.values import NamedTuple, dataclass, field
from autofit.fleets.together import Together

ENDLESS = 1 << 62  #: free memory that nobody knows
HOST = -1  #: the class of the host's own pool


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

    @property
    def of_host(self) -> Take:
        return Take(HOST, 1, self.host_bytes, self.host_margin_bytes)

    @property
    def device_bytes(self) -> int:
        return sum(take.n_devices * take.n_bytes for take in self.takes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Machines that are alike: the class and the free bytes of each device, and the free bytes of the host."""

    classes: tuple[int, ...]
    free_bytes: tuple[int, ...]
    host_bytes: int

    def pools(self) -> Iterator[tuple[int, int]]:
        """(class, free bytes) of each device, and of the host last."""
        yield from zip(self.classes, self.free_bytes, strict=True)
        yield HOST, self.host_bytes


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
    least_cost: int = 0  #: no places cost less, whether they are known or not
