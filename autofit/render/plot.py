"""A curve on a terminal: a bar for each context, of each pool and of the decode rate; and as a plain table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autofit.domain.curve import Curve, Point, timeline
from autofit.domain.memory import KINDS, PoolUse
from autofit.domain.plan import Plan
from autofit.domain.text import printable
from autofit.domain.units import format_bytes, format_rate
from autofit.render.picture import Terminal, bar, legend, wrapped
from autofit.render.pools import folded, fullest, used

MOST_COLUMNS = 110
LEAST_BAR = 6


def plot(curve: Curve, terminal: Terminal) -> Iterator[str]:
    """Bars to scale, no line wider than the terminal."""
    narrow = terminal._replace(columns=min(terminal.columns, MOST_COLUMNS))
    yield from _head(curve, narrow.columns)
    for name, rows in pools_of(curve):
        yield ""
        yield from _pool(name, rows, narrow)
    yield ""
    yield from _rates(curve, narrow)
    yield from _tail(curve, narrow.columns)


def table(curve: Curve, columns: int = 100) -> Iterator[str]:
    """The same figures without bars, for pipes and for screen readers."""
    yield from _head(curve, columns)
    for point in curve.points:
        parts = [f"{point.context_tokens:,} tokens"]
        parts += used(point.pools)
        if said := rate(point):
            parts.append(f"decode {said} tokens/s")
        if point.kv:
            parts.append(f"KV cache {point.kv}")
        if not point.fits:
            parts.append(f"does not fit: {printable(point.because, 200)}")
        yield from wrapped(", ".join(parts), columns, "  ", "    ")
    yield from _over_time(curve, columns)


def pools_of(curve: Curve) -> Iterator[tuple[str, list[tuple[Point, PoolUse]]]]:
    """Each pool, or several that are alike, with every point that has it: the fullest of them there."""
    groups = [(name, {pool.id for pool in pools}) for name, pools in folded(curve.chosen.memory.pools)]
    known = {one for _, ids in groups for one in ids}
    for point in curve.points:
        for pool in point.pools:
            if pool.id not in known:
                known.add(pool.id)
                groups.insert(len(groups) - 1, (f"{pool.id}  {printable(pool.name, 40)}", {pool.id}))
    for name, ids in groups:
        rows = []
        for point in curve.points:
            there = [pool for pool in point.pools if pool.id in ids]
            if there:
                rows.append((point, fullest(there)))
        if rows:
            yield name, rows


def _head(curve: Curve, columns: int) -> Iterator[str]:
    title = f"{printable(curve.title, 80)}: memory and decode rate against the context of one sequence"
    yield from wrapped(title, columns, "  ")


def _pool(name: str, rows: Sequence[tuple[Point, PoolUse]], terminal: Terminal) -> Iterator[str]:
    free = max((pool.free_bytes or 0 for _, pool in rows), default=0)
    room = f", {format_bytes(free)} free" if free else ""
    yield from wrapped(f"{name}{room}", terminal.columns, "  ")
    whole = max(free, *(pool.used_bytes for _, pool in rows))
    kinds = {kind for _, pool in rows for kind in KINDS if kind != "reserve" and pool.sum_bytes(kind)}
    said = [_said(point, format_bytes(pool.used_bytes)) for point, pool in rows]
    for (point, pool), words in zip(rows, said, strict=True):
        sizes: dict[str, int] = {kind: pool.sum_bytes(kind) for kind in KINDS if kind != "reserve"}
        yield _row(point, sizes, whole, words, max(map(len, said)), terminal)
    yield from legend([(kind, kind) for kind in KINDS if kind in kinds], terminal)


def _said(point: Point, size: str) -> str:
    mark = f"  {point.kv}" if point.fits and point.kv else "" if point.fits else "  does not fit"
    return f"{size:>10}{mark}"


def _row(point: Point, sizes: dict[str, int], whole: int, said: str, room: int, terminal: Terminal) -> str:
    left = f"  {point.context_tokens:>9,} "
    width = terminal.columns - len(left) - 3 - room
    if width < LEAST_BAR:
        whole_line = f"{left}{said.strip()}"
        return whole_line if len(whole_line) <= terminal.columns else whole_line.replace("does not fit", "no")
    return f"{left}[{bar(sizes, whole, width, terminal)}] {said}".rstrip()


def _rates(curve: Curve, terminal: Terminal) -> Iterator[str]:
    told = [point for point in curve.points if rate(point)]
    if not told:
        yield from wrapped("the decode rate is not known", terminal.columns, "  ")
        return
    yield from wrapped("decode, tokens/s: in a nearly empty context, and with it full", terminal.columns, "  ")
    most = max(max(ends(point)) for point in told)
    room = max(len(rate(point)) for point in told)
    for point in told:
        start, full = ends(point)
        # scaled to whole numbers, which bars are drawn of
        sizes = {"weights": int(full * 1000), "reserve": max(int((start - full) * 1000), 0)}
        yield _row(point, sizes, int(most * 1000), rate(point), room, terminal)


def ends(point: Point) -> tuple[float, float]:
    """Decode tokens/s in a nearly empty context and in a full one; 0 where they are not known."""
    speed = None if point.plan is None else point.plan.speed
    if speed is None or not speed.decodes or not point.fits:
        return 0.0, 0.0
    return speed.start_tokens_per_s or speed.decode_tokens_per_s, speed.decode_tokens_per_s


def rate(point: Point) -> str:
    """Both rates in words; empty where they are not known."""
    start, full = ends(point)
    if not full:
        return ""
    words = [f"~{format_rate(start)}", f"~{format_rate(full)}"]
    return " to ".join(dict.fromkeys(words))


def _tail(curve: Curve, columns: int) -> Iterator[str]:
    for point in curve.points:
        if not point.fits:
            said = f"{point.context_tokens:,} tokens do not fit: {printable(point.because, 300)}"
            yield from wrapped(said, columns, "  ", "    ")
    yield from _over_time(curve, columns)


def _over_time(curve: Curve, columns: int) -> Iterator[str]:
    tokens = curve.chosen.context_tokens
    yield ""
    yield from wrapped(f"over time{f', with {tokens:,} tokens of context' if tokens else ''}", columns, "  ")
    for line in over_time(curve.chosen):
        yield from wrapped(line, columns, "    ", "      ")


def over_time(plan: Plan) -> Iterator[str]:
    """What a plan takes when it is started, what each later moment adds, and how far its context is safe to fill."""
    before: dict[str, int] = {}
    for stage in timeline(plan):
        changed = [f"{id} {format_bytes(n)}" for id, n in stage.used_bytes.items() if before.get(id) != n]
        lacks = stage.room_bytes is not None and stage.room_bytes < 0
        missing = f": {format_bytes(-(stage.room_bytes or 0))} are missing" if lacks else ""
        when = "started" if not before else f"then {printable(stage.what, 80)}"
        yield f"{when}: {', '.join(changed)}{missing}"
        before = stage.used_bytes
    if plan.safe_fill_tokens is not None and plan.fits:
        yield f"safe until token {plan.safe_fill_tokens:,}: the cache is allocated at the start"
