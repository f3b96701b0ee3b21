"""What a misspelled name may have meant."""

from __future__ import annotations

from collections.abc import Iterable


def close_names(name: str, known: Iterable[str], n: int = 3, *, cutoff: float = 0.5) -> str | None:
    """`did you mean a, b or c?`, or `None` where nothing known is close; `cutoff` is from 0 (anything) to 1 (equal)."""
    from difflib import get_close_matches

    return did_you_mean(get_close_matches(name, sorted(known), n=n, cutoff=cutoff))


def close_files(name: str, known: Iterable[str], n: int = 3, *, cutoff: float = 0.6) -> list[str]:
    """Names of files like `name`, the closest first, whatever the case of their letters."""
    from difflib import get_close_matches

    spelled = {one.casefold(): one for one in sorted(known)}
    return [spelled[one] for one in get_close_matches(name.casefold(), list(spelled), n=n, cutoff=cutoff)]


def did_you_mean(close: list[str]) -> str | None:
    return f"did you mean {' or '.join(filter(None, [', '.join(close[:-1]), *close[-1:]]))}?" if close else None


def close_flags(flag: str, known: Iterable[str], n: int = 3, *, cutoff: float = 0.7) -> str | None:
    """As `close_names`, of flags: one that begins with the words of `flag` comes first, however much longer it is.

    `-ctx` may have meant `--ctx-size` although `-ctv` has more letters of it.
    """
    from difflib import get_close_matches

    flags = sorted(known)
    words = _words(flag)
    begun = sorted((name for name in flags if _words(name)[: len(words)] == words), key=lambda name: (len(name), name))
    similar = get_close_matches(flag, flags, n=n, cutoff=cutoff)
    return did_you_mean(list(dict.fromkeys([*begun[:1], *similar]))[:n])


def _words(flag: str) -> list[str]:
    return flag.lstrip("-").replace("_", "-").split("-")


def suggest(name: str, known: Iterable[str]) -> str:
    """The closest known name, or all of them."""
    from difflib import get_close_matches

    names = sorted(known)
    close = get_close_matches(name.replace("-", "_"), names, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
