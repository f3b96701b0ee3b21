"""A curve as SVG: what each pool holds and how fast tokens come, against the context. One file, light and dark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from math import floor, log2, log10

from autofit.domain.curve import Curve, Point
from autofit.domain.memory import KINDS, PoolUse
from autofit.domain.text import printable
from autofit.domain.units import GIB, format_bytes, format_rate
from autofit.domain.values import NamedTuple
from autofit.render.plot import ends, pools_of, rate
from autofit.render.pools import used

WIDTH, PANEL, TOP, LEFT, RIGHT, BELOW = 720, 200, 44, 64, 20, 46
N_TICKS = 5
#: Okabe and Ito's colors, as on a terminal
COLORS = {
    "weights": "#0072b2", "cache": "#e69f00", "compute": "#009e73", "runtime": "#cc79a7", "transient": "#d8c800",
}  # fmt: skip
STYLE = (
    ".c{font:13px system-ui,sans-serif;color:#1b1b1b;background:#fff}.c text{fill:currentColor}"
    ".c .h{font-weight:600}.c .a{stroke:currentColor;stroke-opacity:.25}.c .f{stroke:currentColor;stroke-dasharray:6 4}"
    ".c .l{fill:none;stroke:#0072b2;stroke-width:2}.c .n{fill:none;stroke:#d55e00;stroke-width:2;stroke-dasharray:5 3}"
    ".c .b{fill:#0072b2;fill-opacity:.18}.c .p{fill:#0072b2}.c .q{fill:#d55e00}.c .x{stroke:#d55e00;stroke-width:2}"
    ".c .k{fill:#111;paint-order:stroke;stroke:#fff;stroke-width:3px}"
    "@media(prefers-color-scheme:dark){.c{color:#e8e8e8;background:#16181c}.c .l{stroke:#56b4e9}.c .p{fill:#56b4e9}"
    ".c .n{stroke:#ff9a4d}.c .q{fill:#ff9a4d}.c .x{stroke:#ff9a4d}}"
)


class _Frame(NamedTuple):
    """Where a panel lies, and its scales."""

    y: int
    least: int  #: tokens
    most: int
    top: float  #: the largest value

    def at(self, tokens: int) -> float:
        span = log2(self.most / self.least) if self.most > self.least else 1.0
        share = log2(tokens / self.least) / span if self.most > self.least else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def up(self, value: float) -> float:
        return round(self.y + TOP + PANEL * (1 - value / self.top), 1)


_Draw = Callable[[_Frame], Iterator[str]]


def svg(curve: Curve, name: str = "curve", *, has_style: bool = True) -> str:
    """The picture. `name` begins its ids, for several in one page; without its style, the page has to have it."""
    points = [point for point in curve.points if point.context_tokens > 0]
    panels = [_memory(title, rows) for title, rows in pools_of(curve)] if points else []
    told = [point for point in points if rate(point)]
    panels += [_rates(told)] if told else []
    step = TOP + PANEL + BELOW
    tokens = [point.context_tokens for point in points] or [1]
    inner: list[str] = []
    for i, (title, top, draw) in enumerate(panels):
        frame = _Frame(i * step, min(tokens), max(tokens), top or 1.0)
        inner += [_text(LEFT, frame.y + 18, title, "h"), *_axes(frame, points, curve.chosen.context_tokens)]
        inner += draw(frame)
    height = max(len(panels) * step, 40)
    what = f"{printable(curve.title, 80)}: memory and decode rate against the context of one sequence"
    about = "; ".join(f"{point.context_tokens:,} tokens: {_told(point)}" for point in points)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="c" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img" '
        f'aria-labelledby="{name}-t {name}-d"><title id="{name}-t">{_safe(what)}</title>'
        f'<desc id="{name}-d">{_safe(about)}</desc>{f"<style>{STYLE}</style>" if has_style else ""}'
        f'<rect width="{WIDTH}" height="{height}" style="fill:var(--paper,none)"/>{"".join(inner)}</svg>'
    )


def _told(point: Point) -> str:
    sizes = ", ".join(used(point.pools))
    decode = f", decode {rate(point)} tokens/s" if rate(point) else ""
    return f"{sizes}{decode}" if point.fits else f"does not fit, {point.because}"


def _safe(text: str) -> str:
    return escape(printable(text, 4000))


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}"{named} text-anchor="{anchor}">{_safe(words)}</text>'


def _axes(frame: _Frame, points: Sequence[Point], chosen: int | None) -> Iterator[str]:
    step = _step(frame.top)
    for i in range(int(frame.top / step) + 1):
        y = frame.up(i * step)
        yield f'<path class="a" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>'
        yield _text(LEFT - 8, y + 4, f"{i * step:g}", anchor="end")
    taken: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: point.context_tokens != chosen):  # the plan's own first
        x, words = frame.at(point.context_tokens), _tokens(point.context_tokens)
        left, right = x - 4 * len(words) - 5, x + 4 * len(words) + 5
        if all(right <= other_left or left >= other_right for other_left, other_right in taken):
            taken.append((left, right))
            yield _text(x, frame.y + TOP + PANEL + 18, words, "h" if point.context_tokens == chosen else "", "middle")
    yield _text(WIDTH - RIGHT, frame.y + TOP + PANEL + 36, "tokens of context", anchor="end")


def _step(top: float) -> float:
    """1, 2 or 5 of a power of ten, for some ticks up to `top`."""
    power = 10.0 ** floor(log10(top / N_TICKS))
    return next((power * times for times in (1, 2, 5) if power * times * N_TICKS >= top), power * 10)


def _tokens(n: int) -> str:
    return f"{n // 1024}k" if n >= 1024 and n % 1024 == 0 else f"{n:,}"


def _memory(title: str, rows: Sequence[tuple[Point, PoolUse]]) -> tuple[str, float, _Draw]:
    free = max((pool.free_bytes or 0 for _, pool in rows), default=0) / GIB
    most = max(pool.used_bytes for _, pool in rows) / GIB

    def draw(frame: _Frame) -> Iterator[str]:
        base = [0.0] * len(rows)
        x = LEFT
        for kind in KINDS:
            sizes = [pool.sum_bytes(kind) / GIB for _, pool in rows]
            if kind == "reserve" or not any(sizes):
                continue
            above = [low + size for low, size in zip(base, sizes, strict=True)]
            xs = [frame.at(point.context_tokens) for point, _ in rows]
            there = [f"{a} {frame.up(v)}" for a, v in zip(xs, above, strict=True)]
            back = [f"{a} {frame.up(v)}" for a, v in zip(reversed(xs), reversed(base), strict=True)]
            yield f'<path fill="{COLORS[kind]}" d="M{"L".join(there + back)}Z"><title>{kind}</title></path>'
            yield f'<rect x="{x}" y="{frame.y + 26}" width="10" height="10" fill="{COLORS[kind]}"/>'
            yield _text(x + 14, frame.y + 35, kind)
            x += 14 + 8 * len(kind) + 12
            base = above
        if free:
            yield f'<path class="f" d="M{LEFT} {frame.up(free)}H{WIDTH - RIGHT}"/>'
            yield _text(WIDTH - RIGHT, frame.y + 35, f"- - {format_bytes(int(free * GIB))} free", anchor="end")
        for point, pool in rows:
            a, b = frame.at(point.context_tokens), frame.up(pool.used_bytes / GIB)
            said = f"<title>{_safe(f'{point.context_tokens:,} tokens: {_told(point)}')}</title>"
            mark = f'<circle cx="{a}" cy="{b}" r="3.5" class="p">{said}</circle>'
            cross = f'<path class="x" d="M{a - 5} {b - 5}l10 10m0-10l-10 10">{said}</path>'
            yield mark if point.fits else cross
            if words := point.kv if point.fits else "does not fit":
                yield _text(a, b + 18, words, "k", anchor="end" if a > WIDTH / 2 else "start")

    return f"{title}, GiB", max(free, most), draw


def _rates(points: Sequence[Point]) -> tuple[str, float, _Draw]:
    speeds = [point.plan.speed for point in points if point.plan is not None and point.plan.speed is not None]
    most = max(max(ends(point)[0], speed.high) for point, speed in zip(points, speeds, strict=True))

    def draw(frame: _Frame) -> Iterator[str]:
        xs = [frame.at(point.context_tokens) for point in points]
        high = [f"{x} {frame.up(speed.high)}" for x, speed in zip(xs, speeds, strict=True)]
        low = [f"{x} {frame.up(speed.low)}" for x, speed in zip(xs, speeds, strict=True)]
        yield f'<path class="b" d="M{"L".join([*high, *reversed(low)])}Z"/>'
        for kind, mark, i in (("l", "p", 1), ("n", "q", 0)):
            line = [f"{x} {frame.up(ends(point)[i])}" for x, point in zip(xs, points, strict=True)]
            yield f'<path class="{kind}" d="M{"L".join(line)}"/>'
            for x, point in zip(xs, points, strict=True):
                when = "with the context full" if i else "in a nearly empty context"
                said = f"{point.context_tokens:,} tokens: ~{format_rate(ends(point)[i])} tokens/s {when}"
                yield (
                    f'<circle cx="{x}" cy="{frame.up(ends(point)[i])}" r="3.5" class="{mark}">'
                    f"<title>{_safe(said)}</title></circle>"
                )
        y = frame.y + 31
        yield f'<path class="l" d="M{LEFT} {y}h24"/>'
        yield _text(LEFT + 30, y + 4, "context full, and where 9 of 10 machines land")
        yield f'<path class="n" d="M{LEFT + 350} {y}h24"/>{_text(LEFT + 380, y + 4, "context nearly empty")}'

    return "decode, tokens/s of each sequence", most, draw
