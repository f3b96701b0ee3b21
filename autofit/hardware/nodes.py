"""Several machines that work on one model: joined into one value, and read from what a cluster says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autofit.domain.machine import HOST_POOL, Device, Host, Link, Machine, Node
from autofit.domain.patterns import lazy_pattern
from autofit.domain.text import printable
from autofit.domain.units import MIB
from autofit.domain.values import NamedTuple, replace
from autofit.errors import HardwareError, UnknownHardwareError
from autofit.hardware.catalog import profile_of

MAX_NODES = 1024
MAX_GPUS = 256  #: of one node
_QUANTITY = lazy_pattern(r"([0-9]{1,18})(Ki|Mi|Gi|Ti|k|M|G|T|m|)")
_SCALES = {
    "": 1, "Ki": 1 << 10, "Mi": MIB, "Gi": 1 << 30, "Ti": 1 << 40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
}  # fmt: skip
#: a machine with so many idle cards of one kind, and so much RAM
OfCards = Callable[[str, int, "int | None"], Machine]
_NAME = lazy_pattern(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,250}[A-Za-z0-9])?")


class Member(NamedTuple):
    """One machine of several: its name among them, and its address if it is known."""

    name: str
    machine: Machine
    address: str | None = None


def join(members: Sequence[Member], origin: str = "profile") -> Machine:
    """One machine out of several: the first is the machine itself, the devices of each other name its node.

    Raises:
        UnknownHardwareError: none, or more than are planned for.
    """
    if not 0 < len(members) <= MAX_NODES:
        raise UnknownHardwareError(f"{len(members)} machines; at most {MAX_NODES} are planned for")
    first, *others = members
    devices, links = list(first.machine.devices), list(first.machine.links)
    findings, sources = list(first.machine.findings), dict(first.machine.sources)
    nodes, taken = [], {first.name}
    for at, member in enumerate(others, 1):
        name = member.name if member.name not in taken else f"node{at}"
        taken.add(name)
        ids = {device.id: f"node{at}/{device.id}" for device in member.machine.devices}
        devices += [_of_node(device, ids[device.id], name) for device in member.machine.devices]
        links += [Link(a=ids[one.a], b=ids[one.b], kind=one.kind, bytes_per_s=one.bytes_per_s)
                  for one in member.machine.links if one.a in ids and one.b in ids]  # fmt: skip
        nodes.append(Node(name=name, address=member.address, host=member.machine.host))
        findings += member.machine.findings
    counts: dict[str, int] = {}
    for member in members:
        kind = member.machine.name or member.name
        counts[kind] = counts.get(kind, 0) + 1
    return replace(
        first.machine,
        devices=tuple(devices),
        links=tuple(links),
        nodes=tuple(nodes),
        node=Node(name=first.name, address=first.address),
        name=", ".join(f"{n} x {kind}" for kind, n in counts.items())[:200],
        origin=origin,
        findings=tuple(dict.fromkeys(findings))[:64],
        sources=sources,
    )


def apart(machine: Machine) -> list[Member]:
    """The machines that were joined, each as it was; a machine that was not is the only one."""
    if machine.node is None:
        return [Member(machine.name or "machine", machine)]
    hosts = {node.name: (node.host, node.address) for node in machine.nodes}
    hosts = {machine.node.name: (machine.host, machine.node.address), **hosts}
    devices: dict[str, list[Device]] = {name: [] for name in hosts}
    for device in machine.devices:
        devices[device.node or machine.node.name].append(device)
    links = _links_of(machine)
    found = []
    for name, (host, address) in hosts.items():
        before = "".join(device.id.rpartition("/")[0] for device in devices[name][:1])
        one = replace(
            machine,
            host=host or Host(total_bytes=None, available_bytes=None),
            devices=tuple(_of_itself(device) for device in devices[name]),
            links=tuple(links.get(before, ())),
            nodes=(),
            node=None,
            name=name,
        )
        found.append(Member(name, one, address))
    return found


def _of_itself(device: Device) -> Device:
    own = device.id.rpartition("/")[2]
    return replace(device, id=own, node="", pool=HOST_POOL if device.pool == HOST_POOL else own)


def _links_of(machine: Machine) -> dict[str, list[Link]]:
    """The links of each joined machine, by what its devices' names begin with."""
    found: dict[str, list[Link]] = {}
    for one in machine.links:
        node, _, a = one.a.rpartition("/")
        found.setdefault(node, []).append(replace(one, a=a, b=one.b.rpartition("/")[2]))
    return found


