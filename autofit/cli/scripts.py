"""`autofit check -- ./start.sh`: every engine command of a script, as the shims received it, with its verdict.

The script itself runs, as anything that is started does; the engines that it finds on PATH do not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autofit.domain.plan import SCHEMA
from autofit.domain.text import printable
from autofit.errors import AutofitError, EngineRefusalError, UsageError
from autofit.files import cache_home, read_bounded, runtime_dir
from autofit.launch.shims import RECORD, own_folder, with_shims
from autofit.text import shell
from autofit.text.launchers import SHELLS
from autofit.text.programs import RUNNERS, program_name

if TYPE_CHECKING:
    import subprocess

    from autofit.backend import Served
    from autofit.domain.document import CommandsDocument, FileCommandDocument, PlanDocument, UnplannedDocument
    from autofit.domain.plan import Plan

    Answers = list[FileCommandDocument | PlanDocument | UnplannedDocument]
    Unplanned = Literal["loads no model", "refused", "unknown"]

SECONDS = 30.0  #: for a script; one that waits for its engine to answer would wait for ever
MAX_RECORD_BYTES = 1 << 24
MAX_COMMANDS = 200
_HIDDEN = re.compile(r"\bactivate\b|\b(?:uv|conda|mamba|micromamba|poetry|pdm|pipenv|pixi)\s+run\b")


def is_script(argv: Sequence[str], path: str | None) -> bool:
    """Whether a command runs a script: a shell, or a file of text that is started."""
    if path is None:
        return False
    if program_name(argv) in SHELLS:
        return True
    with contextlib.suppress(OSError), open(path, "rb") as file:  # noqa: PTH123 - one read
        return b"\0" not in file.read(512)
    return False


def check_script(args: argparse.Namespace, argv: Sequence[str], environ: Mapping[str, str], options: Any) -> int:
    """Run the script with shims that write commands down, and check each. The worst verdict is the exit code."""
    from autofit.cli.shims import texts_here

    texts = texts_here()
    _refuse_hidden(argv, environ, texts)
    cache = cache_home(environ)
    folder = own_folder((cache and cache / "autofit", runtime_dir(environ)), texts)
    print(f"autofit: {shell.shown(argv)} runs, with shims in place of engines", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="autofit-") as place:
        record = Path(place) / "commands"
        record.touch(mode=0o600)
        ended = _run(argv, {**with_shims(environ, folder, ""), RECORD: str(record)})
        found = list(_recorded(record))
    if not found:
        raise UsageError(
            f"{printable(argv[0])}: no engine was started through PATH ({ended})",
            hint=f"known programs: {', '.join(texts)}; one that is started by its path passes them by",
        )
    code = 0
    answers: Answers = []
    for n, one in enumerate(found, 1):
        title = f"command {n} of {len(found)}: "
        code = max(code, _check_one(args, one, title, options, answers), key=(0, 3, 2, 1).index)
    if args.format == "json":
        import json

        whole: CommandsDocument = {"schema": SCHEMA, "commands": answers}
        print(json.dumps(whole, indent=2, allow_nan=False))
    if ended != "it ended":
        print(
            f"autofit: the script did not end by itself: {ended}; commands behind that are not known", file=sys.stderr
        )
    return code


def _refuse_hidden(argv: Sequence[str], environ: Mapping[str, str], programs: Mapping[str, str]) -> None:
    """Refuse a script whose own text starts engines that no shim stands in for: they would really start.

    Raises:
        UsageError
    """
    text = _text_of(argv, environ)
    text = re.sub(r"(?m)^\s*#.*$", "", text)
    names = "|".join(re.escape(name) for name in programs if name not in RUNNERS)
    runners = rf"(?:{'|'.join(RUNNERS)})(?=\s[^\n;&|]*\brun\b)"
    by_path = re.search(rf"[\w./~${{}}-]*/(?:(?:{names})(?![\w./-])|{runners})", text)
    found = by_path or _HIDDEN.search(text)
    if found is not None:
        what = "starts a program by its path" if by_path else "puts other folders before the shims"
        raise UsageError(
            f"{printable(argv[0])} {what} ({printable(found[0], 80)}): its engines would be started",
            hint="check the engine's command alone: autofit check -- ENGINE COMMAND",
        )


def _text_of(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    """The script's text, as far as it can be told without a shell."""
    words = list(argv)
    if program_name(words) in SHELLS:
        words = words[1:]
        while words and words[0].startswith("-"):
            if re.fullmatch(r"-[A-Za-z]*c", words[0]):
                return " ".join(words[1:2])
            words = words[1:]
    from autofit.hardware.programs import find_program

    path = next(iter(words), "")
    with contextlib.suppress(OSError):
        return read_bounded(find_program(path, environ) or path, 1 << 20).decode("utf-8", "replace")
    return ""


