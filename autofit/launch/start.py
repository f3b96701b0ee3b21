"""From a command to a process: this one, which becomes it."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from autofit.domain.text import printable
from autofit.errors import EngineError

NOT_FOUND, NOT_STARTED = 127, 126  #: exit codes of shells, env and nohup


class StartError(EngineError):
    """A program that is not there, or that the system does not start; `exit_code` as a shell has it."""

    def __init__(self, message: str, *, exit_code: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def become(path: str, arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Replace this process by a program. Nothing of ours stays: no child, no signal that is ignored, no descriptor.

    `path` is absolute, and what the program finds as its own name: by a bare one, Python would look for itself on
    `PATH`. Where no process can be replaced (Windows), returns the program's exit code.

    Raises:
        StartError: it cannot be started.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    argv = [path, *arguments]
    if os.name == "nt":
        import subprocess

        return subprocess.call(argv, env=dict(environ))
    reap()
    restore_signals()
    try:
        os.execve(path, argv, environ)  # noqa: S606 - no shell
    except OSError as error:
        if error.errno == errno.ENOEXEC:  # a script without a first line that names its shell, as shells start it
            _exec_script(argv, environ)
        raise not_started(path, error) from error
    except ValueError as error:
        raise StartError(f"{printable(path)}: {error}", exit_code=NOT_STARTED) from error


def _exec_script(argv: Sequence[str], environ: Mapping[str, str]) -> None:
    try:
        with open(argv[0], "rb") as file:  # noqa: PTH123 - one read, of bytes
            if b"\0" in file.read(256).partition(b"\n")[0]:  # a binary of another system, as bash tells it
                return
        os.execve("/bin/sh", ["/bin/sh", *argv], environ)  # noqa: S606 - a shell is meant
    except OSError as error:
        raise not_started("/bin/sh", error) from error


def not_started(path: str, error: OSError) -> StartError:
    gone = error.errno == errno.ENOENT
    hint = None
    if gone and os.path.exists(path):  # noqa: PTH110 - a path of any kind
        hint = "the program is there: the interpreter that its first line names, or its loader, is not"
    if error.errno == errno.E2BIG:
        hint = "arguments and variables are too long for this system"
    code = NOT_FOUND if gone else NOT_STARTED
    return StartError(f"{printable(path)}: {error.strerror or error}", exit_code=code, hint=hint)


def reap() -> None:
    """Take leave of children that have ended: what this process becomes would not."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def restore_signals() -> None:
    """Python ignores signals that programs expect to end them, and exec would hand that on."""
    for name in ("SIGPIPE", "SIGXFZ", "SIGXFSZ"):
        number = getattr(signal, name, None)
        if number is not None:
            signal.signal(number, signal.SIG_DFL)
