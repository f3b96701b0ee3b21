"""What the kinds of advice share: options, and how rates and tables are written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from autofit.domain.units import format_rate
from autofit.text import shell

if TYPE_CHECKING:
    from autofit.domain.plan import Speed

ABOUT_HARDWARE = ("budget", "max_price", "prices", "offload", "rows")  #: options that only rank hardware


def rate_of(speed: Speed | None) -> str:
    """The expected rate with its band; nothing of what does not decode."""
    if speed is None or not speed.decodes:
        return ""
    return f"~{format_rate(speed.decode_tokens_per_s)} ({format_rate(speed.low)} to {format_rate(speed.high)})"


def within(lines: Iterable[str], columns: int | None) -> Iterator[str]:
    """Sentences as they are, or for a terminal of so many `columns` on lines that end between words."""
    if columns is None:
        yield from lines
        return
    from autofit.render.picture import wrapped

    for line in lines:
        yield from [line] if len(line) <= columns else wrapped(line, columns, "", "  ")


def command_line(words: str, command: Iterable[str], columns: int | None) -> Iterator[str]:
    """A command behind what is said of it, or below, on a terminal that has too little room: to be copied as it is."""
    whole = f"{words} {shell.shown(command)}"
    if columns is None or len(whole) <= columns:
        yield whole
    else:
        yield from within([words], columns)
        yield from shell.shown(command, columns).split("\n")


def table_of(rows: Sequence[tuple[str, ...]], sides: str) -> Iterator[str]:
    """Columns of texts, each as wide as its widest."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        yield "  ".join(f"{c:{side}{w}}" for c, side, w in zip(cells, sides, widths, strict=True)).rstrip()
