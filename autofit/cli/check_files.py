"""`autofit check --from FILE ...`: every command of an engine that files start, one verdict a line."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from autofit.cli.commands import is_engine, served_by
from autofit.cli.plan import write_product
from autofit.deployments.reading import KINDS, read_commands
from autofit.deployments.written import SECRET, UNKNOWN
from autofit.domain.plan import SCHEMA
from autofit.domain.text import printable
from autofit.domain.values import replace
from autofit.errors import AutofitError, UsageError
from autofit.host import host, resolve
from autofit.inputs import split_assignments
from autofit.pipeline import check
from autofit.text.launchers import unwrap
from autofit.text.programs import RUNNERS

if TYPE_CHECKING:
    from autofit.backend import Served
    from autofit.deployments.written import Written
    from autofit.domain.document import CommandsDocument, FileCommandDocument
    from autofit.domain.plan import Plan

FORMATS = ("lines", "json")


class Verdict(NamedTuple):
    """What is said of one command: a plan, or why there is none."""

    path: str
    command: Written
    plan: Plan | None
    error: AutofitError | None

    @property
    def exit_code(self) -> int:
        if self.plan is not None:
            return 0 if self.plan.fits else 3
        return self.error.exit_code if self.error is not None else 1


def run(args: argparse.Namespace, options: Mapping[str, Any]) -> int:
    """Check the commands of all files; the exit code is that of the worst verdict."""
    _form(args)
    mapped = [_mapped(text) for text in args.mapped]
    verdicts: list[Verdict] = []
    too_many: list[str] = []
    is_told = args.quiet or (len(args.files) == 1 and not args.if_any)  # by the error below
    for path in args.files:
        for found, together in _verdicts(path, mapped, options, quiet=is_told):
            verdicts += found
            too_many += [] if together is None else [together]
    if not verdicts and not args.if_any:
        what = "no command of an engine in it" if len(args.files) == 1 else "no command of an engine in these files"
        raise UsageError(f"{printable(args.files[0], 200)}: {what}", hint=f"understood are {KINDS}")
    code = _report(args, verdicts, too_many)
    return 3 if too_many else code


def _report(args: argparse.Namespace, verdicts: list[Verdict], more: Sequence[str] = ()) -> int:
    """Print the verdicts, and lines about all of them; the exit code is that of the worst."""
    if _form(args) == "json":
        whole: CommandsDocument = {"schema": SCHEMA, "commands": [_as_json(verdict) for verdict in verdicts]}
        write_product(json.dumps(whole, indent=2, allow_nan=False))
    else:
        rows = (*map(line_of, verdicts), *more)
        if rows:
            write_product("\n".join(rows))
    if args.explain:
        _explain(verdicts)
    codes = {verdict.exit_code for verdict in verdicts}
    return next((code for code in (3, 2, 1) if code in codes), 0)


def run_served(
    args: argparse.Namespace, options: Mapping[str, Any], served: Served, assigned: Mapping[str, str]
) -> int:
    """Check every model that a server loads as it is asked for, and as many as it keeps at once; exit codes as of
    `run`."""
    if not served.commands:
        raise UsageError(
            f"{printable(served.path, 200)}: no model in it", hint="a section for each: [NAME], model = PATH"
        )
    verdicts = verdicts_of(served, options, assigned)
    together = together_of(served, verdicts)
    code = _report(args, verdicts, [] if together is None else [together])
    return 3 if together is not None else code


def verdicts_of(
    served: Served, options: Mapping[str, Any], environ: Mapping[str, str], directory: str | None = None
) -> list[Verdict]:
    """What is said of each model that a server loads as it is asked for, from the directory that it starts in."""
    from autofit.deployments.written import Written

    given = tuple(environ.items())
    written = (Written(line=n, argv=argv, environ=given, directory=directory) for n, argv in served.commands)
    return [_verdict(served.path, one, options) for one in written]


def together_of(served: Served, verdicts: list[Verdict]) -> str | None:
    """Where models that may be loaded at the same time take more than there is, each of which fits alone."""
    from autofit.domain.units import format_bytes

    plans = [verdict.plan for verdict in verdicts if verdict.plan is not None]
    n = min(served.at_once or len(plans), len(plans))
    if n < 2 or not all(plan.fits for plan in plans):
        return None
    for pool in {pool.id: pool for plan in plans for pool in plan.memory.pools}.values():
        uses = [one for plan in plans for one in plan.memory.pools if one.id == pool.id]
        taken = sorted(sum(i.n_bytes for i in use.items if i.kind != "reserve" and not i.mapped) for use in uses)
        whole = sum(taken[-n:])
        if pool.budget_bytes is not None and whole > pool.budget_bytes:
            return (
                f"{printable(served.path, 200)}: does not fit: {n} of these models may be loaded at once and take "
                f"{format_bytes(whole)} of {format_bytes(pool.budget_bytes)} on {pool.id}; {served.limit} 1 loads one"
            )
    return None


def _verdicts(
    path: str, mapped: list[tuple[str, str]], options: Mapping[str, Any], *, quiet: bool
) -> Iterator[tuple[list[Verdict], str | None]]:
    """The verdicts of each command of a file, of all models where its server has several, and on those together."""
    commands = read_commands(path, _is_engine, os.environ, mapped, _readers())
    if not commands and not quiet:
        print(f"autofit: {printable(path, 200)}: no command of an engine", file=sys.stderr)
    for command in commands:
        try:
            served = _served(command, options)
        except AutofitError as error:
            yield [Verdict(path, command, None, error)], None
            continue
        if served is None:
            yield [_verdict(path, command, options)], None
        else:
            found = verdicts_of(served, options, dict(command.environ), command.directory)
            yield found, together_of(served, found)


def _served(command: Written, options: Mapping[str, Any]) -> Served | None:
    """The models of a command's server, their file named as it is from here."""
    assigned, rest = split_assignments(_without_unknown(command))
    wrapped = unwrap(rest)
    inner = os.path.join(command.directory or "", wrapped.directory or "")  # noqa: PTH118 - words of another file
    environ = wrapped.variables({**os.environ, **dict(command.environ), **assigned})
    with _in(inner):
        served = served_by(wrapped.argv, environ, options.get("engine_version"))
    return None if served is None else replace(served, path=os.path.join(inner, served.path))  # noqa: PTH118


