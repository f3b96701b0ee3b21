"""docs/run.md: its commands run as they are written there, with programs in place of engines."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from autofit.launch.reservations import ALL_TAKEN, LOADING_SECONDS
from autofit.text.launchers import LAUNCHERS

import support
from support.fake_engines import Engines, write_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux has them")
PAGE = (support.ROOT / "docs" / "run.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line.partition("  #")[0].strip() for block in BLOCKS for line in block.splitlines()]


@pytest.mark.slow
def test_commands_of_the_page(tmp_path: Path) -> None:
    engines = Engines(tmp_path)
    shutil.copyfile(support.TINY, tmp_path / "model.gguf")
    write_program(tmp_path / "start.sh", "#!/bin/sh\nexec llama-server -m model.gguf\n")
    write_program(engines.bin / "autofit", f'#!/bin/sh\nexec {sys.executable} -P -m autofit "$@"\n')
    assert len(COMMANDS) == 10
    for command in COMMANDS:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=engines.environ, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (command, done.stderr)
        is_started = engines.says.exists()
        starts = not command.startswith(("autofit run -n ", "autofit check ", "autofit shims "))
        assert is_started == starts, command
        if is_started:
            assert ("-np" in engines.said["argv"]) == ("AUTOFIT_SHIMS=0" not in command), command
            engines.says.unlink()


def test_figures_and_names_of_the_page() -> None:
    (launchers,) = re.findall(r"\| launchers \| (.*?) \|", PAGE)
    named = {words.split()[0] for words in re.findall(r"`([^`]+)`", launchers)}
    assert named <= LAUNCHERS.keys() and len(named) > 15
    assert f"{ALL_TAKEN[0]}/{ALL_TAKEN[1]} of all" in PAGE and f"{LOADING_SECONDS / 60:.0f} minutes" in PAGE


def test_each_fault_of_the_page_names_tests_that_are_there() -> None:
    table = PAGE.partition("### When something goes wrong")[2].partition("\n## ")[0]
    rows = [row.split(" | ") for row in table.splitlines() if row.startswith("| ")][2:]
    assert len(rows) == 10
    for what, _, held_by in rows:
        named = re.findall(r"`([^`]+)`", held_by)
        assert named and all((support.ROOT / "tests" / name).is_file() for name in named), what
