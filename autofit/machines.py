"""Which machine a plan is for: this one, as all sources of devices see it, or one that is described."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from autofit.domain.values import replace
from autofit.errors import UsageError
from autofit.host import host, resolve
from autofit.references import reference_of

if TYPE_CHECKING:
    from autofit.domain.machine import Machine
    from autofit.domain.ram import Ram
    from autofit.hardware.facts import Facts, Source
    from autofit.settings.layers import Options

RESERVATIONS_OFF = "AUTOFIT_RESERVATIONS"  #: with `0`, nothing is reserved, and what is reserved does not count


def detect_machine(environ: Mapping[str, str] | None = None) -> Machine:
    """This machine: devices, free memory, host. Never fails; what is unknown is `None` with a finding.

    `environ` stands in for the variables of this process, of which some hide devices.
    """
    from autofit.hardware import detect_machine as detect

    engines = (word for ref in host().backends().values() for word in ref.programs)
    return detect(environ, sources=hardware_sources(), engines=engines)


def hardware_sources() -> list[Source]:
    """What is asked for devices. Each is looked up when it is asked: one that cannot be imported is a finding."""
    from autofit.hardware.facts import Source

    return [
        Source(
            ref.name,
            partial(_ask_source, ref.factory),
            ref.library,
            partial(_ask_source, ref.unanswered) if ref.unanswered else None,
            ref.fills_gaps,
            ref.signs,
        )
        for ref in host().hardware_sources().values()
    ]


def _ask_source(factory: str, *facts: object) -> Facts:
    answer: Facts = resolve(factory)(*facts)
    return answer


def load_machine(*names: str, ram: Ram | str | int | None = None) -> Machine:
    """The machine that these hardware profiles describe: `load_machine("rtx-3090", "rtx-4070-ti:12GiB", ram="64GiB")`.

    Raises:
        HardwareError: an unknown name (with suggestions). UsageError: something that is neither name nor size.
    """
    from autofit.hardware import load_machine as load

    words = [reference_of("load_machine()", name, 'such as "rtx-3090" or "rtx-3090:12GiB"') for name in names]
    from autofit.domain.ram import Ram

    if ram is not None and (isinstance(ram, bool) or not isinstance(ram, (str, int, Ram))):
        raise UsageError(f"ram is text or bytes, not {ram!r:.40}", hint='such as ram="64GiB"')
    return load(*words, ram=ram, profile_dirs=host().profile_dirs())


def machine_of(options: Options, environ: Mapping[str, str] | None = None) -> Machine:
    """The machine that `on` describes, or this one, as a process with these variables sees it.

    Raises:
        HardwareError: an unknown name. UsageError: more RAM than this machine has.
    """
    names, ram = options.get("on"), options.get("ram")
    if names:
        return load_machine(*names, ram=ram)
    machine = _without_reserved(detect_machine(environ), os.environ if environ is None else environ)
    if ram is None:
        return machine
    available, wanted = machine.host.available_bytes, ram.stated_bytes
    if available is not None and wanted > available:
        from autofit.domain.units import format_bytes

        raise UsageError(
            f"--ram {format_bytes(wanted)} is more than the {format_bytes(available)} available here",
            hint="describe the whole machine: --on rtx-3090 --ram 64GiB, or --on cpu",
        )
    return replace(machine, host=replace(machine.host, available_bytes=wanted))


def _without_reserved(machine: Machine, environ: Mapping[str, str]) -> Machine:
    """This machine less what is reserved for engines that were started and have not taken it yet."""
    from autofit.files import runtime_dir

    place = runtime_dir(environ)
    if place is None or not place.is_dir() or environ.get(RESERVATIONS_OFF) == "0":
        return machine
    from autofit.launch.ledger import without_reserved

    return without_reserved(machine, environ)
