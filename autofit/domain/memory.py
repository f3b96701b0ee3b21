"""Memory, counted per pool (each GPU, and the host) and per kind, each figure with its basis."""

from __future__ import annotations

from typing import Literal

from autofit.domain.values import dataclass

Basis = Literal["exact", "derived", "measured", "assumed"]
Kind = Literal["weights", "cache", "compute", "runtime", "transient", "reserve"]
KINDS: tuple[Kind, ...] = ("weights", "cache", "compute", "runtime", "transient", "reserve")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryItem:
    """One figure of a pool.

    `exact`: the engine's own arithmetic on exact inputs. `derived`: computed from a bound or a closed form.
    `measured`: seen on this machine or in a cited measurement. `assumed`: a rule of thumb, with its source.
    `mapped` weights are file-backed pages: they need memory to be fast, but are not allocated. `when` says what makes
    memory grow to this after the engine has started (`"a prompt fills a micro-batch"`); empty: it is there from start.
    """

    kind: Kind
    n_bytes: int
    basis: Basis
    label: str
    source: str = ""
    mapped: bool = False
    when: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLimit:
    """What one device may take of a pool that it shares: Metal's working set, a GTT size, a margin kept there.

    `items` are the device's own; those of the pool are among them.
    """

    id: str
    name: str
    limit_bytes: int
    items: tuple[MemoryItem, ...]

    @property
    def used_bytes(self) -> int:
        return sum(item.n_bytes for item in self.items)

    @property
    def start_bytes(self) -> int:
        return sum(item.n_bytes for item in self.items if not item.when)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolUse:
    """What a plan takes of one pool. `budget_bytes` is what it may take: free memory minus the margin.

    `limits` are of devices without memory of their own, which draw on this pool.
    """

    id: str
    name: str
    total_bytes: int | None
    free_bytes: int | None
    budget_bytes: int | None
    items: tuple[MemoryItem, ...]
    limits: tuple[DeviceLimit, ...] = ()

    def sum_bytes(self, kind: Kind) -> int:
        return sum(item.n_bytes for item in self.items if item.kind == kind)

    @property
    def used_bytes(self) -> int:
        """All kinds but the reserve."""
        return sum(item.n_bytes for item in self.items if item.kind != "reserve")

    @property
    def start_bytes(self) -> int:
        """What of it is needed before the engine answers anything."""
        return sum(item.n_bytes for item in self.items if item.kind != "reserve" and not item.when)

    @property
    def room_bytes(self) -> int | None:
        """What is left in the pool, or to the device that has least left; negative: it is missing. `None`: unknown."""
        rooms = [limit.limit_bytes - limit.used_bytes for limit in self.limits]
        if self.budget_bytes is not None:
            rooms.append(self.budget_bytes - self.used_bytes)
        return min(rooms, default=None)

    @property
    def shortfall_bytes(self) -> int:
        """How much is missing; 0 or less when the pool fits, and 0 when its budget is unknown."""
        return -(self.room_bytes or 0)

    @property
    def start_shortfall_bytes(self) -> int:
        """How much is missing for the engine to start."""
        lacks = [limit.start_bytes - limit.limit_bytes for limit in self.limits]
        if self.budget_bytes is not None:
            lacks.append(self.start_bytes - self.budget_bytes)
        return max(lacks, default=0)

    @property
    def tightest(self) -> PoolUse | DeviceLimit:
        """The device's limit that is passed furthest, where that lacks more than the pool itself."""
        own = None if self.budget_bytes is None else self.budget_bytes - self.used_bytes
        least = min(self.limits, key=lambda limit: limit.limit_bytes - limit.used_bytes, default=None)
        if least is None or (own is not None and own <= least.limit_bytes - least.used_bytes):
            return self
        return least

    @property
    def tightest_at_start(self) -> PoolUse | DeviceLimit:
        """The same by what is needed before the engine answers anything."""
        own = None if self.budget_bytes is None else self.budget_bytes - self.start_bytes
        least = min(self.limits, key=lambda limit: limit.limit_bytes - limit.start_bytes, default=None)
        if least is None or (own is not None and own <= least.limit_bytes - least.start_bytes):
            return self
        return least


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Every pool, in the engine's device order, the host last."""

    pools: tuple[PoolUse, ...]

    @property
    def fits(self) -> bool:
        return all(pool.shortfall_bytes <= 0 for pool in self.pools)

    @property
    def starts(self) -> bool:
        """Whether what is there from the start fits, whatever memory grows to later."""
        return all(pool.start_shortfall_bytes <= 0 for pool in self.pools)

    def pool(self, pool_id: str) -> PoolUse:
        """The pool of this id.

        Raises:
            KeyError: there is none.
        """
        for pool in self.pools:
            if pool.id == pool_id:
                return pool
        raise KeyError(pool_id)
