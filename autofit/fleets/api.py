"""`autofit.fleet(...)`: a fleet from a file, a mapping, commands or values, and its plan."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autofit.domain.fleet import Fleet, FleetMachine
from autofit.domain.values import replace
from autofit.errors import UsageError
from autofit.fleets.plan import plan_fleet
from autofit.fleets.reading import fleet_of, fleet_of_commands, machines_of, read_fleet
from autofit.settings.layers import HERE

if TYPE_CHECKING:
    from autofit.domain.fleet import FleetPlan
    from autofit.domain.machine import Machine
    from autofit.settings.layers import Surroundings


def fleet(
    models: str | os.PathLike[str] | Mapping[str, Any] | Sequence[Sequence[str]] | Fleet,
    machines: Machine | Mapping[str, Machine] | None = None,
    *,
    settings: Surroundings | None = HERE,
) -> FleetPlan:
    """Where several models go, so that every set of them that may run at once fits for certain.

    `models` is the path of a FLEET.toml, a mapping with the same keys (`docs/fleet.md`), a list of engines' commands
    (lists of words), or a `Fleet`. `machines` is one machine, or several by name, and stands for those of the file;
    this one is measured where none is named. `settings` count for each model, as for `plan()`.

    Raises:
        UsageError, ModelError, HardwareError, PluginError. A fleet that does not fit is returned, with `fits` false,
        what it lacks, the models that could stay, and the nearest changes.
    """
    named = _machines(machines)
    if isinstance(models, Fleet):
        return plan_fleet(replace(models, machines=named or models.machines), settings)
    if isinstance(models, Mapping):
        return plan_fleet(fleet_of(models, machines=named), settings)
    if isinstance(models, (str, os.PathLike)):
        return plan_fleet(fleet_of(read_fleet(models), os.fspath(models), machines=named), settings)
    if not isinstance(models, Sequence) or any(isinstance(words, (str, bytes)) for words in models):
        raise UsageError(
            f"fleet() takes a path, a mapping or a list of commands, not {type(models).__name__}",
            hint='such as fleet("fleet.toml"), or fleet([["llama-server", "-m", "a.gguf"], ...])',
        )
    return plan_fleet(fleet_of_commands(models, named), settings)


def _machines(given: Machine | Mapping[str, Machine] | None) -> tuple[FleetMachine, ...]:
    if given is None:
        return ()
    if isinstance(given, Mapping):
        return tuple(one for name, machine in given.items() for one in machines_of(name, machine))
    if not hasattr(given, "devices"):
        raise UsageError(
            f"a machine is needed, not {type(given).__name__}", hint='such as autofit.load_machine("rtx-3090")'
        )
    return tuple(machines_of("machine", given))
