"""Commands of engines in a shell script, with the values that its variables have when it is started without arguments.

The script is read from top to bottom and not run. A variable that is set differently in a branch or a loop, and what
a command would have to be run for, is unknown; a command of an engine that needs it says so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from autofit.deployments.branches import Value, Variables, holds, matches
from autofit.deployments.lexer import MAX_DEPTH, Opaque, Part, Token, Variable, tokens
from autofit.deployments.written import (
    MAX_BYTES,
    MAX_COMMANDS,
    MAX_WORDS_BYTES,
    SECRET,
    UNKNOWN,
    IsEngine,
    Written,
    check_measure,
    split_words,
)
from autofit.domain.text import printable
from autofit.domain.values import replace
from autofit.errors import UsageError
from autofit.files import read_bounded
from autofit.text.launchers import ASSIGNMENT, SHELLS, unwrap
from autofit.text.tmux import script_in_tmux

MAX_FILES = 16  #: read by `source`

_LOOPS = frozenset(("while", "until"))
_CLOSES = {"fi": ("if",), "esac": ("case",), "done": ("while", "until", "for"), "}": ("group",)}
_SKIPPED = frozenset(("then", "else", "do", "elif", "!", "{", "function", "if", *_LOOPS, *_CLOSES))
_ENDS = frozenset((";", "&", "&&", "||", "|", "|&", "\n", ";;", ";&", ";;&", "(", ")"))
_DECLARES = frozenset(("export", "declare", "typeset", "local", "readonly"))
_ASSIGNED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\+?)=(.*)", re.DOTALL)
_ITSELF = r"\$(?:0|\{0\}|\{?BASH_SOURCE(?:\[0\])?\}?)"
_OWN_DIRECTORY = re.compile(
    rf"(?:cd(?:--)?\$?\(?)?\(?dirname(?:--)?(?:\$\((?:readlink-f|realpath)(?:--)?{_ITSELF}\)|{_ITSELF})\)*"
    r"(?:>/dev/null(?:2>&1)?)?(?:&&pwd(?:-P)?)?\)*"
)
_FINDS = re.compile(  #: where a program is, which is its name for all that matters here
    r"""\$\([ \t]*(?:command[ \t]+-v|which|type[ \t]+-[pP])[ \t]+["']?([\w.+/-]+)["']?"""
    r"""(?:[ \t]+2>[ \t]*/dev/null)?(?:[ \t]*\|\|[ \t]*true)?[ \t]*\)"""
)
_CUT_DIRECTORY = re.compile(r"\$\{(?:0|BASH_SOURCE(?:\[0\])?)%/\*\}")


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
        self.variables = Variables({name: Value((value,)) for name, value in environ.items()})
        self.truth: bool | None = None  #: of the list of commands that was read last
        self.turns: bool | None = None  #: whether a loop over words has any
        self.inherited = frozenset(environ)
        self.exported: set[str] = set()  #: by the script
        self.directory: str | None = None
        self.functions: dict[str, Sequence[Token]] = {}
        self.arguments: tuple[_Word, ...] = ()  #: of the function that is read
        self.exports_all = False
        self.n_outer = 0  #: branches around the function that is read
        self.n_files = self.n_calls = self.n_inside = 0
        self.found: list[Written] = []

    def read(self, text: str, line: int = 1) -> None:
        self._run((*tokens(text, line), Token(0, "\n")))

    def _run(self, script: Sequence[Token]) -> None:
        command: list[Token] = []
        named: list[Token] = []  #: the word before `(`, which `)` makes a function's name
        outside: list[str | None] = []  #: directories to come back to at the end of a subshell
        at, after = 0, ""
        n_branches = len(self.variables.branches)
        while at < len(script):
            token = script[at]
            at += 1
            branch = self.variables.branches[-1] if len(self.variables.branches) > n_branches else None
            if branch is not None and _literal(token) == "esac":
                branch.awaits_pattern = False
            if branch is not None and branch.awaits_pattern:
                if token.text == ")":
                    branch.awaits_pattern = False
                    self.variables.part(runs=matches(branch.word, list(map(self._pattern, command))))
                    command, after = [], ""
                elif token.text not in _ENDS:
                    command.append(token)
                continue
            if token.text not in _ENDS:
                command.append(token)
                if _literal(token) == "in" and len(command) > 2 and _literal(command[-3]) == "case":
                    self._command(command, after)
                    command, after = [], ""
                continue
            if token.text == ")" and after == "(" and named and not command:
                end = _end_of_body(script, at)
                self.functions[_literal(named[0])] = script[at:end]
                at = end
            elif token.text == "(" and (len(command) == 1 or _literal(command[0] if command else token) == "function"):
                named = command[-1:]
            else:
                self._command(command, after)
                if token.text == "(":
                    outside.append(self.directory)
                elif token.text == ")" and outside:
                    self.directory = outside.pop()
            if token.text != "(":
                named = []
            command, after = [], token.text
            if token.text.startswith(";;") or token.text == ";&":
                branch = self.variables.branches[-1] if len(self.variables.branches) > n_branches else None
                if branch is not None and branch.kind == "case":
                    branch.awaits_pattern = True
        self.variables.close_to(n_branches)

    def _command(self, command: list[Token], after: str) -> None:
        """One simple command, behind the words that branches and loops put before it."""
        is_not = False
        while command:
            word = _literal(command[0])
            if word in ("for", "select", "case"):
                self._opened(word, command)
                return
            if word not in _SKIPPED:
                break
            is_not ^= word == "!"
            self._keyword(word, after, command[0].line)
            command = command[2:] if word == "function" else command[1:]
        if not command:
            return
        truth = self.truth if after in ("&&", "||") else None
        if after in ("&&", "||"):
            runs = truth if after == "&&" or truth is None else not truth
            self.variables.open("and", runs=runs, line=command[0].line)
            self._simple(command)
            self.variables.close()
        else:
            self._simple(command)
        held = holds([self._told(token) for token in command]) if _is_test(command) else None
        self.truth = _together(truth, after, held if held is None else held != is_not)

    def _keyword(self, word: str, after: str, line: int) -> None:
        """A word that begins, parts or ends a branch or a loop."""
        inner = self.variables.branches[-1].kind if self.variables.branches else ""
        if word == "if" or word in _LOOPS:
            self.variables.open(word, runs=False, line=line)
        elif word == "{" and after in ("&&", "||"):
            runs = self.truth if after == "&&" or self.truth is None else not self.truth
            self.variables.open("group", runs=runs, line=line)
        elif word == "then":
            self.variables.part(runs=self.truth)
        elif word == "elif":
            self.variables.part(runs=False)
        elif word == "else":
            self.variables.part(runs=True)
        elif word == "do" and inner == "for":
            self.variables.part(runs=self.turns)
        elif word == "do":
            self.variables.part(runs=self.truth if inner == "while" or self.truth is None else not self.truth)
        elif inner in _CLOSES.get(word, ()):
            self.variables.close()

    def _told(self, token: Token) -> str | None:
        """A word of a test; what is not set is empty there, a secret is not told."""
        texts: list[str] = []
        for part in token.parts:
            if isinstance(part, Variable) and SECRET.search(part.name):
                return None
            if isinstance(part, Variable) and not part.operator and self._held(part.name) is None:
                continue
            value = self._value(part)
            if value.unknown is not None:
                return None
            texts.append(" ".join(value.words))
        return "".join(texts)

    def _pattern(self, token: Token) -> str | None:
        """A pattern of `case` that is a word; `None` for another that is not `*`."""
        text = self._told(token)
        return (
            text if text is None or token.quoted or _literal(token) == "*" or not re.search(r"[*?\[]", text) else None
        )

    def _opened(self, word: str, command: list[Token]) -> None:
        """`for NAME in WORDS`, `select NAME in WORDS`, `case WORD in`."""
        line = command[0].line
        if word != "case" and len(command) > 1:
            name = _literal(command[1])
            is_given = len(command) > 2 and _literal(command[2]) == "in"
            items = self._words(command[3:]) if is_given else list(self.arguments)
            self.turns = None if any(item.unknown for item in items) else bool(items)
            if len(items) == 1:
                self.variables.set(name, Value((items[0].text,), items[0].unknown), line)
            elif items:
                self.variables.set(name, Value((), f"${name} has another value in each turn of a loop"), line)
        self.variables.open("case" if word == "case" else "for", runs=False, line=line)
        if word == "case" and len(command) > 1:
            self.variables.branches[-1].word = self._told(command[1])

    def _simple(self, command: list[Token]) -> None:
        n_assigned = 0
        while n_assigned < len(command) and _assigned(command[n_assigned]):
            n_assigned += 1
        if n_assigned == len(command):
            for token in command:
                self._assign(token)
            return
        first = _literal(command[n_assigned])
        rest = command[n_assigned + 1 :]
        if first in _DECLARES:
            self._declare(first, rest)
        elif first == "unset":
            for word in self._words(rest):
                self.variables.set(word.text, None, command[0].line)
        elif first == "set":
            flags = [word.text for word in self._words(rest)]
            on = any(re.fullmatch(r"-[a-z]*a[a-z]*", flag) for flag in flags)
            off = any(re.fullmatch(r"\+[a-z]*a[a-z]*", flag) for flag in flags)
            self.exports_all = "-o" in flags if "allexport" in flags else on or (self.exports_all and not off)
        elif first == "cd" and rest:
            self._change_directory(rest)
        elif first in (".", "source") and rest:
            self._source(rest[0])
        elif first == "eval" and rest:
            self._evaluate(rest)
        elif first in ("exit", "return") and len(self.variables.branches) > self.n_outer:
            self.variables.ends()
        else:
            self._start(command, n_assigned)

    def _declare(self, first: str, rest: list[Token]) -> None:
        exports = first == "export"
        for token in rest:
            text = _literal(token)
            exports |= text.startswith("-") and "x" in text
            name = self._assign(token) if _assigned(token) else text
            if exports and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name or ""):
                self.exported.add(name)

    def _assign(self, token: Token) -> str:
        """Set a variable; returns its name."""
        match = _ASSIGNED.fullmatch(str(token.parts[0]))
        assert match is not None
        name, adds, first = match.groups()
        before = self.variables.held.get(name, Value(()))
        if token.items is not None:
            words = [word for parts in token.items for word in self._expand(parts)]
        else:
            words = [self._joined((self._home(first), *token.parts[1:]))]
        unknown = next((word.unknown for word in words if word.unknown), None)
        texts = tuple(word.text for word in words)
        if adds and token.items is not None:
            value = Value(before.words + texts, before.unknown or unknown, True)
        elif adds:
            value = Value(("".join((*before.words, *texts)),), before.unknown or unknown)
        else:
            value = Value(texts, unknown, token.items is not None)
        if sum(map(len, value.words)) + 8 * len(value.words) > MAX_WORDS_BYTES:
            raise UsageError(f"line {token.line}: ${name} grows beyond {MAX_WORDS_BYTES} bytes")
        self.variables.set(name, value, token.line)
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
        before = set(self.variables.held)
        self.read(text.decode("utf-8", "surrogateescape"))
        for name in [name for name in self.variables.held if name not in before and SECRET.search(name)]:
            self.variables.set(name, None, token.line)
        self.found = found

    def _start(self, command: list[Token], n_assigned: int) -> None:
        """A program is started: kept where it is one of an engine."""
        check_measure(command[0].line, len(self.found) + 1, len(self.exported))
        assigned = [self._joined(token.parts) for token in command[:n_assigned]]
        words = [*assigned, *self._words(command[n_assigned:])]
        if len(words) > n_assigned and words[n_assigned].text in self.functions:
            self._call(words[n_assigned:], command[0].line)
            return
        if words[n_assigned : n_assigned + 1] and words[n_assigned].text == "command" and _asks_only(words):
            return
        argv = _with_program(words)
        shown = tuple(word.text for word in argv)
        unknown = next((word.unknown for word in argv if word.unknown), None)
        if not argv or self._inner(command[0].line, shown, unknown) or not self.is_engine(shown):
            return
        held = self.variables.held
        environ = tuple((name, held[name].words[0]) for name in sorted(self.exported) if self._is_told(name))
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
        outer, self.n_outer = self.n_outer, len(self.variables.branches)
        self.n_inside += 1
        self._run((*self.functions[words[0].text], Token(line, "\n")))
        self.n_inside -= 1
        self.arguments, self.n_outer = before, outer

    def _evaluate(self, rest: list[Token]) -> None:
        """`eval WORDS`: the words as a script of its own, here."""
        words = self._words(rest)
        if self.n_inside >= MAX_DEPTH:
            raise UsageError(f"line {rest[0].line}: eval more than {MAX_DEPTH} deep")
        n_before = len(self.found)
        self.n_inside += 1
        self.read(" ".join(word.text for word in words), rest[0].line)
        self.n_inside -= 1
        reason = next((word.unknown for word in words if word.unknown), None)
        for n, one in enumerate(self.found[n_before:], n_before):
            if one.unknown is None and any(UNKNOWN in word for word in one.argv):
                self.found[n] = replace(one, unknown=reason)

    def _is_told(self, name: str) -> bool:
        value = self.variables.held.get(name)
        return value is not None and value.unknown is None and len(value.words) == 1

    def _inner(self, line: int, words: tuple[str, ...], unknown: str | None) -> bool:
        """Read the script of `sh -c '...'`, which sees what is exported; whether the command is one. `unknown` says why
        a part of it is."""
        inner = script_of(words)
        if inner is None:
            return False
        if self.n_inside >= MAX_DEPTH:
            raise UsageError(f"line {line}: shells in shells more than {MAX_DEPTH} deep")
        script = _Script(self.is_engine, {}, self.path)
        script.variables = Variables(
            {name: value for name, value in self.variables.held.items() if name in self.exported | self.inherited}
        )
        script.exported, script.inherited = set(self.exported), self.inherited
        script.directory, script.n_inside = self.directory, self.n_inside + 1
        script.read(inner, line)
        lacking = [one.unknown is None and any(UNKNOWN in word for word in one.argv) for one in script.found]
        self.found += [
            replace(one, unknown=unknown) if lacks else one for one, lacks in zip(script.found, lacking, strict=True)
        ]
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
            if at == 0 and isinstance(part, str):
                value = Value((self._home(part),))
            if value.unknown is not None:
                open_text, reason = (open_text or "") + UNKNOWN, reason or value.unknown
                continue
            if isinstance(part, str) or (part.quoted and not (isinstance(part, Variable) and part.is_list)):
                open_text = (open_text or "") + " ".join(value.words)
                continue
            texts = value.words
            if not part.quoted and not value.is_split:
                texts = tuple(word for text in texts for word in split_words(text))
            for n, text in enumerate(texts):
                if n:
                    words.append(_Word(open_text or "", reason))
                    open_text, reason = "", None
                open_text = (open_text or "") + text
        if open_text is not None:
            words.append(_Word(open_text, reason))
        return words

    def _home(self, text: str) -> str:
        """A text whose `~` at its begin is the home directory, where that is told."""
        home = self.variables.held.get("HOME")
        is_told = home is not None and home.unknown is None and len(home.words) == 1
        return home.words[0] + text[1:] if home is not None and is_told and re.match(r"~(?:/|$)", text) else text

    def _value(self, part: Part) -> Value:
        if isinstance(part, str):
            return Value((part,))
        if isinstance(part, Opaque):
            return self._opaque(part)
        value = self._held(part.name)
        if part.place is not None and value is not None and value.unknown is None:
            one = value.words[part.place : part.place + 1]
            value = Value(one) if one else None
        is_full = value is not None and (value.unknown is not None or any(value.words))
        holds = is_full if part.operator.startswith(":") else value is not None
        if part.operator.endswith(("-", "=")) and not holds:
            word = self._other(part)
            if part.operator.endswith("="):
                filled = Value((" ".join(word.words),), word.unknown)
                self.variables.set(part.name, filled, 0)
                return filled
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
        if name == "#":
            return Value((str(len(self.arguments)),))
        if name in ("0", "BASH_SOURCE"):
            return Value((self.path,))
        if name == "PWD":
            return Value((self.directory or os.getcwd(),))  # noqa: PTH109
        return self.variables.held.get(name)

    def _opaque(self, part: Opaque) -> Value:
        squeezed = re.sub(r"[\s\"']", "", part.text)
        inner = squeezed.removeprefix("$(").removesuffix(")") if squeezed.startswith("$(") else squeezed.strip("`")
        if _CUT_DIRECTORY.fullmatch(squeezed) or _OWN_DIRECTORY.fullmatch(inner):
            return Value((os.path.dirname(self.path) or ".",))  # noqa: PTH120
        if found := _FINDS.fullmatch(part.text):
            return Value((found[1],))
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
    """The script of `sh -c SCRIPT` or of a command of tmux, behind its launchers; `None`: it is no such thing."""
    n_assigned = next((n for n, word in enumerate(words) if not ASSIGNMENT.fullmatch(word)), len(words))
    try:
        rest = unwrap(words[n_assigned:]).argv
    except UsageError:
        return None
    if not rest or rest[0].rpartition("/")[2] not in SHELLS:
        return script_in_tmux(rest)
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


def _asks_only(words: Sequence[_Word]) -> bool:
    """`command -v PROGRAM`: whether it is there."""
    return any(word.text in ("-v", "-V", "-pv", "-pV") for word in words[:3])


def _is_test(command: Sequence[Token]) -> bool:
    return _literal(command[0]) in ("[", "[[", "test", "true", "false", ":", "getopts") or _literal(command[-1]) == "]]"


def _together(before: bool | None, after: str, held: bool | None) -> bool | None:
    """What a list of commands comes to with one more behind `&&` or `||`; a pipeline is not told."""
    if after in ("|", "|&"):
        return None
    if after not in ("&&", "||"):
        return held
    ends_it = after == "||"
    if ends_it in (before, held):
        return ends_it
    return None if None in (before, held) else not ends_it
