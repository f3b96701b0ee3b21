"""`autofit report MODEL -- ENGINE COMMAND`: one small file for a bug report, that replays the case elsewhere."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from autofit.cli.options import add_options, given
from autofit.domain.text import printable
from autofit.domain.values import replace
from autofit.errors import UsageError
from autofit.settings.options import CHECKED

TAKES_COMMAND = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [options] MODEL -- ENGINE COMMAND"
    parser.epilog = "With --format html the command may be left out: the page then shows autofit's own plan."
    parser.add_argument("model", metavar="MODEL", help="a file, a directory, or a name (docs/names.md)")
    add_options(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--format", choices=("json", "html"), default="json", help="html: a page with picture, curves and tables"
    )
    group.add_argument("-o", "--output", metavar="FILE", help="default autofit-report-ARCHITECTURE.json.gz or .html")
    group.add_argument("--show", action="store_true", help="print the report as JSON, or the page, and write nothing")


def run(args: argparse.Namespace) -> int:
    from autofit.cli.commands import check_words
    from autofit.host import host
    from autofit.inputs import split_assignments
    from autofit.machines import machine_of
    from autofit.pipeline import stated_options
    from autofit.reports.report import make_report, pack
    from autofit.settings.layers import HERE
    from autofit.text.launchers import unwrap

    stated = given(args)
    unused = [name for name, value in stated.items() if value is not None and name not in CHECKED]
    if unused and (args.engine_args or args.format != "html"):
        flag = "--" + unused[0].replace("_", "-")
        raise UsageError(f"report: {flag} changes a plan, and a command is kept", hint="leave it or the command out")
    if args.format == "html":
        return _html(args, {name: value for name, value in stated.items() if value is not None})
    assigned, words = split_assignments(args.engine_args or ())
    wrapped = unwrap(words)
    words = wrapped.argv
    check_words("report", words)
    environ = wrapped.variables({**os.environ, **assigned})
    hardware = {name: stated[name] for name in ("on", "ram")}
    machine = machine_of(stated_options(host().backend_of_program(words).name, hardware, HERE), environ)
    options = {name: stated[name] for name in ("device", "margin", "mean_tokens", "engine_version")}
    report = make_report(args.model, words, machine, environ=environ, options=options)
    if args.show:
        import json

        print(json.dumps(report, indent=1))
        return 0
    packed = pack(report)
    path = _write(args.output, f"{_file_word(report['model']['architecture'])}.json.gz", packed)
    print(path)
    print(_summary(report, len(packed)), file=sys.stderr)
    return 0


def _write(output: str | None, name: str, data: bytes) -> Path:
    """Where the report went: a new file."""
    path = Path(output or f"autofit-report-{name}")
    try:
        with path.open("xb") as file:
            file.write(data)
    except OSError as error:
        cause = "the file exists" if isinstance(error, FileExistsError) else error.strerror or str(error)
        raise UsageError(f"{printable(str(path))}: {cause}", hint="name another file with --output") from error
    return path


def _html(args: argparse.Namespace, options: dict[str, Any]) -> int:
    """The page of a command, or of autofit's own plan where there is none."""
    from autofit.cli.commands import check_words
    from autofit.cli.telling import progress
    from autofit.curves import curve_of_command, curve_of_model
    from autofit.domain.units import format_bytes
    from autofit.host import host
    from autofit.inputs import split_assignments
    from autofit.references import find
    from autofit.reports.html import MAX_BYTES, page
    from autofit.text.launchers import unwrap

    assigned, words = split_assignments(args.engine_args or ())
    with progress("contexts planned") as said:
        if args.engine_args:
            check_words("report", unwrap(words).argv)
            curve = curve_of_command(args.engine_args, model=args.model, said=said, **options)
        else:
            curve = curve_of_model(args.model, options, details=True, said=said)
    model, files = find(args.model)
    size = f", {format_bytes(model.weights_bytes)} of weights" if model.weights_bytes else ""
    command = host().backend_of_program(curve.chosen.argv).parse(curve.chosen.argv)
    names = {path: role.upper() for role, path in command.companions.items()}
    for role, beside in () if files is None else files.beside.items():
        names |= {beside: role.upper(), os.path.basename(beside): role.upper()}  # noqa: PTH119 - as it is written
    names |= {text: "MODEL" for text in (args.model, model.name, command.model) if text}
    html = page(replace(curve, title=f"{model.architecture}{size}"), names, {**os.environ, **assigned}).encode()
    if len(html) > MAX_BYTES:
        raise UsageError(f"the page takes {len(html):,} bytes; at most {MAX_BYTES:,} are written")
    if args.show:
        print(html.decode())
        return 0
    path = _write(args.output, f"{_file_word(model.architecture)}.html", html)
    print(path)
    print(f"  {len(html):,} bytes: one page without scripts; no paths, host names or secrets", file=sys.stderr)
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
