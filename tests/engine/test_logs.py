"""What a real llama-server prints: read whole, answered where memory runs out, and verified."""

from __future__ import annotations

import resource
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from autofit.domain.ram import Ram
from autofit.domain.units import MIB
from autofit.fix import fix
from autofit.machines import load_machine
from autofit.pipeline import read_model
from autofit.verify import verify_dry_run, verify_log

import support
from support.dryrun import engine_folder

pytestmark = [pytest.mark.engine, pytest.mark.skipif(engine_folder() is None, reason="no llama.cpp here")]
LIMIT_BYTES = 900 * MIB


def boot(args: Sequence[str], path: Path, *, limit_bytes: int | None = None, seconds: float = 30) -> bytes:
    """The output of a llama-server until it listens or ends."""
    folder = engine_folder()
    assert folder is not None

    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))

    words = [str(folder / "llama-server"), "-m", str(support.TINY), "-fit", "off", "-lv", "4", "--port", "18996", *args]
    with path.open("wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, preexec_fn=limit)
        end = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < end and b"listening on" not in path.read_bytes():
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    return path.read_bytes()


def test_a_boot_is_what_was_planned(tmp_path: Path) -> None:
    found = verify_log([boot(["-np", "1", "-c", "65536"], tmp_path / "log")], model=read_model(str(support.TINY)))
    assert {one.kind for one in found.differences} == {"cache", "compute"}
    assert not found.too_low
    assert found.observed.is_ready


def test_a_remote_device_is_one_device(tmp_path: Path) -> None:
    folder = engine_folder()
    assert folder is not None
    if not (folder / "ggml-rpc-server").exists():
        pytest.skip("no ggml-rpc-server here")
    address = "127.0.0.1:18997"
    server = subprocess.Popen([str(folder / "ggml-rpc-server"), "-p", "18997"], stdout=subprocess.DEVNULL)
    try:
        time.sleep(1)
        args = ["-np", "1", "-c", "65536", "--rpc", address, "-ngl", "99"]
        found = verify_log([boot(args, tmp_path / "log")], model=read_model(str(support.TINY)))
    finally:
        server.terminate()
        server.wait(20)
    assert {one.kind for one in found.differences} == {"weights", "cache", "compute"}
    assert {one.pool for one in found.differences} == {"RPC0", "host"}
    assert not any(one.over_bytes for one in found.differences)


def test_ram_that_runs_out_is_answered_with_a_context_that_starts(tmp_path: Path) -> None:
    args = ["-np", "1", "-c", "4194304"]
    log = boot(args, tmp_path / "log", limit_bytes=LIMIT_BYTES)
    command = ("llama-server", "-m", str(support.TINY), "-fit", "off", *args)
    answer = fix([log], command, ram=Ram(total_bytes=LIMIT_BYTES // 2))
    failure = answer.observed.failure
    assert failure is not None and failure.cause == "RAM" and failure.kind == "cache"
    assert failure.requested_bytes == 4194304 * 2 * 2 * 128
    (change, *_) = answer.repair.changes
    assert change.flags[0] == "-c"
    again = boot(["-np", "1", *change.flags], tmp_path / "again", limit_bytes=LIMIT_BYTES)
    assert b"listening on" in again


def test_a_dry_run_is_what_is_planned() -> None:
    import os

    environ = {**os.environ, "PATH": f"{engine_folder()}:{os.environ['PATH']}"}
    argv = ("llama-server", "-m", str(support.TINY), "-c", "65536")
    found = verify_dry_run(read_model(str(support.TINY)), argv, load_machine("cpu", ram="16GiB"), environ=environ)
    assert not any(one.over_bytes for one in found.differences)
