"""A build of llama.cpp, and how a change of a rule of memory is told.

A change is known to lie between two builds, the last one seen without it and the first one seen with it, and stands
beside its rule. What a build accepts, starts with and knows comes from the sources of many builds (`engine/builds.py`).
"""

from __future__ import annotations

from autofit.domain.units import MIB
from autofit.domain.values import dataclass

from autofit_llama.engine.builds import around, fact

#: the source that docstrings cite as FILE or FILE:NAME; tools/check_sources.py says what a newer one changed
SOURCE = "llama.cpp of llama-cpp-python 0.3.36"
REFERENCE = 11311  #: its build: what is followed where no build is named
NEWEST = 11549  #: the newest build that memory was held against
OLDEST = 7698  #: the oldest one
STEP_BYTES = 512 * MIB
"""More than a device has taken in the newer one of any two recorded builds, in the same launch.

The most was 504 MiB, b11434 over b11311 with pipeline parallelism and `-ub 2048`, and 456 MiB over the 3736 builds from
b7698 (tools/accuracy/llama_moves.py, over the recorded rows).
"""
UNLIKE_BYTES = 2816 * MIB
"""The same for the older one of two: 2752 MiB, b9294 over b11311; of every two, 99 of 100 devices took less than 1,664
MiB more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """`without`: the last build known not to have it; `has`: the first one known to have it.

    Of a rule of memory, `name` says what it is about in words, and `larger` whether a launch takes no less with the
    change than without: builds between the two follow the rule that takes more. `source` names it in both versions.
    """

    without: int
    has: int
    source: str
    name: str = ""
    larger: bool = True

    def surely_in(self, build: int) -> bool:
        return build >= self.has

    def surely_not_in(self, build: int) -> bool:
        return build <= self.without

    def is_between(self, build: int) -> bool:
        """Whether it is not known which rule the build follows."""
        return self.without < build < self.has


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A build of llama.cpp as it is followed here.

    `newer` than is known: `build` is then the newest known, and `asked` the number that was named, if there was one.
    `fork`: another engine made from llama.cpp, by its name, whose own changes are not known.
    """

    build: int
    newer: bool = False
    asked: int | None = None
    fork: str | None = None

    @property
    def has_unknown_flags(self) -> bool:
        """Whether it may have flags that are not known here: newer ones, or ones that came and went unseen."""
        return self.newer or self.build not in around(self.build)

    def follows(self, rule: Change) -> bool:
        """Whether memory is counted by the rule as it is since the change."""
        return self.build >= rule.has or (rule.larger and self.build > rule.without)

    def fact(self, name: str) -> tuple[str | None, ...]:
        """What the recorded builds that this one may be like do where nothing is said; `None`: it is not there."""
        return fact(self.build, name)

    def surely(self, name: str, value: str) -> bool:
        """Whether all of them do this."""
        return all(one == value for one in self.fact(name))

    def perhaps(self, name: str, value: str) -> bool:
        """Whether one of them does this."""
        return value in self.fact(name)

    def numbers(self, name: str) -> tuple[int, ...]:
        """The numbers that they have for it; empty where none knows it."""
        return tuple(int(one) for one in self.fact(name) if one is not None)

    @property
    def name(self) -> str:
        return f"b{self.asked or self.build}" if self.fork is None else self.fork

    @property
    def behind_bytes(self) -> int:
        """What a device may take more than is counted, of a build outside the recorded ones or a fork: assumed."""
        if self.fork is not None or self.build < OLDEST:
            return UNLIKE_BYTES
        if not self.newer:
            return 0
        ahead = (self.asked or self.build) - NEWEST
        return STEP_BYTES * max(1, -(-ahead // (NEWEST - OLDEST)))


LATEST = Version(build=REFERENCE)
NEWER = Version(build=NEWEST, newer=True)
