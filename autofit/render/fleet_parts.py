"""What formats of fleets share: names, devices as a container is told them, who waits for whom."""

from __future__ import annotations

import re
from collections.abc import Sequence

from autofit.domain.fleet import FleetPlan, Placement
from autofit.errors import UsageError
from autofit.render.container import Container, container_of

MAX_NAME = 63  #: characters of a name of DNS


def machines_of(fleet: FleetPlan) -> list[str]:
    """The machines that have something, in their order."""
    return [one.name for one in fleet.fleet.machines if fleet.on(one.name)]


def path_of(fleet: FleetPlan, machine: str, name: str) -> str:
    """The path of a file: below a folder for its machine where there are several."""
    return name if len(machines_of(fleet)) == 1 else f"{machine}/{name}"


def names_of(fleet: FleetPlan) -> dict[str, str]:
    """For each copy a name of DNS: small letters, digits and dashes, each its own."""
    found: dict[str, str] = {}
    for one in fleet.placements:
        plain = re.sub(r"[^a-z0-9]+", "-", one.name.lower()).strip("-")[: MAX_NAME - 5] or "model"
        first = plain if not plain[0].isdigit() else f"m-{plain}"
        name, n = first, 2
        while name in found.values():
            name, n = f"{first}-{n}", n + 1
        found[one.name] = name
    return found


def waits_for(fleet: FleetPlan, one: Placement) -> list[Placement]:
    """Those that measure free memory while starting, on a device of this one, and start before it and beside it."""
    own = {device.id for device in one.devices}
    before = fleet.on(one.machine)
    before = before[: [other.name for other in before].index(one.name)]
    return [
        other
        for other in before
        if other.measures and other.name not in one.evicts and own & {device.id for device in other.devices}
    ]


def health_of(one: Placement, at: str = "127.0.0.1") -> str:
    """Where a copy says that it answers."""
    return f"http://{at}:{one.port}/health"


def contained(one: Placement, name: str) -> Container:
    """The container of a copy, with NVIDIA's GPUs by number: others may be for its neighbors.

    Raises:
        UsageError: no image is known, or nothing in it listens on a port.
    """
    if one.port is None:
        raise UsageError(f"{one.name} listens on no port", hint="--format shell or systemd starts it")
    found = container_of(one.plan)
    if found.api == "cuda" and not found.device_ids:
        found = found._replace(device_ids=tuple(map(str, range(found.n_gpus))))
    return found._replace(name=name, port=one.port)


def listed(names: Sequence[str]) -> str:
    return ", ".join(names)
