"""A port for each copy that listens on one: the one that is stated, or the next that nobody else on its machine has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from autofit.domain.fleet import FleetModel
from autofit.domain.plan import Plan
from autofit.domain.text import printable
from autofit.domain.values import NamedTuple, replace
from autofit.errors import UsageError
from autofit.fleets.together import Together
from autofit.host import host

LAST_PORT = 65535


class Listener(NamedTuple):
    """A copy on its machine, with the flag of its program for a port; empty: it listens on none."""

    model: FleetModel
    machine: int
    plan: Plan
    flag: str

    @property
    def says_port(self) -> bool:
        return any(word == self.flag or word.startswith(f"{self.flag}=") for word in self.plan.argv)


def with_ports(
    models: Sequence[FleetModel], machines: Sequence[int], plans: Sequence[Plan], together: Together
) -> list[tuple[Plan, int | None]]:
    """The plan of each copy with its command on its port; `None`: its program listens on none. Copies of a model with a
    stated port count up from it.

    Raises:
        UsageError: two that may run at once would have one port of a machine.
    """
    copies = [
        Listener(model, machine, plan, host().backend(plan.backend).port_flag(plan.argv))
        for model, machine, plan in zip(models, machines, plans, strict=True)
    ]
    stated = list(_stated(copies))
    _check(copies, stated, together)
    taken: dict[int, set[int]] = {}
    for one, port in zip(copies, stated, strict=True):
        if port is not None:
            taken.setdefault(one.machine, set()).add(port)
    found: list[tuple[Plan, int | None]] = []
    for one, port in zip(copies, stated, strict=True):
        if port is None and one.flag:
            own = taken.setdefault(one.machine, set())
            first = one.plan.deployment.port if one.plan.deployment is not None else 8000
            port = next(n for n in range(first, LAST_PORT + 1) if n not in own)
            own.add(port)
        found.append((_on(one, port), port))
    return found


def _stated(copies: Sequence[Listener]) -> Iterator[int | None]:
    seen: dict[str, int] = {}
    for one in copies:
        number = seen.get(one.model.name, 0)
        seen[one.model.name] = number + 1
        if not one.flag:
            yield None
        elif one.says_port:
            yield one.plan.deployment.port if one.plan.deployment is not None else None
        else:
            yield None if one.model.port is None else one.model.port + number


def _check(copies: Sequence[Listener], ports: Sequence[int | None], together: Together) -> None:
    by_port: dict[tuple[int, int], list[int]] = {}
    for i, (one, port) in enumerate(zip(copies, ports, strict=True)):
        if port is not None:
            by_port.setdefault((one.machine, port), []).append(i)
    for (_, port), some in by_port.items():
        for i, j in combinations(some, 2):
            if j not in together.evicted(i):
                names = " and ".join(printable(together.copies[k].name, 60) for k in (i, j))
                raise UsageError(
                    f"{names} both listen on port {port} of one machine",
                    hint=f"leave {copies[j].flag} out of the command: each copy gets a port of its own",
                )


def _on(one: Listener, port: int | None) -> Plan:
    """The plan with its command on this port."""
    if port is None or one.says_port:
        return one.plan
    deployed = one.plan.deployment
    if deployed is not None:
        words = (*deployed.words, one.flag, str(port)) if deployed.words else ()
        deployed = replace(deployed, words=words, port=port)
    return replace(one.plan, argv=(*one.plan.argv, one.flag, str(port)), deployment=deployed)
