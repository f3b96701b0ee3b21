"""A machine with the devices that servers on other machines lend it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from autofit.domain.machine import Device, Machine, Node, Offered
from autofit.domain.ram import Ram
from autofit.domain.servers import Server
from autofit.domain.text import printable
from autofit.domain.units import format_bytes
from autofit.domain.values import replace
from autofit.errors import UnknownHardwareError

FROM_CARD = (
    "name", "vendor", "profile", "compute_capability", "gfx", "n_sm", "bandwidth_bytes_per_s",
    "fp16_flops_per_s", "link_bytes_per_s",
)  # fmt: skip


def with_offered(
    machine: Machine,
    offered: Sequence[Offered],
    servers: Sequence[Server],
    links: Sequence[int] = (),
    dirs: Iterable[str | Path] = (),
) -> Machine:
    """The machine with what servers offer, as far as they do; what of it is assumed is a finding.

    `servers` say what devices are and have free, as far as people know; `links` are bytes per second of the network,
    one for each server, the last repeated.

    Raises:
        UnknownHardwareError: a card that is unknown, or of which a server has more or fewer devices.
    """
    stated = {server.address: server for server in servers}
    nodes, devices, findings = [], list(machine.devices), list(machine.findings)
    sources = dict(machine.sources)
    for one in offered:
        if one.problem is not None:
            continue
        server = stated.get(one.node.name) or Server(address=one.node.name)
        for device in _known(one.devices, server, dirs):
            name = f"GPU{len(devices)}"
            while any(name == other.id for other in devices):
                name += "r"
            own, said = _free(replace(device, id=name, pool=name, index=len(devices)), server)
            devices.append(own)
            findings += said
            sources[f"{name}.free_bytes"] = "measured: its server"
        nodes.append(one.node)
    linked = with_links(nodes, links)
    return replace(
        machine,
        devices=tuple(devices),
        nodes=(*machine.nodes, *linked),
        findings=tuple(dict.fromkeys(findings)),
        sources=sources,
    )


def with_links(nodes: Sequence[Node], links: Sequence[int]) -> tuple[Node, ...]:
    """The nodes with the speed of the network to each, where it is stated; the last one is repeated."""
    if not links:
        return tuple(nodes)
    return tuple(replace(node, link_bytes_per_s=links[min(at, len(links) - 1)]) for at, node in enumerate(nodes))


def _known(devices: Sequence[Device], server: Server, dirs: Iterable[str | Path]) -> Iterator[Device]:
    """The devices with the figures of the card that they are said to be."""
    if server.card is None:
        yield from devices
        return
    from autofit.hardware.machines import load_machine

    cards = load_machine(server.card, ram=Ram(total_bytes=1 << 40, system="none"), profile_dirs=dirs).devices
    if not cards or (len(cards) > 1 and len(cards) != len(devices)):
        raise UnknownHardwareError(
            f"{server.address} lends {len(devices)} devices, and {printable(server.card, 60)} has {len(cards)}",
            hint="name one card, or one for each device of the server",
        )
    every = cards if len(cards) > 1 else cards * len(devices)
    for device, card in zip(devices, every, strict=True):
        figures = {name: getattr(card, name) for name in FROM_CARD}
        yield replace(device, **figures, behind=card.api)


def _free(device: Device, server: Server) -> tuple[Device, list[str]]:
    """What is free by whoever says it: people, or the server, whose processor calls all of its RAM free.

    Source: a CPU device has as much free as in all, on every system but Windows.
    """
    total = device.total_bytes or 0
    if server.free_bytes is not None:
        if server.free_bytes > total:
            said = f"{format_bytes(server.free_bytes)} free as stated; its server says {format_bytes(total)} in all"
            return device, [f"{server.address}: {said}, which counts"]
        return replace(device, free_bytes=server.free_bytes), []
    if device.free_bytes != device.total_bytes:
        return device, []
    share = Ram(total_bytes=total).share_bytes("server") if total else 0
    said = (
        f"its server calls all {format_bytes(total)} free, as one on a processor does; {format_bytes(share)} are left"
    )
    hint = f"to its system; {server.address}:SIZE states what is free"
    return replace(device, free_bytes=total - share), [f"{server.address}: {said} {hint}"]


def with_addresses(machine: Machine, servers: Sequence[str], links: Sequence[int] = ()) -> Machine:
    """The machine, whose devices behind servers are described, with the addresses of these servers, in their order.

    A device that names no node has a server of its own. Servers beyond those that are described stay unknown.
    """
    lent = list(dict.fromkeys(device.node or device.id for device in machine.devices if device.api == "rpc"))
    known = {node.name: node for node in machine.nodes}
    nodes = [known.get(name, Node(name=name)) for name in lent]
    named = [replace(node, name=server, address=server) for node, server in zip(nodes, servers, strict=False)] + nodes[
        len(servers) :
    ]
    renamed: Mapping[str, Node] = dict(zip(lent, with_links(named, links), strict=True))
    others = tuple(node for node in machine.nodes if node.name not in renamed)
    return replace(
        machine,
        devices=tuple(
            replace(device, node=renamed[device.node or device.id].name) if device.api == "rpc" else device
            for device in machine.devices
        ),
        nodes=(*others, *renamed.values()),
    )
