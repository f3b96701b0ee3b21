"""The plain part of TOML that profiles and presets are written in: enough for them, and quick to start.

`tomllib`, with the modules and patterns that it brings, takes a twentieth of a cold start. What is not plain is left to
it, mistakes included: whatever is read here, `tomllib` reads alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MAX_DIGITS = 18


def read(text: str) -> dict[str, Any] | None:
    """The table that `text` holds, or `None` where `tomllib` has to say."""
    if not text.replace("\n", "").replace("\t", "").isprintable():
        return None
    root: dict[str, Any] = {}
    table, rows = root, set[str]()
    lines = (line.strip(" \t") for line in text.split("\n"))
    try:
        for line in lines:
            if not line or line[0] == "#":
                continue
            if line[0] == "[":
                table = _begin(line, root, rows)
                continue
            key, _, value = line.partition("=")
            _add(table, key.strip(" \t"), _value(value.strip(" \t"), lines))
    except _NotPlainError:
        return None
    return root


class _NotPlainError(Exception):
    """Something that is not read here."""


def _begin(line: str, root: dict[str, Any], rows: set[str]) -> dict[str, Any]:
    """The table that a line begins: `[name]`, or one more of `[[name]]`."""
    table: dict[str, Any] = {}
    if line.startswith("[[") and line.endswith("]]"):
        name = line[2:-2]
        if name not in rows:
            _add(root, name, [])
            rows.add(name)
        root[name].append(table)
    elif line.endswith("]"):
        _add(root, line[1:-1], table)
    else:
        raise _NotPlainError
    return table


def _add(table: dict[str, Any], key: str, value: Any) -> None:
    if key in table or not key.isascii() or not key.replace("_", "a").replace("-", "a").isalnum():
        raise _NotPlainError
    table[key] = value


def _value(text: str, lines: Iterator[str]) -> Any:
    """A value and nothing behind it but a comment; a list may go on over further lines."""
    if text.startswith("["):
        parts = [text]
        while "]" not in parts[-1] and "#" not in parts[-1]:
            parts.append(next(lines, "#"))
        text = "\n".join(parts)
        if not text.endswith("]"):
            raise _NotPlainError
        items = text[1:-1].split(",")
        if not items[-1].strip(" \t\n"):
            items.pop()
        return [_scalar(item.strip(" \t\n")) for item in items]
    if not text.startswith('"'):
        return _scalar(text.partition("#")[0].rstrip(" \t"))
    word, quote, rest = text[1:].partition('"')
    if quote and (not rest or rest.lstrip(" \t").startswith("#")):
        return _scalar(f'"{word}"')
    raise _NotPlainError


def _scalar(word: str) -> str | int | float | bool:
    if len(word) > 1 and word[0] == word[-1] == '"':
        if '"' in word[1:-1] or "\\" in word or "\n" in word:
            raise _NotPlainError
        return word[1:-1]
    if word in ("true", "false"):
        return word == "true"
    whole, dot, part = word.partition(".")
    digits = whole.replace("_", "")
    if (
        not (word.isascii() and digits.isdigit() and len(digits) <= MAX_DIGITS)
        or (digits[0] == "0" and whole != "0")
        or "__" in whole
        or "_" in (whole[0], whole[-1])
        or (dot and not part.isdigit())
    ):
        raise _NotPlainError
    return float(f"{digits}.{part}") if dot else int(digits)
