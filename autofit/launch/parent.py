"""A thin parent: an engine as a child whose output is read on its way, and to which everything else passes.

Standard input, the terminal and its foreground group are the engine's own: it stays in this process's group, so that
Ctrl-C and Ctrl-Z reach it from the terminal itself. Signals that are sent to this process alone are sent on; one that
is sent to its whole group or control group (by a terminal, `timeout`, systemd) has reached the engine already, and a
second one would end it at once. Which of the two it was, a witness tells: a process in the same groups that waits for
signals too.

Output passes through a pipe, or where a terminal is written to through a terminal of its own, so that the engine sees
what it would see. When this process is killed, so is the engine (Linux). It ends as the engine ended: with its exit
code, or by its signal.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autofit.domain.values import NamedTuple
from autofit.launch.start import NOT_STARTED, not_started, restore_signals

PIECE = 1 << 16
DRAIN_SECONDS = 0.2  #: for output that others of the engine's processes still hold open when it has ended
WITNESS_SECONDS = 0.2  #: for the witness to say that it got a signal too
_PASSED = ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "CONT", "TSTP", "TTIN", "TTOU", "WINCH", "ALRM", "URG", "IO")


class Stream(NamedTuple):
    """One output of the engine: what the child has for it, where it is read here, and where it goes."""

    fd: int
    child_end: int
    own_end: int
    is_terminal: bool


class Child:
    """An engine that was started; `wait` returns its wait status.

    Raises:
        StartError: it cannot be started.
    """

    def __init__(
        self, path: str, arguments: Sequence[str], environ: Mapping[str, str], feed: Callable[[bytes], None]
    ) -> None:
        self._signals = {number for name in _PASSED if (number := getattr(signal, f"SIG{name}", None)) is not None}
        self._signals.add(signal.SIGCHLD)
        self._feed, self._ended = feed, threading.Event()
        self._lock = threading.Lock()
        sys.stdout.flush()
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        self._dies_with = _death_signal()
        self._witness = _Witness(self._signals, self._dies_with)
        self._streams = [_stream(fd) for fd in (1, 2) if _is_open(fd)]
        self.pid = self._start([path, *arguments], path, environ)
        self._pumps = [threading.Thread(target=self._pump, args=(one,), daemon=True) for one in self._streams]
        for pump in self._pumps:
            pump.start()

    def _start(self, argv: list[str], path: str, environ: Mapping[str, str]) -> int:
        parent = os.getpid()
        reads, writes = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                self._dies_with()
                if os.getppid() != parent:
                    os._exit(NOT_STARTED)
                for one in self._streams:
                    os.dup2(one.child_end, one.fd)
                restore_signals()
                for number in self._signals:
                    with contextlib.suppress(OSError, ValueError):
                        if signal.getsignal(number) not in (signal.SIG_IGN, signal.SIG_DFL):
                            signal.signal(number, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
                os.execve(path, argv, environ)  # noqa: S606 - no shell
            except OSError as error:
                os.write(writes, str(error.errno).encode())
            finally:
                os._exit(NOT_STARTED)
        os.close(writes)
        for one in self._streams:
            os.close(one.child_end)
        failed = os.read(reads, 16)
        os.close(reads)
        if failed:
            os.waitpid(pid, 0)
            self._close()
            number = int(failed)
            raise not_started(path, OSError(number, os.strerror(number)))
        return pid

    def wait(self) -> int:
        """Pass signals on until the engine has ended, and its output with it."""
        status = None
        while status is None:
            status = self._take(int(signal.sigwait(self._signals)))
        self._ended.set()
        for pump in self._pumps:
            pump.join()
        self._close()
        return status

    def _take(self, number: int) -> int | None:
        """One signal; the wait status if it told that the engine has ended."""
        if number == signal.SIGCHLD:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            return status if ended else None
        if number == signal.SIGWINCH:
            for one in self._streams:
                _copy_size(one)
        if not self._witness.got(number) or os.getpgid(self.pid) != os.getpgid(0):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)
        if number in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
            os.kill(os.getpid(), signal.SIGSTOP)  # the shell is to see that all of the job has stopped
        return None

    def _pump(self, stream: Stream) -> None:
        """Pass one output on, and read it. Where nobody takes it any more, the engine shall notice as it would."""
        with contextlib.suppress(OSError):
            while True:
                if self._ended.is_set() and not select.select([stream.own_end], [], [], DRAIN_SECONDS)[0]:
                    return
                if not select.select([stream.own_end], [], [], 0.1)[0]:
                    continue
                data = os.read(stream.own_end, PIECE)
                if not data:
                    return
                rest = data
                while rest:
                    rest = rest[os.write(stream.fd, rest) :]
                with self._lock:
                    self._feed(data)
        if not self._ended.is_set():  # ours is closed: the next write of the engine fails
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_RDONLY), stream.own_end)

    def _close(self) -> None:
        self._witness.end()
        for one in self._streams:
            with contextlib.suppress(OSError):
                os.close(one.own_end)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


def end_as(status: int) -> int:
    """The exit code of a wait status; of an engine that a signal ended, this process ends by the same signal."""
    if not os.WIFSIGNALED(status):
        return os.waitstatus_to_exitcode(status)
    import resource

    number = os.WTERMSIG(status)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the engine's own is the one of interest
    with contextlib.suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    return 128 + number


def can_watch() -> bool:
    """Whether an engine can be a child here: there is such a thing, and no thread that a copy would leave half-way."""
    return hasattr(os, "fork") and hasattr(signal, "pthread_sigmask") and threading.active_count() == 1


class _Witness:
    """A process beside the engine that says which signals it gets."""

    def __init__(self, signals: set[int], dies_with: Callable[[], Any]) -> None:
        self._says, writes = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                dies_with()
                while True:
                    os.write(writes, bytes([int(signal.sigwait(signals))]))
            finally:
                os._exit(0)
        os.close(writes)

    def got(self, number: int) -> bool:
        """Whether it got this signal too."""
        said = b""
        while select.select([self._says], [], [], 0 if number in said else WITNESS_SECONDS)[0]:
            data = os.read(self._says, 256)
            if not data:
                break
            said += data
        return number in said

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._says)


def _is_open(fd: int) -> bool:
    with contextlib.suppress(OSError):
        os.fstat(fd)
        return True
    return False


def _stream(fd: int) -> Stream:
    """What an output is replaced by for the child: a terminal where it is one, else a pipe."""
    if not os.isatty(fd):
        own, child = os.pipe()
        return Stream(fd, child, own, False)
    import pty
    import tty

    own, child = pty.openpty()
    tty.setraw(child)  # the terminal behind it does all that terminals do
    stream = Stream(fd, child, own, True)
    _copy_size(stream)
    return stream


def _copy_size(stream: Stream) -> None:
    if stream.is_terminal:
        import fcntl
        import termios

        with contextlib.suppress(OSError):
            size = fcntl.ioctl(stream.fd, termios.TIOCGWINSZ, b"\0" * 8)
            fcntl.ioctl(stream.own_end, termios.TIOCSWINSZ, size)


def _death_signal() -> Callable[[], Any]:
    """A call for the child that lets it end with its parent, however that ends; made before the copy is."""
    if sys.platform != "linux":
        return lambda: None
    import ctypes

    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return lambda: None
    return lambda: prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG


def kernel_kills() -> int | None:
    """How often the kernel has killed for lack of memory since it runs; `None` where it does not count."""
    with contextlib.suppress(OSError, ValueError), open("/proc/vmstat", encoding="ascii") as file:  # noqa: PTH123
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None
