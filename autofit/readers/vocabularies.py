"""Where the vocabularies of files end, remembered: to walk over 400,000 strings again is half of what a start costs.

A file is known by its size, its inode and the nanosecond that it was written in. What is remembered is where long
arrays of strings begin and end, so a header that is read with it is the same to the byte, or reading it starts over.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from autofit.domain.values import NamedTuple
from autofit.files import cache_home, read_bounded, write_whole

LONG = 10_000  #: strings; shorter arrays are walked over in less than it takes to look them up
MAX_FILES = 64
MAX_CACHE_BYTES = 1 << 16
Ends = Mapping[tuple[int, int], int]  #: where an array begins, and its count -> where it ends
NOTHING: Ends = {}


class Known(NamedTuple):
    """What is remembered of a file; `stamp` is empty where nothing can be."""

    path: str
    stamp: str
    ends: Ends


def known(path: str) -> Known:
    """What is remembered of the file at `path`, which may be no path at all."""
    try:
        path = os.path.abspath(path)  # noqa: PTH100 - Path.absolute() keeps `..`
        stat = os.stat(path)  # noqa: PTH116 - follows links
    except (OSError, ValueError):
        return Known(path, "", NOTHING)
    stamp = f"{stat.st_mtime_ns} {stat.st_size} {stat.st_ino}"
    lines = _lines()
    columns = lines.get(path, "").split("\t")
    return Known(path, stamp, _ends(columns[1]) if columns[0] == stamp and len(columns) == 2 else NOTHING)


def remember(one: Known, ends: Ends) -> None:
    """Keep where the arrays of a file end; where that cannot be written, it is not kept."""
    place = _place()
    if place is None or not one.stamp or not one.path.isprintable():
        return
    lines = _lines()
    lines.pop(one.path, None)
    told = " ".join(f"{begin}:{count}:{end}" for (begin, count), end in sorted(ends.items()))
    kept = [*list(lines.items())[-(MAX_FILES - 1) :], (one.path, f"{one.stamp}\t{told}")]
    with suppress(OSError, UnicodeEncodeError):
        write_whole(place, "".join(f"{path}\t{rest}\n" for path, rest in kept).encode())


def _place() -> Path | None:
    home = cache_home(os.environ)
    return None if home is None else home / "autofit" / "vocabularies.txt"


def _lines() -> dict[str, str]:
    """Path -> the rest of its line. A file that is no such list is empty."""
    place, found = _place(), dict[str, str]()
    with suppress(OSError, UnicodeDecodeError):
        for line in read_bounded(place, MAX_CACHE_BYTES).decode().split("\n") if place is not None else ():
            path, tab, rest = line.partition("\t")
            if tab:
                found[path] = rest
    return found


def _ends(text: str) -> Ends:
    found: dict[tuple[int, int], int] = {}
    for word in text.split(" "):
        begin, _, rest = word.partition(":")
        count, _, end = rest.partition(":")
        if begin.isdecimal() and count.isdecimal() and end.isdecimal() and len(word) < 64:
            found[int(begin), int(count)] = int(end)
    return found
