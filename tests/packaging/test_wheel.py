"""What the built distribution brings beside its packages, and the one file that needs no installation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from support import ROOT

SHARED = {
    "share/man/man1/autofit.1": "docs/autofit.1",
    "share/bash-completion/completions/autofit": "autofit/cli/completions/autofit.bash",
    "share/zsh/site-functions/_autofit": "autofit/cli/completions/_autofit",
    "share/fish/vendor_completions.d/autofit.fish": "autofit/cli/completions/autofit.fish",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip installed this tree into."""
    folder = tmp_path_factory.mktemp("installed")
    offline = ["--no-build-isolation"] if find_spec("hatchling") else []
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", *offline]
    done = subprocess.run([*pip, "--target", str(folder), str(ROOT)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_pip_puts_manual_and_completions_where_programs_look(site: Path) -> None:
    for there, here in SHARED.items():
        assert (site / there).read_text(encoding="utf-8") == (ROOT / here).read_text(encoding="utf-8")
    assert sorted(path.name for path in (site / "autofit/cli/completions").iterdir()) == [
        "_autofit",
        "autofit.bash",
        "autofit.fish",
        "autofit.ps1",
    ]


@pytest.mark.parametrize(
    "command", [("mandoc", "-T", "lint"), ("groff", "-man", "-ww", "-z"), ("man", "-l", "--warnings")]
)
def test_the_manual_page_has_nothing_to_warn_of(command: tuple[str, ...]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    environ = {**os.environ, "MANPAGER": "cat", "LC_ALL": "C.UTF-8"}
    done = subprocess.run([*command, str(ROOT / "docs/autofit.1")], capture_output=True, text=True, env=environ)
    shown = done.stdout if command[0] == "man" else ""
    assert (done.returncode, done.stderr, done.stdout) == (0, "", shown)
    assert command[0] != "man" or "COMMANDS" in shown


def test_the_manual_page_has_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    from autofit.host import host
    from autofit.settings.options import OPTIONS

    page = (ROOT / "docs/autofit.1").read_text().replace("\\-", "-")
    assert [option.flag for option in OPTIONS if f"\\fB{option.flag}\\fR" not in page] == []
    assert [name for name in (*host().commands(), *host().backends()) if f".SS autofit {name}\n" not in page] == []
    assert page.isascii()


# -- the archive -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """autofit.pyz of this tree, with the dependencies that are installed here."""
    sys.path.insert(0, str(ROOT / "tools/archive"))
    try:
        import build
    finally:
        sys.path.pop(0)
    whole = tmp_path_factory.mktemp("whole") / "site"
    shutil.copytree(site, whole)
    for name in ("pluggy", "tomlkit", "yaml"):
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        shutil.copytree(Path(spec.origin).parent, whole / name)
    return Path(build.pack(whole, tmp_path_factory.mktemp("built") / "autofit.pyz"))


def run(archive: Path, folder: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOFIT_", "PYTHON", "PYTEST"))}
    command = [sys.executable, "-I", "-S", str(archive), *words]  # without the packages of this environment
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, env={**kept, **environ}, check=False
    )


def test_one_file_plans_from_any_folder(archive: Path, tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "autofit/_models/tiny.gguf", tmp_path / "m.gguf")
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_CONFIG_HOME": str(tmp_path)}
    done = run(archive, tmp_path, "llama", "m.gguf", "--on", "rtx-3090", "--ram", "64GiB", "-q", **cache)
    assert done.stdout.startswith("llama-server -m m.gguf -c 4096 -ngl ")
    (folder,) = (tmp_path / "cache/autofit").iterdir()
    before = folder.stat().st_mtime_ns
    done = run(archive, tmp_path, "hardware", "list", **cache)
    assert "\nrtx-3090 " in done.stdout
    assert (folder.stat().st_mtime_ns, done.returncode) == (before, 0)
    done = run(archive, tmp_path, "completion", "zsh", **cache)
    assert done.stdout == (ROOT / "autofit/cli/completions/_autofit").read_text()
    done = run(archive, tmp_path, "vllm", str(ROOT / "tests/data/vllm/configs/qwen3-0.6b"), "--on", "t4", "-q", **cache)
    assert done.stdout.startswith("vllm serve ")


def test_the_engines_of_a_script_are_told_to_the_same_file(archive: Path, tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "autofit/_models/tiny.gguf", tmp_path / "m.gguf")
    script = tmp_path / "start.sh"
    script.write_text("#!/bin/sh\nllama-server -m m.gguf -c 512\n")
    script.chmod(0o755)
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_RUNTIME_DIR": str(tmp_path)}
    done = run(archive, tmp_path, "check", "--on", "cpu", "--ram", "8GiB", "-q", "--", "./start.sh", **cache)
    assert (done.returncode, "llama-server -m m.gguf -c 512" in done.stdout) == (0, True), done.stderr


def test_a_cache_that_is_none_is_done_without(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", Path("relative")):
        done = run(archive, tmp_path, "--version", XDG_CACHE_HOME=str(place), TMPDIR=str(tmp_path))
        assert (done.returncode, done.stdout[:8]) == (0, "autofit ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_packages_that_others_may_write_are_not_run(archive: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache/autofit"
    run(archive, tmp_path, "--version", XDG_CACHE_HOME=str(tmp_path / "cache"))
    (folder,) = cache.iterdir()
    (folder / "autofit/__init__.py").write_text("raise SystemExit('another one')\n")
    folder.chmod(0o777)
    done = run(archive, tmp_path, "--version", XDG_CACHE_HOME=str(tmp_path / "cache"), TMPDIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


def test_the_same_packages_make_the_same_bytes(archive: Path, tmp_path: Path) -> None:
    import build

    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path, [name for name in packed.namelist() if name.startswith("site/")])
    again = build.pack(tmp_path / "site", tmp_path / "again.pyz")
    assert again.read_bytes() == archive.read_bytes()


# -- the container ---------------------------------------------------------------------------------


def steps() -> list[tuple[str, str]]:
    """Instructions of the Containerfile with their words."""
    text = (ROOT / "Containerfile").read_text().replace("\\\n", " ")
    rows = [row for row in text.splitlines() if row and not row.startswith("#")]
    return [(name, words) for name, _, words in (row.partition(" ") for row in rows)]


@pytest.mark.slow
def test_the_steps_of_the_container_make_a_program(tmp_path: Path) -> None:
    """What the Containerfile copies and runs, in a fresh environment: no image is built here."""
    known = {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT"}
    assert {name for name, _ in steps()} <= known
    assert next(name for name, _ in steps()) == "FROM"
    source = tmp_path / "src"
    source.mkdir()
    for words in (words.split() for name, words in steps() if name == "COPY"):
        *paths, target = words
        for path in paths:
            there = source / (path if target == "./" else target)
            there.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / path).is_dir():
                shutil.copytree(ROOT / path, there, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(ROOT / path, there)
    (run_step,) = [words for name, words in steps() if name == "RUN"]
    pip, _, _ = run_step.partition(" && ")
    assert pip.split()[:2] == ["pip", "install"]
    offline = ["--no-deps", "--no-build-isolation", "--no-compile", "--target", str(tmp_path / "site")]
    command = [sys.executable, "-m", *pip.split(), "-q", *offline]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert steps()[-1] == ("ENTRYPOINT", '["autofit"]')
    environ = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    words = ["-P", str(tmp_path / "site/bin/autofit"), "llama", "example:tiny", "--on", "rtx-3090", "-q"]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.stdout.startswith("llama-server ")
    assert str(tmp_path / "site") in done.stdout  # the models inside of what was installed, not of this tree
