"""`autofit run -- podman run IMAGE`, with a real podman (`.ci/podman.sh`) and an engine that says what reached it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from support import TINY
from support.dryrun import VARIABLE, engine_folder
from support.fake_engines import is_alive, write_program
from support.podman import BASE, IMAGE, PODMAN, build_engine, needs_podman

pytestmark = [pytest.mark.engine, needs_podman]
AUTOFIT = [sys.executable, "-P", "-m", "autofit"]


class Place:
    """A folder with a model, podman under the names of docker too, and reservations of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("docker", "podman"):
            write_program(folder / "bin" / name, f'#!/bin/sh\nexec {PODMAN} "$@"\n')
        (folder / "runtime").mkdir(mode=0o700)
        self.environ = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder / "runtime"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LC_ALL": "C.UTF-8",
        }

    def docker(self, *options: str, runner: str = "docker") -> list[str]:
        return [runner, "run", "--rm", *options, "-v", f"{TINY.parent}:/m:ro", IMAGE, "-m", "/m/tiny.gguf"]

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*AUTOFIT, *words],
            env=self.environ,
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )

    @contextlib.contextmanager
    def started(
        self, command: Sequence[str], *own: str, is_quiet: bool = True, **streams: Any
    ) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """A run whose engine has begun, and its output; no process of it is left."""
        log = self.folder / "log"
        with log.open("wb") as file:
            streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file, **streams}
            process = subprocess.Popen(
                [*AUTOFIT, "run", *(["-q"] if is_quiet else []), *own, "--", *command],
                env=self.environ,
                cwd=self.folder,
                **streams,
            )
        try:
            yield process, log
        finally:
            process.kill()
            process.wait()
            self.call("kill", "--all")
            deadline = time.monotonic() + 20
            while self.call("ps", "--all", "--quiet") and time.monotonic() < deadline:
                time.sleep(0.1)

    def call(self, *words: str) -> str:
        return subprocess.run([PODMAN, *words], capture_output=True, text=True, timeout=60).stdout

    def reserved(self) -> list[int]:
        """MiB of RAM that the next launch leaves to each that was started before."""
        done = self.run("run", "-n", "--", *self.docker())
        found = re.findall(r"RAM: (\S+) (MiB|GiB) are reserved for \w+ \(process", done.stderr)
        return [int(float(n) * (1024 if unit == "GiB" else 1)) for n, unit in found]


