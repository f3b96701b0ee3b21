"""Decisions about a command: what each setting is, where it comes from and why. The arguments are their product."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from shlex import join

from autofit.domain.plan import Decision, NextRejected, Origin, Topic
from autofit.domain.request import Request


def argument(
    flag: str,
    values: Sequence[str],
    origin: Origin,
    because: str,
    next_rejected: NextRejected | None = None,
    topic: Topic = "other",
) -> Decision:
    """A decision that is on the command line: a flag and its values."""
    return Decision(
        setting=flag,
        value=join(values),
        origin=origin,
        because=because,
        next_rejected=next_rejected,
        argv=(flag, *values),
        topic=topic,
    )


def why_kept(origin: Origin) -> str:
    """Why an engine flag stays that somebody has stated."""
    return "kept as given" if origin in ("user", "wrapped command") else f"set in the {origin}"


def remark(setting: str, value: str, origin: Origin, because: str, topic: Topic = "other") -> Decision:
    """A decision that the command line does not show: a default that is left, a variable, a margin."""
    return Decision(setting=setting, value=value, origin=origin, because=because, topic=topic)


def arguments(decisions: Iterable[Decision]) -> tuple[str, ...]:
    """The arguments that decisions stand for, in their order."""
    return tuple(token for decision in decisions for token in decision.argv)


def origin_of(request: Request, option: str, is_stated: bool) -> Origin:
    """Where a setting comes from that an option decides: whoever stated it, or the search."""
    if not is_stated:
        return "solved"
    origin = request.origin(option)
    return "user" if origin == "engine default" else origin
