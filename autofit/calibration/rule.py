"""How much more, or less, a plan leaves free for what was measured: the rule, in arithmetic.

An entry counts starts of one engine, device and architecture, with the mean and the spread of what they took beyond
their plans on that device. What a plan leaves free moves by

    most(mean + 3 spread, largest seen)

where that is above zero from the first start on. Where it is below zero, the plan gets back that much, but only from
`LEAST_STARTS` starts of this very build that were measured here, and no more than `MOST_BACK_BYTES`: the least of what
a backend assumes for a process on a device. Exact figures never shrink, and no entry makes a plan less safe than its
own spread allows. Entries that were imported, or of another build, only ever add.
"""

from __future__ import annotations

from autofit.domain.units import GIB, MIB
from autofit.domain.values import dataclass

LEAST_STARTS = 5
DEVIATIONS = 3
#: between starts of the same command: allocators, drivers and what else runs
LEAST_SPREAD_BYTES = 16 * MIB
MOST_BACK_BYTES = 128 * MIB
MOST_MORE_BYTES = 8 * GIB
MAX_BYTES = 64 * GIB
MAX_STARTS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What an entry is about. `build` is the engine's version as it says it itself, empty where it does not."""

    engine: str
    build: str
    api: str
    device: str
    architecture: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Starts of one kind: how many, and bytes beyond the plan (negative: below it) on one device.

    `squares` is the sum of squared differences from the mean. `imported`: measured by somebody else.
    """

    key: Key
    n_starts: int
    mean_bytes: float
    squares: float
    most_bytes: int
    imported: bool = False

    @property
    def spread_bytes(self) -> float:
        """The deviation of one start from the mean, at least what starts differ by anyway."""
        found = (self.squares / (self.n_starts - 1)) ** 0.5 if self.n_starts > 1 else 0.0
        return max(found, LEAST_SPREAD_BYTES)

    def with_start(self, beyond_bytes: int) -> Entry:
        """The entry with one start more (Welford's update)."""
        n = self.n_starts + 1
        delta = beyond_bytes - self.mean_bytes
        mean = self.mean_bytes + delta / n
        return Entry(
            key=self.key,
            n_starts=n,
            mean_bytes=mean,
            squares=self.squares + delta * (beyond_bytes - mean),
            most_bytes=max(self.most_bytes, beyond_bytes),
            imported=self.imported,
        )


def first_start(key: Key, beyond_bytes: int) -> Entry:
    return Entry(key=key, n_starts=1, mean_bytes=float(beyond_bytes), squares=0.0, most_bytes=beyond_bytes)


def moved_bytes(entry: Entry, build: str) -> int:
    """What an entry moves the memory by that a plan for `build` leaves free: more, less (negative), or nothing."""
    bound = entry.mean_bytes + DEVIATIONS * entry.spread_bytes
    moved = round(max(bound, entry.most_bytes)) if entry.n_starts >= LEAST_STARTS else max(0, entry.most_bytes)
    if moved >= 0:
        return min(moved, MOST_MORE_BYTES) if entry.most_bytes > 0 else 0
    if entry.imported or entry.key.build != build or not build:
        return 0
    return max(moved, -MOST_BACK_BYTES)