def _run(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    """Run it in a session of its own, whose processes end with it; returns how it ended."""
    import subprocess

    from autofit.cli.commands import program_path

    path = program_path(argv[0], environ)
    stdout = sys.stderr.fileno() if _has_stderr() else subprocess.DEVNULL  # ours carries the verdicts
    process = subprocess.Popen(
        [path, *argv[1:]], env=dict(environ), stdin=subprocess.DEVNULL, stdout=stdout, start_new_session=True
    )
    try:
        return f"it ended with exit code {code}" if (code := process.wait(SECONDS)) else "it ended"
    except subprocess.TimeoutExpired:
        return f"it was ended after {SECONDS:.0f} s"
    finally:
        _end(process)


def _has_stderr() -> bool:
    with contextlib.suppress(OSError, ValueError):
        return sys.stderr.fileno() >= 0
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the session: softly, then surely."""
    for number, pause in ((signal.SIGTERM, 0.2), (signal.SIGKILL, 0.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
            time.sleep(pause if process.poll() is None else min(pause, 0.05))
    process.wait()


def _recorded(record: Path) -> Iterator[tuple[tuple[str, ...], str, dict[str, str]]]:
    """Commands with the directory and the variables that each was started with, in their order."""
    import json

    try:
        text = read_bounded(record, MAX_RECORD_BYTES).decode("utf-8", "surrogateescape")
    except OSError as error:
        raise UsageError(f"the script starts too many engines: {error.strerror}") from error
    for line in text.splitlines()[:MAX_COMMANDS]:
        data = json.loads(line)
        environ = {name: value for name, value in data["env"].items() if not name.startswith("AUTOFIT_SHIM")}
        yield tuple(data["argv"]), data["cwd"], environ


def _check_one(
    args: argparse.Namespace,
    recorded: tuple[tuple[str, ...], str, dict[str, str]],
    title: str,
    options: Any,
    answers: Answers,
) -> int:
    from autofit.cli.commands import is_engine, served_by, why_unplanned
    from autofit.cli.telling import explanation
    from autofit.pipeline import check
    from autofit.render import text
    from autofit.settings.layers import Surroundings

    argv, directory, environ = recorded
    shown = shell.shown(argv)
    try:
        os.chdir(directory)
        if why := why_unplanned(argv):
            print(f"  {title}no plan is made for it: {why}", file=sys.stderr)
            return _say(args, "unknown", shown, answers, 1)
        if not is_engine(argv):
            return _say(args, "loads no model", shown, answers, 0)
        if served := served_by(argv, environ, options.get("engine_version")):
            return _check_served(args, served, environ, title, options, answers)
        plan: Plan = check(argv, settings=Surroundings(environ=environ, directory=directory), **options)
    except (AutofitError, OSError) as error:
        refused = isinstance(error, EngineRefusalError)
        print(f"  {title}{printable(str(error), 400)}", file=sys.stderr)
        return _say(args, "refused" if refused else "unknown", shown, answers, 3 if refused else 1)
    print(f"  {title}{plan.verdict}", file=sys.stderr)
    for line in () if args.quiet else text.summary(plan):
        print(line, file=sys.stderr)
    for line in explanation(plan) if args.explain else ():
        print(line, file=sys.stderr)
    answers.append(plan.to_dict())
    if args.format != "json":
        print(f"{plan.verdict}: {shown}")
    return 0 if plan.fits else 3


def _check_served(
    args: argparse.Namespace, served: Served, environ: Mapping[str, str], title: str, options: Any, answers: Answers
) -> int:
    """The models of a server that loads them as they are asked for, each as a command, and those together."""
    from autofit.cli.check_files import line_of, together_of, verdicts_of

    code, found = 0, verdicts_of(served, options, environ)
    for one in found:
        print(f"  {title}{line_of(one)}", file=sys.stderr)
        shown = shell.shown(one.command.argv)
        if one.plan is None:
            code = max(code, _say(args, "unknown", shown, answers, 1), key=(0, 3, 2, 1).index)
            continue
        answers.append(one.plan.to_dict())
        if args.format != "json":
            print(f"{one.plan.verdict}: {shown}")
        code = max(code, one.exit_code, key=(0, 3, 2, 1).index)
    together = together_of(served, found)
    if together is not None:
        print(f"  {title}{together}", file=sys.stderr)
    return code if together is None else 3


def _say(args: argparse.Namespace, verdict: Unplanned, shown: str, answers: Answers, code: int) -> int:
    answers.append({"verdict": verdict, "command": shown})
    if args.format != "json":
        print(f"{verdict}: {shown}")
    return code
