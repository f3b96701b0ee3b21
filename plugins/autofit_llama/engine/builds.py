"""The builds of llama.cpp whose sources are known, and what of them holds for another one.

A build that lies between two of them may be like either: where these differ, nothing is sure. What no build had yet is
like the newest, what is older than all is like the oldest.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cache

from autofit.domain.values import NamedTuple

from autofit_llama.engine.build_table import ARCHITECTURES, BUILDS, FACTS


class Build(NamedTuple):
    """A recorded build: its number, the day of its source, and the version that it calls itself, if any."""

    number: int
    day: str
    version: str | None


@cache
def builds() -> tuple[Build, ...]:
    """The recorded builds, oldest first."""
    rows = (line.split(" ") for line in BUILDS.strip().split("\n"))
    return tuple(Build(int(number), day, None if version == "-" else version) for number, day, version in rows)


@cache
def numbers() -> tuple[int, ...]:
    return tuple(build.number for build in builds())


def around(build: int) -> tuple[int, ...]:
    """The recorded builds that a build may be like: itself, its neighbors, or the nearest one outside their range."""
    known = numbers()
    at = bisect_left(known, build)
    if at == len(known):
        return known[-1:]
    return (known[at],) if known[at] == build or at == 0 else (known[at - 1], known[at])


def within(runs: str, build: int) -> bool:
    """Whether a recorded build is in `first-last,...`, as the tables write it."""
    for run in runs.split(","):
        first, _, last = run.partition("-")
        if int(first) <= build <= int(last or build):
            return True
    return False


@cache
def _facts() -> tuple[tuple[str, str, str], ...]:
    return tuple(tuple(line.split(" ")) for line in FACTS.strip().split("\n"))  # type: ignore[misc]


@cache
def fact(build: int, name: str) -> tuple[str | None, ...]:
    """What the builds that `build` may be like have for a fact, older first; `None`: it knows no such thing."""
    found = []
    for one in around(build):
        values = (value for runs, fact, value in _facts() if fact == name and within(runs, one))
        found.append(next(values, None))
    return tuple(found)


@cache
def _architectures() -> dict[str, str]:
    rows = (line.split(" ") for line in ARCHITECTURES.strip().split("\n"))
    return {name: runs for runs, name in rows}


def has_architecture(build: int, name: str) -> tuple[bool, ...]:
    """Whether each of the builds that `build` may be like loads models of an architecture."""
    runs = _architectures().get(name)
    return tuple(runs is not None and within(runs, one) for one in around(build))


def first_with_architecture(name: str) -> int | None:
    """The first recorded build that has an architecture; `None`: none has."""
    runs = _architectures().get(name)
    return None if runs is None else int(runs.split("-")[0])