def _verdict(path: str, command: Written, options: Mapping[str, Any]) -> Verdict:
    try:
        return Verdict(path, command, _checked(command, options), None)
    except AutofitError as error:
        return Verdict(path, command, None, error)


def _form(args: argparse.Namespace) -> str:
    """How several commands are told.

    Raises:
        UsageError: as one of them alone would be.
    """
    form = "lines" if args.format == "shell" else str(args.format)
    if form not in FORMATS:
        raise UsageError(
            f"several commands have no format '{printable(form, 40)}'", hint=f"known: {', '.join(FORMATS)}"
        )
    return form


def _checked(command: Written, options: Mapping[str, Any]) -> Plan:
    """The plan of a command, from the folder that it starts in.

    Raises:
        UsageError: something of it only running tells. Others as for `check()`.
    """
    argv = _without_unknown(command)
    _, rest = split_assignments(argv)
    inner = unwrap(rest).directory
    with _in(os.path.join(command.directory or "", inner or "")):  # noqa: PTH118 - words of another file
        return check(argv, environ=dict(command.environ), may_ask=False, **options)


def _without_unknown(command: Written) -> tuple[str, ...]:
    """The command without flags whose value is not told, and which change no byte.

    Raises:
        UsageError: another word is not told.
    """
    if command.unknown is None:
        return command.argv
    words, irrelevant = list(command.argv), _irrelevant(command.argv)
    argv: list[str] = []
    for word in words:
        if UNKNOWN not in word:
            argv.append(word)
        elif word.partition("=")[0] in irrelevant:
            continue
        elif argv and argv[-1] in irrelevant:
            argv.pop()
        else:
            raise UsageError(
                f"not told without running it: {command.unknown}",
                hint="set the variable where autofit starts, or let the script run up to its engines: check -- SCRIPT",
            )
    return tuple(argv)


