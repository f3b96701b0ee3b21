"""Standard output and standard error of a command: they take any text, and being closed or full is no traceback."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from typing import TextIO

#: how the signs of messages are written where the encoding lacks them
PLAIN = {"·": "|", "×": "x", "…": "..."}


class Closed(io.TextIOBase):
    """Standard output that was closed before the start: what is written to it is lost, and that is a failure."""

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "standard output is closed")


class Messages(io.TextIOBase):
    """Standard error: a place without room for messages, or closed, does not change what a command has done."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        if self.stream is not None:
            with contextlib.suppress(OSError):
                self.stream.write(text)
                self.stream.flush()
        return len(text)

    def flush(self) -> None:
        return None

    def isatty(self) -> bool:
        return self.stream is not None and self.stream.isatty()

    def fileno(self) -> int:
        if self.stream is None:
            raise OSError(errno.EBADF, "standard error is closed")
        return self.stream.fileno()


def open_streams() -> None:
    """Standard streams that take any text: bytes of a file's name as they are, what the locale lacks escaped."""
    if sys.stdout is None:
        sys.stdout = Closed()
    codecs.register_error("autofit.written", written)
    codecs.register_error("autofit.told", told)
    if not isinstance(sys.stderr, Messages):
        if isinstance(sys.stderr, io.TextIOWrapper):
            sys.stderr.reconfigure(errors="autofit.told")
        sys.stderr = Messages(sys.stderr)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="autofit.written")


def give_up_stdout() -> None:
    """Let what could not be written go, so that the end of the process does not try it again."""
    with contextlib.suppress(OSError, ValueError):  # no descriptor: closed, or a stream that somebody put there
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def written(error: UnicodeError) -> tuple[bytes, int]:
    """How characters that an encoding lacks are written (a handler of `codecs`)."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    # U+DC80 to U+DCFF stand for the bytes of a name that is no text (PEP 383)
    parts = [
        bytes([ord(c) - 0xDC00]) if "\udc80" <= c <= "\udcff" else c.encode("ascii", "backslashreplace") for c in text
    ]
    return b"".join(parts), error.end


def told(error: UnicodeError) -> tuple[bytes, int]:
    """The same in messages, which people read: their own signs as `PLAIN`, anything else escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return b"".join(PLAIN.get(c, c).encode("ascii", "backslashreplace") for c in text), error.end