def _of_node(device: Device, name: str, node: str) -> Device:
    """A device of another machine, whose memory nobody here shares."""
    return replace(device, id=name, node=node, pool=HOST_POOL if device.pool == HOST_POOL else name)


def is_cluster(data: object) -> bool:
    """Whether JSON is what `kubectl get nodes -o json` prints: a list, or one node."""
    if not isinstance(data, Mapping) or not str(data.get("apiVersion", "")).startswith("v1"):
        return False
    items = data.get("items")
    kinds = {item.get("kind") for item in items if isinstance(item, Mapping)} if isinstance(items, list) else set()
    return data.get("kind") in ("Node", "NodeList") or (data.get("kind") == "List" and kinds == {"Node"})


def from_kubernetes(
    data: Mapping[str, Any], name: str, card: str | None, dirs: Iterable[str | Path], of_cards: OfCards
) -> Machine:
    """The nodes of a cluster that have GPUs and take pods, from what `kubectl get nodes -o json` printed.

    GPUs are known by the labels of NVIDIA's feature discovery, or by `card`.

    Raises:
        HardwareError: no such node, or one whose GPUs are not known.
    """
    items = data.get("items") if "items" in data else [data]
    members, findings = [], []
    known: dict[object, Machine] = {}  # nodes with the same labels and GPUs are alike but for their RAM
    for item in items if isinstance(items, list) else ():
        node = _mapping(item, "metadata").get("name")
        if not isinstance(node, str) or not _NAME.fullmatch(node):
            raise HardwareError(f"{name}: a node without a name")
        why = _not_ready(item)
        count = _count(_mapping(item, "status", "allocatable").get("nvidia.com/gpu"))
        if why is not None or not count:
            if count:
                findings.append(f"node {node} is left out: {why}")
            continue
        labels = _mapping(item, "metadata", "labels")
        key = (str(labels.get("nvidia.com/gpu.product")), str(labels.get("nvidia.com/gpu.memory")), count)
        if key not in known:
            known[key] = _kubernetes_node(item, node, count, card, tuple(dirs), of_cards)
        memory = _bytes(_mapping(item, "status", "allocatable").get("memory"))
        machine = replace(known[key], host=Host(total_bytes=memory, available_bytes=memory))
        members.append(Member(node, machine, _address(item)))
    if not members:
        raise HardwareError(
            f"{name}: no node that is ready has allocatable nvidia.com/gpu",
            hint="NVIDIA's device plugin offers it; of another card, describe the nodes: --on NAME",
        )
    joined = join(members, "kubernetes")
    return replace(joined, findings=(*joined.findings, *findings))


def _mapping(data: Any, *path: str) -> Mapping[str, Any]:
    for key in path:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data if isinstance(data, Mapping) else {}


def _not_ready(item: Any) -> str | None:
    if _mapping(item, "spec").get("unschedulable") is True:
        return "it takes no pods (unschedulable)"
    conditions = _mapping(item, "status").get("conditions")
    for one in conditions if isinstance(conditions, list) else ():
        if isinstance(one, Mapping) and one.get("type") == "Ready" and one.get("status") != "True":
            return "it is not ready"
    return None


def _count(value: object) -> int:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 4 else 0


def _address(item: Any) -> str | None:
    for one in _mapping(item, "status").get("addresses") or ():
        if isinstance(one, Mapping) and one.get("type") == "InternalIP" and isinstance(one.get("address"), str):
            return printable(str(one["address"]), 60)
    return None


def _bytes(value: object) -> int | None:
    found = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    return int(found[1]) // 1000 if found[2] == "m" else int(found[1]) * _SCALES[found[2]]


def _kubernetes_node(
    item: Any, node: str, count: int, card: str | None, dirs: tuple[str | Path, ...], of_cards: OfCards
) -> Machine:
    labels = _mapping(item, "metadata", "labels")
    memory = _bytes(_mapping(item, "status", "allocatable").get("memory"))
    product = labels.get("nvidia.com/gpu.product")
    total = _bytes(f"{labels.get('nvidia.com/gpu.memory')}Mi")
    name = card
    if name is None and isinstance(product, str):
        found = profile_of(product.replace("-", " "), total, extra_dirs=dirs)
        name = found.id if found is not None else None
    if name is None:
        shown = printable(str(product), 60) if product else "no label nvidia.com/gpu.product"
        raise HardwareError(
            f"node {node}: which GPUs it has is not known ({shown})",
            hint="state the card: --on FILE.json=h100-80gb",
        )
    return of_cards(name, min(count, MAX_GPUS), memory)
