"""`autofit check -- ENGINE COMMAND`: what a command takes, before it runs. Nothing is changed."""

from __future__ import annotations

import argparse
import os

from autofit.cli.plan import show
from autofit.cli.wishes import add_output, add_wishes, collect
from autofit.domain.text import printable
from autofit.errors import UsageError
from autofit.host import host
from autofit.pipeline import check, engine_surroundings, machine_of, split_assignments

TAKES_COMMAND = True
_LAUNCHERS = ("env", "exec", "nice", "nohup", "numactl", "setsid", "sudo", "taskset", "time", "timeout")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [wishes] -- ENGINE COMMAND"
    add_wishes(parser, only=("on", "ram", "device", "margin", "engine_version"))
    add_output(parser)


def _check_words(words: tuple[str, ...]) -> None:
    """Refuse what only a shell would take apart.

    Raises:
        UsageError: nothing, a launcher before the engine, or a whole command in one word.
    """
    if not words:
        raise UsageError("check: no command", hint="write it after --: autofit check -- llama-server -m model.gguf")
    first = words[0]
    if first in _LAUNCHERS or first.startswith("-"):
        raise UsageError(
            f"check: {printable(first, 60)} is no engine's program",
            hint="give the engine's command alone; variables may stand before it: NAME=value llama-server ...",
        )
    if len(words) == 1 and " " in first and not os.path.exists(first):  # noqa: PTH110 - a word, maybe no path
        raise UsageError("check: a whole command in one word", hint="leave out the quotes around it")


def run(args: argparse.Namespace) -> int:
    assigned, words = split_assignments(args.engine_args or ())
    _check_words(words)
    backend = host().backend_of_program(words)
    wishes = collect(args, backend.name)
    environ = {**os.environ, **assigned}
    hiding = next((name for name in assigned if name.endswith("_VISIBLE_DEVICES")), None)
    if hiding and wishes.get("on"):
        raise UsageError(
            f"check: {hiding} chooses among this machine's devices, not among those of --on",
            hint="--device GPU0 chooses among them",
        )
    facts = {name: wishes.get(name) for name in ("margin", "device") if wishes.get(name)}
    plan = check(
        args.engine_args,
        machine_of(wishes, environ),
        engine_version=wishes.get("engine_version"),
        environ=engine_surroundings(backend, environ),
        **facts,
    )
    return show(plan, args, force=True)
