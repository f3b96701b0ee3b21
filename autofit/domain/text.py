"""Text from outside (file names, metadata, tool output) made safe for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from shlex import quote

#: what a terminal may act on, or show out of order: controls, format characters, separators of lines, and bytes
#: that are no text (U+DC80 and on, PEP 383) where a terminal of 8 bits knows controls
_ACTS = (
    r"[\0-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    r"\ufeff\ufff9-\ufffb\udc80-\udc9f\U000e0000-\U000e007f]"
)


def printable(text: str, limit: int = 200) -> str:
    """`text` with control, format and unpaired-surrogate characters escaped, cut to `limit` characters."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in cut)


def shell_word(text: str) -> str:
    """`text` quoted for a shell, which reads back exactly that; `$'...'` where a terminal might act on it.

    Bash, zsh, ksh and busybox know `$'...'`, and POSIX since 2024; dash does not yet.
    """
    if text.isprintable() or not re.search(_ACTS, text):
        return quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{re.sub(_ACTS, _bytes, escaped)}'"


def shell_join(words: Iterable[str]) -> str:
    """One line of words that a shell takes apart again."""
    return " ".join(map(shell_word, words))


def _bytes(found: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in found[0].encode("utf-8", "surrogateescape"))
