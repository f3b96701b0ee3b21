"""`autofit verify MODEL -- COMMAND`, `autofit verify --log FILE`: the plan beside the engine's own figures."""

from __future__ import annotations

import argparse
import os
import sys

from autofit.errors import UsageError

TAKES_COMMAND = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from autofit.cli.options import add_options

    parser.usage = f"{parser.prog} [options] [MODEL] [--log FILE] [-- ENGINE COMMAND]"
    parser.epilog = (
        "With --log, the log of a boot is compared, - being standard input; without it, the engine's own dry run, where"
        " it has one. Exit code 3: a part took more than 1 % (and 16 MiB) above its prediction."
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a file, a directory, or a name (docs/names.md)")
    parser.add_argument("--log", metavar="FILE", help="what the engine printed when it started")
    parser.add_argument(
        "--learn", action="store_true", help="count what this machine's boot took beyond its plan (docs/calibration.md)"
    )
    add_options(parser, only=("on", "ram", "engine_version"))


def run(args: argparse.Namespace) -> int:
    from autofit.cli.fix import open_log, pieces
    from autofit.cli.options import given
    from autofit.cli.telling import Waiting
    from autofit.inputs import split_assignments
    from autofit.machines import machine_of
    from autofit.pipeline import read_model
    from autofit.settings.layers import collect
    from autofit.verify import in_words, learn, verify_dry_run, verify_log

    assigned, words = split_assignments(args.engine_args or ())
    stated = {name: value for name, value in given(args).items() if value is not None}
    options = collect(stated, None, "", lambda name: {}, ("on", "ram", "engine_version"))
    version = options.get("engine_version")
    model = read_model(args.model) if args.model else None
    if args.learn and args.log is None:
        raise UsageError("--learn: no log of a boot", hint="name it: --log FILE")
    if args.log is not None:
        with open_log(args.log) as file, Waiting("reading the log"):
            found = verify_log(pieces(file), words, model=model, engine_version=version, environ=assigned)
    else:
        if model is None:
            raise UsageError(
                "verify: no model and no log", hint="autofit verify MODEL -- ENGINE COMMAND, or --log FILE"
            )
        environ = {**os.environ, **assigned}
        argv = _command(words, args.model)
        with Waiting("the engine's dry run"):
            found = verify_dry_run(model, argv, machine_of(options, environ), environ=environ, engine_version=version)
    print("\n".join(in_words(found)))
    if args.learn:
        n = learn(found, machine_of(options, os.environ), os.environ)
        what = f"counted on {n} device{'' if n == 1 else 's'}" if n else "no more than predicted: nothing is counted"
        print(f"autofit: {what}", file=sys.stderr)
    for text in found.basis:
        print(f"  basis: {text}", file=sys.stderr)
    for count in found.too_many:
        print(f"autofit: {count.what}: {count.reported:,} instead of {count.predicted:,}", file=sys.stderr)
    if found.too_low:
        from autofit.domain.units import format_bytes

        worst = max(found.too_low, key=lambda one: one.over_bytes)
        print(
            f"autofit: {worst.pool} {worst.kind} took {format_bytes(worst.over_bytes)} more than predicted\n"
            "  `autofit report` writes a file for a bug report",
            file=sys.stderr,
        )
    return 3 if found.too_low or found.too_many else 0


def _command(words: tuple[str, ...], model: str) -> tuple[str, ...]:
    """The command; flags alone are of the first engine's server."""
    from autofit.host import host

    if words and not words[0].startswith("-"):
        return words
    first = next(ref for ref in host().backends().values() if ref.programs)
    return (first.programs[0], "-m", model, *words)
