"""Commands that stand after `--`: whether they start an engine, and where their program is."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from autofit.domain.text import printable
from autofit.errors import UsageError
from autofit.host import host
from autofit.text.programs import RUNNERS, n_module_words, program_name

if TYPE_CHECKING:
    from autofit.backend import Backend, Served


def check_words(command: str, words: tuple[str, ...]) -> None:
    """Refuse what only a shell would take apart.

    Raises:
        UsageError: nothing, a flag, or a whole command in one word.
    """
    if not words:
        raise UsageError(f"{command}: no command", hint=f"write it after --: autofit {command} ... -- ENGINE COMMAND")
    first = words[0]
    if first.startswith("-"):
        raise UsageError(
            f"{command}: {printable(first, 60)} is not a program of any engine",
            hint="write the command as it would be run: llama-server -m model.gguf ...",
        )
    if len(words) == 1 and " " in first and not os.path.exists(first):  # noqa: PTH110 - a word, maybe no path
        raise UsageError(f"{command}: a whole command in one argument", hint="leave out the quotes around it")


def is_engine(argv: Sequence[str]) -> bool:
    """Whether a command starts an engine that loads a model, or a container, which may be one's.

    Raises:
        UsageError: an engine that is known by name, and not planned for.
    """
    known = backend_of(argv)
    return program_name(argv) in RUNNERS if known is None else bool(known.program_in(argv))


def backend_of(argv: Sequence[str]) -> Backend | None:
    """The backend whose program a command starts, whatever for; `None`: a script, or anything else."""
    name, module = program_name(argv), n_module_words(argv) > 0
    for ref in host().backends().values():
        if name in ref.programs or (module and host().backend(ref.name).starts_module(argv)):
            return host().backend(ref.name)
    return None


def why_unplanned(argv: Sequence[str]) -> str | None:
    """Why a command of an engine's other programs is started as it is; `None`: it is none of them."""
    found = (host().backend(ref.name).why_unplanned(argv) for ref in host().backends().values())
    return next(filter(None, found), None)


def tell_unplanned(argv: Sequence[str]) -> bool:
    """Say of an engine's other programs that no plan is made for them; whether it is one."""
    why = why_unplanned(argv)
    if why is not None:
        print(f"autofit: {printable(program_name(argv), 60)} is started as it is: {why}", file=sys.stderr)
    return why is not None


def program_path(name: str, environ: Mapping[str, str]) -> str:
    """The absolute path of a program; the current directory is not searched.

    Raises:
        StartError: it is not there.
    """
    from autofit.hardware.programs import find_program
    from autofit.launch.start import NOT_FOUND, StartError

    path = find_program(name, environ)
    if path is None:
        from autofit.text.suggest import close_names

        is_path = os.path.basename(name) != name  # noqa: PTH119 - a word
        cause = "no such file, or it may not be executed" if is_path else "PATH has no such program"
        known = [word for ref in host().backends().values() for word in ref.programs]
        hint = None if is_path or name in known else close_names(name, known, 1, cutoff=0.7)
        raise StartError(f"{printable(name)}: {cause}", exit_code=NOT_FOUND, hint=hint)
    return path


def served_by(argv: Sequence[str], environ: Mapping[str, str], version: str | None = None) -> Served | None:
    """The models that a command's server loads as they are asked for; `None`: it has one of its own.

    Raises:
        UsageError: a file that is not there, or not well formed.
    """
    backend = backend_of(argv)
    return None if backend is None else backend.served(argv, environ, version)
