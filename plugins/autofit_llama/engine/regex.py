"""ECMAScript regular expressions as `std::regex_search` reads them, in time linear in the text.

llama.cpp gives the patterns of `-ot` to libstdc++'s std::regex (src/llama-model-loader.cpp:create_tensor).
Its grammar is parsed here, so that what it refuses is refused. A pattern that cannot blow up runs on
Python's `re`; any other one runs as an automaton whose states are made as they are met. Look-ahead and
back-references only exist on `re`, and are refused where they could blow up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NoReturn

from autofit.domain.values import dataclass
from autofit.errors import EngineRefusalError, UsageError

MAX_PATTERN, MAX_REPEAT, MAX_STATES, MAX_DEPTH = 4096, 256, 8192, 100
MAX_PLACES, MAX_ANSWERS = 4096, 8192  #: of an automaton, that are remembered
_ENDLESS = -1

_DIGITS = frozenset("0123456789")
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_") | _DIGITS
_SPACE = frozenset(" \t\n\r\v\f")
_ASCII = frozenset(map(chr, range(128)))
_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_NAMED = {
    "alpha": frozenset(c for c in _ASCII if c.isalpha()),
    "digit": _DIGITS,
    "alnum": _WORD - {"_"},
    "upper": frozenset(c for c in _ASCII if c.isupper()),
    "lower": frozenset(c for c in _ASCII if c.islower()),
    "space": _SPACE,
    "punct": frozenset(c for c in _ASCII if c.isprintable() and not c.isalnum() and c != " "),
    "xdigit": frozenset("0123456789abcdefABCDEF"),
    "blank": frozenset(" \t"),
    "w": _WORD,
    "d": _DIGITS,
    "s": _SPACE,
}
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "v": "\v", "f": "\f", "0": "\0"}


@dataclass(frozen=True, slots=True)
class _Set:
    """Characters that match: those in `chars`, or with `negated` all others."""

    chars: frozenset[str]
    negated: bool = False

    def has(self, char: str) -> bool:
        return (char in self.chars) != self.negated


@dataclass(frozen=True, slots=True)
class _Sequence:
    items: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    items: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    item: _Node
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class _Assert:
    """`^`, `$`, `b` (word boundary), `B`."""

    kind: str


@dataclass(frozen=True, slots=True)
class _Look:
    item: _Node
    negated: bool


@dataclass(frozen=True, slots=True)
class _Group:
    item: _Node


@dataclass(frozen=True, slots=True)
class _Back:
    number: int


_Node = _Set | _Sequence | _Choice | _Repeat | _Assert | _Look | _Group | _Back


@lru_cache(maxsize=4096)
def searcher(pattern: str) -> Callable[[str], bool]:
    """A function that says whether `pattern` is found anywhere in a text.

    Raises:
        EngineRefusalError: std::regex would throw on the pattern.
        UsageError: the pattern cannot be matched in bounded time.
    """
    node = _Parser(pattern).parse()
    if not _needs_automaton(node):
        try:
            compiled = re.compile(_python(node), re.ASCII | re.DOTALL)
        except re.error as error:  # a group that refers to itself
            raise UsageError(f"pattern cannot be matched here: {error.msg}: {pattern[:60]!r}") from error
        return lambda text: compiled.search(text) is not None
    if any(isinstance(part, _Look | _Back) for part in _walk(node)):
        raise UsageError(f"pattern too costly to match: {pattern[:60]!r}", hint="write it without nested repetition")
    return _Automaton(node, pattern).search


class _Parser:
    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_PATTERN:
            raise UsageError(f"pattern of {len(pattern)} characters", hint=f"at most {MAX_PATTERN} are read")
        self.text, self.at, self.groups, self.depth = pattern, 0, 0, 0

    def refuse(self, cause: str) -> NoReturn:
        raise EngineRefusalError(
            f"llama.cpp refuses the pattern {self.text[:60]!r}: {cause}", hint="-ot takes ECMAScript patterns"
        )

    def parse(self) -> _Node:
        node = self.choice()
        if self.at < len(self.text):
            self.refuse(f"unexpected {self.text[self.at]!r} at {self.at}")
        return node

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self, literal: str) -> bool:
        if self.text.startswith(literal, self.at):
            self.at += len(literal)
            return True
        return False

    def choice(self) -> _Node:
        items = [self.sequence()]
        while self.take("|"):
            items.append(self.sequence())
        return items[0] if len(items) == 1 else _Choice(tuple(items))

    def sequence(self) -> _Node:
        items: list[_Node] = []
        while (term := self.term()) is not None:
            items.append(term)
        return items[0] if len(items) == 1 else _Sequence(tuple(items))

    def term(self) -> _Node | None:
        if (assertion := self.assertion()) is not None:
            return assertion
        node = self.atom()
        n_quantifiers = 0
        while node is not None and (bounds := self.quantifier()) is not None:
            node = _Repeat(node, *bounds)
            n_quantifiers += 1
            if n_quantifiers > MAX_DEPTH:
                raise UsageError(f"pattern with more than {MAX_DEPTH} repetitions of one another")
        return node

    def assertion(self) -> _Node | None:
        for literal, kind in (("^", "^"), ("$", "$"), ("\\b", "b"), ("\\B", "B")):
            if self.take(literal):
                return _Assert(kind)
        for literal, negated in (("(?=", False), ("(?!", True)):
            if self.take(literal):
                return _Look(self.closed(), negated)
        return None

    def closed(self) -> _Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UsageError(f"pattern nested deeper than {MAX_DEPTH}", hint="write it with fewer parentheses")
        node = self.choice()
        if not self.take(")"):
            self.refuse("a parenthesis is not closed")
        self.depth -= 1
        return node

    def atom(self) -> _Node | None:
        char = self.peek()
        if char in ("", "|", ")", "*", "+", "?"):
            return None
        self.at += 1
        match char:
            case ".":
                return _Set(frozenset("\n\r"), negated=True)
            case "(":
                if self.take("?:"):
                    return self.closed()
                if self.peek() == "?":
                    self.refuse("this kind of group does not exist")
                self.groups += 1
                return _Group(self.closed())
            case "[":
                return self.bracket()
            case "{":
                self.refuse("there is nothing to repeat")
            case "\\":
                return self.escape()
        return _Set(frozenset(char))

    def quantifier(self) -> tuple[int, int] | None:
        bounds = None
        for literal, found in (("*", (0, _ENDLESS)), ("+", (1, _ENDLESS)), ("?", (0, 1))):
            if self.take(literal):
                bounds = found
                break
        else:
            if self.take("{"):
                bounds = self.counts()
        if bounds is not None:
            self.take("?")  # lazy: the same set of texts is found
        return bounds

    def counts(self) -> tuple[int, int]:
        match = re.compile(r"([0-9]{1,9})(,([0-9]{0,9}))?\}").match(self.text, self.at)
        if match is None:
            self.refuse("a repetition is malformed")
        self.at = match.end()
        least = int(match[1])
        most = least if match[2] is None else int(match[3]) if match[3] else _ENDLESS
        if most != _ENDLESS and most < least:
            self.refuse("a repetition counts down")
        if max(least, most) > MAX_REPEAT:
            raise UsageError(f"pattern repeats {max(least, most)} times", hint=f"at most {MAX_REPEAT} are read")
        return least, most

    def escape(self) -> _Node:
        char = self.peek()
        if not char:
            self.refuse("it ends in a backslash")
        self.at += 1
        if char.lower() in _CLASSES:
            return _Set(_CLASSES[char.lower()], negated=char.isupper())
        if char in "123456789":
            number = int(char)
            if number > self.groups:
                self.refuse(f"group {number} does not exist")
            return _Back(number)
        return _Set(frozenset(self.escaped(char)))

    def escaped(self, char: str) -> str:
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char == "c":
            letter = self.peek()
            if not letter:
                self.refuse("a control escape is cut off")
            self.at += 1
            return chr(ord(letter) % 32)
        if char in "xu":
            n_digits = 2 if char == "x" else 4
            digits = self.text[self.at : self.at + n_digits]
            if len(digits) != n_digits or not set(digits) <= _NAMED["xdigit"]:
                self.refuse(f"a \\{char} escape is malformed")
            self.at += n_digits
            return chr(int(digits, 16))
        return char

    def bracket(self) -> _Set:
        negated = self.take("^")
        chars: set[str] = set()
        while not self.take("]"):
            if self.at >= len(self.text):
                self.refuse("a bracket is not closed")
            first = self.bracket_item(chars)
            if first is None:
                continue
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                last = self.bracket_item(chars)
                if last is None or last < first or ord(last) - ord(first) > 0x110:
                    self.refuse("a range in brackets is invalid")
                chars.update(map(chr, range(ord(first), ord(last) + 1)))
            else:
                chars.add(first)
        return _Set(frozenset(chars), negated)

    def bracket_item(self, chars: set[str]) -> str | None:
        """One character, or `None` after a class was added to `chars`."""
        if self.take("[:"):
            end = self.text.find(":]", self.at)
            name = self.text[self.at : end].lower() if end >= 0 else ""
            if name not in _NAMED:
                self.refuse("a character class is unknown")
            self.at = end + 2
            chars |= _NAMED[name]
            return None
        char = self.peek()
        self.at += 1
        if char != "\\":
            return char
        char = self.peek()
        if not char:
            self.refuse("it ends in a backslash")
        self.at += 1
        if char.lower() in _CLASSES:
            chosen = _CLASSES[char.lower()]
            chars |= (_ASCII - chosen) if char.isupper() else chosen
            return None
        return "\b" if char == "b" else self.escaped(char)


def _walk(node: _Node) -> Iterator[_Node]:
    yield node
    if isinstance(node, _Sequence | _Choice):
        for item in node.items:
            yield from _walk(item)
    elif isinstance(node, _Repeat | _Look | _Group):
        yield from _walk(node.item)


def _needs_automaton(node: _Node) -> bool:
    """Whether backtracking could take long: more than single characters are repeated, or more than two."""
    repeats = [part for part in _walk(node) if isinstance(part, _Repeat)]
    if any(not isinstance(part.item, _Set) and part.most != 1 for part in repeats):
        return True
    return sum(part.most != 1 for part in repeats) > 2


def _python(node: _Node) -> str:
    match node:
        case _Set():
            if not node.chars:
                return "[\\s\\S]" if node.negated else "(?!)"
            body = "".join("\\" + c if c in "\\]^-[&~|" else c for c in sorted(node.chars))
            return f"[{'^' if node.negated else ''}{body}]"
        case _Sequence():
            return "".join(map(_python, node.items))
        case _Choice():
            return "(?:" + "|".join(map(_python, node.items)) + ")"
        case _Repeat():
            most = "" if node.most == _ENDLESS else str(node.most)
            return f"(?:{_python(node.item)}){{{node.least},{most}}}"
        case _Assert():
            return {"^": "\\A", "$": "\\Z", "b": "\\b", "B": "\\B"}[node.kind]
        case _Look():
            return f"(?{'!' if node.negated else '='}{_python(node.item)})"
        case _Group():
            return f"({_python(node.item)})"
        case _Back():
            return f"(?:\\{node.number})"


_Place = tuple[frozenset[int], str]  #: states, and what was before: `^` nothing, `w` a letter of a word, `.` any other


class _Automaton:
    """Thompson's construction; the sets of states that a text leads to are numbered as they are met, and remembered."""

    def __init__(self, node: _Node, pattern: str) -> None:
        self.pattern = pattern
        #: per state: `(set, next)`, `(assertion, next)` or `(None, next, next)`
        self.states: list[tuple[_Set | str | None, int, int]] = []
        self.answers: dict[str, bool] = {}  #: a search for a plan asks for the same names again and again
        self.accept = self._add(None, -1, -1)
        self.start = self._build(node, self.accept)
        self._forget()

    def _forget(self) -> None:
        self.places: list[_Place] = []
        self.numbers: dict[_Place, int] = {}
        self.moves: list[dict[str, int]] = []  #: of each place: where a character leads, -1 for found
        self._number((frozenset(), "^"))

    def _number(self, place: _Place) -> int:
        number = self.numbers.setdefault(place, len(self.places))
        if number == len(self.places):
            self.places.append(place)
            self.moves.append({})
        return number

    def _add(self, what: _Set | str | None, a: int, b: int) -> int:
        if len(self.states) >= MAX_STATES:
            raise UsageError(
                f"pattern of more than {MAX_STATES:,} states: {self.pattern[:60]!r}",
                hint="write fewer or smaller repetitions",
            )
        self.states.append((what, a, b))
        return len(self.states) - 1

    def _build(self, node: _Node, then: int) -> int:
        match node:
            case _Set():
                return self._add(node, then, -1)
            case _Assert():
                return self._add(node.kind, then, -1)
            case _Group():
                return self._build(node.item, then)
            case _Sequence():
                for item in reversed(node.items):
                    then = self._build(item, then)
                return then
            case _Choice():
                first = self._build(node.items[-1], then)
                for item in reversed(node.items[:-1]):
                    first = self._add(None, self._build(item, then), first)
                return first
            case _Repeat():
                return self._repeat(node, then)
            case _:
                raise AssertionError("look-ahead and back-references do not run on the automaton")

    def _repeat(self, node: _Repeat, then: int) -> int:
        if node.most == _ENDLESS:
            loop = self._add(None, then, then)
            self.states[loop] = (None, self._build(node.item, loop), then)
            then = loop
        else:
            end = then
            for _ in range(node.most - node.least):
                then = self._add(None, self._build(node.item, then), end)
        for _ in range(node.least):
            then = self._build(node.item, then)
        return then

    def search(self, text: str) -> bool:
        found = self.answers.get(text)
        if found is None:
            if len(self.answers) >= MAX_ANSWERS:
                self.answers.clear()
            found = self.answers[text] = self._found(text)
        return found

    def _found(self, text: str) -> bool:
        place = 0
        for char in text:
            following = self.moves[place].get(char)
            if following is None:
                following = self._move(place, char)
            if following < 0:
                return True
            place = following
        states, before = self.places[place]
        return self.accept in self._close(states, before, "")

    def _move(self, place: int, char: str) -> int:
        """The place that a character leads to, -1 where the pattern is found before it."""
        states, before = self.places[place]
        kind = "w" if char in _WORD else "."
        closed = self._close(states, before, kind)
        if self.accept in closed:
            following = -1
        else:
            if len(self.places) >= MAX_PLACES:
                self._forget()
                place = self._number((states, before))
            following = self._number((self._step(closed, char), kind))
        self.moves[place][char] = following
        return following

    def _close(self, states: frozenset[int], before: str, after: str) -> frozenset[int]:
        """All states that are reached without a character, those of a match that begins here among them."""
        holds = {"^": before == "^", "$": after == "", "b": (before == "w") != (after == "w")}
        holds["B"] = not holds["b"]
        seen = {*states, self.start}
        open_states = list(seen)
        while open_states:
            what, a, b = self.states[open_states.pop()]
            if isinstance(what, _Set) or (isinstance(what, str) and not holds[what]):
                continue
            for target in (a, b):
                if target >= 0 and target not in seen:
                    seen.add(target)
                    open_states.append(target)
        return frozenset(seen)

    def _step(self, states: frozenset[int], char: str) -> frozenset[int]:
        return frozenset(
            target
            for state in states
            for what, target, _ in (self.states[state],)
            if isinstance(what, _Set) and what.has(char)
        )
