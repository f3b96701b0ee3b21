"""A systemd unit. Source: systemd.service(5), systemd.exec(5) and systemd.syntax(7) of systemd 257."""

from __future__ import annotations

import re
from collections.abc import Sequence

from autofit.domain.fleet import FleetFile, FleetPlan, Placement
from autofit.domain.machine import HOST_POOL
from autofit.domain.plan import Plan
from autofit.render.container import MIB, at_home, check_one_machine, checked, commented, deployment_of
from autofit.render.fleet_parts import health_of, machines_of, path_of, waits_for

INSTALLED = ("", "[Install]", "WantedBy=multi-user.target")
_PLAIN = re.compile(r"[A-Za-z0-9@+=:,./_-]+")


def render(plan: Plan) -> str:
    """`[Service]` with the command, its paths absolute; the program is looked for on systemd's own path.

    Raises:
        UsageError: a word that a unit cannot hold, or a plan for several machines.
    """
    check_one_machine(plan)
    return commented(plan, "\n".join([*_rows(plan, f"{plan.backend} server"), *INSTALLED]))


def render_fleet(fleet: FleetPlan) -> tuple[FleetFile, ...]:
    """A unit for each copy. Those that never run at once conflict: starting one stops the other first. What measures
    free memory has started when it answers, and others on its devices come after it.

    Raises:
        UsageError: a word that a unit cannot hold.
    """
    files = []
    for machine in machines_of(fleet):
        for one in fleet.on(machine):
            text = commented(one.plan, "\n".join(_of_fleet(fleet, one)))
            files.append(FleetFile(path_of(fleet, machine, f"{one.name}.service"), text))
    return tuple(files)


def _of_fleet(fleet: FleetPlan, one: Placement) -> list[str]:
    here = [other.name for other in fleet.on(one.machine)]
    apart = [name for name in one.evicts if name in here]
    # with an order between the two, the one that stops has ended before the other starts (systemd.unit(5), Conflicts=)
    after = [name for name in here[: here.index(one.name)] if name in apart]
    after = [*(other.name for other in waits_for(fleet, one)), *after]
    unit = [*(f"After={name}.service" for name in after), *(f"Conflicts={name}.service" for name in apart)]
    waits = [
        "# it measures free memory while it starts, and has started when it answers",
        f'ExecStartPost=/bin/sh -c "until curl -fsS -o /dev/null {health_of(one)}; do sleep 1; done"',
        "TimeoutStartSec=infinity",
    ]
    rows = _rows(one.plan, f"{one.name} ({one.plan.backend})", unit, waits if one.measures else ())
    return [*rows, *INSTALLED] if one.name in fleet.first_set else rows


def _rows(plan: Plan, description: str, unit: Sequence[str] = (), service: Sequence[str] = ()) -> list[str]:
    words = at_home(plan.argv, deployment_of(plan).paths)
    ram = next((pool for pool in plan.memory.pools if pool.id == HOST_POOL), None)
    return [
        "[Unit]",
        f"Description={description}",
        "After=network-online.target",
        "Wants=network-online.target",
        *unit,
        "",
        "[Service]",
        *(f"Environment={_word(f'{name}={value}', expands=False)}" for name, value in sorted(plan.env.items())),
        "ExecStart=" + " ".join(_word(word, expands=True) for word in words),
        *service,
        "Restart=on-failure",
        "RestartSec=5",
        *([f"# RAM in use: {-(-ram.used_bytes // MIB)} MiB"] if ram is not None and ram.used_bytes else []),
    ]


def _word(word: str, *, expands: bool) -> str:
    """A word of a unit: in quotes where it needs them, `%` doubled, and `$` where it would name a variable."""
    text = checked(word).replace("%", "%%")
    text = text.replace("$", "$$") if expands else text
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
