"""Memory and rates of one model against the context, and of one plan over time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from autofit.domain.memory import PoolUse
from autofit.domain.plan import Plan, pool_to_dict, speed_to_dict
from autofit.domain.values import NamedTuple, dataclass

if TYPE_CHECKING:
    from autofit.domain.document import CurveDocument, PointDocument, StageDocument


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One context with its plan. `because` says why there is none, or why it does not fit.

    `kv` is the type of the cache, where it is not the engine's default.
    """

    context_tokens: int
    plan: Plan | None
    because: str = ""
    kv: str = ""

    @property
    def fits(self) -> bool:
        return self.plan is not None and self.plan.fits

    @property
    def pools(self) -> tuple[PoolUse, ...]:
        return () if self.plan is None else self.plan.memory.pools


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points from the shortest context to the longest. `chosen` is the plan that is asked for; it is among them."""

    title: str
    chosen: Plan
    points: tuple[Point, ...]

    @property
    def safe_tokens(self) -> int | None:
        """The longest context of the points that fit; `None`: none does."""
        return max((point.context_tokens for point in self.points if point.fits), default=None)


class Stage(NamedTuple):
    """What a plan takes of each pool from some moment on; `room_bytes` is what its tightest pool has left (`None`:
    unknown; negative: it is missing)."""

    what: str
    used_bytes: dict[str, int]
    room_bytes: int | None


def stages(plan: Plan) -> tuple[Stage, ...]:
    """A plan's memory over time: when it is started, and after each thing that makes it grow, one after the other."""
    growths = tuple(dict.fromkeys(item.when for pool in plan.memory.pools for item in pool.items if item.when))
    return tuple(_stage(plan, name, growths[:n]) for n, name in enumerate(("started", *growths)))


def _stage(plan: Plan, what: str, grown: tuple[str, ...]) -> Stage:
    used: dict[str, int] = {}
    rooms: list[int] = []
    for pool in plan.memory.pools:
        counted = [item for item in pool.items if item.kind != "reserve" and (not item.when or item.when in grown)]
        used[pool.id] = sum(item.n_bytes for item in counted)
        rooms += [] if pool.budget_bytes is None else [pool.budget_bytes - used[pool.id]]
        for limit in pool.limits:
            taken = sum(item.n_bytes for item in limit.items if not item.when or item.when in grown)
            rooms.append(limit.limit_bytes - taken)
    return Stage(what, used, min(rooms, default=None))


def timeline(plan: Plan) -> Iterator[Stage]:
    """The stages that take more than the one before, and the first."""
    before: Stage | None = None
    for stage in stages(plan):
        if before is None or stage.used_bytes != before.used_bytes:
            yield stage
        before = stage


def to_dict(curve: Curve) -> CurveDocument:
    """The curve as JSON values, schema 1 (`docs/curves.md`, `docs/curve.schema.json`)."""
    return {
        "schema": 1,
        "backend": curve.chosen.backend,
        "title": curve.title,
        "context_tokens": curve.chosen.context_tokens,
        "safe_fill_tokens": curve.chosen.safe_fill_tokens,
        "points": [_point_to_dict(point) for point in curve.points],
        "stages": [_stage_to_dict(stage) for stage in timeline(curve.chosen)],
    }


def _point_to_dict(point: Point) -> PointDocument:
    plan = point.plan
    return {
        "context_tokens": point.context_tokens,
        "fits": point.fits,
        "because": point.because or None,
        "kv": point.kv or None,
        "argv": [] if plan is None else list(plan.argv),
        "pools": [pool_to_dict(pool) for pool in point.pools],
        "speed": None if plan is None or plan.speed is None or not plan.fits else speed_to_dict(plan.speed),
    }


def _stage_to_dict(stage: Stage) -> StageDocument:
    return {"what": stage.what, "used_bytes": dict(stage.used_bytes), "room_bytes": stage.room_bytes}
