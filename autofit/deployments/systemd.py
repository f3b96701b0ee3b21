"""`ExecStart=` of systemd units.

Source: systemd.service(5), systemd.exec(5), systemd.unit(5) and systemd.syntax(7) of systemd 257.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from autofit.deployments.shell import commands as of_script
from autofit.deployments.shell import script_of
from autofit.deployments.written import (
    MAX_BYTES,
    UNKNOWN,
    IsEngine,
    Written,
    check_measure,
    env_rows,
    rows,
    split_words,
)
from autofit.domain.values import replace
from autofit.errors import UsageError
from autofit.files import read_bounded

_WORD = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\\.|[^\s"'\\])+""", re.DOTALL)
_PIECE = re.compile(r""""((?:\\.|[^"\\])*)"|'((?:\\.|[^'\\])*)'|\\(.)|([^"'\\]+)""", re.DOTALL)
_VARIABLE = re.compile(r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$([A-Za-z_][A-Za-z0-9_]*)")


def commands(text: str, is_engine: IsEngine, home: str | None) -> tuple[Written, ...]:
    """The commands of engines that a unit starts; `home` is what `%h` stands for."""
    environ: dict[str, str] = {}
    started: list[tuple[int, str]] = []
    directory: str | None = "/"
    for line, section, key, value in entries(text):
        if section != "[Service]":
            continue
        if key == "Environment":
            environ = environ if value else {}
            environ.update(assignments(specified(value, home)[0]))
            check_measure(line, n_variables=len(environ))
        elif key == "EnvironmentFile":
            environ |= file_of(specified(value, home)[0])
        elif key == "WorkingDirectory":
            directory = specified(value.removeprefix("-"), home)[0]
            directory = (home or "~") if directory == "~" else directory
        elif key == "ExecStart":
            started = started if value else []
            started += [(line, value)] if value else []
            check_measure(line, n_commands=len(started))
    return tuple(found for at, value in started for found in _started(at, value, is_engine, home, environ, directory))


def _started(
    line: int, value: str, is_engine: IsEngine, home: str | None, environ: Mapping[str, str], directory: str | None
) -> Iterator[Written]:
    value, unknown = specified(value.lstrip("-@:+!|"), home)
    words: list[str] = []
    for match in _WORD.finditer(value):
        word, lacking, splits = _expanded(_unquoted(match[0]), environ)
        unknown = unknown or lacking
        words += split_words(word) if splits else [word]
    argv = tuple(words)
    script = script_of(argv)
    if script is not None:
        given = tuple(environ.items())
        for one in of_script(script, is_engine, {"HOME": home, **environ} if home else environ, line=line):
            inner = os.path.join(directory or "", one.directory or "") or None  # noqa: PTH118 - words of another file
            yield replace(one, environ=given + one.environ, directory=inner, unknown=one.unknown or unknown)
    elif is_engine(argv):
        yield Written(line=line, argv=argv, environ=tuple(environ.items()), directory=directory, unknown=unknown)


def entries(text: str) -> Iterator[tuple[int, str, str, str]]:
    """Line, section, key and value of each entry of a unit."""
    section = ""
    for line, row in _rows(text):
        if row.startswith("["):
            section = row
        key, equals, value = (part.strip() for part in row.partition("="))
        if equals:
            yield line, section, key, value


def quoted(value: str) -> list[str]:
    """A value as words, without its quotes."""
    return [_unquoted(match[0]) for match in _WORD.finditer(value)]


def _rows(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, those that go on joined, without comments."""
    whole, first = "", 0
    for line, row in enumerate(rows(text), 1):
        if row.lstrip().startswith(("#", ";")):
            continue
        first = first or line
        whole += row.rstrip().removesuffix("\\") + " "
        if not row.rstrip().endswith("\\"):
            yield first, whole.strip()
            whole, first = "", 0
    if whole:
        yield first, whole.strip()


def _unquoted(word: str) -> str:
    return "".join(
        re.sub(r"\\(.)", r"\1", match[1] if match[1] is not None else match[2])
        if match[1] is not None or match[2] is not None
        else match[3] or match[4]
        for match in _PIECE.finditer(word)
    )


def _expanded(word: str, environ: Mapping[str, str]) -> tuple[str, str | None, bool]:
    """A word with its variables, the first that is not set, and whether it is a variable that is split into words."""
    lacking: list[str] = []

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name is None:
            return "$"
        if name not in environ:
            lacking.append(name)
        return environ.get(name, UNKNOWN)

    text = _VARIABLE.sub(value, word)
    alone = re.fullmatch(r"\$[A-Za-z_][A-Za-z0-9_]*", word) is not None
    return text, f"${lacking[0]} is not set in the unit" if lacking else None, alone


def specified(text: str, home: str | None) -> tuple[str, str | None]:
    """A value with its specifiers filled in, and the first that only the running unit has."""
    left: list[str] = []

    def value(match: re.Match[str]) -> str:
        if match[1] == "%":
            return "%"
        if match[1] == "h" and home:
            return home
        left.append(match[0])
        return UNKNOWN

    return re.sub(r"%(.)", value, text), f"{left[0]} has its value in the running unit alone" if left else None


def assignments(value: str) -> Iterator[tuple[str, str]]:
    """The variables of `Environment=`."""
    for match in _WORD.finditer(value):
        name, equals, text = _unquoted(match[0]).partition("=")
        if equals:
            yield name, text


def file_of(value: str) -> dict[str, str]:
    """The variables of an `EnvironmentFile=`; none where it is not here.

    Raises:
        UsageError: it is no text.
    """
    path = value.removeprefix("-")
    if not os.path.isabs(path):  # noqa: PTH117
        return {}
    try:
        text = read_bounded(path, MAX_BYTES).decode("utf-8")
    except OSError:
        return {}
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text") from None
    return dict(env_rows(text))
