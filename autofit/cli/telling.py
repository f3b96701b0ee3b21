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


def explanation(plan: Plan) -> Iterable[str]:
    """The lines of `--explain`, as wide as the terminal."""
    from autofit.render.explain import explain

    return explain(plan, columns())


def picks(plan: Plan) -> Iterable[str]:
    """What else there is to choose, in lines for the terminal."""
    from autofit.render.picture import picked

    return picked(plan, columns())


class Waiting:
    """What is worked at and for how long, in a line of a terminal that goes away again; not before a second.

    With it, as a context: nothing is shown where standard error is no terminal, or cannot take a line back.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._stop: Callable[[], None] | None = None

    def __enter__(self) -> Waiting:
        self.start(self.what)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, what: str) -> None:
        """Count from here."""
        if takes_lines_back():
            self.stop()
            self._stop = _counting(what)

    def stop(self) -> None:
        """Take the line back: something else is to be written."""
        if self._stop is not None:
            self._stop()
            self._stop = None


def _counting(what: str) -> Callable[[], None]:
    """Begin to count; what ends it."""
    import threading

    stream, done = sys.stderr, threading.Event()

    def count() -> None:
        seconds = 0
        while not done.wait(1.0):
            seconds += 1
            print(f"\r  {what}: {seconds} s\x1b[K", end="", file=stream, flush=True)
        if seconds:
            print("\r\x1b[K", end="", file=stream, flush=True)

    thread = threading.Thread(target=count, daemon=True)
    thread.start()

    def end() -> None:
        done.set()
        thread.join()

    return end


def takes_lines_back() -> bool:
    """Whether standard error is a terminal on which a line can be written over."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


@contextmanager
def progress(what: str) -> Iterator[Callable[[int], None]]:
    """How many are done, in one line that goes away again; nothing where standard error is no terminal."""
    stream, is_shown = sys.stderr, takes_lines_back()

    def said(n: int) -> None:
        if is_shown and n:
            print(f"\r  {n} {what}", end="", file=stream, flush=True)

    try:
        yield said
    finally:
        if is_shown:
            print("\r\x1b[K", end="", file=stream, flush=True)


def room() -> int | None:
    """The width of the terminal that shows standard output; `None` where that is something else."""
    return columns() if sys.stdout.isatty() else None


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
