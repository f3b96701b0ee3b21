"""Structure-aware fuzzers: each makes an input from a seed, and runs it against one promise.

The promise is the same everywhere: an answer or an `AutofitError`, in bounded time, without a character in its text
that a terminal acts on, and JSON that is strict. Anything else is an escape.
"""

from __future__ import annotations

import json
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from autofit.errors import AutofitError, PluginError

MAX_SECONDS = 20.0  #: of a processor, of one input
WAITS = 10  #: so many times as long by the clock: a machine may be busy with others, or a process stopped


@dataclass(frozen=True, slots=True)
class Target:
    """One fuzzer: `make` draws an input, which `json` can hold, and `run` puts it to the test."""

    name: str
    make: Callable[[random.Random], Any]
    run: Callable[[Any], None]
    short: int  #: inputs of the run by default, a second or two


class TooSlowError(Exception):
    """An input that took longer than `MAX_SECONDS`."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End what is inside after so many seconds of a processor, where the system has such a timer."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: object) -> None:
        raise TooSlowError(f"more than {seconds:g} s")

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, seconds), (signal.ITIMER_REAL, signal.SIGALRM, WAITS * seconds))
    before = [signal.signal(number, stop) for _, number, _ in timers]
    for timer, _, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (timer, number, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def escape_of(target: Target, given: Any, seconds: float = MAX_SECONDS) -> str | None:
    """What got out of `target` for this input, in one line, or `None` if it kept its promise."""
    try:
        with limited(seconds):
            target.run(given)
    except PluginError as error:  # a backend's exception, which the host gives this name
        return _located(error.__cause__ or error)
    except AutofitError as error:
        text = error.message + (error.hint or "")
        if not text.isprintable() or len(text) > 10_000:
            return f"unclean message: {text!r:.300}"
        return None
    except Exception as error:  # the escape that is looked for
        return _located(error)
    return None


def _located(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/autofit" in f.filename and "/tests/" not in f.filename]
    where = f"{own[-1].filename.rpartition('/autofit')[2]}:{own[-1].lineno}" if own else "?"
    return f"{type(error).__name__} at autofit{where}: {str(error)[:160]!r}"


def run_for(target: Target, *, seed: int, count: int | None = None, seconds: float | None = None) -> Iterator[str]:
    """Escapes, each with its input as JSON; ends after `count` inputs or `seconds`. Yields "" for each that held."""
    end = None if seconds is None else time.monotonic() + seconds
    number = 0
    while (count is None or number < count) and (end is None or time.monotonic() < end):
        rng = random.Random(f"{target.name} {seed} {number}")
        given = target.make(rng)
        found = escape_of(target, given)
        number += 1
        yield "" if found is None else json.dumps({"escape": found, "target": target.name, "input": given})
