"""What a misspelled name may have meant."""

from __future__ import annotations

from collections.abc import Iterable


def close_names(name: str, known: Iterable[str], n: int = 3, *, cutoff: float = 0.5) -> str | None:
    """`did you mean a, b or c?`, or `None` where nothing known is close; `cutoff` is from 0 (anything) to 1 (equal)."""
    from difflib import get_close_matches

    close = get_close_matches(name, sorted(known), n=n, cutoff=cutoff)
    return f"did you mean {' or '.join(filter(None, [', '.join(close[:-1]), *close[-1:]]))}?" if close else None


def suggest(name: str, known: Iterable[str]) -> str:
    """The closest known name, or all of them."""
    from difflib import get_close_matches

    names = sorted(known)
    close = get_close_matches(name.replace("-", "_"), names, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
