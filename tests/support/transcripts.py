"""Transcripts on pages: blocks of `console`, each a command after `$ ` and what it prints, run where they stand.

A line `...` stands for lines that are left out, `$ echo $?` for the exit code of the command before it. A command may
end in `> FILE`; `$ cat FILE` shows what is in it.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from autofit.cli.main import main

BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LEFT_OUT = "..."


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """A command of a page, and the lines shown below it."""

    command: str
    shown: tuple[str, ...]


def transcripts(page: str) -> list[Transcript]:
    """Those of a page (text), in its order."""
    return [each for block in BLOCK.findall(page) for each in of_block(block)]


def of_block(block: str) -> Iterator[Transcript]:
    """Those of one block."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        yield Transcript(command=command, shown=tuple(shown))


def printed(command: str) -> tuple[tuple[str, ...], int]:
    """The lines of a command of a page in this process, stdout before stderr, and its exit code."""
    if command.startswith("cat "):
        return tuple(Path(command.removeprefix("cat ")).read_text(encoding="utf-8").splitlines()), 0
    command, _, file = command.partition(" > ")
    out, err, code = _run(command)
    if file:
        Path(file).write_text(out, encoding="utf-8")
    return tuple(((out if not file else "") + err).splitlines()), code


@cache
def _run(command: str) -> tuple[str, str, int]:
    """stdout, stderr and the exit code of an `autofit` command; run once."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(shlex.split(command)[1:])
        except SystemExit as end:  # --help
            code = int(end.code or 0)
    return out.getvalue(), err.getvalue(), code


def forget() -> None:
    """Commands run again, after files that they read have changed."""
    _run.cache_clear()


def same(shown: Sequence[str], lines: Sequence[str]) -> bool:
    """Whether these lines were printed, in this order and without others but where the page leaves some out."""
    lines, parts = tuple(lines), list(_split(tuple(shown)))
    if len(parts) == 1:
        return parts[0] == lines
    if lines[: len(parts[0])] != parts[0]:
        return False
    at = len(parts[0])
    for part in parts[1:-1]:
        places = [i for i in range(at + 1, len(lines)) if lines[i : i + len(part)] == part]
        if not places:
            return False
        at = places[0] + len(part)
    rest = len(lines) - len(parts[-1])
    return rest > at and lines[rest:] == parts[-1]


def _split(shown: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    cuts = [-1, *(i for i, line in enumerate(shown) if line.strip() == LEFT_OUT), len(shown)]
    return (shown[first + 1 : last] for first, last in pairwise(cuts))


def refreshed(page: str) -> str:
    """The page with what its commands print today; of a transcript that leaves lines out, those of the same kind."""

    def block(found: re.Match[str]) -> str:
        lines: list[str] = []
        code = 0
        for each in of_block(found[1]):
            if each.command == "echo $?":
                now: tuple[str, ...] = (str(code),)
            else:
                now, code = printed(each.command)
            lines += [f"$ {each.command}", *(kept(each.shown, now) if LEFT_OUT in each.shown else now)]
        return "\n".join(["```console", *lines, "```"])

    return BLOCK.sub(block, page)


def kept(shown: tuple[str, ...], lines: tuple[str, ...]) -> Iterator[str]:
    """Of what is printed, the lines of the same kinds as those shown."""
    kinds = {_kind(line) for line in shown}
    left_out = False
    for line in lines:
        is_kept = _kind(line) in kinds
        if is_kept or not left_out:
            yield line if is_kept else LEFT_OUT
        left_out = not is_kept


def _kind(line: str) -> tuple[str, ...]:
    first, *rest = line.split() or [""]
    return (first, *(re.sub(r"\d[\d.,]*", "#", word) for word in rest[:2]))
