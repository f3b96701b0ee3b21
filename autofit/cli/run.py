"""`autofit run -- COMMAND`: an engine's command with what it leaves open filled in, and started."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from autofit.cli.commands import backend_of, check_words, is_engine, program_path, served_by, tell_unplanned
from autofit.cli.options import add_options, add_output, given
from autofit.domain.text import printable
from autofit.domain.values import NamedTuple, replace
from autofit.errors import UsageError
from autofit.inputs import split_assignments
from autofit.launch.own import own_command
from autofit.launch.start import become
from autofit.machines import RESERVATIONS_OFF
from autofit.pipeline import plan_command
from autofit.settings.layers import Surroundings
from autofit.settings.options import CHECKED, OPTIONS
from autofit.text.programs import program_name

if TYPE_CHECKING:
    import argparse

    from autofit.cli.check_files import Verdict
    from autofit.domain.machine import Machine
    from autofit.domain.plan import Plan
    from autofit.text.launchers import Wrapped

TAKES_COMMAND = True
NOTHING: Mapping[str, int] = {}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [options] -- ENGINE COMMAND"
    parser.epilog = (
        "The command is written after -- as it would be run: launchers, the engine, its flags. What it says is kept, "
        "what it leaves open is filled in, and the process becomes the engine. Exit code 3: it does not fit."
    )
    add_options(parser)
    add_output(parser)
    group = parser.add_argument_group("starting")
    group.add_argument("-n", "--dry-run", action="store_true", help="print the command and start nothing")
    group.add_argument(
        "--watch",
        action="store_true",
        help="read the engine's output on its way: tell its stages, and what it reports beside what was predicted",
    )
    group.add_argument(
        "--retries",
        metavar="N",
        help="watch, and where memory runs out during the start, plan again with what was learnt, N times at most",
    )


def run(args: argparse.Namespace) -> int:
    from autofit.text.launchers import unwrap

    assigned, words = split_assignments(args.engine_args or ())
    wrapped = unwrap(words)
    check_words("run", wrapped.argv)
    environ = {**os.environ, **assigned}
    if args.dry_run:
        return _dry_run(args, wrapped, environ, assigned)
    if wrapped.programs:
        return _behind(args, wrapped, environ)
    argv = wrapped.argv
    is_filled = is_engine(argv) and not serves_others(argv, environ)
    path = program_path(argv[0], environ)
    if not is_filled:
        is_known = tell_unplanned(argv) or backend_of(argv) is not None
        return become(path, argv[1:], environ if is_known else _with_shims(args, environ))
    if args.watch or args.retries is not None:
        n_retries = 0 if args.retries is None else parse_retries(args.retries)
        from autofit.launch.parent import can_watch

        if can_watch():
            from autofit.cli.watched import run_watched

            def fill(words: Sequence[str], at_most: Mapping[str, int]) -> tuple[Plan, Machine] | int:
                found = filled(args, words, environ, at_most)
                return found if isinstance(found, int) else (found.plan, found.machine)

            return run_watched(args, argv, environ, n_retries, fill)
        print("autofit: not watched: this system cannot, or a driver hangs", file=sys.stderr)
    found = filled(args, argv, environ)
    return found if isinstance(found, int) else become(path, found.plan.argv[1:], {**environ, **found.plan.env})


def parse_retries(text: str) -> int:
    """0 to 9.

    Raises:
        UsageError: another number, or none.
    """
    if not re.fullmatch("[0-9]", text):
        raise UsageError(f"--retries {printable(text, 40)}: not a number of retries", hint="write 0 to 9")
    return int(text)


class Start(NamedTuple):
    """A command as it is to be started, the machine that its plan is for, and what is said of the models that its
    server loads later, in the place of the first."""

    plan: Plan
    machine: Machine
    later: tuple[Verdict, ...] = ()

    @property
    def unfit(self) -> list[Verdict]:
        return [one for one in self.later if one.plan is not None and not one.plan.fits]


def filled(
    args: argparse.Namespace, argv: Sequence[str], environ: Mapping[str, str], at_most: Mapping[str, int] = NOTHING
) -> Start | int:
    """An engine's command with what it leaves open filled in, told and reserved; the exit code where it does not fit.

    `at_most` are bytes that pools have free at most.
    """
    found = _reserved(args, argv, environ, at_most)
    if not _starts(args, found):
        return _refuse(args, found)
    if not args.quiet:
        _tell(args, found)
    return found


def _starts(args: argparse.Namespace, found: Start) -> bool:
    return bool(args.force) or (found.plan.fits and not found.unfit)


def _with_shims(args: argparse.Namespace, environ: Mapping[str, str]) -> Mapping[str, str]:
    """Variables for what is no engine, and may start some: a folder of shims comes first in PATH."""
    import shlex

    from autofit.cli.shims import texts_here
    from autofit.files import cache_home, runtime_dir
    from autofit.launch.shims import own_folder, with_shims

    if os.name == "nt":
        return environ
    cache = cache_home(environ)
    folder = own_folder((cache and cache / "autofit", runtime_dir(environ)), texts_here())
    return with_shims(environ, folder, shlex.join(args.own))


def serves_others(argv: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether a server loads none of its models at the start, and is started as it is; told so."""
    try:
        served = served_by(argv, environ)
    except UsageError:  # said where the command is planned
        return False
    if served is not None and not served.loads_first:
        print(
            f"autofit: {printable(program_name(argv), 60)} is started as it is: it starts its models by itself "
            "(autofit check -- COMMAND has a verdict for each)",
            file=sys.stderr,
        )
        return True
    return False


