"""Commands of engines in a shell script, with the values that its variables have when it is started without arguments.

The script is read from top to bottom and not run. A variable that is set differently in a branch or a loop, and what
a command would have to be run for, is unknown; a command of an engine that needs it says so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from autofit.deployments.lexer import MAX_DEPTH, Opaque, Part, Token, Variable, tokens
from autofit.deployments.written import MAX_BYTES, MAX_COMMANDS, MAX_WORDS_BYTES, UNKNOWN, IsEngine, Written
from autofit.domain.text import printable
from autofit.errors import UsageError
from autofit.files import read_bounded
from autofit.text.launchers import ASSIGNMENT, SHELLS, unwrap

MAX_FILES = 16  #: read by `source`

_OPENING = frozenset(("if", "case", "for", "while", "until", "select"))
_CLOSING = frozenset(("fi", "esac", "done"))
_SKIPPED = frozenset(("then", "else", "do", "elif", "!", "{", "}", "function", "if", "while", "until", *_CLOSING))
_ENDS = frozenset((";", "&", "&&", "||", "|", "|&", "\n", ";;", ";&", ";;&", "(", ")"))
_DECLARES = frozenset(("export", "declare", "typeset", "local", "readonly"))
_ASSIGNED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\+?)=(.*)", re.DOTALL)
_ITSELF = r"\$(?:0|\{0\}|\{?BASH_SOURCE(?:\[0\])?\}?)"
_OWN_DIRECTORY = re.compile(
    rf"(?:cd(?:--)?\$?\(?)?\(?dirname(?:--)?(?:\$\((?:readlink-f|realpath)(?:--)?{_ITSELF}\)|{_ITSELF})\)*"
    r"(?:>/dev/null(?:2>&1)?)?(?:&&pwd(?:-P)?)?\)*"
)
_CUT_DIRECTORY = re.compile(r"\$\{(?:0|BASH_SOURCE(?:\[0\])?)%/\*\}")


class Value(NamedTuple):
    """What a variable holds: one word or a list; `unknown` says why that is not told by reading."""

    words: tuple[str, ...]
    unknown: str | None = None
    is_list: bool = False
    is_split: bool = False  #: into words already, by quotes of its own


class _Word(NamedTuple):
    text: str
    unknown: str | None = None


def commands(
    text: str,
    is_engine: IsEngine,
    environ: Mapping[str, str],
    *,
    path: str = "",
    line: int = 1,
) -> tuple[Written, ...]:
    """The commands of engines that a script starts, in its order.

    `path` is that of the script, for what is written relative to it; `line` the number of its first line.

    Raises:
        UsageError: quotes or brackets that do not end, variables that grow without end, too many commands.
    """
    script = _Script(is_engine, environ, path)
    script.read(text, line)
    return tuple(script.found)


class _Script:
    def __init__(self, is_engine: IsEngine, environ: Mapping[str, str], path: str) -> None:
        self.is_engine, self.path = is_engine, path
        self.values = {name: Value((value,)) for name, value in environ.items()}
        self.inherited = frozenset(environ)
        self.exported: set[str] = set()  #: by the script
        self.directory: str | None = None
        self.depth = 0  #: of branches, loops and functions: what is set there may not be set
        self.functions: dict[str, Sequence[Token]] = {}
        self.arguments: tuple[_Word, ...] = ()  #: of the function that is read
        self.exports_all = False
        self.n_files = self.n_calls = self.n_inside = 0
        self.found: list[Written] = []

    def read(self, text: str, line: int = 1) -> None:
        self._run((*tokens(text, line), Token(0, "\n")))

    def _run(self, script: Sequence[Token]) -> None:
        command: list[Token] = []
        named: list[Token] = []  #: the word before `(`, which `)` makes a function's name
        outside: list[str | None] = []  #: directories to come back to at the end of a subshell
        at, after, depth = 0, "", 0
        while at < len(script):
            token = script[at]
            at += 1
            if token.text not in _ENDS:
                command.append(token)
                continue
            if token.text == ")" and after == "(" and named and not command:
                depth -= 1
                end = _end_of_body(script, at)
                self.functions[_literal(named[0])] = script[at:end]
                at = end
            elif token.text == ")" and depth == 0:  # behind a pattern of case
                pass
            elif token.text == "(" and (len(command) == 1 or _literal(command[0] if command else token) == "function"):
                named, depth = command[-1:], depth + 1
            else:
                depth += (token.text == "(") - (token.text == ")")
                self._command(command, after)
                if token.text == "(":
                    outside.append(self.directory)
                elif token.text == ")" and outside:
                    self.directory = outside.pop()
            if token.text != "(":
                named = []
            command, after = [], token.text

    def _command(self, command: list[Token], after: str) -> None:
        """One simple command, behind the words that branches and loops put before it."""
        while command:
            word = _literal(command[0])
            if word in _OPENING:
                self.depth += 1
            elif word in _CLOSING:
                self.depth = max(self.depth - 1, 0)
            if word in ("for", "select") and len(command) > 1:
                self._loop(command)
                return
            if word == "case":
                return
            if word not in _SKIPPED:
                break
            command = command[2:] if word == "function" else command[1:]
        if command:
            self._simple(command, may_not_run=self.depth > 0 or after in ("&&", "||"))

    def _loop(self, command: list[Token]) -> None:
        name = _literal(command[1])
        items = self._words(command[3:]) if _literal(command[2] if len(command) > 2 else command[1]) == "in" else []
        if len(items) == 1:
            self.values[name] = Value((items[0].text,), items[0].unknown)
        else:
            self.values[name] = Value((), f"${name} has another value in each turn of a loop")

    def _simple(self, command: list[Token], *, may_not_run: bool) -> None:
        n_assigned = 0
        while n_assigned < len(command) and _assigned(command[n_assigned]):
            n_assigned += 1
        if n_assigned == len(command):
            for token in command:
                self._assign(token, may_not_run)
            return
        first = _literal(command[n_assigned])
        rest = command[n_assigned + 1 :]
        if first in _DECLARES:
            self._declare(first, rest, may_not_run)
        elif first == "unset":
            for word in self._words(rest):
                self.values.pop(word.text, None)
        elif first == "set":
            flags = [word.text for word in self._words(rest)]
            self.exports_all = "-a" in flags or "allexport" in flags
        elif first == "cd" and rest:
            self._change_directory(rest)
        elif first in (".", "source") and rest:
            self._source(rest[0])
        else:
            self._start(command, n_assigned)

    def _declare(self, first: str, rest: list[Token], may_not_run: bool) -> None:
        exports = first == "export"
        for token in rest:
            text = _literal(token)
            exports |= text.startswith("-") and "x" in text
            name = self._assign(token, may_not_run) if _assigned(token) else text
            if exports and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name or ""):
                self.exported.add(name)

    def _assign(self, token: Token, may_not_run: bool) -> str:
        """Set a variable; returns its name."""
        match = _ASSIGNED.fullmatch(str(token.parts[0]))
        assert match is not None
        name, adds, first = match.groups()
        before = self.values.get(name, Value(()))
        if token.items is not None:
            words = [word for parts in token.items for word in self._expand(parts)]
        else:
            words = [self._joined((first, *token.parts[1:]))]
        unknown = next((word.unknown for word in words if word.unknown), None)
        texts = tuple(word.text for word in words)
        if adds and token.items is not None:
            value = Value(before.words + texts, before.unknown or unknown, True)
        elif adds:
            value = Value(("".join((*before.words, *texts)),), before.unknown or unknown)
        else:
            value = Value(texts, unknown, token.items is not None)
        if sum(map(len, value.words)) + len(value.words) > MAX_WORDS_BYTES:
            raise UsageError(f"line {token.line}: ${name} grows beyond {MAX_WORDS_BYTES} bytes")
        if may_not_run and any(before.words) and value.words != before.words:
            value = Value(value.words, f"${name} depends on a condition (line {token.line})", value.is_list)
        self.values[name] = value
        if self.exports_all:
            self.exported.add(name)
        return name

    def _change_directory(self, rest: list[Token]) -> None:
        words = [word for word in self._words(rest) if word.text not in ("--", "-P", "-L")]
        if words and words[0].unknown is None:
            self.directory = os.path.join(self.directory or "", words[0].text)  # noqa: PTH118 - words of another file

    def _source(self, token: Token) -> None:
        """Read another file for the variables that it sets, where it is there."""
        words = self._words([token])
        if not words or words[0].unknown or self.n_files >= MAX_FILES:
            return
        self.n_files += 1
        try:
            text = read_bounded(os.path.join(self.directory or "", words[0].text), MAX_BYTES)  # noqa: PTH118
        except OSError:
            return
        found, self.found = self.found, []  # lines of another file
        self.read(text.decode("utf-8", "surrogateescape"))
        self.found = found

    def _start(self, command: list[Token], n_assigned: int) -> None:
        """A program is started: kept where it is one of an engine."""
        if len(self.found) >= MAX_COMMANDS:
            raise UsageError(f"line {command[0].line}: more than {MAX_COMMANDS} commands of engines")
        assigned = [self._joined(token.parts) for token in command[:n_assigned]]
        words = [*assigned, *self._words(command[n_assigned:])]
        if len(words) > n_assigned and words[n_assigned].text in self.functions:
            self._call(words[n_assigned:], command[0].line)
            return
        argv = _with_program(words)
        shown = tuple(word.text for word in argv)
        if not argv or self._inner(command[0].line, shown) or not self.is_engine(shown):
            return
        environ = tuple((name, self.values[name].words[0]) for name in sorted(self.exported) if self._is_told(name))
        unknown = next((word.unknown for word in argv if word.unknown), None)
        self.found.append(
            Written(
                line=command[0].line,
                argv=shown,
                environ=environ,
                directory=self.directory,
                unknown=unknown,
            )
        )

    def _call(self, words: list[_Word], line: int) -> None:
        """A function, read as it is called."""
        self.n_calls += 1
        if self.n_inside >= MAX_DEPTH or self.n_calls > MAX_COMMANDS:
            raise UsageError(f"line {line}: functions called more than {MAX_DEPTH} deep, or {MAX_COMMANDS} times")
        before, self.arguments = self.arguments, tuple(words[1:])
        self.n_inside += 1
        self._run((*self.functions[words[0].text], Token(line, "\n")))
        self.n_inside -= 1
        self.arguments = before

    def _is_told(self, name: str) -> bool:
        value = self.values.get(name)
        return value is not None and value.unknown is None and len(value.words) == 1

    def _inner(self, line: int, words: tuple[str, ...]) -> bool:
        """Read the script of `sh -c '...'`, which sees what is exported; whether the command is one."""
        inner = script_of(words)
        if inner is None or UNKNOWN in inner:
            return False
        if self.n_inside >= MAX_DEPTH:
            raise UsageError(f"line {line}: shells in shells more than {MAX_DEPTH} deep")
        script = _Script(self.is_engine, {}, self.path)
        script.values = {name: value for name, value in self.values.items() if name in self.exported | self.inherited}
        script.exported, script.inherited = set(self.exported), self.inherited
        script.directory, script.n_inside = self.directory, self.n_inside + 1
        script.read(inner, line)
        self.found += script.found
        return True

    def _words(self, command: list[Token]) -> list[_Word]:
        found: list[_Word] = []
        n_bytes = 0
        for token in command:
            words = self._expand(token.parts) or ([_Word("")] if token.quoted and not _is_list(token) else [])
            n_bytes += sum(len(word.text) + 1 for word in words)
            if n_bytes > MAX_WORDS_BYTES:
                raise UsageError(f"line {token.line}: a command beyond {MAX_WORDS_BYTES} bytes")
            found += words
        return found

    def _joined(self, parts: tuple[Part, ...]) -> _Word:
        """Parts as one word, as an assignment has it."""
        texts: list[str] = []
        unknown: str | None = None
        for part in parts:
            value = self._value(part)
            texts.append(" ".join(value.words) if value.unknown is None else UNKNOWN)
            unknown = unknown or value.unknown
        return _Word("".join(texts), unknown)

    def _expand(self, parts: tuple[Part, ...]) -> list[_Word]:
        """Parts as a shell makes words of them: what is not quoted is split, a list in quotes is as many words."""
        words: list[_Word] = []
        open_text: str | None = None
        reason: str | None = None
        for at, part in enumerate(parts):
            value = self._value(part)
            if at == 0 and isinstance(part, str) and (part == "~" or part.startswith("~/")):
                home = self.values.get("HOME", Value(("~",)))
                value = Value(("".join(home.words) + part[1:],), home.unknown)
            if value.unknown is not None:
                open_text, reason = (open_text or "") + UNKNOWN, reason or value.unknown
                continue
            if isinstance(part, str) or (part.quoted and not (isinstance(part, Variable) and part.is_list)):
                open_text = (open_text or "") + " ".join(value.words)
                continue
            texts = value.words
            if not part.quoted and not value.is_split:
                texts = tuple(word for text in texts for word in text.split())
            for n, text in enumerate(texts):
                if n:
                    words.append(_Word(open_text or "", reason))
                    open_text, reason = "", None
                open_text = (open_text or "") + text
        if open_text is not None:
            words.append(_Word(open_text, reason))
        return words

    def _value(self, part: Part) -> Value:
        if isinstance(part, str):
            return Value((part,))
        if isinstance(part, Opaque):
            return self._opaque(part)
        value = self._held(part.name)
        is_full = value is not None and (value.unknown is not None or any(value.words))
        holds = is_full if part.operator.startswith(":") else value is not None
        if part.operator.endswith(("-", "=")) and not holds:
            word = self._other(part)
            if part.operator.endswith("="):
                self.values[part.name] = Value((" ".join(word.words),), word.unknown)
                return self.values[part.name]
            return word
        if part.operator.endswith("+"):
            return self._other(part) if holds else Value(())
        if value is None:
            if part.name.isdigit():
                return Value((), f"the script's argument ${part.name} is not given here")
            return Value((), f"${part.name} is not set here")
        return Value(value.words[:1], value.unknown) if value.is_list and not part.is_list else value

    def _other(self, part: Variable) -> Value:
        """What stands behind the operator of an expansion."""
        if part.quoted:
            word = self._joined(part.words[0] if part.words else ())
            return Value((word.text,), word.unknown)
        words = [word for parts in part.words for word in (self._expand(parts) or [_Word("")])]
        unknown = next((word.unknown for word in words if word.unknown), None)
        return Value(tuple(word.text for word in words), unknown, is_split=True)

    def _held(self, name: str) -> Value | None:
        """What a variable or a parameter of the shell holds; the script itself has no arguments."""
        if name in "@*":
            unknown = next((word.unknown for word in self.arguments if word.unknown), None)
            return Value(tuple(word.text for word in self.arguments), unknown, is_list=True)
        if name.isdigit() and 0 < int(name) <= len(self.arguments):
            word = self.arguments[int(name) - 1]
            return Value((word.text,), word.unknown)
        if name == "0":
            return Value((self.path,))
        if name == "PWD":
            return Value((self.directory or os.getcwd(),))  # noqa: PTH109
        return self.values.get(name)

    def _opaque(self, part: Opaque) -> Value:
        squeezed = re.sub(r"[\s\"']", "", part.text)
        inner = squeezed.removeprefix("$(").removesuffix(")") if squeezed.startswith("$(") else squeezed.strip("`")
        if _CUT_DIRECTORY.fullmatch(squeezed) or _OWN_DIRECTORY.fullmatch(inner):
            return Value((os.path.dirname(self.path) or ".",))  # noqa: PTH120
        if inner == "nproc":
            return Value((str(_n_processors()),))
        if inner == "pwd":
            return Value((self.directory or os.getcwd(),))  # noqa: PTH109
        return Value((), f"only running tells {printable(part.text, 60)}")


def _end_of_body(script: Sequence[Token], at: int) -> int:
    """Behind the brace that ends a function's body; right here where it has no braces."""
    depth, start = 0, at
    while at < len(script):
        word = _literal(script[at])
        depth += (word == "{") - (word == "}")
        at += 1
        if depth == 0 and word == "}":
            return at
        if depth == 0 and script[at - 1].text not in ("\n", ""):
            return start
    return at if depth else start


