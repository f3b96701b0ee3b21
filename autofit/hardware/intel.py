"""Intel devices from sysfs (drivers xe and i915), and `xpu-smi` for what these do not tell."""

from __future__ import annotations

from autofit.domain.machine import HOST_POOL, Device, Host
from autofit.domain.text import printable
from autofit.domain.units import MIB
from autofit.domain.values import replace
from autofit.hardware import drm
from autofit.hardware.catalog import profile_of
from autofit.hardware.facts import Facts, enrich, holder, number
from autofit.hardware.programs import ToolError
from autofit.hardware.system import System

ONE_ALLOCATION = "one allocation above 4 GiB needs UR_L0_ENABLE_RELAXED_ALLOCATION_LIMITS=1"


def find(system: System, host: Host) -> Facts:
    """Intel's discrete and integrated devices, in bus order."""
    devices: list[Device] = []
    findings: list[str] = []
    sources: dict[str, str] = {}
    seen: set[str] = set()
    for card in drm.cards(system, "xe", "i915"):
        seen.add(card.pci)
        id = f"SYCL{len(devices)}"
        total = _vram_bytes(system, card)
        if total is None:
            devices.append(_integrated(system, host, card, id, len(devices)))
            continue
        device, known = _discrete(system, card, id, len(devices), total)
        sources |= known
        if device.free_bytes is None:
            findings.append(f"{device.name}: free memory is unknown; --on NAME:SIZE states it")
        devices.append(device)
    return Facts(devices=tuple(devices), findings=tuple(findings), sources=sources, seen=frozenset(seen))


def _vram_bytes(system: System, card: drm.Card) -> int | None:
    """Memory of its own: xe counts it per tile, i915 in one file (on the card, or on the device)."""
    tiles = [name for name in system.names(card.path) if name.startswith("tile")]
    parts = [
        size
        for tile in tiles
        for place in ("physical_vram_size_bytes", "memory/physical_vram_size_bytes")
        if (size := system.number(f"{card.path}/{tile}/{place}")) is not None
    ]
    if sum(parts):
        return sum(parts)
    for path in (f"{card.path}/lmem_total_bytes", f"{card.path.removesuffix('/device')}/lmem_total_bytes"):
        if size := system.number(path):
            return size
    return None


def _discrete(system: System, card: drm.Card, id: str, index: int, total: int) -> tuple[Device, dict[str, str]]:
    device = Device(
        id=id,
        index=index,
        name=_name(card, total),
        api="sycl",
        total_bytes=total,
        free_bytes=None,
        vendor="intel",
        notes=(ONE_ALLOCATION,),
    )
    sources = {f"{id}.total_bytes": "measured: sysfs"}
    used = _used_by_xpu_smi(system, index)
    if used is not None:
        device = replace(device, free_bytes=max(0, total - used))
        sources[f"{id}.free_bytes"] = "measured: xpu-smi"
    elif (held := drm.users(system, card.pci)) is not None:
        # neither driver publishes what is in use; every process says it of itself, to its own user
        holders = sorted((holder(system, pid, n) for pid, n in held.items()), key=lambda h: -(h.used_bytes or 0))
        device = replace(device, free_bytes=max(0, total - sum(held.values())), held_by=tuple(holders))
        sources[f"{id}.free_bytes"] = "derived: total less what this user's processes hold"
    rate, origin, note = drm.link(system, card)
    if note:
        device = replace(device, notes=(*device.notes, note))
    device, known = enrich(device, pci_id=card.pci_id)
    if rate is not None:
        device = replace(device, link_bytes_per_s=rate)
        known[f"{id}.link_bytes_per_s"] = origin
    return device, {**sources, **known}


def _integrated(system: System, host: Host, card: drm.Card, id: str, index: int) -> Device:
    """Graphics of the processor. What SYCL says of their memory (1.6 of 52 GiB, or all free) is not used."""
    return Device(
        id=id,
        index=index,
        name=_name(card, None),
        api="sycl",
        total_bytes=host.total_bytes,
        free_bytes=host.available_bytes,
        pool=HOST_POOL,
        vendor="intel",
        integrated=True,
        notes=("shares RAM", ONE_ALLOCATION),
    )


def _name(card: drm.Card, total: int | None) -> str:
    profile = profile_of("", total, card.pci_id) if total is not None else None
    if profile is not None:
        return str(profile.table["name"])
    return printable(f"Intel {'Graphics' if total is None else 'GPU'} {card.device_id:04x}")


def _used_by_xpu_smi(system: System, index: int) -> int | None:
    """Bytes in use by `xpu-smi stats`, which answers in MiB."""
    import json

    try:
        table = json.loads(system.tool("xpu-smi", "stats", "-d", str(index), "-j"))
        rows = table["device_level"]
        values = {row["metrics_type"]: row for row in rows}
        used = values["XPUM_STATS_MEMORY_USED"]["value"]
        n_mib = used if isinstance(used, int) else number(str(used))
        return None if n_mib is None else int(n_mib) * MIB
    except (ToolError, ValueError, KeyError, TypeError, RecursionError):
        return None
