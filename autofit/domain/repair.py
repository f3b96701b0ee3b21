"""What to change so that a command works whose engine ran out of memory."""

from __future__ import annotations

from autofit.domain.plan import Plan
from autofit.domain.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change that alone is enough: `argv` is the whole command with it, `flags` what it sets.

    `because` says what it costs. `plan` is the command's memory with it, where a model is known.
    """

    flags: tuple[str, ...]
    argv: tuple[str, ...]
    because: str
    frees_bytes: int | None = None
    plan: Plan | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """An answer to a log. `cause` names the allocation that failed and why; the first of `changes` is advised.

    `advice` is what helps and is no flag: memory that others hold, a limit of a container. `missing` are lines that the
    log lacks for more, and how to get them. `basis` says what figures rest on. `is_command`: the changes are of the
    command that was given or logged, and not of one rebuilt from the log.
    """

    cause: str
    changes: tuple[Change, ...] = ()
    advice: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    basis: tuple[str, ...] = ()
    is_command: bool = True
    lacks_bytes: int | None = None
