"""`autofit check -- ENGINE COMMAND`: what a command takes, before it runs. Nothing is changed."""

from __future__ import annotations

import argparse
import os

from autofit.cli.plan import show
from autofit.cli.wishes import add_output, add_wishes, collect
from autofit.domain.text import printable
from autofit.errors import UsageError
from autofit.host import host
from autofit.pipeline import check, engine_surroundings, machine_of

TAKES_COMMAND = True
_LAUNCHERS = ("env", "exec", "nice", "nohup", "numactl", "setsid", "sudo", "taskset", "time", "timeout")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [wishes] -- ENGINE COMMAND"
    add_wishes(parser, only=("on", "ram", "device", "margin", "engine_version"))
    add_output(parser)


def _check_words(words: list[str]) -> None:
    """Refuse what only a shell would take apart.

    Raises:
        UsageError: an assignment or a launcher before the engine, or a whole command in one word.
    """
    first = words[0]
    name, equals, _ = first.partition("=")
    if (equals and name.isidentifier()) or first in _LAUNCHERS:
        raise UsageError(
            f"check: {printable(first, 60)} is no engine's program",
            hint="give the engine's command alone, and its variables before autofit: NAME=value autofit check -- ...",
        )
    if len(words) == 1 and " " in first and not os.path.exists(first):  # noqa: PTH110 - a word, maybe no path
        raise UsageError("check: a whole command in one word", hint="leave out the quotes around it")


def run(args: argparse.Namespace) -> int:
    if not args.engine_args:
        raise UsageError(
            "check: no command", hint="write it after --: autofit check -- llama-server -m model.gguf"
        )
    _check_words(args.engine_args)
    backend = host().backend_of_program(tuple(args.engine_args))
    wishes = collect(args, backend.name)
    facts = {name: wishes.get(name) for name in ("margin", "device") if wishes.get(name)}
    plan = check(
        args.engine_args,
        machine_of(wishes),
        engine_version=wishes.get("engine_version"),
        environ=engine_surroundings(backend, os.environ),
        **facts,
    )
    return show(plan, args, force=True)
