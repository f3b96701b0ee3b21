"""Lines out of whatever a log is kept in: pieces of any size, any line end, colors, UTF-16, bytes that are no text.

Time and memory are bounded: a line is cut at `MAX_LINE_BYTES`, and what holds none of the words looked for is dropped
before anything is decoded.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence

from autofit.logs.commands import goes_on, joined

MAX_LINE_BYTES = 1 << 15
#: over which one command may be written
MAX_COMMAND_LINES = 100
_COLORS = re.compile(r"(?:\x1b|\\u001b|\\x1b|\\033)(?:\[[0-9;?]{0,24}[ -/]?[@-~]|\][^\x07\x1b]{0,200}\x07?)")
_ENDS = re.compile(rb"[\r\n]+")
#: what records of JSON, one a line, call the text of a line: Docker's files, journald, Loki, Fluentd, Google's
_NAME = re.compile(r'[{,]\s*"(?:log|MESSAGE|line|message|textPayload)"\s*:\s*"')
_STRING = re.compile(r'((?:[^"\\]|\\.)*+)"')
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|[\"\\/bfnrt])")
_ESCAPED = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_UTF_16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_HEAD_BYTES = 4  #: that tell how a log is encoded


class Lines:
    """Lines that hold one of `needles`, with their numbers, out of pieces of a log.

    A carriage return ends a line, as progress bars use it; only newlines are counted. A line of interest behind which
    a shell reads on (it ends in a backslash) is told with the next ones, as one line, when the last of them is there.
    """

    def __init__(self, needles: Sequence[bytes]) -> None:
        self.look_for(needles)
        self._rest = b""
        self._is_cut = False  # the rest of the line that goes on is dropped
        self._decoder: codecs.IncrementalDecoder | None = None
        self._head = b""  # of a log of which not even the mark is there yet
        self._is_begun = False
        self._is_returned = False  # what is there ends in a carriage return
        self._command: tuple[int, int, str] | None = None  # one that goes on: its number, its lines, what is there
        self.number = 1

    def look_for(self, needles: Sequence[bytes]) -> None:
        """From now on, lines that hold one of these."""
        self._needles = tuple(needles)

    def feed(self, data: bytes) -> Iterator[tuple[int, str]]:
        """The next piece: number and text of each whole line in it that is of interest."""
        data = self._as_utf_8(data)
        if not data:
            return
        if self._is_cut:
            data = self._behind_cut(data)
        if self._is_returned and data[:1] == b"\n":  # Windows' line end, in two pieces
            self.number, data = self.number + 1, data[1:]
        self._is_returned = False
        whole, sep, rest = self._split(data)
        if not sep:
            self._keep(data)
            return
        # what is of no interest goes as a whole: a flood is searched, but not taken apart
        self._is_returned = sep == b"\r" and not rest
        start, number, self._rest = self._rest + whole, self.number, b""
        self.number += start.count(b"\n") + sep.count(b"\n")
        if self._command is not None or any(needle in start for needle in self._needles):
            yield from self._of_interest(start, number)
        self._keep(rest)

    def end(self) -> Iterator[tuple[int, str]]:
        """The last line, where the log ends without a newline."""
        text, self._head, self._rest = self._rest or self._head, b"", b""
        if self._command is not None or any(needle in text for needle in self._needles):
            yield from self._of_interest(text, self.number)
        if self._command is not None:
            (number, _, told), self._command = self._command, None
            yield number, told

    def _split(self, data: bytes) -> tuple[bytes, bytes, bytes]:
        """What is before the last line end, that end, and what is behind it."""
        at = max(data.rfind(b"\n"), data.rfind(b"\r"))
        return (data[:at], data[at : at + 1], data[at + 1 :]) if at >= 0 else (data, b"", b"")

    def _behind_cut(self, data: bytes) -> bytes:
        """What is left where the rest of a line is dropped: nothing before its end."""
        ends = _ENDS.search(data)
        if ends is None:
            return b""
        self._is_cut = False
        return data[ends.start() :]

    def _keep(self, data: bytes) -> None:
        """Put the start of a line away until its end comes; of an endless one, no more than its start."""
        if self._is_cut:
            return
        self._rest += data[: MAX_LINE_BYTES - len(self._rest)]
        if len(self._rest) >= MAX_LINE_BYTES:
            # the start of a long line may say something; it is told when its end comes
            self._is_cut = not any(needle in self._rest for needle in self._needles)
            if self._is_cut:
                self._rest = b""

    def _of_interest(self, block: bytes, number: int) -> Iterator[tuple[int, str]]:
        for raw in block.split(b"\n"):
            for line in _ENDS.split(raw.rstrip(b"\r")) if b"\r" in raw else (raw,):
                if self._command is not None or any(needle in line for needle in self._needles):
                    yield from self._or_more(number, clean(line[:MAX_LINE_BYTES]))
            number += 1

    def _or_more(self, number: int, line: str) -> Iterator[tuple[int, str]]:
        """A line, or nothing yet where it is a part of a command that goes on."""
        if self._command is None:
            if goes_on(line):
                self._command = number, 1, line
            else:
                yield number, line
            return
        start, n_lines, told = self._command
        told, n_lines = joined(told, line), n_lines + 1
        if goes_on(line) and n_lines < MAX_COMMAND_LINES and len(told) < MAX_LINE_BYTES:
            self._command = start, n_lines, told
        else:
            self._command = None
            yield start, told[:MAX_LINE_BYTES]

    def _as_utf_8(self, data: bytes) -> bytes:
        """Windows' shells redirect output as UTF-16, with a mark at its start or, appended to a file, without."""
        if not self._is_begun and data:
            if len(self._head + data) < _HEAD_BYTES:
                self._head += data
                return b""
            data, self._head, self._is_begun = self._head + data, b"", True
            marked = _UTF_16.get(data[:2])
            name = marked or _unmarked(data[:_HEAD_BYTES])
            if name is not None:
                self._decoder = codecs.getincrementaldecoder(name)(errors="replace")
                data = data[2:] if marked else data
        return self._decoder.decode(data).encode("utf-8", "replace") if self._decoder is not None else data


def _unmarked(head: bytes) -> str | None:
    """UTF-16 without a mark: every other byte of what an engine writes first is zero, and no other is."""
    for name, zeros, others in (("utf-16-le", head[1::2], head[::2]), ("utf-16-be", head[::2], head[1::2])):
        if not any(zeros) and all(others):
            return name
    return None


def clean(line: bytes) -> str:
    """A line as text, out of the record that it is kept in, without colors; what is no UTF-8 becomes a replacement
    character."""
    text = line.decode("utf-8", "replace").rstrip()
    if text.startswith("{") and text.endswith("}"):
        text = _recorded(text)
    return _COLORS.sub("", text) if "\x1b" in text or "\\" in text else text


def _recorded(text: str) -> str:
    """The text that a record of JSON holds; what is no such record is itself the text."""
    name = _NAME.search(text)
    held = name and _STRING.match(text, name.end())
    if not held:
        return text
    told = _ESCAPE.sub(lambda match: _ESCAPED.get(match[1]) or chr(int(match[1][1:], 16)), held[1])
    return told.encode("utf-16", "surrogatepass").decode("utf-16", "replace").rstrip()
