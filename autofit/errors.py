"""The errors autofit raises on purpose, and the exit code of each.

A message is one line that names the thing and the number; `hint` is one line that says what to do.
"""

from __future__ import annotations

from typing import Any


class AutofitError(Exception):
    """Anything autofit expects to go wrong: printed as one line and a hint, without a traceback."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        message = _one_line(message)
        super().__init__(message)
        self.message = message
        self.hint = None if hint is None else _one_line(hint)


class UsageError(AutofitError):
    """The command line, an environment variable or a settings file asks for something that makes no sense."""

    exit_code = 2


class ModelError(AutofitError):
    """The model cannot be read or planned for."""


class ModelNotFoundError(ModelError):
    """No file, directory or repository answers to this name."""

    exit_code = 2


class IncompleteModelError(ModelNotFoundError):
    """A file of the model is missing."""

    exit_code = 1


class RemoteError(ModelError):
    """A server does not answer, or not as it should, or must not be asked; `is_refusal`: it says that it will not."""

    def __init__(self, message: str, *, hint: str | None = None, is_refusal: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.is_refusal = is_refusal


class CorruptModelError(ModelError):
    """The file contradicts itself; `offset_bytes` is where."""

    def __init__(self, path: str, cause: str, *, offset_bytes: int | None = None, hint: str | None = None) -> None:
        where = f"{path}: byte {offset_bytes}: " if offset_bytes is not None else f"{path}: "
        super().__init__(where + cause, hint=hint)
        self.path = path
        self.offset_bytes = offset_bytes


class UnsupportedModelError(ModelError):
    """The model is sound, but this engine (or version of it) does not run it."""


class HardwareError(AutofitError):
    """A fact about the machine is missing or contradicts itself; the hint says how to state it."""


class UnknownHardwareError(HardwareError):
    """A name, count or size that was given describes no hardware."""

    exit_code = 2


class EngineError(AutofitError):
    """An installed engine could not be asked, or failed."""


class EngineRefusalError(AutofitError):
    """The engine itself would refuse these arguments; the message says why in its terms."""

    exit_code = 3


class NoFitError(AutofitError):
    """Nothing fits; `plan` is the `Plan` that comes nearest."""

    exit_code = 3

    def __init__(self, message: str, *, plan: Any, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.plan = plan


class PluginError(AutofitError):
    """A plugin could not be loaded or broke its contract."""


def _one_line(text: str) -> str:
    """Text of others may be part of a message, and a caller may print it: no control or format characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)
