"""A command as a file has it, and the limits of all readers."""

from __future__ import annotations

import re
from collections.abc import Callable

from autofit.domain.values import dataclass

MAX_BYTES = 1 << 20  #: of a file
MAX_WORDS_BYTES = 1 << 20  #: of what variables of a script make of a command
MAX_COMMANDS = 1000
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL", re.IGNORECASE)  #: in names of variables
UNKNOWN = "\0"  #: stands in a word for what only running tells; no argument can hold it

BLANKS = " \t\n"  #: what a shell splits words at; other white space is part of them

IsEngine = Callable[[tuple[str, ...]], bool]  #: whether a command is one of an engine, by its program


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A command of an engine.

    `argv` may begin with assignments and launchers, and be one of `docker run`. `environ` are the variables that the
    file sets for it, `directory` where it starts, absolute or from the current directory (`None`: there).
    `unknown` says what of it only running tells; then there is nothing to check.
    """

    line: int
    argv: tuple[str, ...]
    environ: tuple[tuple[str, str], ...] = ()
    directory: str | None = None
    unknown: str | None = None


def rows(text: str) -> list[str]:
    """The lines of a file, as editors count them: separators of Unicode are part of a line."""
    return text.replace("\r\n", "\n").split("\n")


def split_words(text: str) -> list[str]:
    """What a shell makes of a value without quotes."""
    return [word for word in re.split(f"[{BLANKS}]+", text) if word]
