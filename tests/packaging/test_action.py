"""The action of GitHub and the hook of pre-commit: what their files run, run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from autofit.cli.main import main

from support import ROOT

SMALL = "llama-server -m example:tiny -ngl 99 -c 4096\n"
LARGE = "llama-server -m example:mixtral-8x22b-q4_k_m -ngl 99 -fit off\n"


def steps() -> dict[str, dict[str, Any]]:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    assert action["runs"]["using"] == "composite"
    return {step["name"]: step for step in action["runs"]["steps"]}


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    """A runner's folder, with the program that the first step installs."""
    program = tmp_path / "temp/autofit/bin/autofit"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m autofit "$@"\n')
    program.chmod(0o755)
    (tmp_path / "work").mkdir()
    return tmp_path


def check(runner: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """The step as a runner starts it: with `bash -eo pipefail`, its inputs in variables."""
    step = steps()["Check"]
    names = {re.findall(r"inputs\.([\w-]+)", value)[0]: name for name, value in step["env"].items()}
    given = {"ram": "64GiB", "map": "", "engine-version": "", "on": "rtx-3090", **inputs}
    environ = {**os.environ, **{names[name]: value for name, value in given.items()}}
    environ["RUNNER_TEMP"] = str(runner / "temp")
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    return subprocess.run(
        command, cwd=runner / "work", env=environ, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_step_checks_files_and_patterns(runner: Path) -> None:
    work = runner / "work"
    (work / "k8s/deep").mkdir(parents=True)
    (work / "a b.sh").write_text(SMALL)
    (work / "k8s/deep/start.sh").write_text(f"#!/bin/sh\n{LARGE}")
    done = check(runner, files="a b.sh\nk8s/**/*.sh\n")
    assert done.returncode == 3, done.stderr
    rows = done.stdout.splitlines()
    token = rows[0].removeprefix("::stop-commands::")
    assert [row.split(": ")[:2] for row in rows[1:3]] == [["a b.sh:1", "fits"], ["k8s/deep/start.sh:2", "does not fit"]]
    assert rows[3] == f"::{token}::"
    assert rows[4].startswith("::error file=k8s/deep/start.sh,line=2,title=does not fit::GPU0 ")
    assert len(rows) == 5


def test_a_file_name_is_no_command_of_the_runner(runner: Path) -> None:
    name = "x::error,y%0A.sh"
    (runner / "work" / name).write_text(LARGE)
    done = check(runner, files=name)
    assert done.returncode == 3
    assert done.stdout.splitlines()[-1].startswith("::error file=x%3A%3Aerror%2Cy%250A.sh,line=1,title=")


@pytest.mark.parametrize(
    ("inputs", "code", "cause"),
    [
        ({"files": "gone.sh"}, 2, "gone.sh: No such file"),
        ({"files": "*.none"}, 2, "*.none: No such file"),
        ({"files": ""}, 2, "--from"),
        ({"files": "a.sh", "on": "no-such-card"}, 1, "::error file=a.sh,line=1,title=not checked::no hardware"),
        ({"files": "a.sh", "on": "$(touch bad)", "ram": "; touch bad"}, 1, ""),
        ({"files": "a.sh", "on": "cpu\nrtx-3090", "engine-version": "b11311"}, 0, ""),
    ],
)
def test_inputs_of_the_step(inputs: dict[str, str], code: int, cause: str, runner: Path) -> None:
    (runner / "work/a.sh").write_text(SMALL)
    done = check(runner, **inputs)
    assert done.returncode in ({1, 2} if code == 1 else {code}), done.stdout + done.stderr
    assert cause in done.stdout + done.stderr
    assert not (runner / "work/bad").exists()


def test_the_first_step_installs_what_the_second_starts() -> None:
    install = steps()["Install autofit"]["run"]
    assert '"$PYTHON" -m venv "$RUNNER_TEMP/autofit"' in install
    assert install.rstrip().endswith('-m pip install -q "$SOURCE"')


def test_inputs_reach_the_shell_as_variables_alone() -> None:
    assert all("${{" not in step["run"] for step in steps().values())


@pytest.mark.slow
def test_the_hook_takes_files_of_every_kind_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    pattern = re.compile(hook["files"])
    for name in (
        "a.sh",
        "x/compose.yaml",
        "k.yml",
        "e.service",
        "e.container",
        "m.ini",
        "Dockerfile",
        "d/Procfile.dev",
    ):
        assert pattern.search(name), name
    assert not pattern.search("README.md")
    monkeypatch.chdir(tmp_path)
    Path("a.sh").write_text("echo nothing\n")
    program, *words = hook["entry"].split()
    assert program == "autofit"
    on = ["--on", "rtx-3090", "--ram", "64GiB"]
    assert main([*words, "-q", *on, *hook["args"], "a.sh"]) == 0
    assert capsys.readouterr().out == ""
    Path("b.sh").write_text(LARGE)
    assert main([*words, *on, *hook["args"], "a.sh", "b.sh"]) == 3
    assert main(["check", *on, *hook["args"], "a.sh"]) == 2
