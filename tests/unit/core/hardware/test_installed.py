"""Which engine is installed: programs that answer, hang, flood, fail, or are none, and packages by their metadata."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from autofit.errors import UsageError
from autofit.hardware import installed, output
from autofit.hardware.installed import ask, engine_of, package_version

from autofit_llama.backend import LlamaBackend

BACKEND = LlamaBackend()


def program(folder: Path, script: str, name: str = "llama-server", mode: int = 0o755) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)
    return path


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr(installed, "package_version", lambda name: None)
    return {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}


def found(environ: dict[str, str] | None, stated: str | None = None, **more: Any) -> installed.Engine:
    return engine_of(BACKEND, stated, more.pop("origin", "user"), environ, **{"here": True, **more})


def test_the_program_on_the_path_is_asked_once(tmp_path: Path, environ: dict[str, str]) -> None:
    count = tmp_path / "count"
    path = program(tmp_path / "bin", f"echo x >> {count}; echo 'version: 8121 (abcdef)' >&2; echo 'built with GNU' >&2")
    for _ in range(3):
        engine = found(environ)
        assert engine.version is not None
        assert "version: 8121" in engine.version
        assert engine.source == f"as {path} says"
    assert count.read_text() == "x\n"
    os.utime(path, (1, 1))
    found(environ)
    assert count.read_text() == "x\nx\n"  # another file now


def test_what_is_stated_comes_first(tmp_path: Path, environ: dict[str, str]) -> None:
    program(tmp_path / "bin", f"touch {tmp_path}/ran; echo 'version: 8121 (abcdef)'")
    assert found(environ, "b9093") == ("b9093", "as --engine-version says", None)
    assert found(environ, "b9093", origin="environment").source == "as AUTOFIT_ENGINE_VERSION says"
    assert found(environ, "b9093", origin="settings file").source == "as a settings file says"
    image = "ghcr.io/ggml-org/llama.cpp:server-cuda-b8121"
    assert found(environ, image).version == image
    assert not (tmp_path / "ran").exists()


def test_a_program_that_is_named_comes_before_the_installed_one(tmp_path: Path, environ: dict[str, str]) -> None:
    program(tmp_path / "bin", "echo 'version: 8121 (a)'")
    other = program(tmp_path / "opt", "echo 'version: 0.5.0 (build 0, commit unknown)'")
    for here in (True, False):
        assert "0.5.0" in (found(environ, program=str(other), here=here).version or "")
    assert "0.5.0" in (found(environ, str(other), here=False).version or "")
    assert "8121" in (found(environ, "installed", here=False).version or "")
    assert "8121" in (found(environ, program="llama-server").version or "")
    assert found(environ, program="llama-server", here=False).version is None


def test_nothing_runs_where_nothing_may(tmp_path: Path, environ: dict[str, str]) -> None:
    path = program(tmp_path / "bin", f"touch {tmp_path}/ran; echo 'version: 8121 (a)'")
    assert found(None).version is None
    assert found(None, program=str(path)).version is None
    assert found(environ, here=False).version is None
    for stated, origin in ((str(path), "settings file"), ("installed", "preset")):
        with pytest.raises(UsageError, match="may not have a program asked"):
            found(environ, stated, origin=origin)
    with pytest.raises(UsageError, match="may not have a program asked"):
        found(None, str(path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("sleep 60", "no answer within"),
        ("yes | head -c 3000000", "bytes of output"),
        ("exit 7", "exit code 7"),
        ("echo hello", "names no version"),
        ("printf '\\033[31m\\377\\001garbage'", "names no version"),
        ("true", "names no version"),
        ("echo 'version: 0 (unknown)'", "names no version"),
        ("kill -9 $$", "exit code"),
    ],
)
def test_programs_that_say_nothing(
    tmp_path: Path, environ: dict[str, str], script: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "SECONDS", 0.3 if script.startswith("sleep") else 20.0)
    path = program(tmp_path / "bin", script)
    engine = found(environ)
    assert engine.version is None
    assert problem in (engine.problem or "")
    assert (engine.problem or "").isprintable()
    with pytest.raises(UsageError, match="does not say which"):
        found(environ, str(path))
    monkeypatch.setattr(output, "run_both", None)  # not asked again
    assert found(environ) == engine


def test_files_that_are_no_programs(tmp_path: Path, environ: dict[str, str]) -> None:
    path = program(tmp_path / "bin", "echo 'version: 8121 (a)'", mode=0o644)
    assert ask("llama-server", environ) is None
    for stated in (str(path), str(tmp_path), "/nonexistent/llama-server"):
        with pytest.raises(UsageError, match="no such program"):
            found(environ, stated)
    broken = tmp_path / "bin" / "llama-cli"
    broken.write_bytes(b"\x7fELF\0\0")
    broken.chmod(0o755)
    assert found(environ).version is None
    assert found(environ).problem is not None


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a\tb\n" * 9, b"\t\t\t\n", b"x" * (1 << 19)])
def test_a_cache_that_is_none(tmp_path: Path, environ: dict[str, str], content: bytes) -> None:
    program(tmp_path / "bin", "echo 'version: 8121 (a)'")
    store = tmp_path / "cache" / "autofit" / "engines.txt"
    store.parent.mkdir(parents=True)
    store.write_bytes(content)
    assert "8121" in (found(environ).version or "")
    assert "8121" in (found({**environ, "XDG_CACHE_HOME": "/proc/none"}).version or "")


def test_a_fork_is_named_by_its_path_or_its_words(tmp_path: Path, environ: dict[str, str]) -> None:
    fork = program(tmp_path / "ik_llama.cpp" / "bin", "echo 'version: 4067 (1bd2bb7)'")
    assert found(environ, program=str(fork)).version == "ik_llama.cpp"


def test_packages_are_found_without_importing_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("llama_cpp_python-0.3.36.dist-info", "llama_cpp_python_extra-9.dist-info", "other-1.0.dist-info"):
        (tmp_path / name).mkdir()
    assert package_version("llama-cpp-python", [str(tmp_path)]) == "0.3.36"
    assert package_version("Llama.cpp_Python", ["/nonexistent", str(tmp_path)]) == "0.3.36"
    assert package_version("llama-cpp", [str(tmp_path)]) is None
    monkeypatch.chdir(tmp_path)
    assert package_version("llama-cpp-python", ["", "."]) is None
    monkeypatch.setattr(installed, "package_version", lambda name: "0.3.36")
    nowhere = {"PATH": "", "HOME": str(tmp_path)}
    assert found(nowhere) == ("llama-cpp-python 0.3.36", "llama-cpp-python 0.3.36 is installed", None)
    monkeypatch.setattr(installed, "package_version", lambda name: "9.9.9")
    unknown = found(nowhere)
    assert unknown.version is None
    assert unknown.problem is not None and "llama-cpp-python 9.9.9 is installed" in unknown.problem
    assert "--engine-version" in unknown.problem
    monkeypatch.setattr(installed, "package_version", lambda name: None)
    assert found(nowhere).problem is None


def test_a_program_of_python_is_of_the_version_beside_it(tmp_path: Path) -> None:
    """It is not run: that would load its package. A program of its own is not of the packages beside it."""
    from autofit_vllm.backend import VllmBackend

    venv = tmp_path / "venv"
    (venv / "lib/python3.12/site-packages/vllm-0.30.0.dist-info").mkdir(parents=True)
    (venv / "lib/python3.12/site-packages/llama_cpp_python-0.3.36.dist-info").mkdir()
    path = program(venv / "bin", "exit 1", "vllm")
    path.write_text(f"#!{venv}/bin/python\nraise SystemExit(1)\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vllm").symlink_to(path)
    environ = {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)}
    for named in (str(path), "vllm"):
        engine = engine_of(VllmBackend(), None, "user", environ, program=named, here=True)
        assert engine.version == "0.30.0" and engine.source.startswith("vllm 0.30.0 is installed beside ")
    assert engine_of(VllmBackend(), None, "user", environ, program="vllm", here=False).version is None
    own = program(venv / "bin", "echo 'version: 8121 (a)'")
    assert "8121" in str(engine_of(BACKEND, None, "user", environ, program=str(own), here=True).version)
