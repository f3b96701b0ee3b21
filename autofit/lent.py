"""Devices that servers on other machines lend an engine: asked for where they are named, and not described."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autofit.domain.text import printable
from autofit.domain.values import replace
from autofit.errors import HardwareError, UsageError

if TYPE_CHECKING:
    from autofit.backend import Backend
    from autofit.domain.machine import Machine
    from autofit.domain.plan import Finding
    from autofit.settings.layers import Options


def with_lent(
    machine: Machine,
    backend: Backend,
    servers: Sequence[str],
    options: Options,
    *,
    version: str | None = None,
    may_ask: bool = True,
    profile_dirs: Iterable[str | Path] = (),
) -> tuple[Machine, tuple[Finding, ...]]:
    """The machine with what is lent to it, and what is to be said of it.

    `servers` are those of the engine's own flags, all of which it needs; those of the options `rpc` are left out where
    they are not there. Devices that the machine has already, for they were described, belong to them in their order.

    Raises:
        UsageError: servers that contradict each other. HardwareError: one that is needed offers nothing.
    """
    wished, links = options.get("rpc") or (), options.get("link") or ()
    machine = _on_nodes(machine, options.get("nodes"))
    if not backend.spans_nodes and any(device.node and device.api != "rpc" for device in machine.devices):
        raise UsageError(
            f"{backend.engine} runs on one machine, and {1 + len(machine.nodes)} are described",
            hint="describe the others as NAME@rpc, where the engine takes devices over a network",
        )
    described = any(device.api == "rpc" for device in machine.devices)
    if not (servers or wished or described or links):
        return machine, ()
    from autofit.hardware.remote import with_addresses, with_links, with_offered

    named = [server.address for server in wished]
    if servers and any(address not in servers for address in named):
        raise UsageError(
            f"--rpc {','.join(named)[:80]} contradicts the engine's own flags, which name {','.join(servers)[:80]}",
            hint="name the servers once",
        )
    if described:
        if any(server.card or server.free_bytes for server in wished):
            raise UsageError("--rpc says what servers have, and --on as well", hint="leave one of them out")
        return with_addresses(machine, servers or named, links), ()
    if not (servers or named):
        return replace(machine, nodes=with_links(machine.nodes, links)), ()
    if not may_ask:
        return machine, ()
    offered = backend.offers(tuple(servers) or tuple(named), version)
    findings = []
    for one in offered:
        if one.problem is None:
            continue
        problem = f"{one.node.name}: {printable(one.problem, 200)}"
        if servers or all(other.problem is not None for other in offered):
            hint = "start its server, leave it out, or state what it has: --on generic-rpc:24GiB"
            raise HardwareError(f"--rpc {problem}", hint=hint)
        from autofit.planning.findings import COMMON, tell

        findings.append(tell(COMMON, "server-left-out", f"{problem}; the plan is without it"))
    return with_offered(machine, offered, wished, links, profile_dirs), tuple(findings)


def _on_nodes(machine: Machine, count: int | None) -> Machine:
    """So many machines like this one.

    Raises:
        UsageError: several are described already, or more are wished than are planned for.
    """
    if not count or count == 1:
        return machine
    if machine.nodes:
        raise UsageError(f"--nodes {count}, and --on describes several machines", hint="leave one of them out")
    from autofit.hardware.nodes import MAX_NODES, Member, join

    if count > MAX_NODES:
        raise UsageError(f"--nodes {count}: at most {MAX_NODES} machines are planned for")
    return join([Member(f"node{at}", machine) for at in range(count)], machine.origin)
