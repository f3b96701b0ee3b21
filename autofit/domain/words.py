"""Names inside the words of a command: alone, in a list, behind a name and `=`, or as a text of JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_EDGES = ',=:"'
_JSON = re.compile(r"(?:--?[A-Za-z][\w-]*=)?\s*[{\[]")


def holds(word: str, name: str) -> bool:
    """Whether a word names this: is it, or has it between the marks of a list, of a pair or of JSON."""
    return word == name or any(one in word and _pattern(one).search(word) for one in _spellings(name, word))


def renamed(word: str, names: Mapping[str, str]) -> str:
    """A word in which names have others; the longest name counts where one begins with another."""
    if word in names:
        return names[word]
    found: dict[str, str] = {}
    for name in sorted(names, key=len, reverse=True):
        pairs = zip(_spellings(name, word), _spellings(names[name], word), strict=True)
        found |= {one: other for one, other in pairs if one in word and one not in found}
    if not found:
        return word
    return re.sub("|".join(_pattern(one).pattern for one in found), lambda match: found[match[0]], word)


def _spellings(name: str, word: str) -> Iterator[str]:
    """How a word has a name: as it is, or as JSON does, with or without characters beyond ASCII."""
    if not _JSON.match(word):
        yield name
        return
    yield in_json(name)
    yield "".join(c if " " <= c <= "~" else _escape(c) for c in in_json(name))


def in_json(name: str) -> str:
    """A name inside the quotes of a text of JSON, characters beyond ASCII as they are."""
    return "".join(f"\\{c}" if c in '\\"' else _escape(c) if c < " " else c for c in name)


def _escape(c: str) -> str:
    code = c.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{code[at]:02x}{code[at + 1]:02x}" for at in range(0, len(code), 2))


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(f'(?<![^{_EDGES}]){re.escape(name)}(?![^,:"])')
