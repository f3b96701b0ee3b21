"""Which models of a llama-swap configuration may be loaded at once: by its groups, or by its matrix of sets.

Source: llama-swap, internal/config/load.go (`groups`, `matrix`, `routing.router`), internal/config/config.go
(AddDefaultGroupToConfig), internal/router/group.go (EvictionFor), internal/matrix/dsl.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import product

from autofit.domain.text import printable
from autofit.domain.values import NamedTuple
from autofit.errors import UsageError
from autofit.text.yaml import Node

MAX_SETS = 4096  #: that an expression, or groups, come to
MAX_DEPTH = 50  #: of an expression
_WORD = re.compile(r"\s*([&|()]|\+?[\w.-]+|\S)")
_TRUE = frozenset(("true", "yes", "on", "y"))

Some = frozenset[str]


def sets(document: Node) -> tuple[Some, ...]:
    """The largest sets of models that may be loaded at once, by name. A model that is in none may be loaded alone.

    Raises:
        UsageError: an expression that is none, names that are not there, more sets than are looked at.
    """
    router = document.get("routing", "router")
    settings = router.get("settings")
    matrix, groups = document.get("matrix"), document.get("groups")
    if router.get("use").text == "matrix":
        matrix = settings.get("matrix")
    elif not groups.pairs:
        groups = settings.get("groups")
    names = list(document.get("models").pairs)
    found = _of_matrix(matrix, names) if matrix.pairs else _of_groups(groups, names)
    return _largest([*found, *(frozenset([name]) for name in names)])


def _largest(found: Iterable[Some]) -> tuple[Some, ...]:
    distinct = list(dict.fromkeys(found))
    return tuple(one for one in distinct if not any(one < other for other in distinct))


# -- groups ---------------------------------------------------------------------------------------------------


class Group(NamedTuple):
    """A group: whether one of it is loaded at a time, whether it unloads others, and whether others unload it."""

    members: tuple[str, ...]
    swaps: bool = True
    is_exclusive: bool = True
    is_persistent: bool = False

    @property
    def parts(self) -> list[tuple[str, ...]]:
        return [(name,) for name in self.members] if self.swaps else [self.members]


def _of_groups(node: Node, names: list[str]) -> Iterator[Some]:
    """Groups that unload no other, or that no other unloads, are loaded beside one of the rest."""
    groups = [
        Group(
            tuple(name for name in one.get("members").texts if name in names),
            _flag(one.get("swap"), default=True),
            _flag(one.get("exclusive"), default=True),
            _flag(one.get("persistent"), default=False),
        )
        for one in node.pairs.values()
    ]
    grouped = {name for group in groups for name in group.members}
    groups.append(Group(tuple(name for name in names if name not in grouped)))
    groups = [group for group in groups if group.members]
    always = [group for group in groups if group.is_persistent or not group.is_exclusive]
    others = [[group] for group in groups if group not in always]
    for alone in others or [[]]:
        yield from _products([group.parts for group in (*always, *alone)], node.line)


def _products(parts: list[list[tuple[str, ...]]], line: int) -> Iterator[Some]:
    n_sets = 1
    for part in parts:
        n_sets *= len(part)
        _check(n_sets, line)
    for chosen in product(*parts):
        yield frozenset(name for part in chosen for name in part)


def _flag(node: Node, *, default: bool) -> bool:
    return default if node.text is None else node.text.casefold() in _TRUE


# -- the matrix -----------------------------------------------------------------------------------------------


def _of_matrix(node: Node, names: list[str]) -> Iterator[Some]:
    short = {key: value.text for key, value in node.get("vars").pairs.items()}
    known: dict[str, str] = {**{name: name for name in names}, **{key: name for key, name in short.items() if name}}
    expressions = node.get("sets").pairs
    done: dict[str, list[Some]] = {}
    for key in expressions:
        yield from _Expression(expressions, known, (key,), done).sets()


class _Expression:
    """The sets of one expression: `|` of `&` of names, `+NAME` of other sets, and what is in brackets."""

    def __init__(
        self,
        expressions: Mapping[str, Node],
        known: Mapping[str, str],
        through: tuple[str, ...],
        done: dict[str, list[Some]],
    ) -> None:
        self.expressions, self.known, self.through, self.done = expressions, known, through, done
        node = expressions[through[-1]]
        self.line = node.line
        self.words = _WORD.findall(node.text or "")
        self.at = 0

    def sets(self) -> list[Some]:
        name = self.through[-1]
        if name not in self.done:
            found = self._any(0)
            if self.at < len(self.words):
                raise self._refused()
            self.done[name] = found
        return self.done[name]

    def _any(self, depth: int) -> list[Some]:
        found = self._all(depth)
        while self._takes("|"):
            found = list(dict.fromkeys([*found, *self._all(depth)]))
            _check(len(found), self.line)
        return found

    def _all(self, depth: int) -> list[Some]:
        found = self._one(depth)
        while self._takes("&"):
            more = self._one(depth)
            _check(len(found) * len(more), self.line)
            found = list(dict.fromkeys(one | other for one in found for other in more))
        return found

    def _one(self, depth: int) -> list[Some]:
        if depth > MAX_DEPTH:
            raise UsageError(f"line {self.line}: brackets nested deeper than {MAX_DEPTH}")
        if self._takes("("):
            found = self._any(depth + 1)
            if not self._takes(")"):
                raise self._refused()
            return found
        word = self.words[self.at] if self.at < len(self.words) else ""
        if word.startswith("+") and word[1:] in self.expressions and word[1:] not in self.through:
            self.at += 1
            return _Expression(self.expressions, self.known, (*self.through, word[1:]), self.done).sets()
        if word not in self.known:
            raise self._refused()
        self.at += 1
        return [frozenset([self.known[word]])]

    def _takes(self, word: str) -> bool:
        if self.words[self.at : self.at + 1] != [word]:
            return False
        self.at += 1
        return True

    def _refused(self) -> UsageError:
        word = self.words[self.at] if self.at < len(self.words) else "its end"
        return UsageError(
            f"line {self.line}: set {printable(self.through[-1], 40)}: '{printable(word, 40)}' is not expected there",
            hint="names of models or of vars, joined by & and |, and +NAME for another set",
        )


def _check(n_sets: int, line: int) -> None:
    if n_sets > MAX_SETS:
        raise UsageError(f"line {line}: more than {MAX_SETS} sets of models")
