"""Whether a built site asks nothing of another server: python tools/site/offline.py build/site

Looked at is what a browser loads by itself: scripts, styles, fonts, pictures and frames of every page and style
sheet. Links that a reader follows are no part of it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

_LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "embed": "src"}
_RELATIONS = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "modulepreload", "manifest"}
_IN_STYLES = re.compile(r"(?:url\(|@import\s+)\s*[\"']?((?:https?:)?//[^\"')\s]+)")


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "link" and _RELATIONS & set((named.get("rel") or "").split()):
            self.loads.append(named.get("href") or "")
        self.loads.append(named.get(_LOADS.get(tag, "")) or "")


def outside(folder: Path) -> Iterator[tuple[str, str]]:
    """(page or style sheet, address) of all that is loaded from another server."""
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".html", ".css", ".svg"):
            continue
        text = path.read_text(encoding="utf-8")
        addresses = _IN_STYLES.findall(text)
        if path.suffix == ".html":
            page = _Page()
            page.feed(text)
            addresses += [address for address in page.loads if re.match(r"(?:https?:)?//", address)]
        yield from ((path.relative_to(folder).as_posix(), address) for address in addresses)


def main() -> int:
    folder = Path(sys.argv[1])
    n_pages = sum(1 for _ in folder.rglob("*.html"))
    found = list(outside(folder))
    for where, address in found:
        print(f"{where}: loads {address}", file=sys.stderr)
    print(f"{n_pages} pages, {len(found)} loads from another server")
    return 1 if found or not n_pages else 0


if __name__ == "__main__":
    sys.exit(main())
