"""A port for each copy: the one that is stated, or the next that nobody else on its machine has."""

from __future__ import annotations

from collections.abc import Sequence

from autofit.domain.fleet import FleetModel
from autofit.domain.plan import Plan
from autofit.domain.values import replace

PORT = "--port"
LAST_PORT = 65535


def ports_of(models: Sequence[FleetModel], machines: Sequence[int], plans: Sequence[Plan]) -> list[int]:
    """The port of each copy; those of one model with a stated port count up from it."""
    taken: dict[int, set[int]] = {}
    ports: list[int | None] = []
    seen: dict[str, int] = {}
    for model, machine, plan in zip(models, machines, plans, strict=True):
        number = seen.get(model.name, 0)
        seen[model.name] = number + 1
        stated = None if model.port is None else model.port + number
        if stated is None and _says_port(plan):
            stated = plan.deployment.port if plan.deployment is not None else None
        ports.append(stated)
        if stated is not None:
            taken.setdefault(machine, set()).add(stated)
    found: list[int] = []
    for port, machine, plan in zip(ports, machines, plans, strict=True):
        if port is None:
            own = taken.setdefault(machine, set())
            port = plan.deployment.port if plan.deployment is not None else 8000
            while port in own and port < LAST_PORT:
                port += 1
            own.add(port)
        found.append(port)
    return found


def with_port(plan: Plan, port: int) -> Plan:
    """The plan with its command on this port."""
    if _says_port(plan):
        return plan
    deployed = plan.deployment
    if deployed is not None:
        words = (*deployed.words, PORT, str(port)) if deployed.words else ()
        deployed = replace(deployed, words=words, port=port)
    return replace(plan, argv=(*plan.argv, PORT, str(port)), deployment=deployed)


def _says_port(plan: Plan) -> bool:
    return any(word == PORT or word.startswith(f"{PORT}=") for word in plan.argv)
