"""RPC servers on machines of their own (network namespaces): a cable that is slow or cut, a server that is full."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import autofit
import pytest
from autofit.errors import HardwareError

from autofit_llama.backend import LlamaBackend
from autofit_llama.launch.servers import ask
from support.dryrun import VARIABLE, engine_folder, rpc_servers
from support.lending import CLAIMED_MIB, MIB, limited_servers, write_experts
from support.networks import Place, places, possible
from support.serving import complete, free_port, running

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(engine_folder() is None, reason=f"{VARIABLE} names no llama.cpp"),
    pytest.mark.skipif(sys.platform != "linux" or not possible(), reason="no network namespaces can be made"),
]


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experts(tmp_path_factory.mktemp("experts") / "experts.gguf")


@pytest.fixture
def machines() -> Iterator[list[Place]]:
    with places(3) as made:
        yield made


def own() -> tuple[str, ...]:
    return ("--host", "127.0.0.1", "--port", str(free_port()), "-lv", "4")


def test_three_machines_hold_what_none_of_them_could(experts: Path, machines: list[Place], tmp_path: Path) -> None:
    """Over cables of 200 Mbit/s: the weights that each server is sent are those that are planned there."""
    for one in machines:
        one.slow("200mbit")
    with limited_servers(3, machines) as addresses:
        plan = autofit.plan(
            "llama",
            experts,
            rpc=",".join(addresses),
            link="200Mbit",
            context="1k",
            margin="0",
            engine_args=[*own(), "-ngl", "99"],
        )
        used = [pool for pool in plan.memory.pools if pool.id != "host"]
        assert plan.fits and len(used) == 3 and all(0 < pool.used_bytes <= CLAIMED_MIB * MIB for pool in used)
        log = tmp_path / "log"
        start = time.monotonic()
        with running(plan.argv, log) as address:
            assert complete(address, log) == 4
        sent = sum(pool.sum_bytes("weights") for pool in used)
        assert time.monotonic() - start > 0.5 * max(pool.sum_bytes("weights") for pool in used) / (200e6 / 8)
    watch = LlamaBackend().watch()
    watch.feed(log.read_bytes())
    weights = [part for part in watch.close().parts if part.kind == "weights" and not part.is_host]
    assert sum(part.n_bytes for part in weights) == pytest.approx(sent, abs=3 * MIB / 100)


def test_a_slow_cable_is_part_of_the_rate(experts: Path, machines: list[Place]) -> None:
    """The same command is slower over it, and of what nobody has measured the band is wide. A plan does without it."""
    folder = engine_folder()
    assert folder is not None
    with rpc_servers(folder, [512, 512], machines) as addresses:
        cards = ",".join(f"{address}=rtx-3090" for address in addresses)
        words = ["llama-server", "-m", str(experts), "--rpc", ",".join(addresses), "-c", "1024", "-np", "1"]
        words += ["-ngl", "99", "-fit", "off", "--cache-ram", "0"]
        fast, slow = (autofit.check(words, rpc=cards, link=link, margin="0").speed for link in ("10Gbit", "2Mbit"))
        without = autofit.plan("llama", experts, rpc=cards, link="1Mbit", context="1k")
    assert fast is not None and slow is not None
    assert slow.decode_tokens_per_s < 0.7 * fast.decode_tokens_per_s
    for one in (fast, slow):
        assert "no runs over a network to compare with" in one.basis and one.high > 2 * one.low
    assert without.fits and "--rpc" not in without.argv


def test_a_machine_that_vanishes_between_plan_and_start(experts: Path, machines: list[Place], tmp_path: Path) -> None:
    with limited_servers(3, machines) as addresses:
        options = {"rpc": ",".join(addresses), "context": "1k", "margin": "0"}
        plan = autofit.plan("llama", experts, **options, engine_args=[*own(), "-ngl", "99"])
        assert plan.fits
        machines[2].cut()
        with pytest.raises(HardwareError, match=addresses[2]):
            autofit.check(list(plan.argv))
        start = time.monotonic()
        without = autofit.plan("llama", experts, **options)
        assert time.monotonic() - start < 20
        (said,) = (one.message for one in without.findings if one.code == "server-left-out")
        assert addresses[2] in said and "the plan is without it" in said
        assert without.fits and addresses[2] not in " ".join(without.argv)
        folder = engine_folder()
        assert folder is not None
        with pytest.raises((subprocess.TimeoutExpired, subprocess.CalledProcessError)):  # the engine waits, or ends
            words = [str(folder / plan.argv[0]), *plan.argv[1:]]
            subprocess.run(words, capture_output=True, timeout=15, check=True)


def test_a_machine_that_is_full_is_left_out(experts: Path, machines: list[Place]) -> None:
    folder = engine_folder()
    assert folder is not None
    with rpc_servers(folder, [CLAIMED_MIB, 1, CLAIMED_MIB], machines) as addresses:
        assert ask(addresses[1]).devices
        plan = autofit.plan("llama", experts, rpc=",".join(addresses), context="1k", margin="0")
        assert plan.fits and addresses[1] not in " ".join(plan.argv)
        assert any(addresses[1] in one.message for one in plan.findings)