def _reserved(
    args: argparse.Namespace, argv: Sequence[str], environ: Mapping[str, str], at_most: Mapping[str, int]
) -> Start:
    """A command's plan, and what it takes reserved for this process until the engine has taken it."""

    def make() -> Start:
        return _start(args, argv, environ, at_most)

    if environ.get(RESERVATIONS_OFF) == "0":
        return make()
    from autofit.launch.ledger import reserved
    from autofit.launch.reservations import Claim, claims_of, largest

    def claims(found: Start) -> Mapping[str, Claim] | None:
        if not _starts(args, found) or found.machine.origin != "detected":
            return None
        plans = (found.plan, *(one.plan for one in found.later if one.plan is not None))
        return largest(claims_of(plan.memory, found.machine) for plan in plans)

    found, problem = reserved(environ, program_name(argv), make, claims)
    if problem is not None and _starts(args, found):
        what = "what it takes is not reserved: another launch may count on the same memory"
        print(f"autofit: {what} ({problem})", file=sys.stderr)
    return found


def _start(
    args: argparse.Namespace, argv: Sequence[str], environ: Mapping[str, str], at_most: Mapping[str, int] = NOTHING
) -> Start:
    plan, machine = planned(args, argv, environ, at_most)
    served = served_by(argv, environ)
    if served is None:
        return Start(plan, machine)
    from autofit.cli.check_files import verdicts_of

    options = {name: value for name, value in given(args).items() if name in CHECKED and value is not None}
    options = {name: value for name, value in options.items() if name not in ("on", "ram")}  # which made the machine
    later = verdicts_of(replace(served, commands=served.commands[1:]), {**options, "machine": machine}, environ)
    return Start(plan, machine, tuple(later))


def planned(
    args: argparse.Namespace, argv: Sequence[str], environ: Mapping[str, str], at_most: Mapping[str, int] = NOTHING
) -> tuple[Plan, Machine]:
    """The plan of an engine's command, for this machine as it is now."""
    from autofit.cli.telling import Waiting

    settings = Surroundings(environ=environ)
    with Waiting("planning"):
        return plan_command(argv, given(args), settings, details=args.explain, at_most=at_most, deploys=args.dry_run)


