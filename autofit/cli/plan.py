"""`autofit llama MODEL`, `autofit vllm MODEL`: one ready command on stdout."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from autofit.cli.wishes import add_output, add_wishes, collect
from autofit.errors import UsageError
from autofit.host import blamed, host, resolve
from autofit.pipeline import engine_surroundings, machine_of, read_model, solve, written_as
from autofit.settings import to_request

if TYPE_CHECKING:
    from autofit.domain.plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} MODEL [wishes] [-- engine flags, kept exactly]"
    parser.add_argument("model", metavar="MODEL", help="a file, a directory, or example:NAME")
    add_wishes(parser)
    add_output(parser)


def run(args: argparse.Namespace, backend_name: str, engine_args: list[str] | None) -> int:
    wishes = collect(args, backend_name)
    backend = host().backend(backend_name)
    request = to_request(wishes, engine_args=engine_args or (), engine_env=engine_surroundings(backend, os.environ))
    words = [backend.programs[0], *request.engine_args]
    command = backend.parse(words, request.engine_env, version=request.engine_version)
    model = read_model(args.model, companions=command.companions)
    shows_all = args.explain or args.format != "shell"  # nobody would see them otherwise
    request = replace(request, model_reference=written_as(args.model, model), alternatives=shows_all, explain=shows_all)
    plan = solve(backend_name, model, machine_of(wishes), request)
    return show(plan, args, force=request.force)


def show(plan: Plan, args: argparse.Namespace, *, force: bool) -> int:
    """The product on stdout, all else on stderr. A command that does not fit is printed only with `--force`."""
    from autofit.render import text

    renderers = host().renderers()
    if args.format not in renderers:
        raise UsageError(f"no format {args.format!r}", hint=f"known: {', '.join(sorted(renderers))}")
    if plan.fits or force or args.format != "shell":
        factory = renderers[args.format].factory
        render = resolve(factory)
        with blamed(factory):
            product = render(plan)
        print(product)
    if not args.quiet:
        for line in text.summary(plan):
            print(line, file=sys.stderr)
    if args.explain:
        for line in text.explain(plan):
            print(line, file=sys.stderr)
    return 0 if plan.fits else 3
