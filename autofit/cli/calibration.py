"""`autofit calibration list|export|import|forget`: what starts here took beside their plans."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from autofit.domain.text import printable
from autofit.errors import UsageError

ACTIONS = ("list", "export", "import", "forget")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Starts that `autofit run` watches are counted by engine, build, device and architecture. An export has no"
        " names of people, machines or files; what is imported can only make plans keep more memory free."
    )
    parser.add_argument("action", metavar="ACTION", choices=ACTIONS, help=", ".join(ACTIONS))
    parser.add_argument("file", metavar="FILE", nargs="?", help="export: where to; import: what")


def run(args: argparse.Namespace) -> int:
    from autofit.calibration import store

    if args.file is not None and args.action in ("list", "forget"):
        raise UsageError(
            f"calibration {args.action}: {printable(args.file)}: it takes no file",
            hint="all entries are listed, and forgotten together; AUTOFIT_CALIBRATION names another database",
        )
    if args.action == "list":
        return _list()
    if args.action == "forget":
        n = store.forget(os.environ)
        print(f"{n} entries forgotten", file=sys.stderr)
        return 0
    if args.action == "export":
        return _export(args.file)
    if not args.file:
        raise UsageError("calibration import: no file", hint="autofit calibration import FILE")
    return _import(Path(args.file))


def _list() -> int:
    from autofit.calibration.place import place
    from autofit.calibration.rule import moved_bytes
    from autofit.calibration.store import read
    from autofit.domain.units import format_bytes

    found = read(os.environ)
    if not found:
        where = place(os.environ)
        print("no starts have been measured" if where else "calibration is turned off", file=sys.stderr)
        return 0
    titles = f"{'engine':8} {'build':10} {'device':24} {'architecture':20} {'starts':>6}"
    print(f"{titles} {'mean':>10} {'spread':>10} {'moves':>10}")
    for one in sorted(found, key=lambda entry: (entry.key.engine, entry.key.device, entry.key.architecture)):
        moved = moved_bytes(one, one.key.build)
        print(
            f"{printable(one.key.engine, 8):8} {printable(one.key.build, 10):10} {printable(one.key.device, 24):24} "
            f"{printable(one.key.architecture, 20):20} {one.n_starts:6} {format_bytes(round(one.mean_bytes)):>10} "
            f"{format_bytes(round(one.spread_bytes)):>10} {format_bytes(moved):>10}"
            f"{' imported' if one.imported else ''}"
        )
    return 0


def _export(name: str | None) -> int:
    from autofit.calibration.exchange import to_json
    from autofit.calibration.store import read

    text = to_json(read(os.environ))
    if name is None:
        print(text, end="")
        return 0
    try:
        Path(name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{printable(name)}: {error.strerror or error}", hint="name another file") from error
    return 0


def _import(path: Path) -> int:
    from autofit.calibration.exchange import MAX_FILE_BYTES, from_json
    from autofit.calibration.store import put
    from autofit.files import read_bounded

    try:
        data = read_bounded(path, MAX_FILE_BYTES)
    except OSError as error:
        cause = error.strerror or str(error)
        raise UsageError(f"{printable(str(path))}: {cause}", hint="a file of `autofit calibration export`") from error
    found = from_json(data.decode("utf-8", "replace"))
    put(os.environ, found)
    print(f"{len(found)} entries imported", file=sys.stderr)
    return 0
