"""Which of several machines vLLM will use, and as many GPUs of each: it spreads ranks over nodes evenly."""

from __future__ import annotations

from collections.abc import Sequence

from autofit.domain.machine import HOST_POOL, Device, Machine, Node
from autofit.domain.values import replace
from autofit.errors import EngineRefusalError, HardwareError, UsageError

from autofit_vllm.config.devices import within


def is_cluster(machine: Machine) -> bool:
    """Whether the machine is one of several that are described."""
    return any(device.node and device.api != "rpc" for device in machine.devices)


def n_nodes(machine: Machine) -> int:
    """The machines that are described, this one with them."""
    return 1 + len(machine.nodes)


def groups_of(machine: Machine) -> list[tuple[Node | None, tuple[Device, ...]]]:
    """The CUDA devices of each machine that has some: this one (`None`) first, the others by what is free there."""
    nodes: dict[str, Node | None] = {"": None, **{node.name: node for node in machine.nodes}}
    devices: dict[str, list[Device]] = {name: [] for name in nodes}
    for device in machine.devices:
        if device.api == "cuda" and device.node in devices:
            devices[device.node].append(device)
    if len({device.pool == HOST_POOL for group in devices.values() for device in group}) > 1:
        raise UsageError(
            "machines whose GPUs share RAM are not planned for beside others",
            hint="describe the one kind or the other",
        )
    first, *others = [(nodes[name], tuple(group)) for name, group in devices.items()]
    others.sort(key=lambda group: (-len(group[1]), -min((one.free_bytes or 0 for one in group[1]), default=0)))
    return [group for group in (first, *others) if group[1]]


def _within(device: Device, machine: Machine) -> Device:
    """A device that draws on RAM has no more than is available on its machine."""
    if device.pool != HOST_POOL:
        return device
    hosts = {node.name: node.host for node in machine.nodes}
    return within(device, hosts.get(device.node) or machine.host)


def taken(machine: Machine, count: int, wanted: Sequence[str] = ()) -> Machine:
    """This machine and the roomiest others, `count` in all, each with as many GPUs: the one with fewest rules.

    RAM is that of the machine with least free, since each node has the same processes.

    Raises:
        EngineRefusalError: fewer machines with GPUs than that. UsageError: a choice among devices of one machine.
    """
    if wanted:
        raise UsageError("--device chooses among devices of one machine", hint="describe machines with fewer GPUs")
    groups = groups_of(machine)
    if not groups:
        raise HardwareError("vLLM is planned for NVIDIA GPUs, and no machine has any")
    if count > len(groups):
        raise EngineRefusalError(
            f"{count} nodes are asked for, and {len(groups)} machines with GPUs are described",
            hint="describe more, such as --nodes, or let fewer do",
        )
    chosen = groups[:count]
    least = min(len(devices) for _, devices in chosen)
    devices = tuple(device for _, group in chosen for device in group[:least])
    names = {device.id for device in devices}
    hosts = [machine.host, *(node.host for node, _ in chosen if node is not None and node.host is not None)]
    known = [host for host in hosts if host.available_bytes is not None]
    host = min(known, key=lambda one: one.available_bytes or 0) if len(known) == len(hosts) else machine.host
    shared = any(device.pool == HOST_POOL for device in devices)  # then each has its own memory for all
    return replace(
        machine,
        host=machine.host if shared else host,
        devices=tuple(_within(device, machine) for device in devices),
        nodes=tuple(node for node, _ in chosen if node is not None),
        links=tuple(link for link in machine.links if link.a in names and link.b in names),
    )