def wait_for(text: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while text not in log.read_text():
        assert time.monotonic() < deadline and process.poll() is None, log.read_text()
        time.sleep(0.05)


@pytest.fixture(scope="module", autouse=True)
def image(tmp_path_factory: pytest.TempPathFactory) -> None:
    build_engine(tmp_path_factory.mktemp("image"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("own", [(), ("--watch",)])
def test_words_input_and_the_exit_status_pass(own: tuple[str, ...], place: Place) -> None:
    for code in (0, 5):
        command = place.docker("-i", "-e", f"ANSWER={code}")
        done = place.run("run", *own, "-c", "512", "--", *command, "--port", "9", stdin="hello\n")
        first, *rest = done.stdout.split("\n", 1)
        assert (done.returncode, rest) == (code, ["HELLO\n\n"]), done.stderr
        words = json.loads(first)["argv"]
        assert words[:6] == ["-m", "/m/tiny.gguf", "--port", "9", "-c", "512"] and "-np" in words


@pytest.mark.parametrize("own", [(), ("--watch",)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_the_engine_and_nothing_is_left(
    number: signal.Signals, own: tuple[str, ...], place: Place
) -> None:
    with place.started(place.docker(), *own) as (process, log):
        wait_for("argv", log, process)
        process.send_signal(number)
        assert process.wait(30) == 40 + number, log.read_text()
        assert f"got {number.name}" in log.read_text()
        assert place.call("ps", "--all", "--quiet") == ""


@pytest.mark.parametrize("own", [(), ("--watch",)])
@pytest.mark.parametrize("options", [(), ("-it",)])
def test_ctrl_c_at_a_terminal(options: tuple[str, ...], own: tuple[str, ...], place: Place) -> None:
    """From the kernel to the whole group, or with `-t` as a byte to the container's own terminal."""
    ours, theirs = pty.openpty()
    said = b""

    def own_terminal() -> None:
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "preexec_fn": own_terminal}
    with place.started(place.docker(*options), *own, **streams) as (process, _):
        os.close(theirs)
        for text, answer in ((b'"tty"', b"\x03"), (b"got SIGINT", b"")):
            while text not in said:
                said += os.read(ours, 4096)
            os.write(ours, answer)
        assert process.wait(30) == 40 + signal.SIGINT, said
        assert (b'"tty": true' in said) is bool(options)
        assert place.call("ps", "--all", "--quiet") == ""
    os.close(ours)


def test_what_a_container_holds_is_reserved_once(place: Place) -> None:
    with place.started(place.docker("-e", "HOLD_MIB=700", runner="podman")) as (process, log):
        wait_for("argv", log, process)
        (outstanding,) = place.reserved()
        planned = next(
            iter(json.loads(next((place.folder / "runtime").rglob("*.json")).read_text())["claims"].values())
        )
        assert 0 < outstanding <= (planned["bytes"] >> 20) - 700
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
        assert place.call("ps", "--quiet") != ""  # a client that is killed cannot end its container
        assert place.reserved() != []
    assert place.reserved() == [] and not is_alive(process.pid)


def test_a_container_that_goes_on_alone_keeps_its_reservation(place: Place) -> None:
    with place.started(place.docker("-d", runner="podman")) as (process, log):
        assert process.wait(60) == 0, log.read_text()
        assert len(place.reserved()) == 1
        place.call("stop", "--all", "--time", "5")
        deadline = time.monotonic() + 20
        while place.reserved() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert place.reserved() == []


def test_what_does_not_fit_into_the_container_is_not_started(place: Place) -> None:
    done = place.run("run", "--", *place.docker("--memory", "64m", "--cidfile", "cid"))
    assert done.returncode == 3 and "not started: does not fit" in done.stderr
    assert not (place.folder / "cid").exists() and done.stdout == ""


def test_a_container_that_runs_out_of_memory_is_planned_again(place: Place) -> None:
    done = place.run("run", "--retries", "1", "--", *place.docker("--memory", "600m", "-e", "HOLD_MIB=900"))
    if done.returncode in (125, 126):
        pytest.skip(f"no limit of memory here: {done.stderr.strip()[-200:]}")
    assert "out of memory while starting: killed (exit status 137)" in done.stderr
    assert "planning again, for " in done.stderr


def test_containers_of_a_script(place: Place) -> None:
    command = " ".join(place.docker("-i", "-e", "ANSWER=4"))
    write_program(place.folder / "start.sh", f"#!/bin/sh\ndocker --version\nexec {command} --port 9\n")
    done = place.run("run", "-q", "-c", "512", "--", "./start.sh")
    version, first, *_ = done.stdout.splitlines()
    assert done.returncode == 4 and version.startswith("podman version")
    assert json.loads(first)["argv"][2:6] == ["--port", "9", "-c", "512"]
    checked = place.run("check", "--", "./start.sh")
    assert checked.returncode == 0 and checked.stdout == f"fits: {command} --port 9\n"


@pytest.mark.skipif(engine_folder() is None, reason=f"{VARIABLE} names no llama.cpp")
def test_a_real_engine_reports_from_inside_what_was_predicted_outside(place: Place) -> None:
    folder, image = place.folder / "image", "localhost/real/ggml-org/llama.cpp:server-b11311"
    (folder / "app").mkdir(parents=True)
    programs = engine_folder()
    assert programs is not None
    needed = subprocess.run(["ldd", str(programs / "llama-server")], capture_output=True, text=True, check=True).stdout
    for path in [programs / "llama-server", *programs.glob("libggml-cpu.so*"), *re.findall(r"=> (/\S+)", needed)]:
        shutil.copy(path, folder / "app")
    (folder / "Containerfile").write_text(
        f'FROM {BASE}\nCOPY app /app\nENV LD_LIBRARY_PATH=/app\nWORKDIR /app\nENTRYPOINT ["/app/llama-server"]\n'
    )
    assert subprocess.run([PODMAN, "build", "-q", "-t", image, str(folder)], timeout=300).returncode == 0
    command = [image if word == IMAGE else word for word in place.docker()]
    with place.started([*command, "-lv", "4"], "-c", "1k", "--watch", is_quiet=False) as (process, log):
        wait_for("autofit: reported as predicted: host cache, host compute\n", log, process)
        process.terminate()
        assert process.wait(30) == 0, log.read_text()[-2000:]
        assert "autofit: ready after " in log.read_text() and " predicted (" not in log.read_text()
