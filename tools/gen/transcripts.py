"""Runs the commands of docs/five-questions.md, and writes what they print today: python tools/gen/transcripts.py

Sentences that repeat a figure are left as they are; the page's test names those that no longer hold.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests")]

from support import five_questions
from support.transcripts import refreshed
from support.vllm_checkpoints import write_mixtral_checkpoints


def run() -> None:
    """Rewrites the page."""
    path = ROOT / five_questions.PATH
    page = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        write_mixtral_checkpoints(Path(folder))
        os.chdir(folder)
        path.write_text(five_questions.with_tables(refreshed(page)), encoding="utf-8")


if __name__ == "__main__":
    run()