def _n_processors() -> int:
    """What `nproc` prints here."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def script_of(words: tuple[str, ...]) -> str | None:
    """The script of `sh -c SCRIPT`, behind its launchers; `None`: the command is no such thing."""
    n_assigned = next((n for n, word in enumerate(words) if not ASSIGNMENT.fullmatch(word)), len(words))
    try:
        rest = unwrap(words[n_assigned:]).argv
    except UsageError:
        return None
    if not rest or rest[0].rpartition("/")[2] not in SHELLS:
        return None
    for at, word in enumerate(rest[1:], 1):
        if word.startswith("-") and not word.startswith("--") and "c" in word:
            return rest[at + 1] if at + 1 < len(rest) else None
        if not word.startswith(("-", "+")):
            return None
    return None


def _with_program(words: list[_Word]) -> list[_Word]:
    """The words, the program by its name alone where only running tells its directory."""
    try:
        n_before = len(unwrap(tuple(word.text for word in words[_n_assigned(words) :])).prefix) + _n_assigned(words)
    except UsageError:
        return words
    if n_before >= len(words) or UNKNOWN not in words[n_before].text:
        return words
    name = words[n_before].text.rpartition("/")[2]
    known = _Word(name) if name and UNKNOWN not in name else words[n_before]
    return [*words[:n_before], known, *words[n_before + 1 :]]


def _n_assigned(words: list[_Word]) -> int:
    return next((n for n, word in enumerate(words) if not ASSIGNMENT.fullmatch(word.text)), len(words))


def _literal(token: Token) -> str:
    """The text of a word without quotes and variables; empty for another."""
    return token.parts[0] if len(token.parts) == 1 and isinstance(token.parts[0], str) and not token.quoted else ""


def _assigned(token: Token) -> bool:
    return bool(token.parts) and isinstance(token.parts[0], str) and _ASSIGNED.fullmatch(token.parts[0]) is not None


def _is_list(token: Token) -> bool:
    return len(token.parts) == 1 and isinstance(token.parts[0], Variable) and token.parts[0].is_list
