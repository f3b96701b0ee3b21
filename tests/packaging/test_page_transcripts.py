"""Tutorials and how-tos: their commands and their Python print what is shown, followed from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import autofit
import pytest

from support.pages import BLOCK, DOCS, followed, pages, reader, unfounded


@pytest.mark.slow
@pytest.mark.parametrize("name", pages())
def test_a_page_shows_what_its_commands_print(name: str, tmp_path: Path) -> None:
    page = (DOCS / name).read_text(encoding="utf-8")
    with reader(tmp_path):
        now = followed(page)
    shown = [block for _, block in BLOCK.findall(page)]
    assert [block for _, block in BLOCK.findall(now)] == shown, "after a change that is meant: just docs"


#: figures of sentences that have tests of their own
FIGURES_ELSEWHERE = {
    "memory.md": {"128 KiB"},  # below
    "how-to/kubernetes.md": {"2 GiB"},  # /dev/shm, tests/unit/core/render
}


@pytest.mark.parametrize("name", ["memory.md", *(name for name in pages() if "/" in name)])
def test_sentences_of_tutorials_and_how_tos_repeat_figures_that_are_shown(name: str) -> None:
    path = DOCS / name
    found = set(unfounded(path.read_text(encoding="utf-8"), path.parent))
    assert found == FIGURES_ELSEWHERE.get(name, set())


def test_a_figure_that_is_shown_nowhere_is_found() -> None:
    page = "It takes 3 GiB, ~4.5 tokens/s,\nnot 3 MiB.\n\n```console\n$ autofit x\n3 GiB ~4.51\n```\n"
    assert unfounded(page, DOCS) == ["~4.5", "3 MiB"]


def test_a_token_takes_as_much_cache_as_told() -> None:
    plans = [autofit.plan("llama", "example:llama-3.1-8b-q4_k_m", card(), context=n) for n in (4096, 8192)]
    fewer, more = (plan.memory.pool("GPU0").sum_bytes("cache") for plan in plans)
    assert (more - fewer) / 4096 == 128 * 1024 == 32 * 8 * 128 * 2 * 2


def card() -> autofit.Machine:
    return autofit.load_machine("rtx-3090", ram="64GiB")


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
