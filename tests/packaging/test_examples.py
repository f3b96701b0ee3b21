"""The example packages are installed by pip and used as a stranger would who follows the pages word by word."""

from __future__ import annotations

import ast
import doctest
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from support import ROOT

HEARTH, PLOTTO = ROOT / "examples" / "autofit-hearth", ROOT / "examples" / "autofit-plotto"
TUTORIAL, HOOKS = ROOT / "docs" / "write-a-backend.md", ROOT / "docs" / "hooks.md"
MOST_PLUMBING_LINES = 60
ALIKE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE  # a column is as wide as its widest word
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def files_of(page: Path) -> dict[str, str]:
    """The files that a page shows: their name in a paragraph of its own (or its last word), then their text."""
    shown = re.findall(r"`([\w./-]+)`:\n\n```\w+\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(dict(shown)) == len(shown)
    return dict(shown)


def commands_of(page: Path) -> list[tuple[str, str]]:
    """The commands that a page shows, with what it says that they print."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    parts = [part for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(command, printed) for command, _, printed in (part.partition("\n") for part in parts)]


class Followed:
    """A folder with the files of a page, and their package installed into a folder of its own."""

    def __init__(self, page: Path, folder: Path) -> None:
        self.folder = folder / "package"
        for name, text in files_of(page).items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        self.site = folder / "site"
        # with a build backend at hand nothing is fetched
        offline = ["--no-build-isolation"] if find_spec("hatchling") else []
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", *offline, "--target", str(self.site), "."]
        done = subprocess.run(pip, cwd=self.folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    def environ(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOFIT_", "PYTEST_"))}
        paths = os.pathsep.join((str(self.site), str(ROOT), str(ROOT / "plugins")))
        # a safe path: what is imported is what was installed, not what lies in the folder
        return own | {
            "PYTHONPATH": paths,
            "PYTHONSAFEPATH": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(self, argv: Sequence[str], environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """The command, with `autofit` and `python` of these tests; errors are among its output, as on a terminal."""
        program = {"autofit": [sys.executable, "-m", "autofit"], "python": [sys.executable]}[argv[0]]
        return subprocess.run(
            [*program, *argv[1:]],
            cwd=self.folder,
            env={**self.environ(), **(environ or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=300,
        )


@pytest.fixture(scope="module")
def hearth(tmp_path_factory: pytest.TempPathFactory) -> Followed:
    return Followed(TUTORIAL, tmp_path_factory.mktemp("hearth"))


@pytest.fixture(scope="module")
def plotto(tmp_path_factory: pytest.TempPathFactory) -> Followed:
    return Followed(HOOKS, tmp_path_factory.mktemp("plotto"))


@pytest.mark.parametrize(("page", "example"), [(TUTORIAL, HEARTH), (HOOKS, PLOTTO)], ids=["hearth", "plotto"])
def test_the_page_shows_every_file_of_the_example(page: Path, example: Path) -> None:
    kept = {
        path.relative_to(example).as_posix(): path.read_text(encoding="utf-8")
        for path in example.rglob("*.*")
        if path.is_file() and path.suffix in {".py", ".toml"}
    }
    assert files_of(page) == kept


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hearth", "plotto"])
def test_commands_of_the_page_print_what_it_shows(name: str, request: pytest.FixtureRequest) -> None:
    followed: Followed = request.getfixturevalue(name)
    commands = commands_of({"hearth": TUTORIAL, "plotto": HOOKS}[name])
    assert commands[0][0].startswith("pip install"), "what the fixture does"
    for command, shown in commands[1:]:
        printed = followed.run(shlex.split(command)).stdout
        assert doctest.OutputChecker().check_output(shown, printed, ALIKE), f"{command}\n{printed}"


def test_without_the_package_there_is_no_such_engine(hearth: Followed) -> None:
    done = hearth.run(["autofit", "hearth", "tiny"], {"AUTOFIT_DISABLE_PLUGIN_AUTOLOAD": "1"})
    assert done.returncode == 2


def test_it_is_planned_checked_explained_and_rendered(hearth: Followed) -> None:
    write = "from pathlib import Path; from autofit.testing import tiny_checkpoint; tiny_checkpoint(Path('tiny'))"
    assert hearth.run(["python", "-c", write]).returncode == 0
    machine = ["--on", "rtx-3090", "--ram", "64GiB:60GiB"]
    plan = ["autofit", "hearth", "tiny", *machine, "-c", "1k"]
    report = json.loads(hearth.run([*plan, "--format", "json"]).stdout.partition("\n}")[0] + "\n}")
    assert report["argv"] == ["hearth-serve", "--model", "tiny", "--gpu", "0", "--context", "1024"]
    checked = hearth.run(["autofit", "check", *machine, "--format", "json", "--", *report["argv"]])
    assert checked.returncode == 0
    again = json.loads(checked.stdout.partition("\n}")[0] + "\n}")
    assert again["pools"] == report["pools"]
    assert [pool["cache_bytes"] for pool in report["pools"]] == [1024 * 256, 0]
    assert "--context 1024" in hearth.run([*plan, "--explain"]).stdout.partition("context and cache\n")[2]
    for words in ("shell", "eval", "nul", "lines", "fish", "powershell"):
        done = hearth.run([*plan, "--format", words])
        assert done.returncode == 0 and "hearth-serve" in done.stdout and "1024" in done.stdout, words


@pytest.mark.slow
def test_the_laws_of_every_backend_are_among_its_tests(hearth: Followed) -> None:
    done = hearth.run(["python", "-m", "pytest", "-v", "-p", "no:cacheprovider"])
    assert done.returncode == 0, done.stdout
    from autofit.testing import BackendContract

    laws = {name for name in dir(BackendContract) if name.startswith("test_")}
    assert laws <= set(re.findall(r"TestHearth::(\w+) PASSED", done.stdout))


@pytest.mark.slow
def test_the_smallest_plugin_keeps_the_laws_too(plotto: Followed) -> None:
    laws = plotto.folder / "test_laws.py"
    laws.write_text(
        "from autofit.testing import BackendContract\n\n\nclass TestPlotto(BackendContract):\n    backend = 'plotto'\n"
    )
    done = plotto.run(["python", "-m", "pytest", "-q", "-p", "no:cacheprovider"])
    assert done.returncode == 0, done.stdout


def test_a_class_that_is_no_backend_is_told_how_to_become_one(plotto: Followed, tmp_path: Path) -> None:
    site = shutil.copytree(plotto.site, tmp_path / "site")
    module = site / "autofit_plotto.py"
    module.write_text(module.read_text(encoding="utf-8").replace("class Plotto(Backend):", "class Plotto:"))
    paths = plotto.environ()["PYTHONPATH"].replace(str(plotto.site), str(site))
    done = plotto.run(["autofit", "plotto", "example:tiny", "--on", "rtx-3090"], {"PYTHONPATH": paths})
    assert done.returncode == 1
    assert "autofit_plotto:Plotto must make a Backend, not Plotto" in done.stdout
    assert "class Plotto(autofit.backend.Backend)" in done.stdout and "docs/hooks.md" in done.stdout


def test_what_is_not_the_engine_is_short() -> None:
    """Lines of code (not blank, no comment, no docstring) of the package, its project file included, but for
    `engine.py`: flags, refusals, allocations and rates of the engine; and for the tests."""
    counted = {
        path.relative_to(HEARTH).as_posix(): n_code_lines(path)
        for path in (HEARTH / "pyproject.toml", *HEARTH.glob("autofit_hearth/*.py"))
        if path.name != "engine.py"
    }
    assert len(counted) == 4 and sum(counted.values()) <= MOST_PLUMBING_LINES, counted
    told = re.search(r"(\d+) lines of them are not about the engine", TUTORIAL.read_text(encoding="utf-8"))
    assert told and int(told[1]) == sum(counted.values())


def n_code_lines(path: Path) -> int:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".toml":
        assert tomllib.loads(text)
        return sum(bool(line.partition("#")[0].strip()) for line in text.splitlines())
    docs: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            docs |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docs)