def _behind(args: argparse.Namespace, wrapped: Wrapped, environ: Mapping[str, str]) -> int:
    """Become the launchers, which start `autofit run` again for the command behind them.

    So it measures what they leave the command: its variables, user, processors, and limits of memory. One that would
    have found the command's program before it takes `PATH` away is given the path of it.
    """
    launchers, argv, finds = wrapped.first()
    if finds:
        argv = (_found(argv[0], environ), *argv[1:])
    if launchers[0] == "time" and not _is_installed("time", environ):  # a word of bash
        n_own = len(wrapped.launchers[0])
        launchers = ("bash", "-c", " ".join(["time", *launchers[1:n_own], '"$@"']), "time", *launchers[n_own:])
    own = [*args.own, *_lost_options(args, wrapped, environ)]
    path = program_path(launchers[0], environ)
    return become(path, (*launchers[1:], *own_command(), "run", *own, "--", *argv), environ)


def _found(name: str, environ: Mapping[str, str]) -> str:
    from autofit.hardware.programs import find_program

    return find_program(name, environ) or name


def _is_installed(name: str, environ: Mapping[str, str]) -> bool:
    from autofit.hardware.programs import find_program

    return find_program(name, environ) is not None


def _lost_options(args: argparse.Namespace, wrapped: Wrapped, environ: Mapping[str, str]) -> list[str]:
    """Options that variables set, which launchers do not hand on."""
    left = wrapped.variables(environ)
    lost = [one for one in OPTIONS if one.variable in environ and one.variable not in left]
    stated = {name for name, value in given(args).items() if value is not None}
    return [
        one.flag if one.metavar is None else f"{one.flag}={environ[one.variable]}"
        for one in lost
        if one.name not in stated
    ]


def _dry_run(
    args: argparse.Namespace, wrapped: Wrapped, environ: Mapping[str, str], assigned: Mapping[str, str]
) -> int:
    from autofit.cli.plan import show, write_product
    from autofit.cli.telling import room
    from autofit.text import shell

    if wrapped.directory is not None:
        os.chdir(wrapped.directory)
    variables = wrapped.variables(environ)
    if not is_engine(wrapped.argv) or serves_others(wrapped.argv, variables):
        if not tell_unplanned(wrapped.argv) and not is_engine(wrapped.argv):
            name = printable(program_name(wrapped.argv), 60)
            print(
                f"autofit: {name} is no engine: it is started as it is, and engines that it starts pass through",
                file=sys.stderr,
            )
        write_product(shell.command((*wrapped.prefix, *wrapped.argv), sorted(assigned.items()), columns=room()))
        return 0
    found = _start(args, wrapped.argv, variables)
    plan = replace(found.plan, argv=(*wrapped.prefix, *found.plan.argv), env={**assigned, **found.plan.env})
    code = show(plan, args, force=bool(args.force))
    for line in _lines(found.later):
        print(line, file=sys.stderr)
    return code if _starts(args, found) else 3


def _refuse(args: argparse.Namespace, found: Start) -> int:
    """Say what is missing, and the nearest that would fit."""
    from autofit.cli.telling import summary
    from autofit.render import text

    plan = found.plan
    lines = [] if args.quiet else [*summary(plan)]
    if not plan.fits:
        lines.append(f"autofit: not started: {(text.no_fit_and_nearest if args.quiet else text.no_fit)(plan)}")
    lines += [f"autofit: not started: {line}" for line in _lines(found.unfit)]
    print("\n".join(lines), file=sys.stderr)
    return 3


def _lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Models that a server loads later, each with where it is written and its verdict."""
    if not verdicts:
        return []
    from autofit.cli.check_files import line_of

    return [line_of(one) for one in verdicts]


def _tell(args: argparse.Namespace, found: Start) -> None:
    """What was added to the command, and what it takes."""
    from autofit.cli.telling import explanation, summary
    from autofit.text import shell

    plan = found.plan
    added = [word for one in plan.decisions if one.origin != "wrapped command" for word in one.argv]
    print(f"autofit: adds {shell.shown(added)}" if added else "autofit: adds nothing", file=sys.stderr)
    for line in (*summary(plan), *_lines(found.later)):
        print(line, file=sys.stderr)
    if args.explain:
        for line in explanation(plan):
            print(line, file=sys.stderr)
