"""The plan on a terminal: a bar for each pool to scale, what limits it, and the remarks within the width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from string import ascii_letters
from typing import NamedTuple

from autofit.domain.memory import KINDS, PoolUse
from autofit.domain.plan import Plan
from autofit.domain.text import printable
from autofit.domain.units import format_bytes
from autofit.domain.values import replace
from autofit.render import text

EXPLAINS = "--explain shows the next step up"
LEAST_COLUMNS, MOST_BAR = 28, 100
FULL_FRACTION = 0.05  #: of free memory: with less left, the pool is what limits the plan
#: kind -> a character, one of ASCII, and a color of the 256 that people tell apart who see colors differently
#: (Okabe and Ito's set); the characters differ as well, so that no color is needed
_MARKS: Mapping[str, tuple[str, str, int]] = {
    "weights": ("█", "#", 32),
    "cache": ("▓", "=", 214),
    "compute": ("▒", "+", 36),
    "runtime": ("░", "-", 175),
    "transient": ("╱", "/", 220),
    "reserve": ("·", ".", 245),
}


class Terminal(NamedTuple):
    """What a terminal shows: columns, colors, and characters beyond ASCII."""

    columns: int = 80
    has_color: bool = False
    has_blocks: bool = True

    def marked(self, kind: str, n: int) -> str:
        block, plain, color = _MARKS[kind]
        drawn = (block if self.has_blocks else plain) * n
        return f"\x1b[38;5;{color}m{drawn}\x1b[0m" if self.has_color and n else drawn


def terminal_of(environ: Mapping[str, str], columns: int, encoding: str | None) -> Terminal:
    """How to draw, by the variables that people set for it: `NO_COLOR` (no-color.org), `TERM=dumb`, the encoding."""
    is_dumb = environ.get("TERM", "") in ("", "dumb")
    return Terminal(
        columns=max(columns, LEAST_COLUMNS),
        has_color=not is_dumb and not environ.get("NO_COLOR"),
        has_blocks=not is_dumb and (encoding or "").lower().replace("-", "") in ("utf8", "utf16", "gb18030"),
    )


def picture(plan: Plan, terminal: Terminal) -> Iterator[str]:
    """The summary of a plan, no line wider than the terminal."""
    for name, pools in folded(plan.memory.pools):
        yield from _pool(name, fullest(pools), terminal)
    facts = list(text.facts(plan))
    yield from wrapped(" · ".join(facts), terminal.columns, "  ") if facts else ()
    told = next_step(plan) or (EXPLAINS if "limits it" in limit(plan) else "")
    yield from wrapped(f"{limit(plan)}{f'; {told}' if told else ''}", terminal.columns, "  ")
    if plan.engine_source is not None:
        yield from wrapped(f"for {printable(plan.engine_source, 200)}", terminal.columns, "  ")
    for found in plan.findings:
        yield from wrapped(text.finding(found).strip(), terminal.columns, "  ", "    ")


def picked(plan: Plan, columns: int) -> Iterator[str]:
    """What one or two options more would give, where that is a real choice."""
    for one in plan.alternatives:
        if one.pick is not None:
            yield from wrapped(text.pick(one), columns, "  ", "    ")


def folded(pools: Sequence[PoolUse]) -> Iterator[tuple[str, Sequence[PoolUse]]]:
    """Neighbors that are alike together, with what to call them."""
    at = 0
    while at < len(pools):
        alike = [pool for pool in pools[at:] if _alike(pool, pools[at])]
        n = next((n for n, (a, b) in enumerate(zip(alike, pools[at:], strict=False)) if a is not b), len(alike))
        together = pools[at : at + n]
        name = printable(together[0].name, 40)
        yield (f"{together[0].id}  {name}" if n == 1 else f"{_ids(together)}  {n} × {name}", together)
        at += n


def fullest(pools: Sequence[PoolUse]) -> PoolUse:
    """The one that most is used of."""
    return max(pools, key=lambda pool: pool.used_bytes)


def _ids(pools: Sequence[PoolUse]) -> str:
    """`GPU0 to GPU7` where they are in a row, else each."""
    names = [pool.id for pool in pools]
    numbers = [name.lstrip(ascii_letters) for name in names]
    is_row = all(number.isdecimal() for number in numbers) and [int(number) for number in numbers] == list(
        range(int(numbers[0]), int(numbers[0]) + len(names))
    )
    return f"{names[0]} to {names[-1]}" if is_row and len(names) > 2 else ", ".join(names)


def _alike(one: PoolUse, other: PoolUse) -> bool:
    """Cards of one kind, within 1 % of the same use."""
    more, less = max(one.used_bytes, other.used_bytes), min(one.used_bytes, other.used_bytes)
    return (one.name, one.total_bytes, one.free_bytes) == (other.name, other.total_bytes, other.free_bytes) and (
        (more - less) * 100 <= more and not one.limits and not other.limits
    )


def _pool(name: str, pool: PoolUse, terminal: Terminal) -> Iterator[str]:
    """Its name and room, its bar, and the size of each part."""
    room = text.room(pool)
    gap = min(terminal.columns, MOST_BAR + 4) - 2 - len(name) - len(room)  # ends where the bar does
    if gap >= 2:
        yield f"  {name}{' ' * gap}{room}"
    else:
        yield from wrapped(name, terminal.columns, "  ")
        yield from wrapped(room, terminal.columns, "  ")
    width = min(terminal.columns - 4, MOST_BAR)
    sizes: dict[str, int] = {kind: pool.sum_bytes(kind) for kind in KINDS}
    yield f"  [{bar(sizes, max(pool.free_bytes or 0, sum(sizes.values())), width, terminal)}]"
    parts = [(kind, f"{'margin' if kind == 'reserve' else kind} {format_bytes(n)}") for kind, n in sizes.items() if n]
    yield from legend(parts, terminal)


def bar(sizes: Mapping[str, int], whole_bytes: int, width: int, terminal: Terminal) -> str:
    """Parts of a whole to scale."""
    whole = max(whole_bytes, 1)
    drawn: list[str] = []
    before = n_drawn = 0
    for kind, n_bytes in sizes.items():
        before += n_bytes
        n = max(before * width // whole - n_drawn, 1 if n_bytes else 0)  # a part that is there is seen
        n = min(n, width - n_drawn)
        drawn.append(terminal.marked(kind, n))
        n_drawn += n
    return "".join(drawn) + " " * (width - n_drawn)


def legend(parts: Sequence[tuple[str, str]], terminal: Terminal) -> Iterator[str]:
    """Each part with its mark, as many in a line as there is room for."""
    line, length = "  ", 2
    for kind, said in parts:
        if length > 2 and length + len(said) + 4 > terminal.columns:
            yield line.rstrip()
            line, length = "  ", 2
        line += f"{terminal.marked(kind, 1)} {said}  "
        length += len(said) + 4
    if length > 2:
        yield line.rstrip()


def next_step(plan: Plan) -> str:
    """What the next better value of a setting would need, where that was looked for."""
    for one in plan.decisions:
        step = one.next_rejected
        if step is not None and step.shortfall_bytes and plan.fits:
            return f"next: {printable(one.setting, 40)} {text.rejected(replace(step, because=''))}"
    return ""


def limit(plan: Plan) -> str:
    """What limits the plan: the pool with the least room left for its size."""
    rooms = [(pool, pool.room_bytes) for pool in plan.memory.pools]
    known = [(pool, room) for pool, room in rooms if room is not None and pool.free_bytes]
    if not known:
        return "what limits it is not known: free memory was not told"
    pool, room = min(known, key=lambda one: one[1] / (one[0].free_bytes or 1))
    if room < 0:
        return f"{pool.id} lacks {format_bytes(-room)}"
    if room > FULL_FRACTION * (pool.free_bytes or 0):
        return f"nothing is short: of {pool.id}, the fullest, {format_bytes(room)} are left beside the margin"
    return f"{pool.id} limits it: {format_bytes(room)} are left beside the margin"


def wrapped(words: str, columns: int, first: str, then: str | None = None) -> Iterator[str]:
    import textwrap

    yield from textwrap.wrap(
        words, max(columns, LEAST_COLUMNS), initial_indent=first, subsequent_indent=first if then is None else then
    )
