"""Models of a llama-swap configuration, and which of them may be loaded at once.

Source: llama-swap v165 (config.example.yaml, proxy/config); groups: internal/router/group.go:EvictionFor; the matrix of
sets: v251 (config.example.yaml, internal/config/matrix.go). All of these releases read groups, and the later ones alone
a matrix; both at the top level, where the former had them and the latter still take them.
"""

from __future__ import annotations

import os.path
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from autofit.domain.fleet import MAX_SETS, FleetFile, FleetPlan, Placement
from autofit.domain.plan import Plan
from autofit.errors import UsageError
from autofit.render.container import at_home, check_one_machine, checked, commented, deployment_of
from autofit.render.fleet_parts import listed, machines_of, path_of
from autofit.render.yaml import dump

START_SECONDS = 3600  #: to wait for a model; llama-swap's own two minutes are few for a large one


def render(plan: Plan) -> str:
    """`models:` with the command on the port that llama-swap gives it.

    Raises:
        UsageError: a word that holds a macro of llama-swap, or a plan for several machines.
    """
    check_one_machine(plan)
    return commented(plan, dump({"models": {_name(plan): _model(plan)}}))


def render_fleet(fleet: FleetPlan) -> tuple[FleetFile, ...]:
    """A configuration for each machine, in which what may run at once is loaded at once, and nothing else is: by groups
    where these say the same, and by a matrix where they do not, in which losing a model costs its priority.

    Raises:
        UsageError: a word that holds a macro of llama-swap, more sets than are listed, or what listens on no port.
    """
    files = []
    for machine in machines_of(fleet):
        here = fleet.on(machine)
        if (silent := next((one.name for one in here if one.port is None), None)) is not None:
            raise UsageError(f"{silent} listens on no port", hint="--format shell or systemd starts it")
        if len(fleet.sets) >= MAX_SETS:
            raise UsageError(
                f"{len(fleet.sets)} sets or more may run at once: too many to list", hint="use fewer groups of models"
            )
        sets = _sets(fleet, here)
        heads = [f"# made by autofit for {machine}"]
        groups = groups_of(here, sets)
        if groups is None:
            heads[0] += "; needs the matrix of llama-swap (config.example.yaml, v251)"
        first = [one.name for one in here if one.measures and one.name in fleet.first_set]
        if first and len(here) > 1:
            heads.append(f"# load first, one after the other: {listed(first)}")
        config = {
            "healthCheckTimeout": START_SECONDS,
            "models": {one.name: _model(one.plan) for one in here},
            **({"groups": groups} if groups is not None else {"matrix": _matrix(here, sets)}),
        }
        files.append(FleetFile(path_of(fleet, machine, "config.yaml"), "\n".join([*heads, dump(config)])))
    return tuple(files)


def _sets(fleet: FleetPlan, here: Sequence[Placement]) -> list[tuple[str, ...]]:
    """The largest sets of a machine: what is on other machines does not count here."""
    own = dict.fromkeys(tuple(one.name for one in here if one.name in some) for some in fleet.sets)
    return [some for some in own if some and not any(set(some) < set(other) for other in own)]


def groups_of(here: Sequence[Placement], sets: Sequence[Sequence[str]]) -> dict[str, dict[str, object]] | None:
    """Groups of llama-swap in which just these sets are loaded at once; `None`: groups cannot say them.

    Models that are in the same sets, or in as many and never together, are one group: of the latter one is loaded at a
    time (`swap`). A group that is in every set stays whatever else is loaded (`persistent`) and leaves the others; any
    other one unloads what is not (`exclusive`).
    """
    rows: dict[tuple[object, ...], list[str]] = {}
    for one in here:
        turns = one.model.group if one.model.replicas == 1 else None
        rows.setdefault((turns, *one.model.phases), []).append(one.name)
    groups: dict[str, dict[str, object]] = {}
    for number, (key, members) in enumerate(rows.items(), 1):
        always = all(any(name in some for name in members) for some in sets)
        groups[f"group{number}"] = {
            "swap": key[0] is not None,
            "exclusive": not always,
            "persistent": always,
            "members": members,
        }
    return groups if {frozenset(some) for some in sets} == set(_loaded(groups)) else None


def _loaded(groups: Mapping[str, Mapping[str, Any]]) -> Iterator[frozenset[str]]:
    """The largest sets that groups let be loaded at once."""
    always = [one for one in groups.values() if one["persistent"]]
    others = [[one] for one in groups.values() if not one["persistent"]]
    for alone in others or [[]]:
        parts = [[[name] for name in one["members"]] if one["swap"] else [one["members"]] for one in (*always, *alone)]
        yield from (frozenset(name for part in chosen for name in part) for chosen in product(*parts))


def _matrix(here: Sequence[Placement], sets: Sequence[Sequence[str]]) -> dict[str, object]:
    """Each set in its own line."""
    names = {one.name: f"m{number}" for number, one in enumerate(here, 1)}
    return {
        "vars": {short: name for name, short in names.items()},
        "evict_costs": {names[one.name]: 1 + one.model.priority for one in here},
        "sets": {f"set{number}": " & ".join(names[name] for name in some) for number, some in enumerate(sets, 1)},
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
