"""`autofit fix LOG`, `autofit fix -- COMMAND < LOG`: why an engine ran out of memory, and the smallest change."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from autofit.errors import UsageError
from autofit.files import open_ordinary

TAKES_COMMAND = True
_PIECE = 1 << 20
_OPEN_ALREADY = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")  #: what a shell gives for `<(COMMAND)`, and hands on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from autofit.cli.options import add_options

    parser.usage = f"{parser.prog} [options] [LOG] [-- ENGINE COMMAND]"
    parser.epilog = (
        "LOG is a file, or - for standard input, which is read where none is named. Without the command, the change is"
        " made to the one that the log shows, or to one rebuilt from it."
    )
    parser.add_argument("log", metavar="LOG", nargs="?", default="-", help="what the engine printed, stderr included")
    parser.add_argument("--model", metavar="MODEL", help="the model, if its file is at hand: a path or a name")
    add_options(parser, only=("on", "ram", "engine_version"))
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="the answer as JSON")
    group.add_argument("-q", "--quiet", action="store_true", help="print the command alone")


def run(args: argparse.Namespace) -> int:
    from autofit.cli.options import given
    from autofit.fix import fix, in_words
    from autofit.inputs import split_assignments
    from autofit.pipeline import read_model
    from autofit.settings.layers import collect

    assigned, words = split_assignments(args.engine_args or ())
    stated = {name: value for name, value in given(args).items() if value is not None}
    options = collect(stated, None, "", lambda name: {}, ("on", "ram", "engine_version"))
    with open_log(args.log) as file:
        answer = fix(
            pieces(file),
            words,
            model=read_model(args.model) if args.model else None,
            ram=options.get("ram"),
            on=options.get("on", ()),
            engine_version=options.get("engine_version"),
            environ=assigned,
        )
    repair = answer.repair
    if args.json:
        import json

        print(json.dumps(_to_dict(answer), indent=1))
    else:
        if not args.quiet:
            print("\n".join(in_words(answer)), file=sys.stderr)
        if repair.changes:
            from shlex import join

            print(join(repair.changes[0].argv))
    failure = answer.observed.failure
    if failure is None or repair.changes:
        return 0
    return 3 if failure.is_memory else 1


def open_log(name: str) -> IO[bytes]:
    """The file of that name, or standard input; of pipes those that the shell has opened. Raises: UsageError."""
    if name == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("no log", hint="name its file, or pipe it: COMMAND 2>&1 | autofit fix")
        return sys.stdin.buffer
    try:
        if name.startswith(_OPEN_ALREADY):
            return Path(name).open("rb")
        return open(open_ordinary(name), "rb")  # noqa: PTH123 - a descriptor
    except OSError as error:
        from autofit.domain.text import printable

        cause = error.strerror or str(error)
        raise UsageError(
            f"{printable(name)}: {cause}", hint="LOG is a file with what the engine printed, or - for standard input"
        ) from error


def pieces(file: IO[bytes]) -> Iterator[bytes]:
    """All of a file, piece by piece."""
    while piece := file.read(_PIECE):
        yield piece


def _to_dict(answer: object) -> dict[str, object]:
    from autofit.fix import Answer

    assert isinstance(answer, Answer)
    failure, repair = answer.observed.failure, answer.repair
    return {
        "schema": 1,
        "backend": answer.backend,
        "engine_version": answer.observed.version,
        "failure": None
        if failure is None
        else {
            "cause": failure.cause,
            "stage": failure.stage,
            "words": failure.words,
            "place": failure.place,
            "kind": failure.kind,
            "requested_bytes": failure.requested_bytes,
            "free_bytes": failure.free_bytes,
            "line": failure.line,
        },
        "cause": repair.cause,
        "is_command": repair.is_command,
        "changes": [
            {"flags": list(one.flags), "argv": list(one.argv), "because": one.because} for one in repair.changes
        ],
        "advice": list(repair.advice),
        "missing": list(repair.missing),
        "basis": list(repair.basis),
    }
