"""What a real llama.cpp would allocate for a command, without a GPU: its own dry run, on devices that
only count.

`AUTOFIT_LLAMA_BIN` names the folder that `.ci/llama-cpp.sh` filled. CUDA devices are played by a library
that answers every planning question as ggml-cuda does; RPC devices are servers that claim the memory they
are told to.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.networks import Place

VARIABLE = "AUTOFIT_LLAMA_BIN"
PROGRAMS = ("llama-server", "llama-fit-params")


def engine_folder() -> Path | None:
    """Where the programs are, or `None`."""
    folder = os.environ.get(VARIABLE)
    return Path(folder) if folder and (Path(folder) / "oracle").is_file() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """Bytes as the engine counts them: per device (model, context, compute), and all that is on no device.

    With `-sm tensor` each device's are what it holds of every tensor, as the engine really allocates it.
    """

    devices: tuple[Mapping[str, int], ...]
    host: Mapping[str, int]
    n_ctx: int
    n_ctx_seq: int
    log: str

    def device_bytes(self, i: int) -> int:
        return sum(self.devices[i][kind] for kind in ("model", "context", "compute"))

    @property
    def weights_bytes(self) -> int:
        """On all devices together."""
        return sum(device["model"] for device in self.devices)


class EngineRefusal(Exception):
    """The engine did not take the command; the text is its log."""


def dry_run(
    argv: Sequence[str], devices_mib: Sequence[int], *, api: str = "cuda", folder: Path | None = None
) -> Allocation:
    """The engine's own figures for a `llama-server` or `llama-fit-params` command.

    Raises:
        EngineRefusal: it does not start with these arguments.
    """
    folder = folder or engine_folder()
    assert folder is not None, f"{VARIABLE} is not set"
    args = [word for i, word in enumerate(argv) if not (i == 0 and Path(word).name in PROGRAMS)]
    environ = dict(os.environ)
    if Path(argv[0]).name != "llama-fit-params":
        environ["ORACLE_AS"] = "server"
    if api == "rpc":
        with rpc_servers(folder, devices_mib) as addresses:
            return _ask(folder, ["--rpc", ",".join(addresses), *args] if addresses else args, environ)
    environ["FAKECUDA_MEM"] = ",".join(map(str, devices_mib))
    environ["LD_PRELOAD"] = str(folder / "libfakecuda.so")
    return _ask(folder, args, environ)


def allocated_bytes(argv: Sequence[str], devices_mib: Sequence[int], *, folder: Path | None = None) -> tuple[int, ...]:
    """What lies on each device of a `-sm tensor` command that has really read a prompt; nothing is computed.

    Raises:
        EngineRefusal: it does not start with these arguments, or fails on the way.
    """
    folder = folder or engine_folder()
    assert folder is not None, f"{VARIABLE} is not set"
    environ = {**os.environ, "ORACLE_RUN": "1", "GGML_NO_BACKTRACE": "1"}
    environ["FAKECUDA_MEM"] = ",".join(map(str, devices_mib))
    environ["LD_PRELOAD"] = str(folder / "libfakecuda.so")
    if Path(argv[0]).name != "llama-fit-params":
        environ["ORACLE_AS"] = "server"
    row = _row(folder, argv[1:], environ)
    if row["decoded"] != 0:
        raise EngineRefusal(f"decode: {row['decoded']}")
    return tuple(row["allocated"])


@contextmanager
def rpc_servers(folder: Path, devices_mib: Sequence[int], places: Sequence[Place] = ()) -> Iterator[list[str]]:
    """Servers that claim this much memory each, here or each in a place of its own; their addresses."""
    servers, addresses = [], []
    try:
        for at, mib in enumerate(devices_mib):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            host, prefix = (places[at].address, places[at].prefix) if places else ("127.0.0.1", [])
            environ = {**os.environ, "SHIM_MEM_MIB": str(mib), "LD_PRELOAD": str(folder / "memshim.so")}
            servers.append(
                subprocess.Popen(
                    [*prefix, str(folder / "ggml-rpc-server"), "-H", host, "-p", str(port)],
                    env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )
            )  # fmt: skip
            addresses.append(f"{host}:{port}")
        for address in addresses:
            _wait_for(address)
        yield addresses
    finally:
        for server in servers:
            server.kill()
            server.wait()


def _wait_for(address: str, seconds: float = 10.0) -> None:
    host, port = address.split(":")
    until = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=1):
                return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def _row(folder: Path, args: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [str(folder / "oracle"), *args],
        env=dict(environ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    line = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    row = json.loads(line) if line.startswith("{") else {"error": f"exit {done.returncode}", "log": done.stderr[-2000:]}
    if "error" in row:
        raise EngineRefusal(f"{row['error']}: {row.get('log', '')[-1500:]} {done.stderr[-500:]}")
    return dict(row)


def _ask(folder: Path, args: Sequence[str], environ: Mapping[str, str]) -> Allocation:
    row = _row(folder, args, environ)
    return Allocation(
        devices=tuple(row.get("sliced") or row["devices"]),
        host=row["host_all"],
        n_ctx=row["n_ctx"],
        n_ctx_seq=row["n_ctx_seq"],
        log=row["log"],
    )
