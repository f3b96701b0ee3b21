"""The figures of README.md are what its scripts print, and its scripts run as they are written there."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from support import ROOT, recorded
from support.commands import tiny_rows

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("api", ["cuda", "rpc"])
def test_the_rows_of_llama_cpp_are_those_recorded(api: str) -> None:
    told = re.search(
        rf"^\| (\d+) full-size models and (\d+) tiny ones, {api} rules \| (\d+) \|",
        README,
        re.MULTILINE | re.IGNORECASE,
    )
    assert told
    rows = [row for row in (*recorded.rows(), *tiny_rows()) if row["api"] == api]
    full = {row["model"] for row in rows if row["part"] == "models"}
    tiny = {(row["part"], row["model"]) for row in rows if row["part"] != "models"}
    answered = [row for row in rows if "devices" in row]
    assert tuple(map(int, told.groups())) == (len(full), len(tiny), len(answered))


def test_the_rows_of_vllm_are_those_compared() -> None:
    command = re.search(r"equal vLLM's own on all (\d+) recorded rows \(`python (\S+)`\),\s+(\d+) of which", README)
    assert command
    printed = _run(command[2])
    total = re.search(r"^all +(\d+) +(\d+)/\2 +\2/\2 +\2/\2 +\+0\.000% +(\d+)/\3$", printed, re.MULTILINE)
    assert total, printed
    assert (command[1], command[3]) == (total[1], total[3])


def test_cold_starts_are_measured_without_an_argument() -> None:
    assert "`python bench/startup.py`" in README
    printed = _run("bench/startup.py", "--runs", "1")
    assert len(re.findall(r"^(?:python|autofit) .* \d+ ms +\d+ ms +\d+\.\d$", printed, re.MULTILINE)) == 6, printed


def _run(*argv: str) -> str:
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
