"""`autofit run` with a real llama-server: it becomes it, scripts pass through, memory that runs out is planned for."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support import TINY
from support.dryrun import VARIABLE, engine_folder, rpc_servers
from support.fake_engines import children_of, is_alive, write_program
from support.serving import AUTOFIT, SERVER, Place, complete

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(engine_folder() is None, reason=f"{VARIABLE} names no llama.cpp"),
]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def listener_of(address: str) -> int:
    """The process that listens there, by the inode of its socket."""
    port = int(address.rpartition(":")[2])
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inode = next(row[9] for row in rows if int(row[1].partition(":")[2], 16) == port and row[3] == "0A")
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(link.readlink()) == f"socket:[{inode}]":
                return int(link.parts[2])
    raise AssertionError(address)


@pytest.mark.parametrize("own", [(), ("--watch",)])
def test_it_becomes_the_engine_and_ends_with_it(own: tuple[str, ...], place: Place) -> None:
    with place.started("run", *own, "-c", "1k", "--", "nice", "-n", "1", *SERVER) as (process, address, log):
        assert complete(address, log) == 4
        engine = children_of(process.pid)[0] if own else process.pid
        name = Path(f"/proc/{engine}/comm").read_text().strip()
        assert name == "llama-server" or own
        process.terminate()
        assert process.wait(30) == 0, log.read_text()[-2000:]  # llama-server's own way to end
        assert "cleaning up before exit" in log.read_text()
    assert not list((place.folder / "runtime" / "autofit").glob("*.new"))


def test_engines_of_a_script(place: Place) -> None:
    write_program(place.folder / "start.sh", f"#!/bin/sh\nexport PORT=$1\nexec {' '.join(SERVER[:-1])} $PORT\n")
    with place.started("run", "-c", "1k", "--", "./start.sh", "PORT") as (process, address, log):
        assert complete(address, log) == 4
        words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        assert words[0].endswith(b"/llama-server") and b"-np" in words


def test_two_at_once(place: Place) -> None:
    with (
        place.started("run", "--", *SERVER) as (first, address, log),
        place.started("run", "--", *SERVER) as (_, address_2, log_2),
    ):
        assert complete(address, log) == 4 and complete(address_2, log_2) == 4
        planned = subprocess.run([*AUTOFIT, "llama", str(TINY)], env=place.environ, capture_output=True, text=True)
        assert f"(process {first.pid})" in planned.stderr
        assert planned.stderr.count("are reserved for llama-server") == 2
    done = subprocess.run([*AUTOFIT, "llama", str(TINY)], env=place.environ, capture_output=True, text=True)
    assert "reserved for" not in done.stderr


@pytest.mark.parametrize("devices_mib", [(64,), (64, 64)])
def test_what_it_reports_is_what_was_predicted(devices_mib: tuple[int, ...], place: Place) -> None:
    folder = engine_folder()
    assert folder is not None
    on = [word for mib in devices_mib for word in ("--on", f"generic-rpc:{mib}MiB")]
    with rpc_servers(folder, devices_mib) as addresses:
        own = ["--watch", *on, "--ram", "16GiB", "--margin", "0", "-c", "1k"]
        command = [*SERVER, "--rpc", ",".join(addresses), "-ngl", "99", "-lv", "4"]
        with place.started("run", *own, "--", *command) as (_, address, log):
            assert complete(address, log) == 4
            said = [line for line in log.read_text().splitlines() if line.startswith("autofit: reported as")]
            assert len(said) == 1 and "GPU0 weights, GPU0 cache, GPU0 compute" in said[0], log.read_text()[-4000:]
            assert " reported, " not in log.read_text()


def test_memory_that_runs_out_is_planned_for(place: Place) -> None:
    """A limit that nobody is told of: the first start fails, a later one serves."""
    limited = write_program(
        place.folder / "limited" / "llama-server",
        f'#!/bin/sh\n[ "$1" = --version ] || ulimit -v 3000000\nexec {engine_folder()}/llama-server "$@"\n',
    )
    place.environ["PATH"] = f"{limited.parent}:{place.environ['PATH']}"
    longer = ("--override-kv", "llama.context_length=int:2097152")
    with place.started("run", "--retries", "8", "--", *SERVER, *longer) as (_, address, log):
        assert complete(address, log) == 4
        text = log.read_text()
        assert "autofit: out of memory while " in text and "insufficient memory" in text
        assert "autofit: changes: -c 2097152 -> " in text and "autofit: ready after " in text
    with place.started("run", "--watch", "--", *SERVER, *longer, "-c", "2097152") as (process, _, log):
        assert process.wait(60) == 1
        assert "planning again" not in log.read_text()


def test_a_device_that_vanishes_between_plan_and_start(place: Place) -> None:
    """Planned for a remote device that is gone when the engine looks for it: its end is passed on, nothing is left."""
    folder = engine_folder()
    assert folder is not None
    with rpc_servers(folder, (64,)) as addresses:
        gone = write_program(
            place.folder / "gone" / "llama-server",
            f'#!/bin/sh\n[ "$1" = --version ] || kill -9 "$(cat rpc.pid)"\nexec {folder}/llama-server "$@"\n',
        )
        place.environ["PATH"] = f"{gone.parent}:{place.environ['PATH']}"
        (place.folder / "rpc.pid").write_text(str(listener_of(addresses[0])))
        own = ["--retries", "3", "--on", "generic-rpc:64MiB", "--ram", "16GiB", "--margin", "0", "-c", "1k"]
        with place.started("run", *own, "--", *SERVER, "--rpc", addresses[0]) as (process, _, log):
            assert process.wait(60) != 0, log.read_text()[-3000:]
            text = log.read_text()
            assert "planning again" not in text and "autofit: ready" not in text and "Traceback" not in text, text
    done = subprocess.run([*AUTOFIT, "llama", str(TINY)], env=place.environ, capture_output=True, text=True)
    assert done.returncode == 0 and "reserved for" not in done.stderr


@pytest.mark.parametrize("seconds", [0.0, 0.2, 0.4, 0.6, 0.8, 1.2])
def test_killed_at_any_stage_nothing_is_left(seconds: float, place: Place) -> None:
    with place.started("run", "--watch", "-c", "1k", "--", *SERVER) as (process, _, _):
        time.sleep(seconds)
        others = children_of(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        until = time.monotonic() + 10
        while any(map(is_alive, others)):
            assert time.monotonic() < until
            time.sleep(0.02)
    done = subprocess.run([*AUTOFIT, "llama", str(TINY)], env=place.environ, capture_output=True, text=True)
    assert done.returncode == 0 and "reserved for" not in done.stderr
