"""What a program prints, within limits of time and size; what does not end is killed with all that it started."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING

from autofit.hardware.programs import MAX_TEXT_BYTES, ToolError, ToolTimeoutError, find_program

if TYPE_CHECKING:
    import subprocess


def run_tool(argv: Sequence[str], seconds: float) -> str:
    """The standard output of a program, killed after `seconds`, or when it prints more than `MAX_TEXT_BYTES`.

    Raises:
        ToolError: not installed, failed, too slow, or too much output.
    """
    return run_both(argv, seconds)[0]


def run_both(
    argv: Sequence[str],
    seconds: float,
    *,
    environ: Mapping[str, str] | None = None,
    limit_bytes: int = MAX_TEXT_BYTES,
) -> tuple[str, str]:
    """What a program prints on its two streams, under the limits of `run_tool`; `environ` are its variables.

    Raises:
        ToolError: not installed, failed, too slow, or too much output.
    """
    import subprocess

    environ = {**os.environ, "LC_ALL": "C"} if environ is None else environ
    program = find_program(argv[0], environ)
    if program is None:
        raise ToolError(f"{argv[0]}: not installed")
    if seconds <= 0:
        raise ToolTimeoutError(f"{argv[0]}: no time left")
    deadline = time.monotonic() + seconds
    try:
        process = subprocess.Popen(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=dict(environ),
            start_new_session=True,  # so that what it starts can be killed with it
        )
    except (OSError, ValueError) as cause:
        raise ToolError(f"{argv[0]}: {getattr(cause, 'strerror', None) or cause}") from cause
    with process:
        try:
            outputs = [_Output(stream, limit_bytes) for stream in (process.stdout, process.stderr) if stream]
            while any(output.is_alive() for output in outputs) and not any(output.is_flood for output in outputs):
                if time.monotonic() >= deadline:
                    raise ToolTimeoutError(f"{argv[0]}: no answer within {seconds:.2g} s")
                for output in outputs:
                    output.join(min(0.01, max(0.0, deadline - time.monotonic())))
            if any(output.is_flood for output in outputs):
                raise ToolError(f"{argv[0]}: more than {limit_bytes} bytes of output")
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise ToolTimeoutError(f"{argv[0]}: no answer within {seconds:.2g} s") from None
        except BaseException:
            _kill(process)
            raise
    stdout, stderr = (output.data.decode("utf-8", "replace") for output in outputs)
    if process.returncode:
        said = (stderr[:400].strip() or stdout.strip()[:200]).splitlines()
        raise ToolError(f"{argv[0]}: exit code {process.returncode}{': ' + said[0] if said else ''}")
    return stdout, stderr


class _Output(threading.Thread):
    """What a program prints on one stream, `limit_bytes` at most; the rest stays in the pipe."""

    def __init__(self, stream: IO[bytes], limit_bytes: int) -> None:
        super().__init__(daemon=True)
        self.stream, self.limit_bytes = stream, limit_bytes
        self.data = b""
        self.is_flood = False
        self.start()

    def run(self) -> None:
        parts: list[bytes] = []
        size = 0
        with contextlib.suppress(OSError, ValueError):  # closed under us, after a time-out
            while part := self.stream.read(1 << 16):
                size += len(part)
                if size > self.limit_bytes:
                    self.is_flood = True
                    return
                parts.append(part)
        self.data = b"".join(parts)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process, and with it all of its session where there is such a thing."""
    if hasattr(os, "killpg"):
        import signal

        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
