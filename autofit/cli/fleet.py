"""`autofit fleet FLEET.toml`, `autofit fleet -- COMMAND1 --- COMMAND2`: several models, and what goes where."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autofit.cli.options import DEFAULT_FORMAT, add_options, given
from autofit.cli.plan import write_product
from autofit.domain.fleet import FleetFile, FleetMachine, FleetPlan
from autofit.domain.text import printable
from autofit.errors import PluginError, UsageError
from autofit.host import blamed, host, resolve
from autofit.settings.layers import HERE

if TYPE_CHECKING:
    from autofit.hookspecs import RendererRef

TAKES_COMMAND = True
BETWEEN = "---"  #: commands
#: options that a fleet takes on the command line: its machine, and wishes of all models that say no other
TAKEN = (
    "context", "min_context", "max_context", "parallel", "mean_tokens", "fill", "min_tps", "max_ttft", "margin", "on",
    "ram", "prefer", "kv",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} FLEET.toml [options], or {parser.prog} [options] -- COMMAND1 --- COMMAND2"
    parser.epilog = (
        "The models of a file, or engines' commands as they are, are given places on the machines of the file, of "
        "--on, or on this one, so that all which may run at once fits. Exit code 3: it does not fit. The file: "
        "docs/fleet.md, or a configuration of llama-swap (.yaml)."
    )
    parser.add_argument("fleet", nargs="?", metavar="FLEET.toml", help="machines, models, and what is asked of them")
    add_options(parser, only=TAKEN)
    group = parser.add_argument_group("output")
    words = ", ".join(name for name, ref in host().renderers().items() if ref.fleet)
    group.add_argument("--format", default=DEFAULT_FORMAT, metavar="NAME", help=f"{words} (default {DEFAULT_FORMAT})")
    group.add_argument("--into", metavar="FOLDER", help="write the files of the format there, each by its name")
    group.add_argument("--force", action="store_true", help="print what could stay of a fleet that does not fit")
    group.add_argument("-q", "--quiet", action="store_true", help="print the result alone, without a summary")


def run(args: argparse.Namespace) -> int:
    chosen = _format(args.format)
    from autofit.cli.telling import Waiting

    with Waiting("planning"):
        plan = planned(args)
    files = _files(chosen, plan) if plan.fits or args.force or not chosen.no_fit else ()
    if args.into is not None:
        _write(args.into, files)
    elif files:
        write_product(_joined(files))
    elif not sys.stdout.isatty():
        write_product(chosen.no_fit)
    if not args.quiet:
        for line in _summary(plan):
            print(line, file=sys.stderr)
    elif not plan.fits:
        print(f"autofit: {printable(plan.shortfall or 'the fleet does not fit', 400)}", file=sys.stderr)
    return 0 if plan.fits else 3


def planned(args: argparse.Namespace) -> FleetPlan:
    """The plan of what the command line names.

    Raises:
        UsageError: neither a file nor commands, or both.
    """
    from autofit.fleets.plan import plan_fleet
    from autofit.fleets.reading import fleet_of, fleet_of_commands, machines_on
    from autofit.settings.layers import collect

    commands = split(args.engine_args or ())
    if bool(args.fleet) == bool(commands):
        raise UsageError(
            "fleet: a file and commands" if commands else "fleet: no file",
            hint="autofit fleet FLEET.toml, or autofit fleet -- COMMAND1 --- COMMAND2",
        )
    stated = {name: value for name, value in given(args).items() if name in TAKEN and value is not None}
    parsed = collect(stated, None, "", lambda name: {}, TAKEN)
    margins = parsed.get("margin", ())
    if len(margins) > 1:
        raise UsageError("fleet: --margin is one value for all devices", hint="--margin 1GiB")
    machines: Sequence[FleetMachine] = ()
    if stated.get("on") or not args.fleet or "margin" in stated or "ram" in stated:
        machines = machines_on(parsed.get("on", ()), parsed.get("ram"), margins[0] if margins else None)
    wishes = {name: value for name, value in stated.items() if name not in ("on", "ram", "margin")}
    if commands:
        return plan_fleet(fleet_of_commands(commands, machines, wishes), HERE)
    table = _table(args.fleet)
    table = {**table, "defaults": {**_kebab(wishes), **_mapping(table.get("defaults"))}} if wishes else table
    return plan_fleet(fleet_of(table, args.fleet, machines=machines), HERE)


def _table(path: str) -> Mapping[str, Any]:
    """The fleet that a file describes: its own, or a configuration of llama-swap."""
    from autofit.cli.fleet_swap import ENDS, table_of
    from autofit.fleets.reading import read_fleet

    return table_of(path) if path.lower().endswith(ENDS) else read_fleet(path)


def split(words: Iterable[str]) -> list[list[str]]:
    """The commands between `---`; none of no words."""
    found: list[list[str]] = [[]]
    for word in words:
        if word == BETWEEN:
            found.append([])
        else:
            found[-1].append(word)
    if found == [[]]:
        return []
    if [] in found:
        raise UsageError("fleet: an empty command", hint="autofit fleet -- COMMAND1 --- COMMAND2")
    return found


def _kebab(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in options.items()}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _format(name: str) -> RendererRef:
    known = {word: ref for word, ref in host().renderers().items() if ref.fleet}
    if name not in known:
        raise UsageError(f"no format '{printable(name, 60)}' of fleets", hint=f"known: {', '.join(sorted(known))}")
    return known[name]


def _files(chosen: RendererRef, plan: FleetPlan) -> Sequence[FleetFile]:
    render = resolve(chosen.fleet)
    with blamed(chosen.fleet):
        files = tuple(render(plan))
        if not all(isinstance(one, FleetFile) for one in files):
            raise PluginError(f"{chosen.fleet} must return files of autofit.domain.fleet.FleetFile")
    return files


def _joined(files: Sequence[FleetFile]) -> str:
    """One file as it is; several with a comment before each that names it."""
    if len(files) == 1:
        return files[0].text.removesuffix("\n")
    return "\n".join(f"# file: {one.path}\n{one.text}" for one in files).removesuffix("\n")


def _write(folder: str, files: Sequence[FleetFile]) -> None:
    """Write files below a folder; one that is there already is kept.

    Raises:
        UsageError: a file of that name is there, or the path leads elsewhere.
    """
    base = Path(folder)
    paths = [base / one.path for one in files]
    for one, path in zip(files, paths, strict=True):
        if os.path.isabs(one.path) or ".." in Path(one.path).parts:  # noqa: PTH117 - a word
            raise PluginError(f"{printable(one.path, 60)} leads out of the folder")
        if path.exists():
            raise UsageError(f"{printable(str(path), 200)} is there already", hint="name an empty folder")
    for one, path in zip(files, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(one.text.rstrip("\n") + "\n", encoding="utf-8", errors="surrogateescape")
        print(f"autofit: wrote {printable(str(path), 200)}", file=sys.stderr)


def _summary(plan: FleetPlan) -> Iterable[str]:
    from autofit.cli.telling import columns, takes_lines_back
    from autofit.render.fleet import picture, summary

    if not takes_lines_back():  # no terminal, or one that shows words alone
        return summary(plan)
    from autofit.render.picture import terminal_of

    stream = getattr(sys.stderr, "stream", sys.stderr)
    return picture(plan, terminal_of(os.environ, columns(), getattr(stream, "encoding", None)))
