"""Variables of a script whose parts may not run: what each way through its branches leaves of them.

Inside a branch a variable has the value that it was given there; behind it, the value that all ways agree on.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from autofit.errors import UsageError

MAX_NESTED = 64  #: branches in branches

_NUMBERS: Mapping[str, Callable[[int, int], bool]] = {
    "-eq": operator.eq,
    "-ne": operator.ne,
    "-gt": operator.gt,
    "-ge": operator.ge,
    "-lt": operator.lt,
    "-le": operator.le,
}
_TESTS = ("[", "[[", "test")


class Value(NamedTuple):
    """What a variable holds: one word or a list; `unknown` says why that is not told by reading."""

    words: tuple[str, ...]
    unknown: str | None = None
    is_list: bool = False
    is_split: bool = False  #: into words already, by quotes of its own


class _Branch:
    """One of `if`, `case`, a loop or a group: the ways through it that are read, and the one that is being read."""

    def __init__(self, kind: str, runs: bool | None) -> None:
        self.kind = kind
        self.runs = runs  #: whether the part being read does; `None`: not told
        self.is_settled = False  #: an earlier part surely runs, so that no later one does
        self.before: dict[str, Value | None] = {}  #: of what this part changed
        self.ways: list[dict[str, Value | None]] = []
        self.lines: dict[str, int] = {}
        self.word: str | None = None  #: that patterns of `case` are held against
        self.awaits_pattern = kind == "case"


class Variables:
    """The variables of a script, by name."""

    def __init__(self, values: dict[str, Value]) -> None:
        self.held = values
        self.branches: list[_Branch] = []

    def set(self, name: str, value: Value | None, line: int) -> None:
        """Give a variable its value; `None` takes it away."""
        if self.branches:
            self.branches[-1].before.setdefault(name, self.held.get(name))
            self.branches[-1].lines[name] = line
        self._put(name, value)

    def _put(self, name: str, value: Value | None) -> None:
        if value is None:
            self.held.pop(name, None)
        else:
            self.held[name] = value

    def open(self, kind: str, *, runs: bool | None, line: int) -> None:
        """A branch begins; `runs` says whether its first part does.

        Raises:
            UsageError: too many inside of each other.
        """
        if len(self.branches) >= MAX_NESTED:
            raise UsageError(f"line {line}: branches and loops more than {MAX_NESTED} deep")
        self.branches.append(_Branch(kind, runs))

    def part(self, *, runs: bool | None) -> None:
        """The next part of the innermost branch: `then`, `else`, a pattern of `case`."""
        if self.branches:
            branch = self.branches[-1]
            self._end_part(branch)
            branch.runs = False if branch.is_settled else runs

    def ends(self) -> None:
        """What is behind the innermost branch is not reached from this part: `exit`, `return`."""
        if self.branches:
            self.branches[-1].runs = False

    def close(self) -> None:
        """The innermost branch ends."""
        if not self.branches:
            return
        branch = self.branches[-1]
        self._end_part(branch)
        if not branch.is_settled:
            branch.ways.append({})
        self.branches.pop()
        for name, line in branch.lines.items():
            now = self.held.get(name)
            left = [way.get(name, now) for way in branch.ways]
            if left and any(value != left[0] for value in left):
                is_list = any(value is not None and value.is_list for value in left)
                self.set(name, Value((), f"${name} depends on a condition (line {line})", is_list), line)
            elif left and left[0] != now:
                self.set(name, left[0], line)

    def close_to(self, depth: int) -> None:
        """All branches end that are deeper than that."""
        while len(self.branches) > depth:
            self.close()

    def _end_part(self, branch: _Branch) -> None:
        if branch.runs is not False:
            branch.ways.append({name: self.held.get(name) for name in branch.before})
        branch.is_settled |= branch.runs is True
        for name, value in branch.before.items():
            self._put(name, value)
        branch.before = {}


def holds(words: Sequence[str | None]) -> bool | None:
    """Whether a test holds, where reading tells; a word that is not told is `None`.

    `[ ... ]`, and the pieces that `&&` and `||` cut `[[ ... ]]` into.
    """
    if words and words[0] in ("true", ":"):
        return True
    if words and words[0] in ("false", "getopts"):  # a script without arguments has no options
        return False
    begins = bool(words) and words[0] in _TESTS
    if not begins and (not words or words[-1] != "]]"):
        return None
    rest = list(words[begins:])
    rest = rest[:-1] if rest[-1:] in (["]"], ["]]"]) else rest
    is_not = rest[:1] == ["!"]
    held = _holds(rest[is_not:])
    return held if held is None else held != is_not


def _holds(words: list[str | None]) -> bool | None:
    if not words or len(words) > 3 or any(word is None for word in words):
        return None
    first, *others = [word or "" for word in words]
    if not others:
        return first != ""
    if len(others) == 1:
        return {"-z": others[0] == "", "-n": others[0] != ""}.get(first)
    name, second = others
    if name in ("=", "==", "!="):
        is_pattern = any(character in second for character in "*?[")
        return None if is_pattern else (first == second) != (name == "!=")
    compare = _NUMBERS.get(name)
    try:
        return None if compare is None else compare(int(first), int(second))
    except ValueError:
        return None


def matches(word: str | None, patterns: Sequence[str | None]) -> bool | None:
    """Whether one of the patterns of a part of `case` fits: words, or `*`; `None` is one that is not told."""
    if "*" in patterns:
        return True
    if word is None:
        return None
    return True if word in patterns else None if None in patterns else False
