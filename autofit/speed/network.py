"""The way between devices of different machines: what a message costs, and each byte of it."""

from __future__ import annotations

from autofit.domain.machine import Machine, Node
from autofit.domain.servers import format_link
from autofit.domain.values import NamedTuple

RPC_BYTES_PER_S = 125_000_000  #: of a server that lends its devices, where nobody says: 1 Gbit/s
NODE_BYTES_PER_S = 1_250_000_000  #: between nodes of a cluster, where nobody says: 10 Gbit/s
LATENCY_S = 100e-6  #: one message one way over TCP in one building


class Way(NamedTuple):
    """A message of n bytes takes `latency_s + n * per_byte_s`."""

    latency_s: float
    per_byte_s: float


class Network:
    """The ways of one machine with its nodes. Empty where all devices are in one machine."""

    __slots__ = ("_node_of", "_over_rpc", "_ways")

    def __init__(self, machine: Machine) -> None:
        nodes = {node.name: node for node in machine.nodes}
        members = [device for device in machine.devices if device.node in nodes]
        self._over_rpc = frozenset(device.id for device in members if device.api == "rpc")
        self._node_of = {device.id: nodes[device.node] for device in members}
        self._ways: dict[tuple[str, str], Way | None] = {}

    def way(self, a: str, b: str) -> Way | None:
        """The way from one place to another; `None` within a machine."""
        if not self._node_of:
            return None
        if (a, b) not in self._ways:
            self._ways[a, b] = self._new_way(a, b)
        return self._ways[a, b]

    def _new_way(self, a: str, b: str) -> Way | None:
        one, other = self._node_of.get(a), self._node_of.get(b)
        if one is other:
            return None
        ends = [self._end(node, name) for node, name in ((one, a), (other, b)) if node is not None]
        latencies, costs = [way.latency_s for way in ends], [way.per_byte_s for way in ends]
        if self._over_rpc & {a, b}:  # servers do not know each other: all goes by way of this machine
            return Way(sum(latencies), sum(costs))
        return Way(max(latencies), max(costs))

    def _end(self, node: Node, name: str) -> Way:
        rate = node.link_bytes_per_s or (RPC_BYTES_PER_S if name in self._over_rpc else NODE_BYTES_PER_S)
        return Way(LATENCY_S if node.latency_s is None else node.latency_s, 1 / rate)

    def input_seconds(self, a: str, b: str, n_bytes: float) -> float:
        """Seconds to send a device over RPC the inputs of a step that it computes with, coming from another place."""
        node = self._node_of.get(b)
        if b not in self._over_rpc or node is None or self._node_of.get(a) is node:
            return 0.0
        return n_bytes * self._end(node, b).per_byte_s

    def is_over_rpc(self, name: str) -> bool:
        return name in self._over_rpc

    def assumed(self, names: list[str]) -> list[str]:
        """What of the network to these places nobody has stated."""
        unknown = [name for name in names if name in self._node_of and self._node_of[name].link_bytes_per_s is None]
        rates = {RPC_BYTES_PER_S if name in self._over_rpc else NODE_BYTES_PER_S for name in unknown}
        return [f"the network at {format_link(rate)} (--link states it)" for rate in sorted(rates)]

    def crossed(self, names: list[str]) -> bool:
        """Whether a step that takes place at all of these goes over a network; to servers it does from here."""
        return bool(self._over_rpc & set(names)) or len({id(self._node_of.get(name)) for name in names}) > 1
