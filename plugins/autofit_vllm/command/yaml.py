"""The part of YAML that settings files use: mappings, lists and plain or quoted scalars.

Anything else (anchors, tags, block text, several documents) is refused with its line, never guessed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autofit.domain.patterns import lazy_pattern
from autofit.errors import UsageError
from autofit.files import read_bounded

MAX_BYTES = 1 << 20
MAX_DEPTH = 16

_KEY = lazy_pattern(
    r"""(?:"(?P<dq>[^"\\]*)"|'(?P<sq>[^']*)'|(?P<plain>[^\s'"#&*!|>%@`\[\]{},][^:#]*?))\s*:(?:\s+(?P<value>.*))?$"""
)
_INT = lazy_pattern(r"[-+]?(?:0|[1-9][0-9_]*)")
_FLOAT = lazy_pattern(r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9]+(?:[eE][-+][0-9]+)?)")
_TRUE = {"yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"}
_FALSE = {"no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"}
_NULL = {"", "~", "null", "Null", "NULL"}


class _Line:
    __slots__ = ("indent", "number", "text")

    def __init__(self, number: int, indent: int, text: str) -> None:
        self.number, self.indent, self.text = number, indent, text


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the file.

    Raises:
        UsageError: unreadable, too large, or YAML beyond what is understood here.
    """
    try:
        text = read_bounded(path, MAX_BYTES).decode("utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str = "yaml") -> dict[str, Any]:
    """See `read_yaml`."""
    lines = []
    for number, raw in enumerate(text.splitlines(), 1):
        body = raw.lstrip(" ")
        if not body or body.startswith("#") or (number == 1 and body.rstrip() == "---"):
            continue
        if body.startswith("\t"):
            raise _error(where, number, "a tab indents this line")
        lines.append(_Line(number, len(raw) - len(body), body.rstrip()))
    value, rest = _block(lines, 0, 0, where) if lines else ({}, 0)
    if rest != len(lines):
        raise _error(where, lines[rest].number, "the indentation fits no key above")
    if not isinstance(value, dict):
        raise UsageError(f"{where}: a mapping of settings is expected")
    return value


def _error(where: str, number: int, cause: str) -> UsageError:
    return UsageError(
        f"{where}: line {number}: {cause}",
        hint="write plain `key: value` lines, or give the flags on the command line",
    )


def _block(lines: list[_Line], at: int, depth: int, where: str) -> tuple[Any, int]:
    if depth > MAX_DEPTH:
        raise _error(where, lines[at].number, "nested too deeply")
    if lines[at].text == "-" or lines[at].text.startswith("- "):
        return _sequence(lines, at, where)
    return _mapping(lines, at, depth, where)


def _sequence(lines: list[_Line], at: int, where: str) -> tuple[list[Any], int]:
    indent, items = lines[at].indent, []
    while at < len(lines) and lines[at].indent == indent and lines[at].text.startswith("-"):
        text = lines[at].text[1:].strip()
        if not lines[at].text.startswith("- ") or _KEY.match(text):
            raise _error(where, lines[at].number, "a list may hold plain values only")
        items.append(_scalar(text, where, lines[at].number))
        at += 1
    return items, at


def _mapping(lines: list[_Line], at: int, depth: int, where: str) -> tuple[dict[str, Any], int]:
    indent = lines[at].indent
    result: dict[str, Any] = {}
    while at < len(lines) and lines[at].indent == indent:
        line = lines[at]
        match = _KEY.match(line.text)
        if match is None:
            raise _error(where, line.number, "neither `key: value` nor a list item")
        key = next(part for part in (match["dq"], match["sq"], match["plain"]) if part is not None)
        if key in result:
            raise _error(where, line.number, f"{key} is set twice")
        value = _uncomment(match["value"] or "")
        at += 1
        if value:
            result[key] = _scalar(value, where, line.number)
            continue
        deeper = at < len(lines) and (
            lines[at].indent > indent or (lines[at].indent == indent and lines[at].text.startswith("- "))
        )
        if deeper:
            result[key], at = _block(lines, at, depth + 1, where)
        else:
            result[key] = None
    return result, at


def _uncomment(text: str) -> str:
    """Without a trailing comment; a `#` inside quotes or a word is text."""
    quote = ""
    for index, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'" and (index == 0 or text[index - 1] in " [{,:"):
            quote = char
        elif char == "#" and (index == 0 or text[index - 1] in " \t"):
            return text[:index].rstrip()
    return text.strip()


def _scalar(text: str, where: str, number: int) -> Any:
    text = _uncomment(text)
    if text[:1] == '"':
        try:
            return json.loads(text)
        except ValueError:
            raise _error(
                where, number, "a double-quoted value that is not closed, or with an escape JSON lacks"
            ) from None
    if text[:1] == "'":
        if len(text) < 2 or text[-1] != "'" or "'" in text[1:-1].replace("''", ""):
            raise _error(where, number, "a single-quoted value that is not closed")
        return text[1:-1].replace("''", "'")
    if text[:1] in ("[", "{"):
        return _flow(text, where, number)
    if text[:1] in tuple("&*!|>%@`") or text in ("...", "---"):
        raise _error(where, number, f"YAML's {text[:1]!r} is not understood here")
    return _plain(text)


def _flow(text: str, where: str, number: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    inner = text[1:-1].strip()
    if text[0] == "[" and text[-1] == "]" and not set(inner) & set("[]{}:'\"&*!|>"):
        return [_plain(part.strip()) for part in inner.split(",") if part.strip()]
    raise _error(where, number, "write lists and mappings in one line as JSON")


def _plain(text: str) -> Any:
    """YAML 1.1's reading of an unquoted word (PyYAML's safe_load)."""
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if _INT.fullmatch(text) and len(text) < 40:
        return int(text.replace("_", ""))
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    return text
