"""`autofit curve MODEL`, `autofit curve -- ENGINE COMMAND`: memory and decode rate against the context."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from autofit.cli.options import add_options, given
from autofit.errors import UsageError
from autofit.settings.options import CHECKED

if TYPE_CHECKING:
    from autofit.domain.curve import Curve

TAKES_COMMAND = True
FORMATS = ("text", "svg", "json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} MODEL [options] [-- engine flags]  or  {parser.prog} [options] -- ENGINE COMMAND"
    parser.epilog = (
        "Of a model each point is the plan for that context; of a command it is the command with another context and "
        "nothing else changed. Every figure is exact where the plan's is: docs/curves.md."
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a file, a directory, or a name (docs/names.md)")
    parser.add_argument("--backend", metavar="NAME", help="plan for this engine")
    add_options(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--format", choices=FORMATS, default="text", help="svg: a picture for a page (default text)")


def run(args: argparse.Namespace) -> int:
    from autofit.cli.plan import write_product

    curve = _curve(args)
    if args.format == "svg":
        from autofit.render.svg import svg

        write_product(svg(curve))
    elif args.format == "json":
        import json

        from autofit.domain.curve import to_dict

        write_product(json.dumps(to_dict(curve), indent=2, allow_nan=False))
    else:
        print("\n".join(_lines(curve)))
    return 0 if any(point.fits for point in curve.points) else 3


def _curve(args: argparse.Namespace) -> Curve:
    from autofit.cli.telling import progress
    from autofit.curves import curve_of_command, curve_of_model

    stated: Any = {name: value for name, value in given(args).items() if value is not None}
    with progress("contexts planned") as said:
        if args.model is not None:
            return curve_of_model(
                args.model, stated, backend=args.backend, engine_args=args.engine_args or (), said=said
            )
        if not args.engine_args:
            raise UsageError("curve: no model and no command", hint="autofit curve MODEL, or autofit curve -- COMMAND")
        if unused := [name for name in stated if name not in CHECKED]:
            flag = "--" + unused[0].replace("_", "-")
            raise UsageError(f"curve: {flag} changes a plan, and a command is kept", hint="name the model instead")
        return curve_of_command(args.engine_args, said=said, **stated)


def _lines(curve: Curve) -> list[str]:
    from autofit.cli.telling import columns
    from autofit.render.picture import terminal_of
    from autofit.render.plot import plot, table

    terminal = terminal_of(os.environ, columns(), getattr(sys.stdout, "encoding", None))
    if sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb"):
        return list(plot(curve, terminal))
    return list(table(curve))
