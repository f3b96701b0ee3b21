"""Which engine is installed: what its program prints for `--version`, and what an installed package calls itself.

A program is asked once, and again when its file has changed; what it said is kept in the user's cache. Nothing is
imported, and nothing that was not found on `PATH`, or named by the user, is run.

Who is believed, in this order: `--engine-version`, in whichever way it was set; the program that a checked command
names by its path; what is installed on this machine, where the plan is for it; what is followed where none is named.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from autofit.backend import Backend
from autofit.domain.plan import Origin
from autofit.domain.text import printable
from autofit.domain.values import NamedTuple
from autofit.errors import UsageError
from autofit.files import cache_home, read_bounded, write_whole

SECONDS = 2.0  #: for one answer; a program that hangs is not asked again until its file changes
MAX_SAID = 400  #: characters of an answer that are kept: the version is in the first line
MAX_KEPT = 64  #: programs whose answers are kept
MAX_CACHE_BYTES = 1 << 18


class Said(NamedTuple):
    """What a program answered. `text` is empty where it gave no answer, and `problem` says why."""

    path: str
    text: str
    problem: str | None = None


def ask(program: str, environ: Mapping[str, str]) -> Said | None:
    """What `program --version` prints; `None` if there is no such program.

    `program` is a path, or a name to be found on `PATH` (`find_program`).
    """
    from autofit.hardware.programs import find_program  # most plans for described hardware do without

    path = find_program(program, environ)
    if path is None:
        return None
    try:
        stat = os.stat(path)  # noqa: PTH116 - follows links: the file that would run
    except OSError as error:
        return Said(path, "", error.strerror or str(error))
    stamp = f"{stat.st_mtime_ns} {stat.st_size} {stat.st_ino}"
    store = _store(environ)
    kept = _read(store)
    found = kept.get(path)
    if found is not None and found[0] == stamp:
        return Said(path, found[1], found[2] or None)
    said = _run(path)
    _write(
        store, {**{name: kept[name] for name in list(kept)[-MAX_KEPT:]}, path: (stamp, said.text, said.problem or "")}
    )
    return said


def _run(path: str) -> Said:
    from autofit.hardware.output import run_both
    from autofit.hardware.programs import ToolError

    try:
        out, err = run_both([path, "--version"], SECONDS)
    except ToolError as error:
        return Said(path, "", printable(str(error), 200))
    text = printable(re.sub(r"\s+", " ", f"{err[:4000]} {out[:4000]}").strip(), 4000)
    at = re.search(r"version|\bb?\d{4,6}\b|\d+\.\d+", text)  # back ends may log before it
    return Said(path, text[max(0, at.start() - 40) if at else 0 :][:MAX_SAID])


def _store(environ: Mapping[str, str]) -> Path | None:
    home = cache_home(environ)
    return None if home is None else home / "autofit" / "engines.txt"


def _read(store: Path | None) -> dict[str, tuple[str, str, str]]:
    """Path -> what its file was like, what it said, and why it said nothing. A file that is no such list is empty."""
    found: dict[str, tuple[str, str, str]] = {}
    with suppress(OSError, UnicodeDecodeError):
        if store is not None:
            for line in read_bounded(store, MAX_CACHE_BYTES).decode().split("\n"):
                columns = line.split("\t")
                if len(columns) == 4:
                    found[columns[0]] = columns[1], columns[2][:MAX_SAID], columns[3][:MAX_SAID]
    return found


def _write(store: Path | None, kept: Mapping[str, tuple[str, str, str]]) -> None:
    """Keep the answers, where that can be done; a path that would break a line is not kept."""
    lines = ("\t".join((path, *columns)) for path, columns in kept.items() if path.isprintable())
    with suppress(OSError, UnicodeEncodeError):
        if store is not None:
            write_whole(store, "".join(f"{line}\n" for line in lines).encode())


def package_version(name: str, folders: Sequence[str] | None = None) -> str | None:
    """The version of an installed distribution, from the name of its metadata folder; nothing is imported."""
    stem = re.sub(r"[-_.]+", "_", name).lower()
    pattern = re.compile(rf"{re.escape(stem)}-([0-9][A-Za-z0-9.!+_]*?)\.(?:dist-info|egg-info)", re.IGNORECASE)
    for folder in sys.path if folders is None else folders:
        if os.path.isabs(folder):  # noqa: PTH117 - what lies in the current directory is nobody's installation
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name[: len(stem)].lower() == stem and (match := pattern.fullmatch(entry.name)):
                        return match[1]
    return None


class Engine(NamedTuple):
    """Which version of an engine a plan is for, and how that is known; `None`: the one followed where none is named."""

    version: str | None
    source: str
    problem: str | None = None


_STATED: Mapping[Origin, str] = {"environment": "AUTOFIT_ENGINE_VERSION", "user": "--engine-version"}


def engine_of(
    backend: Backend,
    stated: str | None,
    origin: Origin,
    environ: Mapping[str, str] | None,
    *,
    program: str | None = None,
    here: bool,
) -> Engine:
    """The version of the engine that a plan is for.

    `stated` is `engine_version` as it was set: a version, `installed`, or the path of a program. `program` is that of a
    checked command. `environ` `None`: nothing may be run; `here`: the plan is for this machine.

    Raises:
        UsageError: a program that was named, and is none or says no version.
    """
    if stated is not None and (stated == "installed" or _is_path(stated)):
        return _named(backend, stated, origin, environ)
    if stated is not None:
        return Engine(stated, f"as {_STATED.get(origin, f'a {origin}')} says")
    if environ is None or not (backend.asked or backend.packages):
        return Engine(None, "since none is named")
    if program is not None and (here or _is_path(program)):
        found = _beside(backend, program, environ)
        if found is not None:
            return found
    if program is not None and _is_python(program) and backend.packages:
        return Engine(None, f"since no {backend.packages[0]} is installed beside it that names one")
    if program is not None and _is_path(program):
        said = ask(program, environ)
        if said is not None:
            return _told(backend, said)
    if not here:
        return Engine(None, "since none is named")
    own = () if program is None or _is_path(program) else (program,)
    return _installed(backend, environ, own) or Engine(None, "since none is named or installed here")


def _named(backend: Backend, stated: str, origin: Origin, environ: Mapping[str, str] | None) -> Engine:
    if environ is None or origin not in _STATED:
        raise UsageError(
            f"engine_version {stated[:80]!r}: a {origin} may not have a program asked", hint="write the version there"
        )
    if stated == "installed":
        found = _installed(backend, environ)
        problem = f"no {backend.engine} is installed that says its version" if found is None else found.problem
    else:
        said = ask(stated, environ)
        found = None if said is None else _told(backend, said)
        problem = f"{stated[:120]}: no such program" if found is None else found.problem
    if found is None or problem is not None:
        raise UsageError(problem or "", hint="--engine-version takes the version itself, too")
    return found


def _installed(backend: Backend, environ: Mapping[str, str], first: Sequence[str] = ()) -> Engine | None:
    """The first program on `PATH`, or else the first package, of the engine."""
    variable = environ.get("AUTOFIT_" + backend.programs[0].upper().replace("-", "_"))
    for program in (*((variable,) if variable else ()), *first, *backend.asked):
        said = ask(program, environ)
        if said is not None:
            return _told(backend, said)
    for name in backend.packages:
        number = package_version(name)
        if number is None:
            continue
        shown = f"{name} {printable(number, 40)}"
        version = backend.version_in(f"{name} {number}")
        if version is not None:
            return Engine(version, f"{shown} is installed")
        problem = f"{shown} is installed, and which {backend.engine} it holds is unknown; --engine-version names it"
        return Engine(None, f"since which one {shown} holds is unknown", problem)
    return None


def _beside(backend: Backend, program: str, environ: Mapping[str, str]) -> Engine | None:
    """The version of the package that a program of Python belongs to: what is installed in the same environment.

    Such a program would take seconds to say it, since it loads its package first.
    """
    from autofit.hardware.programs import find_program

    path = find_program(program, environ)
    if path is None or not (_is_python(path) or _is_of_python(path)):
        return None
    folders = [
        str(folder)
        for base in dict.fromkeys((Path(path).parent.parent, Path(os.path.realpath(path)).parent.parent))
        for folder in sorted(base.glob("lib*/python3*/site-packages"))[:16]
    ]
    for name in backend.packages:
        number = package_version(name, folders)
        version = None if number is None else backend.version_in(f"{name} {number}")
        if version is not None:
            return Engine(version, f"{name} {number} is installed beside {path}")
    return None


def _is_python(program: str) -> bool:
    """Whether a program is Python itself, which says its own version alone."""
    return os.path.basename(program).startswith("python")  # noqa: PTH119 - a word


def _is_of_python(path: str) -> bool:
    """Whether a program is a script of Python."""
    with suppress(OSError), open(path, "rb") as file:  # noqa: PTH123 - one read
        first = file.read(256).partition(b"\n")[0]
        return first.startswith(b"#!") and b"python" in first
    return False


def _told(backend: Backend, said: Said) -> Engine:
    version = backend.version_in(said.text, said.path)
    if version is not None:
        return Engine(version, f"as {said.path} says")
    problem = said.problem or f"{said.text[:60]!r} names no version of {backend.engine}"
    problem = f"{said.path} does not say which {backend.engine} it is: {problem}"
    return Engine(None, "since the installed one does not say which it is", problem)


def _is_path(text: str) -> bool:
    """Whether a text is the path of a program, and not a name, a version or an image."""
    return os.path.isabs(text) or text.startswith(("./", "../", ".\\", "..\\"))  # noqa: PTH117
