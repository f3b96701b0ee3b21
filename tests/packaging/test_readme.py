"""The figures of README.md are what its scripts print, and its scripts run as they are written there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from support import ROOT, llama_versions, recorded, vllm_versions
from support.commands import tiny_rows
from support.pages import reader

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


@pytest.mark.slow
def test_the_rows_of_vllm_are_those_compared() -> None:
    command = re.search(r"equal vLLM's own on all (\d+) recorded rows \(`python (\S+)`\),\s+(\d+) of which", README)
    assert command
    printed = _run(command[2])
    total = re.search(r"^all +(\d+) +(\d+)/\2 +\2/\2 +\2/\2 +\+0\.000% +(\d+)/\3$", printed, re.MULTILINE)
    assert total, printed
    assert (command[1], command[3]) == (total[1], total[3])


def test_the_rows_of_other_releases_are_those_recorded() -> None:
    words = (
        r"(\d+) builds of llama\.cpp from b(\d+) to b(\d+) \((\d+) rows, .*?"
        r"and what (\d+) releases of\s+vLLM before 0\.33\.0 resolve and allocate \((\d+) rows"
    )
    told = re.search(words, README, re.DOTALL)
    assert told
    builds = sorted(map(llama_versions.build_of, llama_versions.files()))
    n_rows = sum("devices" in row for path in llama_versions.files() for row in llama_versions.rows_of(path))
    rows = list(vllm_versions.rows())
    releases = {row["version"] for row in rows}
    assert tuple(map(int, told.groups())) == (len(builds), builds[0], builds[-1], n_rows, len(releases), len(rows))


def test_the_packages_that_it_needs_are_those_declared() -> None:
    told = re.search(r"The base install needs ([^.]*?),\s+and compiles nothing", README)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert told
    assert re.split(r",\s+|\s+and\s+", told[1]) == [re.split(r"[<>=; ]", each)[0] for each in declared]


@pytest.mark.slow
def test_cold_starts_are_measured_without_an_argument() -> None:
    assert "`python bench/startup.py`" in README
    printed = _run("bench/startup.py", "--runs", "1")
    assert len(re.findall(r"^(?:python|autofit) .* \d+ ms +\d+ ms +\d+\.\d$", printed, re.MULTILINE)) == 6, printed


@pytest.fixture(scope="module")
def drawing() -> SimpleNamespace:
    """The tools that draw."""
    sys.path.insert(0, str(ROOT / "tools" / "gen"))
    found = SimpleNamespace(svg=import_module("svg"), pictures=import_module("pictures"))
    sys.path.remove(str(ROOT / "tools" / "gen"))
    return found


@pytest.mark.slow
def test_the_picture_of_a_terminal_shows_what_is_printed_today(drawing: SimpleNamespace, tmp_path: Path) -> None:
    pictures = drawing.pictures
    assert "](docs/pictures/terminal.svg)" in README and f"![{pictures.TERMINAL}: " in README
    shown = drawing.svg.text_of_terminal((ROOT / "docs/pictures/terminal.svg").read_text(encoding="utf-8"))
    with reader(tmp_path):
        printed = pictures.on_a_terminal(pictures.TERMINAL, pictures.COLUMNS)
    assert shown[0] == f"$ {pictures.TERMINAL}"
    assert shown[1:] == [re.sub(r"\x1b\[[\d;]*m", "", line) for line in printed]
    assert shown[1].startswith("llama-server -m example:mixtral-8x7b-q4_k_m ") and len(shown) > 8


def test_a_picture_of_a_terminal_keeps_every_character(drawing: SimpleNamespace) -> None:
    lines = ["$ x <&> \"'", "", "  [\x1b[38;5;32m██\x1b[0m ]", "a" * 25, "b" * 10]
    drawn = drawing.svg.terminal("x", lines, 10)
    assert drawing.svg.text_of_terminal(drawn) == ["$ x <&> \"'", "", "  [██ ]", "a" * 25, "b" * 10]


#: a phrase of the table of answers, with the command behind it
ANSWERS = [
    ("~1.8 tokens/s with 32k context", "example:mixtral-8x7b-f16 --on a100-40gb --ram 128GiB"),
    ("~53 tokens/s, ~35 with a full context", "example:mixtral-8x22b-q3_k_m --on a100-80gb -c 65536 --ram 128GiB"),
    ("~1.4 tokens/s (0.9-2.4)", "example:mixtral-8x22b-q3_k_m --on rtx-3090 --ram 128GiB -c 65536"),
    ("~5.6 tokens/s", "example:mixtral-8x7b-q4_k_m --on rtx-4060-ti-16gb --ram 64GiB -c 16k"),
]


@pytest.mark.slow_but("~53*")
@pytest.mark.parametrize(("phrase", "command"), ANSWERS)
def test_the_rates_of_the_answers_are_those_told(phrase: str, command: str) -> None:
    assert phrase in README
    argv = [sys.executable, "-m", "autofit", "llama", *command.split()]
    told = subprocess.run(argv, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "utf-8"}).stderr
    assert all(f"~{rate}" in told for rate in re.findall(r"~([0-9.]+)", phrase))


def _run(*argv: str) -> str:
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
