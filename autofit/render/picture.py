"""The plan on a terminal: a bar for each pool to scale, what limits it, and the remarks within the width."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from autofit.domain.memory import KINDS, PoolUse
from autofit.domain.plan import Plan
from autofit.domain.text import printable
from autofit.domain.units import format_bytes
from autofit.render import text
from autofit.render.pools import folded, fullest

LEAST_COLUMNS, MOST_BAR = 28, 100
_JOINED = "\xa0"  #: a blank at which no line ends
_TOGETHER = re.compile(r"\d (?=[KMGT]?i?B\b|tokens\b)|(?<![\w-])--?[a-z][\w-]* (?=[\w.:,]{1,16}(?:[\s;,)]|$))")
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
    has_bars: bool = True  #: not where a picture of characters is noise: to a screen reader

    def marked(self, kind: str, n: int) -> str:
        block, plain, color = _MARKS[kind]
        drawn = (block if self.has_blocks else plain) * n
        return f"\x1b[38;5;{color}m{drawn}\x1b[0m" if self.has_color and n else drawn


def terminal_of(environ: Mapping[str, str], columns: int, encoding: str | None) -> Terminal:
    """How to draw, by the variables that people set for it: `NO_COLOR` (no-color.org), `TERM=dumb`, the encoding."""
    is_dumb = environ.get("TERM", "") in ("", "dumb")
    return Terminal(
        has_bars=not is_dumb,
        columns=max(columns, LEAST_COLUMNS),
        has_color=not is_dumb and not environ.get("NO_COLOR"),
        has_blocks=not is_dumb and (encoding or "").lower().replace("-", "") in ("utf8", "utf16", "gb18030"),
    )


def picture(plan: Plan, terminal: Terminal) -> Iterator[str]:
    """The summary of a plan, no line wider than the terminal."""
    for name, pools in folded(plan.memory.pools):
        draw = _pool if terminal.has_bars else _told
        yield from draw(name, pools, terminal)
        for one in pools[0].limits:
            yield from wrapped(text.limit_row(one, pools[0]), terminal.columns, "  ", "    ")
    yield from filled(list(text.facts(plan)), terminal.columns)
    for words in text.limits(plan):
        yield from wrapped(words, terminal.columns, "  ")
    if plan.engine_source is not None:
        yield from wrapped(f"for {printable(plan.engine_source, 200)}", terminal.columns, "  ")
    for found in text.told(plan):
        yield from wrapped(text.finding(found).strip(), terminal.columns, "  ", "    ")


def picked(plan: Plan, columns: int) -> Iterator[str]:
    """What one or two options more would give, where that is a real choice."""
    for one in plan.alternatives:
        if one.pick is not None:
            yield from wrapped(text.pick(one), columns, "  ", "    ")


def _pool(name: str, pools: Sequence[PoolUse], terminal: Terminal) -> Iterator[str]:
    """Its name and room, its bar, and the size of each part."""
    pool, room = fullest(pools), text.room(pools)
    gap = min(terminal.columns, MOST_BAR + 4) - 2 - len(name) - len(room)  # ends where the bar does
    if gap >= 2:
        yield f"  {name}{' ' * gap}{room}"
    else:
        yield from wrapped(name, terminal.columns, "  ")
        yield from wrapped(room, terminal.columns, "  ")
    width = min(terminal.columns - 4, MOST_BAR)
    sizes: dict[str, int] = {kind: pool.sum_bytes(kind) for kind in KINDS}
    drawn = bar(sizes, max(pool.free_bytes or 0, sum(sizes.values())), width, terminal, pool.free_bytes)
    yield f"  [{drawn}]"
    yield from legend([(kind, f"{text.called(kind)} {format_bytes(n)}") for kind, n in sizes.items() if n], terminal)


def _told(name: str, pools: Sequence[PoolUse], terminal: Terminal) -> Iterator[str]:
    """The same in words, for those who hear them."""
    pool = fullest(pools)
    sizes = {kind: pool.sum_bytes(kind) for kind in KINDS}
    parts = ", ".join(f"{text.called(kind)} {format_bytes(n)}" for kind, n in sizes.items() if n)
    name = " ".join(name.split())
    yield from wrapped(f"{name}: {text.room(pools)}", terminal.columns, "  ", "    ")
    if parts:
        yield from wrapped(parts, terminal.columns, "    ")


def bar(
    sizes: Mapping[str, int], whole_bytes: int, width: int, terminal: Terminal, free_bytes: int | None = None
) -> str:
    """Parts of a whole to scale; where more is needed than there is, a line where that ends."""
    whole = max(whole_bytes, 1)
    ends = None if free_bytes is None or free_bytes >= whole_bytes else min(free_bytes * width // whole, width - 1)
    drawn: list[str] = []
    before = n_drawn = 0
    for kind, n_bytes in sizes.items():
        before += n_bytes
        n = max(before * width // whole - n_drawn, 1 if n_bytes else 0)  # a part that is there is seen
        n = min(n, width - n_drawn)
        if ends is not None and n_drawn <= ends < n_drawn + n:
            drawn += [terminal.marked(kind, ends - n_drawn), "|", terminal.marked(kind, n_drawn + n - ends - 1)]
        else:
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


def filled(parts: Sequence[str], columns: int) -> Iterator[str]:
    """Parts with a dot between them, as many in a line as there is room for; a line ends between two where it can."""
    line = ""
    for part in parts:
        if line and 2 + len(line) + 3 + len(part) <= columns:
            line += f" · {part}"
            continue
        if line:
            yield from wrapped(line, columns, "  ", "    ")
        line = part
    if line:
        yield from wrapped(line, columns, "  ", "    ")


def wrapped(words: str, columns: int, first: str, then: str | None = None) -> Iterator[str]:
    """Lines that end between words: names stay whole, numbers stay with their units and flags with short values."""
    import textwrap

    lines = textwrap.wrap(
        _TOGETHER.sub(lambda found: found[0].replace(" ", _JOINED), words.replace(_JOINED, " ")),
        max(columns, LEAST_COLUMNS),
        initial_indent=first,
        subsequent_indent=first if then is None else then,
        break_long_words=False,
        break_on_hyphens=False,
    )
    yield from (line.replace(_JOINED, " ") for line in lines)
