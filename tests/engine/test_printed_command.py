"""The command that autofit prints, run as it is by a real llama-server: it starts, answers, and took every flag."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support import ggufs
from support.dryrun import VARIABLE, engine_folder, rpc_servers
from support.serving import complete, free_port, running

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(engine_folder() is None, reason=f"{VARIABLE} names no llama.cpp"),
]


def print_command(*args: str) -> list[str]:
    """What `autofit` prints, read back as a shell would."""
    done = subprocess.run([sys.executable, "-m", "autofit", *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under a vocabulary of real size."""
    model = ggufs.llama(
        n_layer=4, n_embd=256, n_head=4, n_ff=512, n_vocab=32000, weight_type="q8_0", output_type="q8_0",
        metadata=ggufs.byte_vocabulary(32000),
    )  # fmt: skip
    return ggufs.write_with_weights(tmp_path_factory.mktemp("dense") / "dense model.gguf", model)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = ggufs.llama(
        n_layer=6, n_embd=256, n_head=4, n_ff=1024, n_vocab=32000, n_expert=8, weight_type="q8_0", output_type="q8_0",
        metadata=ggufs.byte_vocabulary(32000),
    )  # fmt: skip
    return ggufs.write_with_weights(tmp_path_factory.mktemp("experts") / "experts.gguf", model)


def test_on_this_machine(dense: Path, tmp_path: Path) -> None:
    argv = print_command("llama", str(dense), "-c", "1k", "--", "--host", "127.0.0.1", "--port", str(free_port()))
    log = tmp_path / "log"
    with running(argv, log) as address:
        assert complete(address, log) == 4


@pytest.mark.parametrize(
    ("devices_mib", "flags"),
    [
        ((512,), ()),
        ((512, 512), ()),
        ((24, 400), ()),
        ((24,), ()),
        ((400,), ("-ncmoe", "3")),
        ((400,), ("-ngl", "3")),
    ],
)
def test_on_several_devices_and_with_experts_on_the_host(
    experts: Path, tmp_path: Path, devices_mib: tuple[int, ...], flags: tuple[str, ...]
) -> None:
    folder = engine_folder()
    assert folder is not None
    on = [word for mib in devices_mib for word in ("--on", f"generic-rpc:{mib}MiB")]
    with rpc_servers(folder, devices_mib) as addresses:
        own = ["--host", "127.0.0.1", "--port", str(free_port()), "--rpc", ",".join(addresses), *flags]
        argv = print_command("llama", str(experts), *on, "--ram", "8GiB", "-c", "1k", "--margin", "0", "--", *own)
        assert argv[argv.index("--rpc") + 1] == ",".join(addresses)
        log = tmp_path / "log"
        with running(argv, log) as address:
            assert complete(address, log) == 4
    text = log.read_text()
    assert "error" not in [line.split(":")[0].strip() for line in text.splitlines()]


def test_a_model_under_a_hostile_name(dense: Path, tmp_path: Path) -> None:
    path = tmp_path / "a b'c$(id)\".gguf"
    os.link(dense, path)
    argv = print_command("llama", str(path), "-c", "1k", "--", "--host", "127.0.0.1", "--port", str(free_port()))
    log = tmp_path / "log"
    with running(argv, log) as address:
        assert complete(address, log) == 4
