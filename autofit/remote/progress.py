"""How far a read has come, in one line of a terminal that goes away again."""

from __future__ import annotations

import sys
import threading
import time

DELAY_S = 0.5  #: a read that is done sooner says nothing
STEP_S = 0.1


class Progress:
    """Counts bytes of all threads; writes to standard error, and to a terminal alone."""

    def __init__(self, what: str, *, is_wanted: bool = True) -> None:
        self._what = what
        self._n_bytes = 0
        self._lock = threading.Lock()
        self._next = time.monotonic() + DELAY_S
        self._is_shown = False
        self._is_terminal = is_wanted and sys.stderr is not None and sys.stderr.isatty()

    def add(self, n_bytes: int) -> None:
        if not self._is_terminal:
            return
        with self._lock:
            self._n_bytes += n_bytes
            if time.monotonic() < self._next:
                return
            self._next = time.monotonic() + STEP_S
            self._is_shown = True
            print(f"\r{self._what}: {self._n_bytes / 1e6:.1f} MB read", end="\x1b[K", file=sys.stderr, flush=True)

    def done(self) -> None:
        with self._lock:
            if self._is_shown:
                print("\r", end="\x1b[K", file=sys.stderr, flush=True)
            self._is_shown = False
