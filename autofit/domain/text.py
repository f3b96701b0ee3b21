"""Text from outside (file names, metadata, tool output) made safe for a terminal."""

from __future__ import annotations


def printable(text: str, limit: int = 200) -> str:
    """`text` with control, format and unpaired-surrogate characters escaped, cut to `limit` characters."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in cut)
