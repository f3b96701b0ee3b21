"""`autofit trust DIR`: let the autofit.toml of a directory set engine flags, as long as it stays as it is."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from autofit.domain.text import printable
from autofit.errors import UsageError
from autofit.profiles import parse_toml, read_text
from autofit.settings.layers import SETTINGS_FILE
from autofit.settings.trust import forget, trust, trusted
from autofit.text import shell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory", nargs="?", metavar="DIR", help="directory of the autofit.toml; without it, list trusted files"
    )
    parser.add_argument("--remove", action="store_true", help="stop trusting it")


def run(args: argparse.Namespace) -> int:
    if args.directory is None:
        if args.remove:
            raise UsageError("trust --remove needs a directory", hint="autofit trust lists them")
        for known in sorted(trusted(os.environ)):
            print(printable(known, 4000))
        return 0
    given = Path(args.directory)
    path = given if given.name == SETTINGS_FILE else given / SETTINGS_FILE
    if args.remove:
        if not forget(path, os.environ):
            raise UsageError(f"{printable(str(path), 400)} is not trusted", hint="autofit trust lists what is")
        print(f"no longer trusted: {printable(str(path), 4000)}")
        return 0
    text = read_text(path)
    table = parse_toml(text, str(path))
    trust(path, text, os.environ)
    print(f"trusted as it is now: {printable(os.path.realpath(path), 4000)}")
    for section, found in (("", table), *((f"{name}: ", value) for name, value in table.items())):
        flags = found.get("engine_args", found.get("engine-args")) if isinstance(found, dict) else None
        if isinstance(flags, list):
            print(f"  {printable(section, 60)}engine flags {shell.shown(map(str, flags))}")
    return 0
