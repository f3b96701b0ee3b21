"""Graphics devices as Linux shows them in sysfs, whatever their vendor; and who uses their memory."""

from __future__ import annotations

import re
from collections.abc import Iterator

from autofit.domain.patterns import lazy_pattern
from autofit.domain.values import dataclass
from autofit.hardware.facts import number, pcie_bytes_per_s
from autofit.hardware.system import System

GIGATRANSFERS = {"2.5": 1, "5.0": 2, "8.0": 3, "16.0": 4, "32.0": 5, "64.0": 6}
_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
MAX_CARDS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One `/sys/class/drm/cardN`; `path` is its `device` directory."""

    path: str
    driver: str
    vendor_id: int
    device_id: int
    pci: str

    @property
    def pci_id(self) -> str:
        return f"{self.vendor_id:04x}:{self.device_id:04x}"


def cards(system: System, *drivers: str) -> Iterator[Card]:
    """The devices of these drivers, in bus order."""
    found = []
    for name in system.names("/sys/class/drm"):
        if not re.fullmatch(r"card\d{1,4}", name):
            continue
        path = f"/sys/class/drm/{name}/device"
        event = dict(line.split("=", 1) for line in (system.text(f"{path}/uevent") or "").splitlines() if "=" in line)
        vendor, device = system.number(f"{path}/vendor"), system.number(f"{path}/device")
        if event.get("DRIVER") in drivers and vendor is not None and device is not None:
            pci = event.get("PCI_SLOT_NAME", "").lower()
            found.append(Card(path=path, driver=event["DRIVER"], vendor_id=vendor, device_id=device, pci=pci))
    yield from sorted(found, key=lambda card: card.pci)[:MAX_CARDS]


def link(system: System, card: Card) -> tuple[int | None, str, str | None]:
    """Bytes per second to the host, its source, and a note where the slot has fewer lanes than the card."""
    speed = (system.text(f"{card.path}/max_link_speed") or "").split(" ")[0]
    lanes = number(system.text(f"{card.path}/current_link_width") or "")
    most = number(system.text(f"{card.path}/max_link_width") or "")
    generation = GIGATRANSFERS.get(speed)
    # 0 and 255 are what a device without a link of its own reports
    if generation is None or not lanes or lanes > 32:
        return None, "", None
    note = f"PCIe x{lanes} in use, x{most} possible" if most and lanes < most <= 32 else None
    return pcie_bytes_per_s(generation, lanes), f"derived: sysfs, PCIe {generation}.0 x{lanes}", note


def users(system: System, pci: str) -> dict[int, int] | None:
    """Bytes of a device's own memory by process, as far as can be seen: those of this user, or all as root.

    `None` if the time ran out. Source: the kernel's `drm-usage-stats`.
    """
    held: dict[int, int] = {}
    seen: set[str] = set()
    for pid in system.names("/proc"):
        if not pid.isdecimal():
            continue
        if system.seconds_left < 0.05:
            return None
        for fd in system.names(f"/proc/{pid}/fd"):
            if not re.fullmatch(r"card\d+|renderD\d+", system.link(f"/proc/{pid}/fd/{fd}") or ""):
                continue
            info = _fdinfo(system.text(f"/proc/{pid}/fdinfo/{fd}") or "")
            client = f"{info.get('drm-driver')}/{info.get('drm-client-id')}"
            if info.get("drm-pdev", "").lower() != pci or client in seen:
                continue
            seen.add(client)
            used = sum(_size(value) for key, value in info.items() if _OWN_MEMORY.fullmatch(key))
            if used:
                held[int(pid)] = held.get(int(pid), 0) + used
    return held


_OWN_MEMORY = lazy_pattern(r"drm-resident-(?:vram|local)\d*|drm-memory-vram")


def _fdinfo(text: str) -> dict[str, str]:
    info = {
        key.strip(): value.strip() for key, colon, value in (line.partition(":") for line in text.splitlines()) if colon
    }
    if any(key.startswith("drm-resident-") for key in info):
        info.pop("drm-memory-vram", None)  # amdgpu's older name for the same bytes
    return info


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d{1,18})\s*(B|KiB|MiB|GiB)?", text)
    return int(match[1]) * _UNITS[match[2] or ""] if match else 0
