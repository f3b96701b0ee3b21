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
    `mapped` weights are file-backed pages: they need memory to be fast, but are not allocated.
    """

    kind: Kind
    n_bytes: int
    basis: Basis
    label: str
    source: str = ""
    mapped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolUse:
    """What a plan takes of one pool. `budget_bytes` is what it may take: free memory minus the margin."""

    id: str
    name: str
    total_bytes: int | None
    free_bytes: int | None
    budget_bytes: int | None
    items: tuple[MemoryItem, ...]

    def sum_bytes(self, kind: Kind) -> int:
        return sum(item.n_bytes for item in self.items if item.kind == kind)

    @property
    def used_bytes(self) -> int:
        """All kinds but the reserve."""
        return sum(item.n_bytes for item in self.items if item.kind != "reserve")

    @property
    def shortfall_bytes(self) -> int:
        """How much is missing; 0 or less when the pool fits, and 0 when its budget is unknown."""
        return 0 if self.budget_bytes is None else self.used_bytes - self.budget_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Every pool, in the engine's device order, the host last."""

    pools: tuple[PoolUse, ...]

    @property
    def fits(self) -> bool:
        return all(pool.shortfall_bytes <= 0 for pool in self.pools)

    def pool(self, pool_id: str) -> PoolUse:
        """The pool of this id.

        Raises:
            KeyError: there is none.
        """
        for pool in self.pools:
            if pool.id == pool_id:
                return pool
        raise KeyError(pool_id)
