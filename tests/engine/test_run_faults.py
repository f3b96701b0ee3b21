"""`autofit run` with a real llama-server where something goes wrong around it: logs, disks, clocks, many at once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import autofit
import pytest

from support import TINY
from support.dryrun import VARIABLE, engine_folder
from support.fake_engines import write_program
from support.serving import AUTOFIT, SERVER, Place, complete

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(engine_folder() is None, reason=f"{VARIABLE} names no llama.cpp"),
]
N_FLOOD_BYTES = 100_000_000
_FULL = """
mount -t tmpfs -o mode=700,size=64k tmpfs full && mkdir -m 700 full/run || exit 77
head -c 100000 /dev/zero > full/fill 2> /dev/null
for name in CACHE STATE DATA CONFIG; do export "XDG_${name}_HOME=$PWD/full/$name"; done
export XDG_RUNTIME_DIR="$PWD/full/run" HOME="$PWD/full" TMPDIR="$PWD/full"
exec "$@"
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def behind(place: Place, script: str) -> None:
    """Let the engine that is found be the real one behind a script."""
    text = f'#!/bin/sh\nif [ "$1" != --version ]; then\n{script}\nfi\nexec {engine_folder()}/llama-server "$@"\n'
    wrapper = write_program(place.folder / "behind" / "llama-server", text)
    place.environ["PATH"] = f"{wrapper.parent}:{place.environ['PATH']}"


def allowed(*words: str) -> None:
    """Skip where namespaces may not be made."""
    if os.getuid() or subprocess.run(["unshare", *words, "true"], capture_output=True).returncode:
        pytest.skip("namespaces are not allowed here")


@pytest.mark.parametrize("flood", ["yes 'load_tensors: CPU model buffer size = 1 MiB'", "cat /dev/zero"])
def test_a_flood_before_its_own_log_is_passed_on_and_read(flood: str, place: Place) -> None:
    behind(place, f"{flood} | head -c {N_FLOOD_BYTES} >&2; echo >&2")
    with place.started("run", "--watch", "-c", "1k", "--", *SERVER) as (process, address, log):
        assert complete(address, log, seconds=300) == 4
        memory = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        peak_kb = next(int(line.split()[1]) for line in memory if line.startswith("VmHWM:"))
        assert peak_kb < 128 << 10
        process.terminate()
        assert process.wait(30) == 0
    with log.open("rb") as file:
        text = file.read()
    assert len(text) > N_FLOOD_BYTES and b"autofit: ready after " in text[-100_000:]


@pytest.mark.parametrize("own", [(), ("--watch",), ("--retries", "2")])
def test_a_full_disk_keeps_no_engine_from_serving(own: tuple[str, ...], place: Place) -> None:
    allowed("-m")
    (place.folder / "full").mkdir()
    around = ("unshare", "-m", "sh", "-c", _FULL, "full")
    with place.started("run", *own, "-c", "1k", "--", *SERVER, around=around) as (process, address, log):
        assert complete(address, log) == 4
        process.terminate()
        assert process.wait(30) == 0, log.read_text()[-2000:]
        assert "what it takes is not reserved" in log.read_text() and "Traceback" not in log.read_text()


def test_a_clock_that_is_weeks_ahead_forgets_no_reservation(place: Place) -> None:
    allowed("-T", "-f")
    ahead = ["unshare", "-T", "--boottime", "2000000", "--monotonic", "2000000", "-f", *AUTOFIT, "llama", str(TINY)]
    with place.started("run", "--", *SERVER) as (first, address, log):
        assert complete(address, log) == 4
        planned = subprocess.run(ahead, env=place.environ, capture_output=True, text=True)
        assert planned.returncode == 0 and f"llama-server (process {first.pid})" in planned.stderr, planned.stderr
    planned = subprocess.run(ahead, env=place.environ, capture_output=True, text=True)
    assert planned.returncode == 0 and "reserved for" not in planned.stderr


def test_launches_at_the_same_moment_share_what_is_free(place: Place) -> None:
    """Eight at once, each for two sevenths of what is free: three of them start."""
    free_bytes = autofit.detect_machine().host.available_bytes or 0
    tokens = free_bytes * 2 // 7 // 1536  # half a KiB of cache for a token, and one of the mask
    kept = ["-cram", "0", "-np", "1", "-fa", "on", "-ctk", "f16", "-ctv", "f16", "-fit", "off"]
    command = ["llama-server", "-m", str(TINY), "-c", str(tokens), *kept]
    each_bytes = autofit.check(command).memory.pool("host").used_bytes
    assert 0.27 < each_bytes / free_bytes < 0.31
    behind(place, "sleep 40; exit 7")
    run = [*AUTOFIT, "run", "-q", "--", *command]
    processes = [subprocess.Popen(run, env=place.environ, stderr=subprocess.PIPE, text=True) for _ in range(8)]
    try:
        codes = [one.wait(120) for one in processes]
    finally:
        for one in processes:
            one.kill()
            assert one.stderr is not None
            one.stderr.close()
    assert sorted(codes) == [3] * 5 + [7] * 3
