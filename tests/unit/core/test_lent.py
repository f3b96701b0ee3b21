"""Devices of other machines: what people write, what servers say, and what becomes of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import autofit
import pytest
from autofit.domain.machine import Device, Machine, Node, Offered
from autofit.domain.servers import Server, format_link, parse_links, parse_servers
from autofit.errors import HardwareError, UnknownHardwareError, UsageError
from autofit.hardware.remote import with_addresses, with_offered
from autofit.lent import with_lent
from autofit.settings.layers import Options

from autofit_llama.backend import LlamaBackend

GIB = 1 << 30
PC = autofit.load_machine("rtx-3090", ram="64GiB")


def offered(server: str, free: int = 20 * GIB, total: int = 24 * GIB, n: int = 1) -> Offered:
    devices = tuple(
        Device(id=f"{server}/{at}", index=at, name=server, api="rpc", total_bytes=total, free_bytes=free, node=server,
               uuid=f"{server}/{at}")
        for at in range(n)
    )  # fmt: skip
    return Offered(node=Node(name=server, address=server, latency_s=1e-4), devices=devices)


class Asked(LlamaBackend):
    """A backend whose servers are a table."""

    table: ClassVar[dict[str, Offered]] = {}

    def offers(self, servers: Sequence[str], version: str | None = None) -> Sequence[Offered]:
        gone = "it is not reached: Connection refused"
        return [self.table.get(one) or Offered(node=Node(name=one), problem=gone) for one in servers]


def lend(machine: Machine, *servers: str, may_ask: bool = True, **options: object) -> tuple[Machine, list[str]]:
    found, said = with_lent(machine, Asked(), servers, Options(values=options, origins={}), may_ask=may_ask)
    return found, [one.message for one in said]


def test_servers_as_people_write_them() -> None:
    assert parse_servers("a:1, 10.0.0.2:50052=rtx-3090:20GiB,b:2:8GiB") == (
        Server(address="a:1"),
        Server(address="10.0.0.2:50052", card="rtx-3090", free_bytes=20 * GIB),
        Server(address="b:2", free_bytes=8 * GIB),
    )


@pytest.mark.parametrize(
    "text", ["", "a", "a:", "a:x", "a:1,a:1", "a:1=", "a:1:0GiB", "a:1=x:much", "\x1b:1", "a:99999"]
)
def test_servers_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_servers(text)
    with pytest.raises(UsageError, match="at most 64"):
        parse_servers(",".join(f"h{at}:1" for at in range(65)))


def test_links() -> None:
    assert parse_links("10Gbit,2.5Gbit/s,1.2GB/s,100Mbit") == (1_250_000_000, 312_500_000, 1_200_000_000, 12_500_000)
    assert [format_link(rate) for rate in (1_250_000_000, 12_500_000)] == ["10 Gbit/s", "100 Mbit/s"]
    for text in ("", "10", "0Gbit", "fast", "1e9Gbit", "-1Gbit", "10Gbit,"):
        with pytest.raises(UsageError, match="not the speed"):
            parse_links(text)


def test_offered_devices_stand_behind_those_of_the_machine() -> None:
    found = with_offered(PC, [offered("a:1"), offered("b:2", n=2)], parse_servers("a:1=rtx-3060-12gb,b:2"), [10**9])
    assert [(one.id, one.node, one.api) for one in found.devices] == [
        ("GPU0", "", "cuda"), ("GPU1", "a:1", "rpc"), ("GPU2", "b:2", "rpc"), ("GPU3", "b:2", "rpc"),
    ]  # fmt: skip
    card = found.devices[1]
    assert (card.behind, card.bandwidth_bytes_per_s, card.free_bytes) == ("cuda", 360_000_000_000, 20 * GIB)
    assert [node.link_bytes_per_s for node in found.nodes] == [10**9, 10**9]
    with pytest.raises(UnknownHardwareError, match="lends 1 devices"):
        with_offered(PC, [offered("a:1")], parse_servers("a:1=aws-g6-12xlarge"))


def test_a_processor_calls_all_of_its_ram_free() -> None:
    found = with_offered(PC, [offered("a:1", free=16 * GIB, total=16 * GIB)], parse_servers("a:1"))
    assert found.devices[1].free_bytes == 15 * GIB
    assert any("a:1:SIZE states what is free" in said for said in found.findings)
    stated = with_offered(PC, [offered("a:1", free=16 * GIB, total=16 * GIB)], parse_servers("a:1:12GiB"))
    assert stated.devices[1].free_bytes == 12 * GIB
    more = with_offered(PC, [offered("a:1")], parse_servers("a:1:99GiB"))
    assert more.devices[1].free_bytes == 20 * GIB and any("99.00 GiB free as stated" in said for said in more.findings)


def test_wished_servers_may_be_gone_and_needed_ones_may_not() -> None:
    Asked.table = {"a:1": offered("a:1")}
    found, said = lend(PC, rpc=parse_servers("a:1,b:2"))
    assert [node.name for node in found.nodes] == ["a:1"] and "b:2: it is not reached" in said[0]
    with pytest.raises(HardwareError, match="b:2: it is not reached"):
        lend(PC, rpc=parse_servers("b:2"))
    with pytest.raises(HardwareError, match="b:2: it is not reached"):
        lend(PC, "a:1", "b:2")
    with pytest.raises(UsageError, match="contradicts"):
        lend(PC, "a:1", rpc=parse_servers("c:3"))
    assert lend(PC, "a:1", may_ask=False)[0] == PC


def test_described_servers_are_not_asked() -> None:
    Asked.table = {}
    machine = autofit.load_machine("rtx-3090", "rtx-3060-12gb@rpc", "generic-rpc:8GiB", ram="64GiB")
    found, said = lend(machine, "a:1", "b:2", link=(10**9,))
    assert [(one.node, one.behind) for one in found.devices] == [("", None), ("a:1", "cuda"), ("b:2", None)]
    assert [(node.address, node.link_bytes_per_s) for node in found.nodes] == [("a:1", 10**9), ("b:2", 10**9)]
    assert not said
    with pytest.raises(UsageError, match="--on as well"):
        lend(machine, rpc=parse_servers("a:1=rtx-3090"))
    assert [node.name for node in with_addresses(machine, ["a:1"]).nodes] == ["a:1", "worker-2"]


def test_machines_that_lend_are_described() -> None:
    machine = autofit.load_machine("strix-halo-128gb:96GiB", "2x strix-halo-128gb@rpc:96GiB", "aws-g6-12xlarge@rpc")
    assert len(machine.nodes) == 3 and len(machine.devices) == 7
    lent = machine.devices[1]
    assert (lent.api, lent.behind, lent.pool, lent.integrated, lent.node) == ("rpc", "rocm", "GPU1", False, "worker-1")
    assert lent.free_bytes == 96 * GIB
    assert {one.node for one in machine.devices[3:]} == {"worker-3"}
    with pytest.raises(UnknownHardwareError, match="lends nothing"):
        autofit.load_machine("cpu@rpc")


def test_only_engines_that_know_servers_take_them() -> None:
    with pytest.raises(UsageError, match="does not support --rpc"):
        autofit.plan("vllm", "example:tiny", rpc="a:1", on="rtx-3090")
