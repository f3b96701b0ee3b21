"""The hook by pre-commit itself, which installs this tree and runs it on a small repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.skipif(shutil.which("git") is None, reason="needs git")]
KEPT = (
    "autofit",
    "plugins",
    "profiles",
    "docs",
    "tools",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    ".pre-commit-hooks.yaml",
)


def git(folder: Path, *words: str) -> str:
    own = ("-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *own, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_pre_commit_runs_the_hook(tmp_path: Path) -> None:
    source, work = tmp_path / "source", tmp_path / "work"
    for name in KEPT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, source / name)
    for folder in (source, work):
        folder.mkdir(exist_ok=True)
        git(folder, "init", "-q")
    git(source, "add", "-A")
    git(source, "commit", "-qm", "all")
    (work / ".pre-commit-config.yaml").write_text(
        f"""repos:
  - repo: {source}
    rev: {git(source, "rev-parse", "HEAD").strip()}
    hooks:
      - id: autofit-check
        args: [--on, rtx-3090, --ram, 64GiB, --from]
"""
    )
    (work / "small.sh").write_text("llama-server -m example:tiny -ngl 99 -c 4096\n")
    (work / "other.yaml").write_text("a: 1\n")
    git(work, "add", "-A")
    environ = {**os.environ, "PRE_COMMIT_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "pre_commit", "run", "--all-files", "--verbose"]
    done = subprocess.run(command, cwd=work, env=environ, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "small.sh:1: fits: GPU0" in done.stdout
    (work / "large.sh").write_text("llama-server -m example:mixtral-8x22b-q4_k_m -ngl 99 -fit off\n")
    git(work, "add", "-A")
    done = subprocess.run(command, cwd=work, env=environ, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1
    assert "exit code: 3" in done.stdout
    assert "large.sh:1: does not fit" in done.stdout
