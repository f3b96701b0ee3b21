"""`autofit report MODEL -- ENGINE COMMAND`: one small file for a bug report, that replays the case elsewhere."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from autofit.cli.options import add_options, given
from autofit.domain.text import printable
from autofit.errors import UsageError
from autofit.settings.options import CHECKED

TAKES_COMMAND = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [options] MODEL -- ENGINE COMMAND"
    parser.add_argument("model", metavar="MODEL", help="a file, a directory, or a name (docs/names.md)")
    add_options(parser, only=CHECKED)
    group = parser.add_argument_group("output")
    group.add_argument("-o", "--output", metavar="FILE", help="default autofit-report-ARCHITECTURE.json.gz")
    group.add_argument("--show", action="store_true", help="print the report as JSON and write nothing")


def run(args: argparse.Namespace) -> int:
    from autofit.cli.check import check_words
    from autofit.host import host
    from autofit.inputs import split_assignments
    from autofit.machines import machine_of
    from autofit.pipeline import stated_options
    from autofit.reports.report import make_report, pack
    from autofit.settings.layers import HERE
    from autofit.text.launchers import unwrap

    assigned, words = split_assignments(args.engine_args or ())
    wrapped = unwrap(words)
    words = wrapped.argv
    check_words("report", words)
    environ = wrapped.variables({**os.environ, **assigned})
    stated = given(args)
    hardware = {name: stated[name] for name in ("on", "ram")}
    machine = machine_of(stated_options(host().backend_of_program(words).name, hardware, HERE), environ)
    options = {name: stated[name] for name in ("device", "margin", "mean_tokens", "engine_version")}
    report = make_report(args.model, words, machine, environ=environ, options=options)
    if args.show:
        import json

        print(json.dumps(report, indent=1))
        return 0
    path = Path(args.output or f"autofit-report-{_file_word(report['model']['architecture'])}.json.gz")
    packed = pack(report)
    try:
        with path.open("xb") as file:
            file.write(packed)
    except OSError as error:
        cause = "the file exists" if isinstance(error, FileExistsError) else error.strerror or str(error)
        raise UsageError(f"{printable(str(path))}: {cause}", hint="name another file with --output") from error
    print(path)
    print(_summary(report, len(packed)), file=sys.stderr)
    return 0


def _file_word(text: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "-" for c in text)[:60] or "model"


def _summary(report: dict[str, Any], n_bytes: int) -> str:
    model = report["model"]
    tensors, values, devices = len(model["tensors"]), len(model["metadata"]), len(report["machine"]["devices"])
    lines = [
        f"{n_bytes:,} bytes: tensors without data ({tensors:,}), header values ({values}), devices ({devices})",
        "no weights, paths, host names or secrets; --show prints all of it",
    ]
    if not report["replays"]:
        lines.append("note: private values are left out, and the figures depend on them")
    return "\n".join(f"  {line}" for line in lines)
