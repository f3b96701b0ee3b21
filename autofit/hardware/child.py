"""A source asked by a process of its own: a driver's library that aborts, or never returns, takes only that down."""

from __future__ import annotations

import contextlib
import os
import pickle  # once for both processes
import select
import signal
import time
import warnings
from collections.abc import Callable

from autofit.hardware.facts import Facts

MAX_ANSWER_BYTES = 1 << 22
MAX_SECONDS = 120


class ChildError(Exception):
    """The child gave no answer; the text says why."""


class Child:
    """A copy of this process that calls `ask` and sends back what it returns.

    It is made before the threads that ask other sources start: a copy made while one of these imports a module would
    wait for that import for ever.
    """

    def __init__(self, ask: Callable[[], Facts]) -> None:
        self.answers, sends = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a caller of the library may have threads
            self.pid = os.fork()
        if self.pid == 0:
            _answer(ask, sends)
        os.close(sends)

    def facts(self, seconds: float) -> Facts:
        """What the child found.

        Raises:
            ChildError: it ended without an answer, or has none within `seconds`.
        """
        deadline = time.monotonic() + seconds
        data = b""
        try:
            while select.select([self.answers], [], [], max(0.0, deadline - time.monotonic()))[0]:
                part = os.read(self.answers, 1 << 16)
                if not part:
                    break
                data += part
            else:
                raise TimeoutError
            if not data or len(data) > MAX_ANSWER_BYTES:
                raise ChildError(f"its library ended the process that asked it ({self._end()})")
            facts: Facts = pickle.loads(data)  # noqa: S301 - written by this program's own copy
            return facts
        finally:
            os.close(self.answers)
            self._end()

    def _end(self) -> str:
        """End the child, if it is there; returns how it ended, in one word."""
        if self.pid < 0:
            return "ended"
        ended, status = self._wait()
        if not ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            ended, status = self._wait()
        self.pid = -1
        return signal.Signals(os.WTERMSIG(status)).name if ended and os.WIFSIGNALED(status) else "ended"

    def _wait(self) -> tuple[int, int]:
        """As `waitpid`, for a moment only: nothing ends a process that hangs inside a driver."""
        for pause in (0.0, 0.001, 0.01):
            time.sleep(pause)
            try:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has waited for it
                return self.pid, 0
            if ended:
                return ended, status
        return 0, 0


def _answer(ask: Callable[[], Facts], sends: int) -> None:
    """The child's whole life."""
    try:
        import fcntl
        import resource

        sends = fcntl.fcntl(sends, fcntl.F_DUPFD, 3)  # it may have the number of a stream that was closed
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(MAX_SECONDS)  # nobody else ends a child that hangs after the parent was killed
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # what the library prints is nobody's answer
            os.dup2(nowhere, stream)
        data = memoryview(pickle.dumps(ask()))
        while data:
            data = data[os.write(sends, data) :]
    finally:
        os._exit(0)  # no handler of the parent's runs in the copy
