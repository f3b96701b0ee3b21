"""A Compose file. Source: the Compose specification of 2025-09 (services, profiles, GPU reservations)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from autofit.domain.fleet import FleetFile, FleetPlan, Placement
from autofit.domain.plan import HEAD_ADDRESS, NodeCommand, Plan
from autofit.render.container import SHARED_MEMORY_BYTES, Container, commented, container_of, engines_of
from autofit.render.fleet_parts import contained, health_of, listed, machines_of, names_of, path_of, waits_for
from autofit.render.yaml import dump
from autofit.text import shell


def render(plan: Plan) -> str:
    """`services:` with the image, its command, folders of models, GPUs and the port; for several machines a service
    for each, with a profile of its name.

    Raises:
        UsageError: no image is known, or a machine starts more than the engine.
    """
    if plan.nodes:
        services = {_name(node): _service_of_node(plan, node) for node in engines_of(plan, "a Compose file")}
        return commented(plan, "\n".join([*_remarks(plan), dump({"services": services})]))
    container = container_of(plan)
    return commented(plan, dump({"services": {container.name: _service(container)}}))


def _remarks(plan: Plan) -> Iterator[str]:
    first, *_ = plan.nodes
    address = "HEAD_ADDRESS=... " if any(node.head_address == HEAD_ADDRESS for node in plan.nodes) else ""
    yield f"# on each machine, such as {_name(first)}: {address}docker compose --profile {_name(first)} up -d"
    for router in (node for node in plan.nodes if node.role == "router"):
        yield f"# then, on any: {shell.command(router.commands[0], ())}"


def _name(node: NodeCommand) -> str:
    return re.sub(r"[^a-zA-Z0-9._-]", "-", node.node)


def _service_of_node(plan: Plan, node: NodeCommand) -> dict[str, Any]:
    """On the machine's own network, where ranks find each other by any port."""
    container = container_of(plan, node)
    service = _service(container)
    del service["ports"]
    if node.head_address == HEAD_ADDRESS:
        words = zip(container.words, service["command"], strict=True)
        service["command"] = [f"${{{HEAD_ADDRESS}:?}}" if one == HEAD_ADDRESS else word for one, word in words]
    return {"profiles": [_name(node)], "network_mode": "host", **service}


def render_fleet(fleet: FleetPlan) -> tuple[FleetFile, ...]:
    """A file for each machine. Those that never run beside the first set have a profile of their own name; what
    measures free memory must answer before others start on its devices.

    Raises:
        UsageError: no image is known for an engine.
    """
    files = []
    for machine in machines_of(fleet):
        rows = [f"# made by autofit for {machine}: {listed([one.name for one in fleet.on(machine)])}"]
        rows += [f"# {row}" for row in _turns(fleet, machine)]
        services = {names_of(fleet)[one.name]: _service_of(fleet, one) for one in fleet.on(machine)}
        text = "\n".join([*rows, dump({"services": services})])
        files.append(FleetFile(path_of(fleet, machine, "compose.yaml"), text))
    return tuple(files)


def _turns(fleet: FleetPlan, machine: str) -> Iterator[str]:
    names = names_of(fleet)
    for one in fleet.on(machine):
        if one.name not in fleet.first_set:
            here = {other.name for other in fleet.on(machine)}
            before = " ".join(names[other] for other in one.evicts if other in here)
            yield f"docker compose stop {before}; docker compose --profile {names[one.name]} up -d {names[one.name]}"


def _service_of(fleet: FleetPlan, one: Placement) -> dict[str, Any]:
    names = names_of(fleet)
    service = _service(contained(one, names[one.name]))
    service["healthcheck"] = {
        "test": ["CMD", "curl", "-fsS", health_of(one, "localhost")],
        "interval": "5s",
        "retries": 720,  # an hour to load
    }
    if before := [names[other.name] for other in waits_for(fleet, one) if other.name in fleet.first_set]:
        service["depends_on"] = {name: {"condition": "service_healthy"} for name in before}
    if one.name not in fleet.first_set:
        service["profiles"] = [names[one.name]]
        service["restart"] = "no"
    return service


def _service(container: Container) -> dict[str, Any]:
    service: dict[str, Any] = {
        "image": container.image,
        "command": [_escaped(word) for word in container.words],
        "ports": [f"{container.port}:{container.port}"],
    }
    if container.environ:
        service["environment"] = {name: _escaped(value) for name, value in container.environ.items()}
    if container.mounts:
        service["volumes"] = [
            {"type": "bind", "source": _escaped(source), "target": target, "read_only": True}
            for source, target in container.mounts
        ]
    if container.shares_memory:
        service["shm_size"] = SHARED_MEMORY_BYTES
    service |= _devices(container)
    service["restart"] = "unless-stopped"
    return service


def _devices(container: Container) -> dict[str, Any]:
    """GPUs of NVIDIA by reservation, those of others by their files."""
    if not container.n_gpus:
        return {}
    if container.api != "cuda":
        files = ["/dev/kfd", "/dev/dri"] if container.api == "rocm" else ["/dev/dri"]
        return {"devices": files, "group_add": ["video"]}
    which: dict[str, Any] = (
        {"device_ids": list(container.device_ids)} if container.device_ids else {"count": container.n_gpus}
    )
    device = {"driver": "nvidia", **which, "capabilities": ["gpu"]}
    return {"deploy": {"resources": {"reservations": {"devices": [device]}}}}


def _escaped(text: str) -> str:
    return text.replace("$", "$$")
