"""What a source of devices answers: facts with their basis, or nothing and the reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import PurePath

from autofit.domain.machine import Device, Holder, Host, Link
from autofit.domain.text import printable
from autofit.domain.units import MIB, format_bytes
from autofit.domain.values import NamedTuple, dataclass, field, replace
from autofit.hardware.system import System

PCIE_BYTES_PER_S = {
    1: 250_000_000,
    2: 500_000_000,
    3: 984_615_384,
    4: 1_969_230_769,
    5: 3_938_461_538,
    6: 7_562_500_000,
}
#: one lane, one direction, after 8b/10b, 128b/130b or FLIT coding


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Devices in the order of their API, and what should be said about them.

    `findings` are for the user; `sources` maps `id.field` to basis and origin; `seen` are PCI addresses that
    this source has accounted for, usable or not.
    """

    devices: tuple[Device, ...] = ()
    links: tuple[Link, ...] = ()
    findings: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    seen: frozenset[str] = frozenset()


class Source(NamedTuple):
    """Something that knows devices, as `autofit.hookspecs.HardwareSourceRef` describes it; calls in place of names."""

    name: str
    find: Callable[[System, Host], Facts]
    library: str = ""
    unanswered: Callable[[System, str], Facts] | None = None
    fills_gaps: bool = False
    signs: tuple[str, ...] = ()


def pcie_bytes_per_s(generation: int | None, lanes: int | None) -> int | None:
    """One direction of a PCIe link, coding taken off."""
    per_lane = PCIE_BYTES_PER_S.get(generation or 0)
    return per_lane * lanes if per_lane and lanes else None


def enrich(device: Device, variant: str | None = None, pci_id: str | None = None) -> tuple[Device, dict[str, str]]:
    """The device with what only a datasheet knows (bandwidth, arithmetic), from its profile; the sources.

    `variant` is a more exact name than the driver's, tried first; `pci_id` helps where the name says nothing.
    """
    from autofit.hardware import catalog

    profile = catalog.profile_of(variant, None) if variant else None
    profile = profile or catalog.profile_of(device.name, device.total_bytes, pci_id)
    if profile is None:
        return device, {}
    known = {
        name: profile.device_table[name]
        for name in ("gfx", "n_sm", "bandwidth_bytes_per_s", "fp16_flops_per_s", "link_bytes_per_s")
        if name in profile.device_table and getattr(device, name) is None
    }
    sources = {
        f"{device.id}.{name}": f"{profile.basis_of(name) or 'assumed: no source'} (profile {profile.id})"
        for name in known
    }
    return replace(device, profile=profile.id, **known), sources


def holder(system: System, pid: int, used_bytes: int | None) -> Holder:
    """A process that holds memory. Its name is unknown where it runs in another container, or is dead."""
    name = system.text(f"/proc/{pid}/comm") or None
    uid = re.search(r"^Uid:\s+(\d+)", system.text(f"/proc/{pid}/status") or "", re.MULTILINE)
    command = (system.text(f"/proc/{pid}/cmdline") or "").split("\0", 8)[:4]
    programs = {re.split(r"[.:]", PurePath(word).name, maxsplit=1)[0].lower() for word in [name or "", *command]}
    is_engine = not programs.isdisjoint(system.engines)
    ours = is_engine and uid is not None and system.uid is not None and int(uid[1]) == system.uid
    return Holder(pid=pid, name=printable(name, 60) if name else None, used_bytes=used_bytes, ours=ours)


def unseen_holders(device: Device, used_bytes: int, *, slack_bytes: int = 256 * MIB) -> str | None:
    """A note, where much more is used than the processes that can be seen explain."""
    gone = [h for h in device.held_by if h.name is None]
    explained = sum(h.used_bytes or 0 for h in device.held_by)
    if any(h.used_bytes is None for h in device.held_by):
        return None
    if gone:
        pids = ", ".join(str(h.pid) for h in gone[:8])
        held = sum(h.used_bytes or 0 for h in gone)
        return f"{format_bytes(held)} held by process {pids}: dead, or in another container"
    if used_bytes - explained > slack_bytes:
        return f"{format_bytes(used_bytes - explained)} in use by processes that cannot be seen from here"
    return None


def number(text: str) -> int | None:
    """A whole number out of `24576`, `24576 MiB` or `0x18`; `None` for `N/A` and the like."""
    match = re.match(r"\s*(0x[0-9a-fA-F]{1,16}|\d{1,18})\b", text)
    return int(match[1], 16 if match[1].startswith("0x") else 10) if match else None
