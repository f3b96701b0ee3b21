"""Memory that engines were planned for and have not taken yet, so that two launches do not count on the same bytes.

A reserved byte counts until the engine holds it. What it holds is:

- in RAM: memory of its processes that is not memory-mapped from files, as `/proc` has it; memory-mapped weights are
  never held, so they count as long as the engine runs. Its processes are the one that was started, those that keep its
  reservation locked (the monitor that podman leaves with a container does), and all that these have started;
- on a device whose driver names the engine's processes: what it says that they use;
- on any other device, and in RAM of a container that a service starts (docker): nothing, until free memory has fallen
  by 15/16 of all that is reserved there: then everything; and from 10 minutes after the start on, what free memory has
  fallen by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from autofit.domain.machine import HOST_POOL, Device, Machine
from autofit.domain.memory import Memory
from autofit.domain.text import printable
from autofit.domain.units import format_bytes
from autofit.domain.values import dataclass, replace

LOADING_SECONDS = 600.0
ALL_TAKEN = (15, 16)  #: of what is reserved on a device


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Bytes of one pool that a launch was planned for, and what was free there for it then."""

    n_bytes: int
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What one launch has reserved, by `key_of` its devices; `at_s` by a clock that nobody sets."""

    pid: int
    started: str | None  #: of the process, to tell it from a later one of the same number
    program: str
    at_s: float
    claims: Mapping[str, Claim]
    file: str = ""  #: the name of its file


def key_of(device: Device) -> str:
    """A name of a device's memory that does not change with the devices that a process sees."""
    if device.pool == HOST_POOL:
        return HOST_POOL
    return device.uuid or f"{device.api} {device.index} {device.name}"


def outstanding(
    key: str,
    reservations: Sequence[Reservation],
    held: Mapping[int, int | None],
    free_bytes: int | None,
    now_s: float,
) -> list[tuple[Reservation, int]]:
    """What each reservation still counts for on a device or in RAM.

    `held` are the bytes that the processes of a reservation hold, by its pid; `None` or absent: it is not known.
    """
    here = [(one, one.claims[key]) for one in reservations if key in one.claims]
    found: list[tuple[Reservation, int]] = []
    unmeasured: list[tuple[Reservation, Claim]] = []
    for one, claim in here:
        own = held.get(one.pid)
        if own is None:
            unmeasured.append((one, claim))
        else:
            found.append((one, claim.n_bytes - own))
    fallen = _fallen(unmeasured, free_bytes)
    total = sum(claim.n_bytes for _, claim in unmeasured)
    if fallen * ALL_TAKEN[1] < total * ALL_TAKEN[0]:
        for one, claim in sorted(unmeasured, key=lambda pair: pair[0].at_s):
            taken = min(claim.n_bytes, fallen) if now_s - one.at_s >= LOADING_SECONDS else 0
            fallen -= taken
            found.append((one, claim.n_bytes - taken))
    return [(one, n) for one, n in found if n > 0]


def _fallen(unmeasured: Sequence[tuple[Reservation, Claim]], free_bytes: int | None) -> int:
    """By how much free memory has fallen since the first of these."""
    known = [(one.at_s, claim.free_bytes) for one, claim in unmeasured if claim.free_bytes is not None]
    if not known or free_bytes is None:
        return 0
    first = min(known)[1]
    assert first is not None
    return max(0, first - free_bytes)


def reduced(
    machine: Machine, reservations: Sequence[Reservation], trees: Mapping[int, Sequence[int]],
    in_ram: Mapping[int, int | None], now_s: float,
) -> Machine:  # fmt: skip
    """The machine with what is left for another launch.

    `trees` are the processes of each reservation by its pid, `in_ram` the bytes of RAM that these hold.
    """
    devices, notes = [], list(machine.findings)
    for device in machine.devices:
        held = {pid: _used(device, tree) for pid, tree in trees.items()}
        left, said = _left(device.free_bytes, outstanding(key_of(device), reservations, held, device.free_bytes, now_s))
        if key_of(device) == HOST_POOL:
            devices.append(device)
            continue
        devices.append(replace(device, free_bytes=left) if said else device)
        notes += [f"{device.id}: {text}" for text in said]
    host = machine.host
    found = outstanding(HOST_POOL, reservations, in_ram, host.available_bytes, now_s)
    left, said = _left(host.available_bytes, found)
    if said:
        host = replace(host, available_bytes=left)
        notes += [f"RAM: {text}" for text in said]
        devices = [
            replace(one, free_bytes=min(one.free_bytes, left or 0))
            if one.pool == HOST_POOL and one.free_bytes is not None
            else one
            for one in devices
        ]
    return replace(machine, host=host, devices=tuple(devices), findings=tuple(notes))


def _used(device: Device, tree: Sequence[int]) -> int | None:
    """What processes hold of a device; `None` where its driver names none of them, or not what they hold."""
    ours = [holder.used_bytes for holder in device.held_by if holder.pid in tree]
    known = [n for n in ours if n is not None]
    return sum(known) if known and len(known) == len(ours) else None


def _left(free_bytes: int | None, found: Sequence[tuple[Reservation, int]]) -> tuple[int | None, list[str]]:
    said = [
        f"{format_bytes(n)} are reserved for {printable(one.program, 60)} (process {one.pid}), which was started "
        "and has not taken them yet"
        for one, n in found
    ]
    return None if free_bytes is None else max(0, free_bytes - sum(n for _, n in found)), said


def claims_of(memory: Memory, machine: Machine) -> dict[str, Claim]:
    """What a plan takes on this machine, to be reserved."""
    keys = {device.id: key_of(device) for device in machine.devices}
    free = {key_of(device): device.free_bytes for device in machine.devices}
    free[HOST_POOL] = machine.host.available_bytes
    return {
        key: Claim(n_bytes=pool.used_bytes, free_bytes=free.get(key))
        for pool in memory.pools
        if pool.used_bytes and (key := keys.get(pool.id, pool.id))
    }


def largest(claims: Iterable[Mapping[str, Claim]]) -> dict[str, Claim]:
    """What is to be reserved for a process that takes one of these at a time."""
    found: dict[str, Claim] = {}
    for key, claim in (pair for one in claims for pair in one.items()):
        if key not in found or claim.n_bytes > found[key].n_bytes:
            found[key] = claim
    return found


def held_to(machine: Machine, at_most: Mapping[str, int]) -> Machine:
    """The machine with so much free in its pools at most."""
    devices = tuple(
        replace(device, free_bytes=min(device.free_bytes, at_most[device.pool]))
        if device.free_bytes is not None and device.pool in at_most
        else device
        for device in machine.devices
    )
    on_host = machine.host
    if HOST_POOL in at_most:
        free = on_host.available_bytes
        most = at_most[HOST_POOL]
        on_host = replace(on_host, available_bytes=most if free is None else min(free, most))
    notes = (
        f"{pool}: {format_bytes(n)} count as free at most, since a start ran out of memory"
        for pool, n in at_most.items()
    )
    return replace(machine, host=on_host, devices=devices, findings=(*machine.findings, *notes))