def _irrelevant(argv: tuple[str, ...]) -> frozenset[str]:
    """Flags of the command's engine whose value changes no byte."""
    _, rest = split_assignments(argv)
    words = unwrap(rest).argv
    if words[0].rpartition("/")[2] not in RUNNERS:
        return host().backend_of_program(words).irrelevant
    backends = (host().backend_of_image(word) for word in words[1:])
    return next((backend.irrelevant for backend in backends if backend is not None), frozenset())


@contextlib.contextmanager
def _in(directory: str) -> Iterator[None]:
    """Paths of a command are relative to where it starts; where that is not here, to where we are."""
    before = os.getcwd()  # noqa: PTH109
    with contextlib.suppress(OSError, ValueError):
        os.chdir(directory or ".")
    try:
        yield
    finally:
        os.chdir(before)


def _is_engine(argv: tuple[str, ...]) -> bool:
    """Whether a command, behind assignments and launchers, starts an engine that loads a model."""
    _, rest = split_assignments(argv)
    try:
        words = unwrap(rest).argv
        if not words:
            return False
        if words[0].rpartition("/")[2] in RUNNERS:
            return _is_engine_of_image(words)
        return is_engine(words)
    except UsageError:
        return False


def _is_engine_of_image(words: tuple[str, ...]) -> bool:
    from autofit.text.containers import container_of

    try:
        container = container_of(words)
    except UsageError:  # said when the command is checked, where one of its words is an engine's image
        return any(host().backend_of_image(word) is not None for word in words[1:])
    return container is not None and host().backend_of_image(container.image) is not None


def _readers() -> dict[str, Any]:
    """Readers of the engines' own files, looked up when one is read."""
    found = {}
    for name in host().backends():
        for end, factory in host().backend(name).command_files.items():
            found[end] = lambda text, factory=factory: resolve(factory)(text)
    return found


def _mapped(text: str) -> tuple[str, str]:
    path, equals, here = text.partition("=")
    if not (path and equals and here):
        raise UsageError(f"--map {printable(text, 80)}: not PATH=HERE", hint="such as --map /models=./headers")
    if not os.path.exists(here):  # noqa: PTH110
        raise UsageError(f"--map {printable(text, 80)}: no such file or folder: {printable(here, 80)}")
    return path, here


def line_of(verdict: Verdict) -> str:
    """`start.sh:12: fits: GPU0 5.9 GiB used of 22.8 GiB free`: as compilers write what editors jump to."""
    from autofit.render.text import no_fit, room

    where = f"{printable(verdict.path, 200)}:{verdict.command.line}"
    plan = verdict.plan
    if plan is None:
        error = verdict.error
        assert error is not None
        return f"{where}: not checked: {printable(error.message, 400)}" + (
            f" ({printable(error.hint, 400)})" if error.hint else ""
        )
    if not plan.fits:
        return f"{where}: does not fit: {no_fit(plan).removeprefix('does not fit: ')}"
    said = "starts, and runs short of memory later" if plan.verdict == "starts" else "fits"
    return f"{where}: {said}: " + ", ".join(f"{pool.id} {room([pool])}" for pool in plan.memory.pools)


def _as_json(verdict: Verdict) -> FileCommandDocument:
    plan, error = verdict.plan, verdict.error
    command = verdict.command
    return {
        "file": verdict.path.encode("utf-8", "replace").decode(),
        "line": command.line,
        "argv": [word.replace("\0", "?") for word in command.argv],
        "env": {name: value for name, value in command.environ if not SECRET.search(name)},
        "exit_code": verdict.exit_code,
        "plan": None if plan is None else plan.to_dict(),
        "error": None
        if error is None
        else {"type": type(error).__name__, "message": error.message, "hint": error.hint},
    }


def _explain(verdicts: list[Verdict]) -> None:
    from autofit.cli.telling import explanation
    from autofit.render import text

    for verdict in verdicts:
        print(f"{printable(verdict.path, 200)}:{verdict.command.line}", file=sys.stderr)
        if verdict.plan is not None:
            for line in (*text.summary(verdict.plan), *explanation(verdict.plan)):
                print(line, file=sys.stderr)
