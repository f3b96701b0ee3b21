"""`autofit check -- ENGINE COMMAND`: what a command takes, before it runs. Nothing is changed."""

from __future__ import annotations

import argparse
import os

from autofit.cli.plan import show
from autofit.cli.wishes import add_output, add_wishes, collect
from autofit.errors import UsageError
from autofit.host import host
from autofit.pipeline import check, engine_surroundings, machine_of

TAKES_COMMAND = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [wishes] -- ENGINE COMMAND"
    add_wishes(parser, only=("on", "ram", "device", "margin", "engine_version"))
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    if not args.engine_args:
        raise UsageError(
            "check: no command", hint="write it after --: autofit check -- llama-server -m model.gguf"
        )
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
