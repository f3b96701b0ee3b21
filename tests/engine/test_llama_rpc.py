"""A model over real RPC servers with limited memory: asked, planned for, run; servers that are gone, held or unlike."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import autofit
import pytest
from autofit.errors import HardwareError
from autofit.planning.compare import REPORTED, compare

from autofit_llama.backend import LlamaBackend
from autofit_llama.launch.servers import ServerError, ask
from support.dryrun import VARIABLE, engine_folder
from support.lending import CLAIMED_MIB, MIB, limited_servers, write_experts
from support.serving import complete, free_port, running

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(engine_folder() is None, reason=f"{VARIABLE} names no llama.cpp"),
    pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does it"),
]


#: an idle processor of this machine may be faster alone than with servers, and is planned for then
ON_SERVERS = ("-ngl", "99")


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experts(tmp_path_factory.mktemp("experts") / "experts.gguf")


def test_three_servers_hold_what_none_of_them_could(experts: Path, tmp_path: Path) -> None:
    own = ("--host", "127.0.0.1", "--port", str(free_port()), "-lv", "4", *ON_SERVERS)
    with limited_servers(3) as addresses:
        servers = ",".join(addresses)
        plan = autofit.plan("llama", experts, rpc=servers, link="10Gbit", context="1k", margin="0", engine_args=own)
        assert plan.fits and plan.argv[plan.argv.index("--rpc") + 1] == servers
        used = [pool for pool in plan.memory.pools if pool.id != "host"]
        assert len(used) == 3 and all(0 < pool.used_bytes <= CLAIMED_MIB * MIB for pool in used)
        assert sum(pool.used_bytes for pool in used) > CLAIMED_MIB * MIB * 3 // 2
        log = tmp_path / "log"
        with running(plan.argv, log) as address:
            assert complete(address, log) == 4
        checked = autofit.check(
            list(plan.argv), autofit.load_machine(*[f"generic-rpc:{CLAIMED_MIB}MiB"] * 3, ram="8GiB")
        )
    watch = LlamaBackend().watch()
    watch.feed(log.read_bytes())
    order = [pool.id for pool in used]
    places = {f"RPC{name.removeprefix('GPU')}": name for name in order}
    found = [one for one in compare(plan.memory, watch.close(), places) if one.pool != "host"]
    assert {(one.pool, one.kind) for one in found} == {(name, kind) for name in order for kind in REPORTED}
    assert not any(one.over_bytes for one in found if one.kind != "compute"), found
    # the engine's dry run, which plans follow, counts inputs that it does not allocate
    real = checked.engine_report["allocated_compute_bytes"]
    assert isinstance(real, dict)
    for one in found:
        if one.kind == "compute":
            assert one.over_bytes <= 0 and abs(real[one.pool] - one.reported_bytes) <= one.rounding_bytes


def test_one_server_alone_cannot(experts: Path, tmp_path: Path) -> None:
    """Neither by the plan, which leaves weights in RAM, nor by the engine, which fails to have all there."""
    with limited_servers(1) as (address,):
        plan = autofit.plan("llama", experts, rpc=address, context="1k")
        (host,) = (pool for pool in plan.memory.pools if pool.id == "host")
        assert plan.fits and host.sum_bytes("weights") > CLAIMED_MIB * MIB // 2
        checked = autofit.check(["llama-server", "-m", str(experts), "--rpc", address, "-ngl", "99", "-fit", "off"])
        assert not checked.fits
        argv = ["llama-server", "-m", str(experts), "--rpc", address, "-ngl", "99", "-fit", "off", "--port", "0"]
        folder = engine_folder()
        assert folder is not None
        done = subprocess.run([str(folder / argv[0]), *argv[1:]], capture_output=True, text=True, timeout=120)
        assert done.returncode != 0


def test_a_server_that_is_gone_is_left_out_and_said(experts: Path) -> None:
    with limited_servers(2) as addresses:
        gone = f"127.0.0.1:{free_port()}"
        servers = ",".join([addresses[0], gone, addresses[1]])
        plan = autofit.plan("llama", experts, rpc=servers, context="1k", engine_args=ON_SERVERS)
        assert plan.argv[plan.argv.index("--rpc") + 1] == ",".join(addresses)
        assert [one.code for one in plan.findings if gone in one.message] == ["server-left-out"]
        named = ["llama-server", "-m", str(experts), "--rpc", f"{addresses[0]},{gone}"]
        with pytest.raises(HardwareError, match="not reached: Connection refused"):
            autofit.check(named)


def test_a_server_that_another_client_holds_is_told_apart(experts: Path) -> None:
    with limited_servers(1) as (address,):
        host, port = address.split(":")
        held = socket.create_connection((host, int(port)))
        with held, pytest.raises(ServerError, match="another client holds"):
            ask(address, seconds=0.5)
        # it has not been killed by an answer to nobody
        assert ask(address).version[0] == 7


def test_a_client_of_another_build_is_refused(experts: Path) -> None:
    with (
        limited_servers(1) as (address,),
        pytest.raises(HardwareError, match=r"speaks protocol 7\.0\.0, and b10502 speaks 5"),
    ):
        autofit.plan("llama", experts, rpc=address, engine_version="b10502")
