"""A hook of MkDocs (`mkdocs.yml`): links that lead out of docs/ into the source tree become the path alone.

The site holds the pages and no source; beside the source, as on a forge, the same links lead to the files.
"""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]\n]+)\]\((?:\.\./)+([^)\s]+)\)")
_FOLDER = re.compile(r"\[([^\]\n]+)\]\((?!https?:)[^)\s#]+/\)")


def on_page_markdown(markdown: str, *, page: Any, **_: object) -> str:
    """The text of a page, with such links as text: a name keeps its form, and its path follows where it differs."""
    depth = page.file.src_uri.count("/")

    def as_text(found: re.Match[str]) -> str:
        ups = found[0].count("../")
        if ups <= depth:
            return found[0]
        text, path = found[1], found[2].rstrip("/")
        return text if path.split("#")[0] in text else f"{text} (`{path}`)"

    return _FOLDER.sub(lambda found: found[1], _OUTSIDE.sub(as_text, markdown))
