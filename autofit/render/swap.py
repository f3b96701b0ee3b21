"""Models of a llama-swap configuration. Source: llama-swap v165 (config.example.yaml, proxy/config); its matrix of
sets: v251 (config.example.yaml, internal/config/matrix.go)."""

from __future__ import annotations

import os.path
import shlex
from collections.abc import Sequence

from autofit.domain.fleet import MAX_SETS, FleetFile, FleetPlan, Placement
from autofit.domain.plan import Plan
from autofit.errors import UsageError
from autofit.render.container import at_home, check_one_machine, checked, commented, deployment_of
from autofit.render.fleet_parts import listed, machines_of, path_of
from autofit.render.yaml import dump


def render(plan: Plan) -> str:
    """`models:` with the command on the port that llama-swap gives it.

    Raises:
        UsageError: a word that holds a macro of llama-swap, or a plan for several machines.
    """
    check_one_machine(plan)
    return commented(plan, dump({"models": {_name(plan): _model(plan)}}))


def render_fleet(fleet: FleetPlan) -> tuple[FleetFile, ...]:
    """A configuration for each machine. Its matrix lists what may run at once, and nothing else; losing a model costs
    its priority.

    Raises:
        UsageError: a word that holds a macro of llama-swap, or more sets than are listed.
    """
    files = []
    for machine in machines_of(fleet):
        here = fleet.on(machine)
        heads = [f"# made by autofit for {machine}; needs the matrix of llama-swap (config.example.yaml, v251)"]
        if any(one.measures for one in here) and len(here) > 1:
            heads.append(f"# load first, one after the other: {listed([one.name for one in here if one.measures])}")
        config = {"models": {one.name: _model(one.plan) for one in here}, "matrix": _matrix(fleet, here)}
        files.append(FleetFile(path_of(fleet, machine, "config.yaml"), "\n".join([*heads, dump(config)])))
    return tuple(files)


def _matrix(fleet: FleetPlan, here: Sequence[Placement]) -> dict[str, object]:
    """Each set of the machine in its own line: what is on other machines does not count here."""
    if len(fleet.sets) >= MAX_SETS:
        raise UsageError(
            f"{len(fleet.sets)} sets or more may run at once: too many to list", hint="use fewer groups of models"
        )
    names = {one.name: f"m{number}" for number, one in enumerate(here, 1)}
    own = dict.fromkeys(tuple(names[name] for name in names if name in some) for some in fleet.sets)
    sets = [some for some in own if some and not any(set(some) < set(other) for other in own)]
    return {
        "vars": {short: name for name, short in names.items()},
        "evict_costs": {names[one.name]: 1 + one.model.priority for one in here},
        "sets": {f"set{number}": " & ".join(some) for number, some in enumerate(sets, 1)},
    }


def _model(plan: Plan) -> dict[str, object]:
    argv = at_home(_on_its_port(plan.argv), deployment_of(plan).paths)
    model: dict[str, object] = {"cmd": " ".join(_word(word) for word in argv)}
    if plan.env:
        model["env"] = [f"{name}={checked(value)}" for name, value in sorted(plan.env.items())]
    return model


def _on_its_port(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The command with llama-swap's port in place of its own."""
    rest = list(argv)
    while "--port" in rest:
        at = rest.index("--port")
        del rest[at : at + 2]
    return (*(word for word in rest if not word.startswith("--port=")), "--port", "${PORT}")


def _word(word: str) -> str:
    if word == "${PORT}":
        return word
    if "${" in word:
        raise UsageError(f"{word}: llama-swap would take it for a macro", hint="--format json gives it exactly")
    return shlex.quote(checked(word))


def _name(plan: Plan) -> str:
    paths = deployment_of(plan).paths
    name = os.path.basename(paths[0].rstrip("/")) if paths else plan.backend  # noqa: PTH119
    return name.removesuffix(".gguf")
