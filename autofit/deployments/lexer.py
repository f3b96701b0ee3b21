"""Text of a POSIX shell taken apart into words and operators. Nothing is expanded here, and nothing is run.

Source: IEEE Std 1003.1-2024, Shell Command Language, 2.2 to 2.3 and 2.6; arrays, `$'...'` and `<<<` as bash 5 has them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from autofit.deployments.written import MAX_TOKENS
from autofit.errors import UsageError


class Variable(NamedTuple):
    """`$NAME`, `${NAME:-words}`, `${NAME[@]}`; `operator` is one of `- = ? +`, with `:` where empty counts as unset."""

    name: str
    quoted: bool
    operator: str = ""
    words: tuple[tuple[Part, ...], ...] = ()
    is_list: bool = False
    place: int | None = None  #: of one word of a list


class Opaque(NamedTuple):
    """What only a shell can tell: a substitution of a command, arithmetic, an expansion of another kind."""

    text: str
    quoted: bool


Part = str | Variable | Opaque


class Token(NamedTuple):
    """A word (`parts`), a list (`items`, of `NAME=(...)`, whose name is in `parts`) or an operator (`text`)."""

    line: int
    text: str = ""
    parts: tuple[Part, ...] = ()
    items: tuple[tuple[Part, ...], ...] | None = None
    quoted: bool = False  #: some of the word is in quotes: it may be empty


MAX_DEPTH = 32

_PLAIN = re.compile(r"[^ \t\r\n'\"\\$`;&|()<>]+")
_CONTINUED = re.compile(r"\\\r?\n")
_BLANK = re.compile(r"[ \t\r]+|\\\r?\n")
_OPERATOR = re.compile(r";;&|;;|;&|&&|\|\||\|&|<<<|<<-?|&>>|&>|>>|>&|<&|>\||<>|[;&|()<>]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9@*#?$!-]")
_LIST = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=")
_BRACED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*])(?:\[([@*]|[0-9]{1,6})\])?(?:(:?[-=?+])(.*))?", re.DOTALL)
_IN_DOUBLE = re.compile(r'[^"\\$`]+')
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "e": "\x1b", "f": "\f", "v": "\v"}


def tokens(text: str, first_line: int = 1) -> list[Token]:
    """The tokens of a script; `\\n` is the operator that ends a line.

    Raises:
        UsageError: quotes or brackets that do not end.
    """
    return _Lexer(text, first_line).read()


class _Lexer:
    def __init__(self, text: str, line: int, depth: int = 0) -> None:
        self.text, self.at, self.line, self.depth = text, 0, line, depth
        self.documents: list[tuple[str, bool]] = []  #: here-documents whose text begins on the next line

    def read(self) -> list[Token]:
        found: list[Token] = []
        while self.at < len(self.text):
            if len(found) > MAX_TOKENS:
                raise UsageError(f"line {self.line}: more than {MAX_TOKENS} words")
            if match := _BLANK.match(self.text, self.at):
                self._skip(match.end())
            elif self.text[self.at] == "\n":
                found.append(Token(self.line, "\n"))
                self._skip(self.at + 1)
                self._skip_documents()
            elif self.text[self.at] == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif self.text.startswith(("<(", ">("), self.at):
                start = self.at
                self._skip(self._balanced(start + 2, "(", ")"))
                found.append(Token(self.line, parts=(Opaque(self.text[start : self.at], True),), quoted=True))
            elif match := _OPERATOR.match(self.text, self.at):
                found += self._operator(match[0], found)
            else:
                found.append(self._word_or_list())
        return found

    def _operator(self, operator: str, found: list[Token]) -> list[Token]:
        """An operator; a redirection goes with its number and its target."""
        if operator[0] not in "<>" and not operator.startswith("&>"):
            self._skip(self.at + len(operator))
            return [Token(self.line, operator)]
        before = self.text[self.at - 1 : self.at]
        if before.isdigit() and found and found[-1].parts and "".join(map(str, found[-1].parts)).isdigit():
            found.pop()
        self._skip(self.at + len(operator))
        while match := _BLANK.match(self.text, self.at):
            self._skip(match.end())
        if self.at < len(self.text) and self.text[self.at] not in "\n;&|()<>":
            target = self._word()
            if operator in ("<<", "<<-"):
                self.documents.append(("".join(p for p in target.parts if isinstance(p, str)), operator == "<<-"))
        return []

    def _skip_documents(self) -> None:
        for delimiter, strips in self.documents:
            while self.at < len(self.text):
                end = self.text.find("\n", self.at)
                end = len(self.text) if end < 0 else end
                line = self.text[self.at : end]
                self._skip(min(end + 1, len(self.text)))
                if (line.lstrip("\t") if strips else line).rstrip("\r") == delimiter:
                    break
        self.documents = []

    def _word_or_list(self) -> Token:
        line = self.line
        if (match := _LIST.match(self.text, self.at)) and self.text[match.end() : match.end() + 1] == "(":
            end = self._balanced(match.end() + 1, "(", ")")
            inner = _Lexer(self.text[match.end() + 1 : end - 1], line, self._deeper())
            items = tuple(token.parts for token in inner.read() if token.text != "\n")
            self._skip(end)
            return Token(line, parts=(match[0],), items=items)
        return self._word()

    def _word(self) -> Token:
        line, quoted = self.line, False
        parts: list[Part] = []
        while self.at < len(self.text):
            character = self.text[self.at]
            if match := _PLAIN.match(self.text, self.at):
                parts.append(match[0])
                self._skip(match.end())
            elif character == "'":
                parts.append(self._single())
                quoted = True
            elif character == '"':
                self._skip(self.at + 1)
                parts += self._double('"')
                quoted = True
            elif match := _CONTINUED.match(self.text, self.at):
                self._skip(match.end())
            elif character == "\\":
                parts.append(self.text[self.at + 1 : self.at + 2] or "\\")
                self._skip(self.at + 2)
            elif character == "$":
                parts.append(self._dollar(quoted=False))
            elif character == "`":
                parts.append(self._backquoted(quoted=False))
            else:
                break
        return Token(line, parts=tuple(parts), quoted=quoted)

    def _single(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise UsageError(f"line {self.line}: a ' without its end")
        inner = self.text[self.at + 1 : end]
        self._skip(end + 1)
        return inner

    def _double(self, end: str) -> list[Part]:
        """The parts up to a closing quote (or to the end of the text, where `end` is empty)."""
        parts: list[Part] = []
        while self.at < len(self.text):
            character = self.text[self.at]
            if character == end:
                self._skip(self.at + 1)
                return parts
            if match := _IN_DOUBLE.match(self.text, self.at):
                parts.append(match[0])
                self._skip(match.end())
            elif character == "\\":
                after = self.text[self.at + 1 : self.at + 2]
                parts.append("" if after == "\n" else after if after and after in '$`"\\' else "\\" + after)
                self._skip(self.at + 2)
            elif character == "$":
                parts.append(self._dollar(quoted=True))
            elif character == "`":
                parts.append(self._backquoted(quoted=True))
            else:  # a quote in text that no quote ends
                parts.append(character)
                self._skip(self.at + 1)
        if end:
            raise UsageError(f'line {self.line}: a " without its end')
        return parts

    def _dollar(self, *, quoted: bool) -> Part:
        start, after = self.at, self.text[self.at + 1 : self.at + 2]
        if after == "(":
            self._skip(self._balanced(start + 2, "(", ")"))
            return Opaque(self.text[start : self.at], quoted)
        if after == "{":
            self._skip(self._balanced(start + 2, "{", "}"))
            return self._braced(self.text[start + 2 : self.at - 1], quoted)
        if after == "'" and not quoted:
            return self._escaped()
        if after == '"' and not quoted:  # translated text: as it stands
            self._skip(start + 1)
            return ""
        match = _NAME.match(self.text, start + 1)
        if match is None:
            self._skip(start + 1)
            return "$"
        self._skip(match.end())
        return Variable(match[0], quoted, is_list=match[0] in "@*")

    def _braced(self, text: str, quoted: bool) -> Part:
        match = _BRACED.fullmatch(text)
        if match is None:
            return Opaque("${" + text + "}", quoted)
        word = _Lexer(match[4] or "", self.line, self._deeper())
        words = (tuple(word._double("")),) if quoted else tuple(token.parts for token in word.read() if not token.text)
        is_list = match[2] in ("@", "*") or match[1] in "@*"
        place = int(match[2]) if match[2] and not is_list else None
        return Variable(match[1], quoted, match[3] or "", words, is_list, place)

    def _escaped(self) -> str:
        """`$'...'`: of its escapes those of one letter; the others stay as they are."""
        end = self.at + 2
        while self.text[end : end + 1] not in ("'", ""):
            end += 2 if self.text[end] == "\\" else 1
        if end >= len(self.text):
            raise UsageError(f"line {self.line}: a $' without its end")
        inner = self.text[self.at + 2 : end]
        self._skip(end + 1)
        return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), inner, flags=re.DOTALL)

    def _backquoted(self, *, quoted: bool) -> Opaque:
        end = self.text.find("`", self.at + 1)
        if end < 0:
            raise UsageError(f"line {self.line}: a ` without its end")
        whole = self.text[self.at : end + 1]
        self._skip(end + 1)
        return Opaque(whole, quoted)

    def _balanced(self, at: int, opening: str, closing: str) -> int:
        """Behind the bracket that closes what is open at `at`; brackets in quotes do not count."""
        depth = 1
        interesting = re.compile(rf"\\.|'[^']*'|\"(?:[^\"\\]|\\.)*\"|[{re.escape(opening + closing)}]", re.DOTALL)
        for match in interesting.finditer(self.text, at):
            depth += (match[0] == opening) - (match[0] == closing)
            if depth == 0:
                return match.end()
        raise UsageError(f"line {self.line}: a {opening} without its {closing}")

    def _skip(self, to: int) -> None:
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def _deeper(self) -> int:
        if self.depth >= MAX_DEPTH:
            raise UsageError(f"line {self.line}: nested more than {MAX_DEPTH} deep")
        return self.depth + 1
