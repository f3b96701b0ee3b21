"""`autofit BACKEND MODEL`: one ready command on stdout."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from autofit.cli.options import add_options, add_output, given
from autofit.errors import UsageError
from autofit.host import blamed, host, resolve
from autofit.pipeline import plan_of, stated_options
from autofit.settings.layers import HERE

if TYPE_CHECKING:
    from autofit.domain.plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} MODEL [options] [-- engine flags, kept exactly]"
    parser.add_argument("model", metavar="MODEL", help="a file, a directory, or example:NAME")
    add_options(parser)
    add_output(parser)


def run(args: argparse.Namespace, backend_name: str, engine_args: list[str] | None) -> int:
    options = stated_options(backend_name, given(args), HERE)
    details = args.explain or args.format != "shell"  # nobody would see them otherwise
    plan = plan_of(backend_name, args.model, None, options, HERE, engine_args=engine_args or (), details=details)
    return show(plan, args, force=options.get("force", False))


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
