"""Runs the commands of pages, and writes what they print today: python tools/gen/transcripts.py [PAGE ...]

Sentences that repeat a figure are left as they are; the tests of a page name those that no longer hold.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests")]

from support import five_questions
from support.pages import DOCS, followed, pages, reader
from support.transcripts import refreshed


def run(names: list[str]) -> None:
    """Rewrites the pages."""
    for name in names:
        path = DOCS / name
        page = path.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder, reader(Path(folder)):
            is_own = path == ROOT / five_questions.PATH
            now = five_questions.with_tables(refreshed(page)) if is_own else followed(page)
        path.write_text(now, encoding="utf-8")


if __name__ == "__main__":
    run(sys.argv[1:] or [Path(five_questions.PATH).name, *pages()])
