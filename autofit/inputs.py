"""What an engine reads beside the words of its command: variables and settings files, and who sets them."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from autofit.domain.values import replace
from autofit.errors import UsageError
from autofit.files import read_bounded

if TYPE_CHECKING:
    from autofit.backend import Backend
    from autofit.containers import Inside
    from autofit.settings.layers import Surroundings
    from autofit.text.launchers import Wrapped

MAX_SETTINGS_BYTES = 1 << 20
HIDES = ("_VISIBLE_DEVICES", "_DEVICE_ORDER")  #: ends of variables that choose devices, or number them


def split_assignments(words: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The variables that a command sets before its program, as a shell or `env` does, and the command itself."""
    from autofit.text.launchers import ASSIGNMENT

    rest = tuple(words)
    if rest[:1] == ("env",) and not "".join(rest[1:2]).startswith("-"):
        rest = rest[1:]
    assigned: dict[str, str] = {}
    while rest and (match := ASSIGNMENT.fullmatch(rest[0])):
        assigned[match[1]], rest = match[2], rest[1:]
    return assigned, rest


def engine_inputs(backend: Backend, settings: Surroundings | None) -> dict[str, str]:
    """What an engine reads beside its command line: texts of settings files by path, and variables by name.

    Variables that choose devices are left out: detection has followed them, and hardware that is only described is
    not behind them.

    Raises:
        UsageError: a settings file that cannot be read, or is no such thing.
    """
    if settings is None:
        return {}
    environ, files = settings.variables, {}
    for path in filter(os.path.isfile, backend.settings_files(environ)):
        try:
            data = read_bounded(path, MAX_SETTINGS_BYTES)
        except OSError as error:
            what = " of settings" if error.errno == errno.EFBIG else ""
            raise UsageError(f"{path}: {error.strerror or error}{what}", hint=f"{backend.name} reads it too") from error
        files[path] = data.decode("utf-8", "surrogateescape")
    return {**files, **read_by(backend, shown(environ))}


def command_inputs(
    backend: Backend, settings: Surroundings | None, wrapped: Wrapped, environ: Mapping[str, str], inside: Inside | None
) -> dict[str, str]:
    """What the engine of a command reads, of variables behind its launchers; those of `environ` are before them."""
    if inside is not None:
        return read_by(backend, shown(inside.environ))
    if not wrapped.changes:
        return {**engine_inputs(backend, settings), **read_by(backend, environ)}
    around = {**shown({} if settings is None else settings.variables), **environ}
    chosen = [name for name in wrapped.assigned if name.endswith(HIDES)]  # detection follows them
    launched = {name: value for name, value in wrapped.variables(around).items() if name not in chosen}
    files = {} if settings is None else engine_inputs(backend, replace(settings, environ=launched))
    return {**files, **read_by(backend, launched)}


def seen(around: Mapping[str, str], launched: Mapping[str, str]) -> dict[str, str]:
    """The variables to look at this machine with: ours, but for those that choose devices of the engine."""
    chosen = {name: value for name, value in launched.items() if name.endswith(HIDES)}
    return {**shown(around), **chosen}


def read_by(backend: Backend, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that the engine reads."""
    prefixes = tuple(name for name in backend.variables if name.endswith("_"))
    return {name: value for name, value in environ.items() if name in backend.variables or name.startswith(prefixes)}


def shown(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables but those that choose devices."""
    return {name: value for name, value in environ.items() if not name.endswith(HIDES)}
