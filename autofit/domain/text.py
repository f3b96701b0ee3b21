"""Text from outside (file names, metadata, tool output) made safe for a terminal, words in a row, and numbers."""

from __future__ import annotations

from collections.abc import Iterable


def printable(text: str, limit: int = 200) -> str:
    """`text` with control, format and unpaired-surrogate characters escaped, cut to `limit` characters."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in cut)


def joined(words: Iterable[str]) -> str:
    """`GPU0, GPU1 and GPU2`; an empty text of no words."""
    *first, last = list(words) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def is_number(text: str, n_digits: int) -> bool:
    """Whether this is a whole number of no more digits than these, and no sign."""
    return text.isascii() and text.isdecimal() and len(text) <= n_digits
