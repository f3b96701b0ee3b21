"""Tutorials and how-tos: their commands and their Python print what is shown, followed from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.pages import BLOCK, DOCS, followed, pages, reader


@pytest.mark.parametrize("name", pages())
def test_a_page_shows_what_its_commands_print(name: str, tmp_path: Path) -> None:
    page = (DOCS / name).read_text(encoding="utf-8")
    with reader(tmp_path):
        now = followed(page)
    shown = [block for _, block in BLOCK.findall(page)]
    assert [block for _, block in BLOCK.findall(now)] == shown, "after a change that is meant: just docs"


def test_a_command_that_prints_otherwise_is_told(tmp_path: Path) -> None:
    page = "```console\n$ autofit inspect model.gguf\n  architecture  none\n$ echo $?\n3\n```\n"
    with reader(tmp_path):
        now = followed(page)
    assert "architecture  llama" in now and "$ echo $?\n0\n" in now and "none" not in now


def test_a_file_that_a_page_shows_is_there(tmp_path: Path) -> None:
    page = "`a/start.sh`:\n\n```sh\nexec llama-server\n```\n\n```console\n$ cat a/start.sh\n```\n"
    with reader(tmp_path):
        assert re.findall(r"\$ cat a/start.sh\n(.*)", followed(page)) == ["exec llama-server"]


def test_a_session_of_python_keeps_its_names(tmp_path: Path) -> None:
    page = "```pycon\n>>> n = 2\n>>> n + 1\n7\n>>> for i in range(n):\n...     print(i)\n>>> 1 / 0\n```\n"
    with reader(tmp_path):
        now = followed(page)
    assert ">>> n + 1\n3\n" in now and "print(i)\n0\n1\n" in now and "ZeroDivisionError: division by zero" in now
