"""Small files from outside: pipes, devices and floods are refused; a save is whole or did not happen."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from autofit.files import read_bounded, write_whole
from autofit.profiles import parse_toml

from support import TINY

posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")


def autofit(*args: str, limit: str = "", **env: str) -> subprocess.CompletedProcess[bytes]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AUTOFIT_", "LLAMA_ARG_", "VLLM_", "CUDA_"))}
    clean |= {"XDG_CONFIG_HOME": "/nonexistent", "AUTOFIT_DISABLE_PLUGIN_AUTOLOAD": "1", **env}
    script = f'{limit} exec "$0" -m autofit "$@"'
    return subprocess.run(["sh", "-c", script, sys.executable, *args], capture_output=True, env=clean, timeout=30)


def test_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_bounded(path, 4)
    with pytest.raises(OSError, match="not a path"):
        read_bounded("a\0b", 4)
    with pytest.raises(IsADirectoryError) as caught:
        read_bounded(tmp_path, 4)
    assert caught.value.strerror


@pytest.mark.slow_but("pipe-*", "device-inspect*", "device-llama*")
@posix
@pytest.mark.parametrize(
    "args",
    [
        ("llama", "example:tiny", "--on", "{}/x.toml"),
        ("llama", "example:tiny", "--on", "{}/x.json"),
        ("hardware", "show", "{}/x.toml"),
        ("llama", "{}/m.gguf", "--on", "rtx-3090"),
        ("llama", "{}/m", "--on", "rtx-3090"),
        ("inspect", "{}/model.safetensors"),
        ("inspect", "{}/config.json"),
        ("inspect", "{}/x.json.gz"),
        ("check", "--", "vllm", "serve", "x", "--config", "{}/x.yaml"),
        ("llama", "example:tiny", "--on", "rtx-3090", "--", "--lora", "{}/m.gguf"),
        ("llama", "example:tiny", "--on", "rtx-3090", "--settings", "{}/x.toml"),
        ("verify", "--log", "{}/x.log"),
        ("fix", "{}/x.log"),
        ("fleet", "{}/x.toml"),
        ("check", "--from", "{}/x.yaml"),
        ("calibration", "import", "{}/x.json"),
    ],
    ids=lambda args: " ".join(args[:4]),
)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_is_refused_at_once(tmp_path: Path, args: tuple[str, ...], kind: str) -> None:
    for name in ("x.toml", "x.json", "x.yaml", "x.log", "m.gguf", "m", "model.safetensors", "config.json", "x.json.gz"):
        if kind == "pipe":
            os.mkfifo(tmp_path / name)
        else:
            (tmp_path / name).symlink_to("/dev/zero")
    done = autofit(*(arg.format(tmp_path) for arg in args))
    assert done.returncode in (1, 2, 3), done.stderr
    assert done.stdout == b""
    assert 1 <= len(done.stderr.splitlines()) <= 2


@posix
@pytest.mark.parametrize("name", ["x.toml", "s.toml", "z.toml", "."])
def test_a_settings_file_that_is_named_and_is_none_is_told_by_what_it_is(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "x.toml")
    (tmp_path / "z.toml").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "s.toml"))
    done = autofit("llama", "example:tiny", "--on", "rtx-3090", "--settings", str(tmp_path / name))
    what = {"x.toml": b"a pipe", "s.toml": b"a socket", "z.toml": b"a device", ".": b"Is a directory"}[name]
    assert (done.returncode, done.stdout) == (2, b"")
    assert what in done.stderr and b"no such" not in done.stderr


@posix
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_pipe_that_the_shell_has_opened_is_a_log() -> None:
    script = '"$0" -m autofit fix <(echo "CUDA error: out of memory")'
    done = subprocess.run(["bash", "-c", script, sys.executable], capture_output=True, timeout=30)
    assert b"ordinary" not in done.stderr and done.returncode != 2, done.stderr


@posix
def test_a_settings_file_that_is_a_pipe_keeps_nothing_waiting(tmp_path: Path) -> None:
    (tmp_path / "autofit").mkdir()
    os.mkfifo(tmp_path / "autofit" / "autofit.toml")
    done = autofit("llama", "example:tiny", "--on", "rtx-3090", "--ram", "64GiB", XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_a_save_replaces_the_file_at_once_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.toml"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["x.toml"]
    with pytest.raises(TypeError):
        write_whole(path, None)  # type: ignore[arg-type]
    assert [entry.name for entry in path.parent.iterdir()] == ["x.toml"]


def test_a_link_to_the_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.toml").write_text("a = 1\n")
    (tmp_path / "x.toml").symlink_to("real.toml")
    write_whole(tmp_path / "x.toml", b"a = 2\n")
    assert (tmp_path / "x.toml").is_symlink()
    assert (tmp_path / "real.toml").read_text() == "a = 2\n"


@pytest.mark.slow
def test_many_processes_save_one_name(tmp_path: Path) -> None:
    """Every one succeeds, and what is there afterwards is one of them, whole."""

    def save(number: int) -> subprocess.CompletedProcess[bytes]:
        on = ("rtx-3090", "rtx-4090", "l40s")[number % 3]
        args = ("hardware", "save", "box", "--on", on, "--ram", "64GiB")
        return autofit(*args, AUTOFIT_PROFILES=str(tmp_path))

    with ThreadPoolExecutor(12) as pool:
        done = list(pool.map(save, range(24)))
    assert [each.returncode for each in done] == [0] * 24, next(each.stderr for each in done if each.returncode)
    assert [entry.name for entry in (tmp_path / "hardware").iterdir()] == ["box.toml"]
    assert parse_toml((tmp_path / "hardware" / "box.toml").read_text(), "box")["kind"] == "machine"


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files that ends no process")
def test_a_disk_without_room_keeps_the_old_profile(tmp_path: Path) -> None:
    args = ("hardware", "save", "box", "--on", "rtx-3090", "--ram", "64GiB")
    assert autofit(*args, AUTOFIT_PROFILES=str(tmp_path)).returncode == 0
    before = (tmp_path / "hardware" / "box.toml").read_bytes()
    limit = 'trap "" XFSZ; ulimit -f 1;'  # 512 bytes, as on a disk with no more room
    failed = autofit(*args[:-1], "128GiB", limit=limit, AUTOFIT_PROFILES=str(tmp_path))
    assert failed.returncode in (1, 2)
    assert len(failed.stderr.splitlines()) <= 2
    assert failed.stdout == b""
    assert [entry.name for entry in (tmp_path / "hardware").iterdir()] == ["box.toml"]
    assert (tmp_path / "hardware" / "box.toml").read_bytes() == before


def test_the_tiny_model_is_an_ordinary_file() -> None:
    assert read_bounded(TINY, 1 << 24)[:4] == b"GGUF"
