"""Locales, closed and full streams, homes that are none: what surrounds a command never ends in a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
STRICT = {"PYTHONIOENCODING": "utf-8:strict"}
PLAN = ("llama", "example:tiny", "--on", "rtx-3090", "--ram", "64GiB")


def autofit(*args: str | bytes, stdout: int = subprocess.PIPE, **env: str) -> subprocess.CompletedProcess[bytes]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AUTOFIT_", "LLAMA_ARG_", "VLLM_", "CUDA_"))}
    clean |= {"XDG_CONFIG_HOME": "/nonexistent", "AUTOFIT_DISABLE_PLUGIN_AUTOLOAD": "1", **env}
    command = [sys.executable, "-m", "autofit", *args]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env=clean, timeout=60)


@pytest.mark.parametrize("args", [("--help",), ("hardware",), ("inspect", "example:tiny"), PLAN, (*PLAN, "--explain")])
def test_a_locale_without_most_letters(args: tuple[str, ...]) -> None:
    done = autofit(*args, **ASCII)
    assert done.returncode == 0, done.stderr
    done.stdout.decode("ascii")


def test_messages_have_plain_signs_where_the_locale_lacks_theirs() -> None:
    several = ("llama", "example:mixtral-8x7b-q4_k_m", "--on", "3xrtx-3060-12gb", "--ram", "64GiB", "--explain")
    full, plain = (autofit(*several, **env).stderr for env in ({"PYTHONIOENCODING": "utf-8"}, ASCII))
    assert "·" in full.decode() and "×" in full.decode()
    assert plain.decode("ascii") == full.decode().replace("·", "|").replace("×", "x").replace("…", "...")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
@pytest.mark.parametrize("env", [ASCII, STRICT, {}])
def test_the_bytes_of_a_name_are_kept(tmp_path: Path, env: dict[str, str]) -> None:
    path = os.fsencode(tmp_path) + b"/m-\xff-\xc3\xa9.gguf"
    Path(os.fsdecode(path)).write_bytes((ROOT / "autofit/_models/tiny.gguf").read_bytes())
    done = autofit("llama", path, *PLAN[2:], **env)
    assert done.returncode == 0, done.stderr
    assert path in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = autofit("--help", stdout=full.fileno())
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[0].startswith("autofit: standard output: No space left")
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell closes the streams")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-"])
def test_a_closed_stream(closed: str) -> None:
    script = f'exec "$0" -m autofit "$@" {closed}'
    done = subprocess.run(["sh", "-c", script, sys.executable, *PLAN], capture_output=True, timeout=60)
    assert done.returncode == (1 if closed == ">&-" else 0), done.stderr
    assert b"Traceback" not in done.stderr
    assert b"GPU0" not in done.stdout
    assert (b"llama-server" in done.stdout) == (closed != ">&-")
    assert (b"standard output is closed" in done.stderr) == (closed == ">&-")


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")


@pytest.mark.slow_but(">/dev/full-*")
@FULL
@pytest.mark.parametrize(
    "args",
    [("--version",), ("hardware",), ("hardware", "list"), ("inspect", "example:tiny"), ("plugins",), PLAN,
     (*PLAN, "--format", "json"), (*PLAN, "--format", "nul"), ("llama", "--help")],
)  # fmt: skip
@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
def test_no_command_succeeds_whose_output_is_lost(args: tuple[str, ...], redirection: str) -> None:
    script = f'exec "$0" -m autofit "$@" {redirection}'
    done = subprocess.run(["sh", "-c", script, sys.executable, *args], capture_output=True, timeout=60)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) >= 1
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@FULL
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_messages_that_find_no_room_change_nothing(redirection: str) -> None:
    script = f'exec "$0" -m autofit "$@" {redirection}'
    done = subprocess.run(["sh", "-c", script, sys.executable, *PLAN], capture_output=True, timeout=60)
    assert done.returncode == 0
    assert b"llama-server" in done.stdout
    failed = subprocess.run(["sh", "-c", script, sys.executable, "llama", "nothing"], capture_output=True, timeout=60)
    assert failed.returncode == autofit("llama", "nothing").returncode != 0


@pytest.mark.skipif(sys.platform == "win32", reason="a directory in use stays there")
@pytest.mark.parametrize("args", [("hardware",), PLAN, ("inspect", "example:tiny"), ("--help",), ("plugins",)])
def test_a_directory_that_has_been_deleted(tmp_path: Path, args: tuple[str, ...]) -> None:
    script = (
        'mkdir "$1"; cd "$1"; rmdir "$1"; shift; exec "$0" -c "from autofit.cli.main import main as m; exit(m())" "$@"'
    )
    command = ["sh", "-c", script, sys.executable, str(tmp_path / "gone"), *args]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "env", [{"XDG_CONFIG_HOME": "~nobody-here/x"}, {"HOME": "~nobody-here", "XDG_CONFIG_HOME": ""}]
)
def test_a_home_that_nobody_has(env: dict[str, str]) -> None:
    assert autofit(*PLAN, **env).returncode == 0
