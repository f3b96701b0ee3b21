"""The summary of a plan on standard error: a picture on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autofit.domain.plan import Plan


def summary(plan: Plan) -> Iterable[str]:
    """The lines of the summary, drawn for the terminal where standard error is one."""
    if not sys.stderr.isatty():
        from autofit.render import text

        return text.summary(plan)
    from autofit.render.picture import picture, terminal_of

    stream = getattr(sys.stderr, "stream", sys.stderr)
    return picture(plan, terminal_of(os.environ, columns(), getattr(stream, "encoding", None)))


def picks(plan: Plan) -> Iterable[str]:
    """What else there is to choose, in lines for the terminal."""
    from autofit.render.picture import picked

    return picked(plan, columns())


@contextmanager
def progress(what: str) -> Iterator[Callable[[int], None]]:
    """How many are done, in one line that goes away again; nothing where standard error is no terminal."""
    stream = sys.stderr
    is_shown = stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")

    def said(n: int) -> None:
        if is_shown and n:
            print(f"\r  {n} {what}", end="", file=stream, flush=True)

    try:
        yield said
    finally:
        if is_shown:
            print("\r\x1b[K", end="", file=stream, flush=True)


def columns() -> int:
    """The width of the terminal, as `shutil.get_terminal_size` finds it."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    for descriptor in (2, 1):
        try:
            return os.get_terminal_size(descriptor).columns or 80
        except OSError:
            continue
    return 80
