"""AMD devices from sysfs and the KFD topology, in ROCm's order; AMD's own tools where sysfs is hidden.

Memory is what the kernel driver counts, never what a name suggests. On an APU the driver serves an engine
either from the carve-out or from RAM (GTT), whichever is larger (amdgpu_ttm.c:amdgpu_ttm_init,
`apu_prefer_gtt`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from autofit.domain.machine import HOST_POOL, Device, Host
from autofit.domain.text import printable
from autofit.domain.units import format_bytes
from autofit.domain.values import dataclass, replace
from autofit.hardware import amd_tools, drm, visible
from autofit.hardware.amd_tools import APU_GFX
from autofit.hardware.catalog import profile_of
from autofit.hardware.facts import Facts, enrich, holder, unseen_holders
from autofit.hardware.system import System

IDS_FILES = ("/usr/share/libdrm/amdgpu.ids", "/opt/amdgpu/share/libdrm/amdgpu.ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """A GPU of the KFD topology."""

    order: int
    gpu_id: int
    gfx: str | None
    n_cu: int | None
    unique_id: int
    pci: str


def find(system: System, host: Host) -> Facts:
    """The AMD devices that ROCm will show to a process started from here."""
    cards = list(drm.cards(system, "amdgpu"))
    nodes = {node.pci: node for node in _nodes(system)}
    findings: list[str] = []
    found: list[tuple[int, Device, dict[str, str]]] = []
    for position, card in enumerate(cards):
        node = nodes.get(card.pci)
        device, sources = _device(system, host, card, node, position)
        if device is None:
            findings.append(f"AMD device {card.pci} ({card.pci_id}): its driver reports no memory figures")
            continue
        found.append((node.order if node else 1000 + position, device, sources))
    if not found and system.exists("/dev/kfd"):
        for position, (device, sources) in enumerate(amd_tools.find(system, host, findings)):
            found.append((position, device, sources))
    found.sort(key=lambda item: item[0])
    chosen = _choose(system, [device for _, device, _ in found], findings)
    devices, sources = [], {}
    for index, i in enumerate(chosen):
        _, device, known = found[i]
        new = f"ROCm{index}"
        devices.append(replace(device, id=new, index=index, pool=HOST_POOL if device.pool == HOST_POOL else new))
        sources |= {f"{new}.{key.removeprefix(device.id + '.')}": basis for key, basis in known.items()}
    return Facts(
        devices=tuple(devices),
        findings=tuple(findings),
        sources=sources,
        seen=frozenset(card.pci for card in cards),
    )


def _device(
    system: System, host: Host, card: drm.Card, node: _Node | None, position: int
) -> tuple[Device | None, dict[str, str]]:
    vram = system.number(f"{card.path}/mem_info_vram_total")
    gtt = system.number(f"{card.path}/mem_info_gtt_total")
    if vram is None:
        return None, {}
    vram_used = system.number(f"{card.path}/mem_info_vram_used")
    id = f"amd{position}"
    notes: list[str] = []
    sources = {f"{id}.{what}_bytes": "measured: sysfs, mem_info_vram" for what in ("total", "free")}
    device = Device(
        id=id,
        index=position,
        name=_name(system, card, node),
        api="rocm",
        total_bytes=vram,
        free_bytes=None if vram_used is None else max(0, vram - vram_used),
        vendor="amd",
        uuid=f"GPU-{node.unique_id:016x}" if node and node.unique_id else None,
        n_sm=node.n_cu if node else None,
    )
    if _is_apu(system, card, node):
        device = replace(device, integrated=True)
        if gtt is not None and vram < gtt:
            gtt_used = system.number(f"{card.path}/mem_info_gtt_used") or 0
            # hipMalloc is not seen in gtt_used on every kernel: RAM that is available bounds it
            free = min(gtt - gtt_used, host.available_bytes) if host.available_bytes is not None else None
            device = replace(device, pool=HOST_POOL, total_bytes=gtt, free_bytes=free)
            notes.append(f"unified memory: the pool is RAM, up to {format_bytes(gtt)} (GTT)")
            if vram > 1 << 30:
                notes.append(f"the carve-out ({format_bytes(vram)}) is unused: make it smaller, or larger than GTT")
            sources = {
                f"{id}.total_bytes": "measured: sysfs, mem_info_gtt",
                f"{id}.free_bytes": "derived: GTT and RAM",
            }
        else:
            notes.append(f"carve-out of {format_bytes(vram)} out of RAM")
    rate, origin, note = drm.link(system, card)
    if note:
        notes.append(note)
    device, known = enrich(replace(device, notes=tuple(notes)), pci_id=card.pci_id)
    sources |= known
    if rate is not None and not device.integrated:
        device = replace(device, link_bytes_per_s=rate)
        sources[f"{id}.link_bytes_per_s"] = origin
    return _with_holders(system, card, node, device, vram_used), sources


def _with_holders(system: System, card: drm.Card, node: _Node | None, device: Device, used: int | None) -> Device:
    held: dict[int, int] = {}
    if node is not None:
        for pid in system.names("/sys/class/kfd/kfd/proc"):
            held[int(pid)] = (
                system.number(f"/sys/class/kfd/kfd/proc/{pid}/vram_{node.gpu_id}") or 0 if pid.isdecimal() else 0
            )
    for pid_, n in (drm.users(system, card.pci) or {}).items():
        held[pid_] = max(n, held.get(pid_, 0))
    holders = (holder(system, pid_, n) for pid_, n in held.items() if n)
    device = replace(device, held_by=tuple(sorted(holders, key=lambda h: -(h.used_bytes or 0))))
    if used is not None and device.pool != HOST_POOL and (note := unseen_holders(device, used)):
        device = replace(device, notes=(*device.notes, note))
    return device


def _is_apu(system: System, card: drm.Card, node: _Node | None) -> bool:
    if node is not None and node.gfx is not None:
        return node.gfx in APU_GFX
    # no KFD (a desktop without ROCm): the metrics table has a layout of its own for APUs
    try:
        with system.path(f"{card.path}/gpu_metrics").open("rb") as file:
            header = file.read(4)
    except OSError:
        return False
    return len(header) == 4 and header[2] in (2, 3)


def _name(system: System, card: drm.Card, node: _Node | None) -> str:
    """The product's name: the board's own, libdrm's list, or the instruction set."""
    if own := (system.text(f"{card.path}/product_name") or "").strip():
        return printable(own, 80)
    revision = system.number(f"{card.path}/revision")
    for path in IDS_FILES:
        for line in (system.text(path) or "").splitlines():
            parts = [part.strip() for part in line.split(",", 2)]
            if (
                len(parts) == 3
                and parts[0].lower() == f"{card.device_id:x}"
                and parts[1].lower() == f"{revision or 0:x}"
            ):
                return printable(parts[2], 80)
    total = system.number(f"{card.path}/mem_info_vram_total")
    profile = profile_of("", total, card.pci_id)
    if profile is not None:
        return str(profile.device_table.get("name", profile.table["name"]))
    return f"AMD {node.gfx if node and node.gfx else card.pci_id}"


