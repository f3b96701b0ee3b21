"""The command as text that a shell, or `xargs`, takes apart into exactly the argument list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from autofit.domain.plan import Plan
from autofit.text import shell

if TYPE_CHECKING:
    from autofit.domain.fleet import FleetFile, FleetPlan, Placement


def render(plan: Plan, *, columns: int | None = None) -> str:
    """`NAME=value ... program arguments` on one line of any POSIX shell, with quotes where they are needed.

    For a terminal of so many `columns` a longer line is continued on the next ones, at options.
    """
    return shell.command(plan.argv, sorted(plan.env.items()), columns=columns)


def render_eval(plan: Plan, *, columns: int | None = None) -> str:
    """The same with every word in quotes, for `eval "$(autofit ...)"`."""
    return shell.command(plan.argv, sorted(plan.env.items()), always=True, columns=columns)


def render_nul(plan: Plan) -> str:
    """Each word as it is, with a zero byte after it, for `xargs -0`."""
    return shell.separated(plan.argv, sorted(plan.env.items()), "\0")


def render_lines(plan: Plan) -> str:
    """Each word as it is on a line of its own, for `mapfile -t` and `while read -r`."""
    return shell.separated(plan.argv, sorted(plan.env.items()), "\n").removesuffix("\n")


def render_fish(plan: Plan, *, columns: int | None = None) -> str:
    return shell.fish_command(plan.argv, sorted(plan.env.items()), columns=columns)


def render_powershell(plan: Plan, *, columns: int | None = None) -> str:
    return shell.powershell_command(plan.argv, sorted(plan.env.items()), columns=columns)


def render_fleet(fleet: FleetPlan) -> tuple[FleetFile, ...]:
    """A script for each machine, which starts one set of what may run at once there, and waits for it.

    What shares a device with an engine that measures free memory while it starts waits until that one answers.
    """
    from autofit.domain.fleet import FleetFile  # most plans are of one model

    machines = [one.name for one in fleet.fleet.machines if fleet.on(one.name)]
    return tuple(FleetFile(f"{name}.sh", "\n".join(_script(fleet, name))) for name in machines)


def _script(fleet: FleetPlan, machine: str) -> Iterator[str]:
    from autofit.render.fleet_parts import health_of, waits_for

    running = [one for one in fleet.on(machine) if one.name in fleet.first_set]
    yield "#!/bin/sh"
    yield f"# made by autofit for {machine}: {', '.join(one.name for one in running) or 'nothing runs at first'}"
    yield "pids="
    yield "trap 'kill $pids 2>/dev/null' EXIT"
    yield "trap 'exit 1' INT TERM"
    answered: set[str] = set()
    for one in running:
        for other in waits_for(fleet, one):
            if other in running and other.name not in answered:
                yield f"# {other.name} measures free memory while it starts: {one.name} waits until it answers"
                process = f"$p{running.index(other)}"
                asked = f"curl -fsS -o /dev/null {health_of(other)} 2>/dev/null"
                yield f"until {asked}; do kill -0 {process} || exit 1; sleep 1; done"
                answered.add(other.name)
        devices = ", ".join(device.id for device in one.devices) or "no device"
        yield f"# {one.name} on {devices}" + (f", port {one.port}" if one.port is not None else "")
        yield f"{_one_line(one)} &"
        yield f'p{running.index(one)}=$!; pids="$pids $!"'
    yield from _others(fleet, machine)
    yield "wait"


def _others(fleet: FleetPlan, machine: str) -> Iterator[str]:
    """Commands of those that never run beside the first ones, as comments."""
    for one in fleet.on(machine):
        if one.name not in fleet.first_set:
            before = [name for name in one.evicts if name in fleet.first_set]
            yield f"# {one.name}, after the end of {' and '.join(before)}:" if before else f"# {one.name}:"
            yield f"# {_one_line(one)}"


def _one_line(one: Placement) -> str:
    return shell.command(one.plan.argv, sorted(one.plan.env.items()))
