"""A command as a file has it, and the limits of all readers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator

from autofit.domain.text import printable
from autofit.domain.values import dataclass
from autofit.errors import UsageError

MAX_BYTES = 1 << 20  #: of a file
MAX_WORDS_BYTES = 1 << 17  #: of a command, and of what a variable holds: what Linux takes for one argument
MAX_COMMANDS = 1000
MAX_VARIABLES = 1000  #: that a command is given
MAX_TOKENS = 100_000  #: words and operators of a script
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


def quoted_words(text: str, line: int) -> tuple[str, ...]:
    """A text as a shell splits it, without variables.

    Raises:
        UsageError: quotes that do not end, or more than any command holds.
    """
    if len(text) > MAX_WORDS_BYTES:
        raise UsageError(f"line {line}: a command beyond {MAX_WORDS_BYTES} bytes")
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"line {line}: {printable(str(error), 80)}") from None


def env_rows(text: str) -> Iterator[tuple[str, str]]:
    """Variables of a file of `NAME=VALUE` rows, as Compose and systemd read it; secrets are left in it."""
    for row in rows(text):
        name, equals, value = row.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith(("#", ";")) and not SECRET.search(name):
            value = value.strip()
            quoted = re.match(r"'([^']*)'|\"([^\"]*)\"", value)
            text = re.split(r"\s#", value)[0].rstrip() if quoted is None else quoted[1] or quoted[2] or ""
            yield name.strip(), text


def check_measure(line: int, n_commands: int = 0, n_variables: int = 0) -> None:
    """Refuse what no file of this kind needs.

    Raises:
        UsageError
    """
    for n, most, what in ((n_commands, MAX_COMMANDS, "commands"), (n_variables, MAX_VARIABLES, "variables")):
        if n > most:
            raise UsageError(f"line {line}: more than {most} {what}")
