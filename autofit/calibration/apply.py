"""Measured starts in plans: what they keep back of a device's free memory, or give back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from autofit.calibration.rule import Entry, Key, moved_bytes
from autofit.calibration.store import CalibrationError, add, entries
from autofit.domain.machine import HOST_POOL, Device, Machine
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

    Only a machine that was looked at is changed, and only where there is a database. What a device that shares RAM took
    is kept free there, and never given back: others use it too.
    """
    if machine.origin != "detected" or not machine.devices:
        return machine, ()
    known = entries(environ)
    if not known:
        return machine, ()
    devices, findings, of_ram = [], [], 0
    for device in machine.devices:
        moved, entry = _moved(known, key_of(backend, build, device, architecture))
        shares = device.pool == HOST_POOL
        if entry is None or not moved or (shares and moved < 0) or (device.free_bytes is None and not shares):
            devices.append(device)
            continue
        free = None if device.free_bytes is None else max(0, device.free_bytes - moved)
        devices.append(replace(device, free_bytes=free))
        of_ram = max(of_ram, moved if shares else 0)
        what = f"{format_bytes(moved)} are kept free on" if moved > 0 else f"{format_bytes(-moved)} are given back on"
        by = "imported" if entry.imported else "measured here"
        findings.append(
            tell(COMMON, "calibration", f"{what} {device.id}: {entry.n_starts} starts of {architecture}, {by}")
        )
    host = machine.host
    if of_ram and host.available_bytes is not None:
        host = replace(host, available_bytes=max(0, host.available_bytes - of_ram))
    return replace(machine, devices=tuple(devices), host=host), tuple(findings)


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
    *,
    only_more: bool = False,
) -> int:
    """Count a start that was watched, on each device it reported; returns on how many.

    `signs` say which parts count, and whether more of one is more memory (1) or less (-1). Devices that share RAM are
    counted as one, the first. `only_more`: where it took no more than was predicted, nothing is counted.
    """
    architecture = observed.facts.get("architecture")
    if not isinstance(architecture, str) or not architecture or machine.origin != "detected":
        return 0
    n, pools = 0, set[str]()
    for device in machine.devices:
        parts = [one for one in differences if one.pool == device.pool and one.kind in signs]
        beyond = sum(signs[one.kind] * one.over_bytes for one in parts)
        if not parts or device.pool in pools or (only_more and beyond <= 0):
            continue
        pools.add(device.pool)
        try:
            add(environ, key_of(backend, observed.version, device, architecture), beyond)
        except CalibrationError:
            return n
        n += 1
    return n
