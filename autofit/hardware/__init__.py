"""What this machine has, and machines that one does not have. What is unknown is `None`, with a reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autofit.domain.machine import Machine
    from autofit.domain.ram import Ram
    from autofit.hardware.facts import Source


def detect_machine(
    env: Mapping[str, str] | None = None,
    root: Path = Path("/"),
    *,
    sources: Iterable[Source] = (),
    engines: Iterable[str] = (),
) -> Machine:
    """This machine, in bounded time. Never fails; `Machine.findings` says what could not be learnt, and why.

    `sources` are asked for devices; without any, only the host is known. `engines` are the programs of engines. `env`
    stands in for the process environment; `root` for a recorded tree, from which nothing is run.
    """
    from autofit.domain.values import replace
    from autofit.hardware.detect import detect
    from autofit.hardware.system import this_system

    return detect(replace(this_system(env, root), engines=tuple(engines)), tuple(sources))


def load_machine(*names: str, ram: Ram | str | int | None = None, profile_dirs: Iterable[str | Path] = ()) -> Machine:
    """The machine that profiles, sizes and files describe: `load_machine("rtx-3090", "rtx-4070-ti:11GiB")`.

    Raises:
        UnknownHardwareError: an unknown name (with suggestions), a generic device without a size.
        HardwareError: a wrong profile.
        UsageError: a size that is none.
    """
    from autofit.hardware.machines import load_machine as load

    return load(*names, ram=ram, profile_dirs=profile_dirs)


def machine_to_dict(machine: Machine) -> dict[str, Any]:
    """The machine as JSON values, schema 1."""
    from autofit.hardware.record import machine_to_dict as to_dict

    return to_dict(machine)


def machine_from_dict(data: object) -> Machine:
    """The machine that `machine_to_dict` described.

    Raises:
        HardwareError: not a machine of schema 1.
    """
    from autofit.hardware.record import machine_from_dict as from_dict

    return from_dict(data)
