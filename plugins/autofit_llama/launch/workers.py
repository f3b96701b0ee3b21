"""What the machines start that lend devices to a plan, where they are described and do not run yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from autofit.domain.machine import Device, Machine
from autofit.domain.plan import Finding, NodeCommand
from autofit.domain.text import printable
from autofit.domain.units import MIB
from autofit.text import shell

from autofit_llama.engine.codes import finding
from autofit_llama.engine.versions import Version
from autofit_llama.launch.process import NAMES, server_of

RENAMED = 10502  #: the first recorded build whose server is called ggml-rpc-server (tools/rpc/CMakeLists.txt)
LIMITED = 6122  #: the last recorded build whose server takes a limit of memory, in MiB (llama-cpp-python 0.3.16)
ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - a server for other machines


def node_commands(
    argv: Sequence[str], env: Mapping[str, str], machine: Machine, used: Iterable[str], version: Version
) -> tuple[NodeCommand, ...]:
    """The command on this machine, then what each machine starts that lends devices; none where all run already.

    `used` are the devices that take layers.
    """
    ids = set(used)
    lent: dict[str, list[Device]] = {}
    for device in machine.devices:
        if device.api == "rpc" and device.uuid is None and server_of(machine, device) is not None:
            lent.setdefault(device.node, []).append(device)
    workers = tuple(
        NodeCommand(node=node, role="worker", commands=(_server(devices, machine, version),), n_devices=len(devices))
        for node, devices in lent.items()
        if any(device.id in ids for device in devices)
    )
    if not workers:
        return ()
    own = sum(device.id in ids and device.api != "rpc" for device in machine.devices)
    head = NodeCommand(node="head", role="head", commands=(tuple(argv),), env=env, n_devices=own)
    return (head, *workers)


def _server(devices: Sequence[Device], machine: Machine, version: Version) -> tuple[str, ...]:
    """The server of one machine, with the devices that were planned for, and a cache of the tensors that it is sent.

    Source: tools/rpc/rpc-server.cpp:rpc_server_params_parse.
    """
    host, _, port = (server_of(machine, devices[0]) or "").rpartition(":")
    node = next(node for node in machine.nodes if node.name == devices[0].node)
    program = "ggml-rpc-server" if version.build >= RENAMED else "rpc-server"
    address = host if node.address is not None and host.replace(".", "").isdigit() else ANY_ADDRESS
    words = [program, "-H", address, "-p", port]
    names = [
        f"{NAMES[device.behind]}{at}"
        for at, device in enumerate(devices)
        if device.behind is not None and device.behind != "cpu"
    ]
    if len(names) == len(devices):
        words += ["-d", ",".join(names)]
    free = devices[0].free_bytes
    if version.build <= LIMITED and free is not None:
        words += ["-m", str(free // MIB)]
    return (*words, "-c")


def workers_finding(nodes: Sequence[NodeCommand]) -> Iterator[Finding]:
    """What to start where, before this command."""
    workers = [node for node in nodes if node.role == "worker"]
    alike: dict[str, list[str]] = {}
    for worker in workers:
        alike.setdefault(shell.command(worker.commands[-1], ()), []).append(printable(worker.node, 40))
    for words, names in alike.items():
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        message = f"start first, on {shown}: {words}; servers trust everyone who reaches them: keep them in a network"
        yield finding("workers", f"{message} of your own")
