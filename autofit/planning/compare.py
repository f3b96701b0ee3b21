"""A plan beside what the engine reported, part by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autofit.domain.machine import HOST_POOL
from autofit.domain.memory import Kind, Memory, PoolUse
from autofit.domain.observed import Observed, ReportedPart
from autofit.domain.values import dataclass

#: what engines report of themselves; the rest (context, libraries, what comes with long prompts) nobody prints
REPORTED: tuple[Kind, ...] = ("weights", "cache", "compute")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One kind of memory in one pool: predicted, and reported by the engine to `rounding_bytes`."""

    pool: str
    kind: Kind
    predicted_bytes: int
    reported_bytes: int
    rounding_bytes: int = 0

    @property
    def over_bytes(self) -> int:
        """What was reported beyond the prediction; negative: less was. 0 within what the log rounds off."""
        over = self.reported_bytes - self.predicted_bytes
        return 0 if abs(over) <= self.rounding_bytes else over


def pool_of(place: str, places: Mapping[str, str]) -> str | None:
    """The pool of a place by the backend's names; a remote device is named with its address, `RPC0[HOST:PORT]`."""
    return places.get(place) or places.get(place.partition("[")[0])


def compare(memory: Memory, observed: Observed, places: Mapping[str, str]) -> tuple[Difference, ...]:
    """Each kind that was reported, by pool in the plan's order. `places` are the backend's: name in the log -> pool.

    What is not in the log, or lies in a place that the plan does not have, is left out. So are ranges of a mapped file,
    which say where tensors lie, and not how many bytes they are.
    """
    reported: dict[tuple[str, Kind], list[ReportedPart]] = {}
    mapped: set[tuple[str, Kind]] = set()
    for part in observed.parts:
        pool = HOST_POOL if part.is_host else pool_of(part.place, places)
        if pool is None:
            continue
        reported.setdefault((pool, part.kind), []).append(part)
        if part.mapped:
            mapped.add((pool, part.kind))
    return tuple(
        Difference(
            pool=pool.id,
            kind=kind,
            predicted_bytes=_counted(pool, kind, reported[pool.id, kind]),
            reported_bytes=sum(part.n_bytes for part in reported[pool.id, kind]),
            rounding_bytes=sum(part.rounding_bytes for part in reported[pool.id, kind]),
        )
        for pool in memory.pools
        for kind in REPORTED
        if (pool.id, kind) in reported and (pool.id, kind) not in mapped
    )


def _counted(pool: PoolUse, kind: Kind, parts: Sequence[ReportedPart]) -> int:
    left_out = {label for part in parts for label in part.excludes}
    return sum(item.n_bytes for item in pool.items if item.kind == kind and item.label not in left_out)
