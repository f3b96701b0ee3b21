"""LoRA adapters and control vectors against a real llama.cpp: what it asks of its remote devices, byte for byte.

`AUTOFIT_LLAMA_BIN` names the folder that the engine is in.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import autofit
import pytest
from autofit.domain.machine import Device, Host, Machine
from autofit.domain.plan import Plan
from autofit.domain.units import GIB

from support import TINY, adapters

BIN = Path(os.environ.get("AUTOFIT_LLAMA_BIN", "/nonexistent"))
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not (BIN / "ggml-rpc-server").exists(), reason="AUTOFIT_LLAMA_BIN names no llama.cpp"),
]
CACHES = ("cache, 2048 cells, f16",)
PLACES = ((1, ("-ngl", "99")), (1, ("-ngl", "2")), (2, ("-ngl", "99", "-ts", "1,2")), (1, ("-ngl", "0")))


@contextmanager
def servers(folder: Path, n: int) -> Iterator[tuple[list[str], list[Path]]]:
    """RPC servers that log what they are asked for: their addresses and logs."""
    running, addresses, logs = [], [], [folder / f"rpc{i}.log" for i in range(n)]
    try:
        for log in logs:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            environ = {**os.environ, "GGML_RPC_DEBUG": "1"}
            command = [str(BIN / "ggml-rpc-server"), "-H", "127.0.0.1", "-p", str(port)]
            with log.open("w") as out:
                running.append(subprocess.Popen(command, env=environ, stdout=out, stderr=out))
            addresses.append(f"127.0.0.1:{port}")
        time.sleep(0.5)
        yield addresses, logs
    finally:
        for server in running:
            server.kill()
            server.wait()


def allocated(log: Path) -> list[int]:
    return [int(size) for size in re.findall(r"alloc_buffer\] device: 0, size: (\d+)", log.read_text(errors="replace"))]


def asked(folder: Path, n: int, argv: tuple[str, ...]) -> list[list[int]]:
    """The sizes of the buffers that llama-completion allocates on each of `n` devices, in order."""
    with servers(folder, n) as (addresses, logs):
        command = [str(BIN / "llama-completion"), "-m", str(TINY), "--rpc", ",".join(addresses), *argv]
        command += ["-fit", "off", "-no-cnv", "-n", "1", "-p", "hi"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr[-500:]
        return [allocated(log) for log in logs]


def planned(n: int, argv: tuple[str, ...]) -> Plan:
    devices = tuple(
        Device(id=f"GPU{i}", index=i, name="remote", api="rpc", total_bytes=GIB, free_bytes=GIB, runtime_bytes=0)
        for i in range(n)
    )
    machine = Machine(host=Host(total_bytes=8 * GIB, available_bytes=8 * GIB), devices=devices)
    return autofit.check(["llama-completion", "-m", str(TINY), *argv, "-fit", "off"], machine)


def sizes(plan: Plan, pool: str, *labels: str) -> list[int]:
    return [item.n_bytes for item in plan.memory.pool(pool).items if item.label in labels]


def computed(plan: Plan, pool: str) -> list[int]:
    found = plan.engine_report["allocated_compute_bytes"]
    assert isinstance(found, dict)
    return [found[pool]] if found[pool] else []


@pytest.mark.parametrize(("n", "where"), PLACES)
def test_a_control_vector(tmp_path: Path, n: int, where: tuple[str, ...]) -> None:
    path = adapters.write_control_vector(tmp_path / "vector.gguf", n_embd=128, layers=range(1, 5))
    argv = ("-c", "2048", *where, "--control-vector", str(path))
    plan = planned(n, argv)
    for i, found in enumerate(asked(tmp_path, n, argv)):
        vector, compute = sizes(plan, f"GPU{i}", "control vector"), computed(plan, f"GPU{i}")
        weights = sizes(plan, f"GPU{i}", "weights") + sizes(plan, f"GPU{i}", *CACHES)
        assert found[: len(weights)] == weights
        # the compute buffers are made again once there is a vector, as large as before
        assert found[len(weights) :] == [*compute, *vector, *compute]


@pytest.mark.parametrize(("n", "where"), PLACES)
def test_a_lora_adapter(tmp_path: Path, n: int, where: tuple[str, ...]) -> None:
    path = adapters.write_lora(tmp_path / "lora.gguf", autofit.read_model(TINY), rank=8)
    argv = ("-c", "2048", *where, "--lora", str(path))
    plan = planned(n, argv)
    for i, found in enumerate(asked(tmp_path, n, argv)):
        lora = sizes(plan, f"GPU{i}", "LoRA adapter")
        weights = sizes(plan, f"GPU{i}", "weights")
        assert found[: len(weights) + len(lora)] == weights + lora
        if lora:
            first, again = found[-2:]
            more = sizes(plan, f"GPU{i}", "LoRA products, at most")
            assert [first] == computed(plan, f"GPU{i}")
            assert first <= again <= first + sum(more)
