"""`autofit check -- ENGINE COMMAND`: what a command takes, before it runs. Nothing is changed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autofit.cli import options as of_plans
from autofit.cli.commands import check_words, served_by, why_unplanned
from autofit.cli.options import add_options, add_output, given
from autofit.cli.plan import show
from autofit.domain.text import printable
from autofit.errors import UsageError
from autofit.host import host
from autofit.inputs import split_assignments
from autofit.pipeline import check
from autofit.settings.options import CHECKED
from autofit.text.launchers import unwrap
from autofit.text.programs import n_module_words, program_name

if TYPE_CHECKING:
    import argparse

TAKES_COMMAND = True


def plain_arguments(words: list[str]) -> Any:
    """Arguments so simple that no parser is needed; None for all others."""
    found = of_plans.plain_arguments(words, only=CHECKED, model=False)
    if found is not None:
        del found.model
        vars(found).update(files=None, if_any=False, mapped=[])
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [options] -- ENGINE COMMAND"
    programs = [ref.programs[0] for ref in host().backends().values() if ref.programs]
    parser.epilog = (
        f"The command is written after -- as it would be run: {', '.join(programs)}, and their flags. Of a script, "
        "each engine's command is checked: the script runs, and the engines that it finds on PATH do not."
    )
    add_options(parser, only=CHECKED)
    add_output(parser)
    group = parser.add_argument_group("commands in files", "scripts, units, manifests; one that does not fit: exit 3")
    add = group.add_argument
    add("--from", dest="files", nargs="+", action="extend", metavar="FILE", help="check the commands that files start")
    add("--if-any", action="store_true", help="files without a command of an engine are no error")
    add(
        "--map",
        dest="mapped",
        action="append",
        default=[],
        metavar="PATH=HERE",
        help="HERE stands for a path that the files name: a folder of models, or of their headers alone",
    )


def _is_engine(argv: Sequence[str]) -> bool:
    """Whether a command's program may be an engine, by its name."""
    programs = {program for ref in host().backends().values() for program in ref.programs}
    return program_name(argv) in programs or n_module_words(argv) > 0


def run(args: argparse.Namespace) -> int:
    options: Any = {name: value for name, value in given(args).items() if name in CHECKED and value is not None}
    if args.files:
        if args.engine_args:
            raise UsageError("check: files and a command", hint="leave one of them out")
        from autofit.cli import check_files

        return check_files.run(args, options)
    assigned, words = split_assignments(args.engine_args or ())
    wrapped = unwrap(words)
    check_words("check", wrapped.argv)
    if wrapped.directory is not None:
        os.chdir(wrapped.directory)  # paths of the command are relative to it
    environ = wrapped.variables({**os.environ, **assigned})
    if not _is_engine(wrapped.argv):
        from autofit.cli.scripts import check_script, is_script
        from autofit.hardware.programs import find_program

        if why := why_unplanned(wrapped.argv):
            raise UsageError(f"{printable(wrapped.argv[0], 80)}: no plan is made for it: {why}")
        if is_script(wrapped.argv, find_program(wrapped.argv[0], environ)):
            return check_script(args, wrapped.argv, environ, options)
    else:
        served = served_by(wrapped.argv, environ, options.get("engine_version"))
        if served is not None:
            from autofit.cli import check_files

            return check_files.run_served(args, options, served, assigned)
    from autofit.cli.telling import Waiting

    with Waiting("checking"):
        plan = check(args.engine_args, **options)
    return show(plan, args, force=True)