def _nodes(system: System) -> Iterator[_Node]:
    for name in sorted(system.names("/sys/class/kfd/kfd/topology/nodes"), key=lambda n: int(n) if n.isdecimal() else 0):
        base = f"/sys/class/kfd/kfd/topology/nodes/{name}"
        text = system.text(f"{base}/properties") or ""
        values = {key: int(value) for key, value in re.findall(r"^(\w+) (\d{1,20})$", text, re.MULTILINE)}
        if not values.get("simd_count"):
            continue  # a processor
        bus, function = divmod(values.get("location_id", 0), 256)
        yield _Node(
            order=int(name) if name.isdecimal() else 0,
            gpu_id=system.number(f"{base}/gpu_id") or 0,
            gfx=gfx_name(values.get("gfx_target_version", 0)),
            n_cu=_n_cu(values["simd_count"], values.get("simd_per_cu", 0)),
            unique_id=values.get("unique_id", 0),
            pci=f"{values.get('domain', 0):04x}:{bus:02x}:{function >> 3:02x}.{function & 7}",
        )


def _n_cu(n_simd: int, per_cu: int) -> int | None:
    return n_simd // per_cu if per_cu and n_simd < 1 << 20 else None


def gfx_name(version: int) -> str | None:
    """KFD's 110501 -> `gfx1151`; 90010 -> `gfx90a`."""
    if not version:
        return None
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"


def _choose(system: System, devices: list[Device], findings: list[str]) -> list[int]:
    """What ROCr and then HIP leave; HIP falls back on CUDA's variable."""
    chosen = list(range(len(devices)))
    hip = "HIP_VISIBLE_DEVICES" if system.env.get("HIP_VISIBLE_DEVICES") is not None else "CUDA_VISIBLE_DEVICES"
    for variable in ("ROCR_VISIBLE_DEVICES", hip):
        text = system.env.get(variable)
        if variable == "CUDA_VISIBLE_DEVICES" and not text:
            continue  # HIP takes an empty one for unset
        picked = visible.select(variable, text, [devices[i].uuid for i in chosen], rocm=True)
        if picked.problem and devices:
            findings.append(picked.problem)
        chosen = [chosen[i] for i in picked.chosen]
    return chosen
