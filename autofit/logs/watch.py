"""Following an engine's output: a table of messages over lines, kept in notes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING

from autofit.logs import process
from autofit.logs.lines import Lines
from autofit.logs.messages import Message
from autofit.logs.notes import Notes

if TYPE_CHECKING:
    from autofit.domain.observed import Observed

MAX_PIECE = 1 << 20
#: how often one message may stand in one line: two processes that write at once put lines together
MAX_IN_LINE = 8
#: how often one message is looked at: a model has some thousand tensors, and no engine has more to say
MAX_TIMES = 10_000
LEAST_WORD = 6


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


class Watch:
    """Reads an engine's output as it comes, in pieces of any size.

    `feed` takes bytes, `close` says that no more come; `observed` may be asked for at any time. Whatever the input,
    neither raises, and memory stays bounded. So does time: each message is looked at `MAX_TIMES` times and no more, and
    a flood of anything else is only searched for words.
    """

    def __init__(self, engine: str, messages: Sequence[Message]) -> None:
        self._messages = [*messages, *process.MESSAGES]
        self._n_own = len(messages)
        self._times = [0] * len(self._messages)
        self._live = list(enumerate(self._messages))
        self._lines = Lines(_words([message.needle for message in self._messages]))
        self._notes = Notes(engine)
        self._exit_code: int | None = None

    def feed(self, data: bytes) -> None:
        """The next bytes of the output."""
        for start in range(0, len(data), MAX_PIECE):
            for number, line in self._lines.feed(data[start : start + MAX_PIECE]):
                self._read(number, line)

    def close(self, exit_code: int | None = None) -> Observed:
        """The output has ended, with this exit status (negative: the signal) if it is known."""
        for number, line in self._lines.end():
            self._read(number, line)
        self._exit_code = exit_code
        if exit_code:
            process.ended(self._notes, exit_code)
        return self.observed

    @property
    def observed(self) -> Observed:
        """What is known so far. In a log of several runs: of the last one that failed, unless a later one serves."""
        now = self._notes.observed(self._exit_code)
        before = self._notes.last_failed
        if before is None or now.failure is not None or now.is_ready:
            return now
        return before

    @property
    def n_lines(self) -> int:
        """Lines so far that the engine itself wrote, and that said something."""
        return self._notes.n_lines

    def _read(self, number: int, line: str) -> None:
        self._notes.line = number
        is_own = is_spent = False
        for i, message in self._live:
            if message.needle not in line:
                continue
            self._times[i] += 1
            is_spent = is_spent or self._times[i] == MAX_TIMES
            for match in islice(_compiled(message.pattern).finditer(line), MAX_IN_LINE):
                with suppress(ValueError, OverflowError):  # what stands where a figure should is none
                    message.note(self._notes, match)
                is_own = is_own or i < self._n_own
        self._notes.n_lines += is_own
        if is_spent:
            self._live = [(i, message) for i, message in self._live if self._times[i] < MAX_TIMES]
            self._lines.look_for(_words([message.needle for _, message in self._live]))


def _words(needles: Sequence[str]) -> tuple[bytes, ...]:
    """Few words of which each needle holds one: a flood is searched for each of them, so fewer are faster."""
    left, found = set(needles), []
    while left:
        held = Counter(word for needle in left for word in set(needle.split()) if len(word) >= LEAST_WORD)
        word = min(held, key=lambda word: (-held[word], word)) if held else min(left)
        found.append(word.encode())
        left = {needle for needle in left if word not in needle}
    return tuple(found)
