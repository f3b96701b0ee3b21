"""Measured starts in plans: what they keep back of a device's free memory, or give back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from autofit.calibration.rule import Entry, Key, moved_bytes
from autofit.calibration.store import CalibrationError, add, entries
from autofit.domain.machine import Device, Machine
from autofit.domain.memory import Kind
from autofit.domain.observed import Observed
from autofit.domain.plan import Finding
from autofit.domain.units import format_bytes
from autofit.domain.values import replace
from autofit.planning.compare import Difference
from autofit.planning.findings import COMMON, tell


def build_of(text: str | None) -> str:
    """The number in what an engine says of its version: `b9284`, `version: 9284 (abcdef)` and `9284` are one build."""
    found = re.search(r"\d[\w.+-]{0,39}", text or "")
    return found[0] if found else ""


def key_of(backend: str, build: str | None, device: Device, architecture: str) -> Key:
    """What starts on a device are counted under: the device by its profile where it has one, never by its owner."""
    return Key(
        engine=backend,
        build=build_of(build),
        api=device.api,
        device=device.profile or device.name[:60],
        architecture=architecture,
    )


def calibrated(
    machine: Machine, backend: str, build: str | None, architecture: str, environ: Mapping[str, str]
) -> tuple[Machine, tuple[Finding, ...]]:
    """The machine with less, or more, free on each device that starts of this kind were measured on.

    Only a machine that was looked at is changed, and only where there is a database.
    """
    if machine.origin != "detected" or not machine.devices:
        return machine, ()
    known = entries(environ)
    if not known:
        return machine, ()
    devices, findings = [], []
    for device in machine.devices:
        moved, entry = _moved(known, key_of(backend, build, device, architecture))
        if entry is None or not moved or device.free_bytes is None:
            devices.append(device)
            continue
        devices.append(replace(device, free_bytes=max(0, device.free_bytes - moved)))
        what = f"{format_bytes(moved)} are kept free on" if moved > 0 else f"{format_bytes(-moved)} are given back on"
        by = "imported" if entry.imported else "measured here"
        findings.append(
            tell(COMMON, "calibration", f"{what} {device.id}: {entry.n_starts} starts of {architecture}, {by}")
        )
    return replace(machine, devices=tuple(devices)), tuple(findings)


def _moved(known: Sequence[Entry], key: Key) -> tuple[int, Entry | None]:
    """What of all entries for this device and architecture counts: most of what any adds, else what one gives back."""
    same = [one for one in known if replace(one.key, build=key.build) == key]
    moved = [(moved_bytes(one, key.build), one) for one in same]
    more = max(moved, key=lambda pair: pair[0], default=(0, None))
    if more[0] > 0:
        return more
    less = min(moved, key=lambda pair: pair[0], default=(0, None))
    # nothing is given back where anything says that more was taken
    return less if all(one.most_bytes <= 0 for one in same) else (0, None)


def record(
    backend: str,
    machine: Machine,
    observed: Observed,
    differences: Sequence[Difference],
    signs: Mapping[Kind, int],
    environ: Mapping[str, str],
) -> int:
    """Count a start that was watched, on each device it reported; returns on how many.

    `signs` say which parts count, and whether more of one is more memory (1) or less (-1).
    """
    architecture = observed.facts.get("architecture")
    if not isinstance(architecture, str) or not architecture or machine.origin != "detected":
        return 0
    n = 0
    for device in machine.devices:
        parts = [one for one in differences if one.pool == device.pool and one.kind in signs]
        if not parts or device.pool != device.id:
            continue
        beyond = sum(signs[one.kind] * one.over_bytes for one in parts)
        try:
            add(environ, key_of(backend, observed.version, device, architecture), beyond)
        except CalibrationError:
            return n
        n += 1
    return n
