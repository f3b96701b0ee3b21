"""What a shim starts: the command goes through `autofit run`, or is started as it is, and never fails for our sake."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

SECONDS = 120  #: after which a command is started as it is


def main(arguments: Sequence[str]) -> int:
    """`arguments`: the shim's name, the path of the program behind it, and the command's arguments."""
    import gc

    gc.disable()
    name, path, *words = arguments
    argv = (name, *words)
    environ = dict(os.environ)
    try:
        with _no_longer_than(SECONDS):
            from autofit.launch.shims import RECORD

            if environ.get(RECORD):
                return _record(environ[RECORD], argv, environ)
            return _run(argv, path, environ)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException as error:  # the command is somebody else's, and so is what it is needed for
        _tell(name, error)
    from autofit.errors import AutofitError
    from autofit.launch.start import become

    try:
        return become(path, words, environ)
    except AutofitError as error:
        print(f"autofit: {error}", file=sys.stderr)
        return error.exit_code


class _no_longer_than:
    """Raises `TimeoutError` inside, after so many seconds; no alarm is left to what the process becomes."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds if hasattr(signal, "alarm") else 0

    def __enter__(self) -> None:
        if self.seconds:
            signal.signal(signal.SIGALRM, self._late)
            signal.alarm(self.seconds)

    def _late(self, *_: object) -> None:
        raise TimeoutError(f"no plan within {self.seconds} s")

    def __exit__(self, *_: object) -> None:
        if self.seconds:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _tell(name: str, error: BaseException) -> None:
    """Why a command is started as it is."""
    from autofit.domain.text import printable

    cause = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
    print(f"autofit: {printable(name, 60)} is started as it is: {printable(str(cause), 400)}", file=sys.stderr)
    if hint := getattr(error, "hint", None):
        print(f"  {printable(str(hint), 400)}", file=sys.stderr)


def _run(argv: Sequence[str], path: str, environ: Mapping[str, str]) -> int:
    from autofit.cli import run
    from autofit.cli.commands import is_engine
    from autofit.cli.streams import open_streams
    from autofit.errors import UsageError
    from autofit.host import product_on_stdout
    from autofit.launch.shims import OPTIONS
    from autofit.launch.start import become

    open_streams()
    with product_on_stdout():
        stated = environ.get(OPTIONS, "")
        args = _options(stated)
        if not is_engine(argv) or run.serves_others(argv, environ):
            signal.alarm(0)
            return become(path, argv[1:], environ)
        try:
            started = run.filled(args, argv, environ)
        except UsageError as error:
            if not stated:
                raise
            # what the script says of its engine comes before what all of its engines were given
            print(f"autofit: {argv[0]}: {error}: the command counts", file=sys.stderr)
            started = run.filled(_options(""), argv, environ)
    if isinstance(started, int):
        return started
    plan = started.plan
    signal.alarm(0)
    return become(path, plan.argv[1:], {**environ, **plan.env})


def _options(text: str) -> Any:
    """The options that the script was started with; none are read without `argparse`, which takes time."""
    import shlex

    from autofit.cli import run
    from autofit.cli.options import plain_arguments

    if not text and (plain := plain_arguments([])) is not None:
        plain.watch, plain.retries, plain.dry_run = False, None, False
        return plain
    from autofit.cli.main import new_parser

    parser = new_parser("run", "")
    run.add_arguments(parser)
    return parser.parse_args(shlex.split(text))


def _record(place: str, argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Write a command down, as it came here, and be done."""
    import json

    line = json.dumps({"argv": list(argv), "cwd": os.getcwd(), "env": dict(environ)}) + "\n"  # noqa: PTH109
    descriptor = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(descriptor, line.encode("utf-8", "surrogateescape"))
    finally:
        os.close(descriptor)
    return 0
