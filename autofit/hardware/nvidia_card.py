"""One NVIDIA GPU, or its MIG instances, as NVML describes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from autofit.domain.machine import HOST_POOL, Device, Holder, Host
from autofit.domain.values import dataclass, replace
from autofit.hardware import catalog
from autofit.hardware.facts import enrich, holder, pcie_bytes_per_s, unseen_holders
from autofit.hardware.nvml import UNUSABLE, Answer, Nvml, memory_of, why_not
from autofit.hardware.system import System

CORES_PER_SM = {(6, 0): 64, (7, 0): 64, (7, 2): 64, (7, 5): 64, (8, 0): 64}  #: all others: 128
PROHIBITED = 2  #: compute mode
WDDM = 0
VGPU = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A physical GPU or a MIG instance, before the environment chooses."""

    device: Device
    pci: str
    speed: int  #: what CUDA's "fastest first" goes by, as well as it can be known
    sources: dict[str, str]
    migs: tuple[Card, ...] = ()
    mig_enabled: bool = False
    old_name: str | None = None


def read_card(
    system: System, host: Host, nvml: Nvml, handle: Any, index: int, pci: str, findings: list[str]
) -> Card | None:
    """One physical GPU; `None` if it cannot be used."""
    name = nvml.text("nvmlDeviceGetName", handle) or f"NVIDIA device {index}"
    memory = memory_of(nvml, handle)
    if (reason := _unusable(nvml, handle, memory)) is not None:
        findings.append(f"{name} ({pci or index}) cannot be used: {reason}")
        return None
    id = f"cuda{index}"
    cc = _capability(nvml, handle)
    cores = nvml.number("nvmlDeviceGetNumGpuCores", handle)
    n_sm = cores // CORES_PER_SM.get(cc, 128) if cores and cc else None
    clock = nvml.number("nvmlDeviceGetMaxClockInfo", handle, 1)
    notes: list[str] = []
    link, link_source = _link(nvml, handle, notes)
    device = Device(
        id=id,
        index=index,
        name=name,
        api="cuda",
        total_bytes=None,
        free_bytes=None,
        vendor="nvidia",
        uuid=nvml.text("nvmlDeviceGetUUID", handle),
        compute_capability=cc,
        n_sm=n_sm,
    )
    sources: dict[str, str] = {f"{id}.n_sm": "derived: NVML, cores"} if n_sm else {}
    is_mig = _is_mig(nvml, handle)
    if memory.value is not None:
        device, basis = _with_memory(device, memory.value)
        sources |= basis
    elif memory.reason == "not supported" and not is_mig:
        # GB10 and Jetson: no memory of its own, NVML says so by declining
        device, basis = _with_ram(device, host)
        notes.append("unified memory: the pool is RAM")
        sources |= basis
    elif not is_mig:
        why = why_not(memory.reason or "unknown error")
        findings.append(f"{name}: free memory is unknown ({why}); --on NAME:SIZE states it")
    notes += _notes(system, nvml, handle)
    device, basis = _with_rates(nvml, handle, replace(device, notes=tuple(notes)))
    sources |= basis
    if link is not None:
        device = replace(device, link_bytes_per_s=link)
        sources[f"{id}.link_bytes_per_s"] = link_source
    device = _with_holders(system, nvml, handle, device, memory)
    migs = tuple(_mig_instances(system, nvml, handle, device, pci, findings)) if is_mig else ()
    if is_mig and not migs:
        findings.append(f"{name} ({pci or index}) is in MIG mode without an instance: CUDA shows nothing of it")
        return None
    return Card(
        device=device,
        pci=pci,
        speed=(cores or 0) * (clock or 0),
        sources=sources,
        migs=migs,
        mig_enabled=is_mig,
    )


def _unusable(nvml: Nvml, handle: Any, memory: Answer) -> str | None:
    """Why nothing can run on a GPU; `None`: it can."""
    if memory.reason in UNUSABLE:
        return memory.reason
    if nvml.number("nvmlDeviceGetComputeMode", handle) == PROHIBITED:
        return "compute mode prohibited; `nvidia-smi -c 0` lifts that"
    return None


def _capability(nvml: Nvml, handle: Any) -> tuple[int, int] | None:
    found = nvml.ask("nvmlDeviceGetCudaComputeCapability", handle).value
    return (int(found[0]), int(found[1])) if isinstance(found, (tuple, list)) and len(found) == 2 else None


def _is_mig(nvml: Nvml, handle: Any) -> bool:
    mode = nvml.ask("nvmlDeviceGetMigMode", handle).value
    return isinstance(mode, (list, tuple)) and bool(mode) and mode[0] == 1


def _with_rates(nvml: Nvml, handle: Any, device: Device) -> tuple[Device, dict[str, str]]:
    """The device with what its profile says, or the driver of its bandwidth where there is none."""
    device, sources = enrich(device)
    if device.bandwidth_bytes_per_s is None and (rate := _bandwidth(nvml, handle)) is not None:
        device = replace(device, bandwidth_bytes_per_s=rate)
        sources = {**sources, f"{device.id}.bandwidth_bytes_per_s": "derived: NVML, bus width x memory clock x 2"}
    return device, sources


def _with_ram(device: Device, host: Host) -> tuple[Device, dict[str, str]]:
    """The device on a machine of one memory."""
    shared = replace(
        device, pool=HOST_POOL, integrated=True, total_bytes=host.total_bytes, free_bytes=host.available_bytes
    )
    basis = {f"{device.id}.total_bytes": "derived: RAM", f"{device.id}.free_bytes": "derived: RAM available"}
    return shared, basis


def _with_memory(device: Device, memory: Any) -> tuple[Device, dict[str, str]]:
    total, free = int(memory.total), int(memory.free)
    reserved = getattr(memory, "reserved", None)
    reserved = int(reserved) if isinstance(reserved, int) and 0 <= reserved < total else None
    device = replace(
        device,
        total_bytes=total,
        free_bytes=max(0, min(free, total - (reserved or 0))),
        reserved_bytes=reserved,
    )
    return device, {f"{device.id}.{what}_bytes": "measured: NVML" for what in ("total", "free", "reserved")}


def _link(nvml: Nvml, handle: Any, notes: list[str]) -> tuple[int | None, str]:
    """Bytes per second to the host. An idle card lowers the generation, never the width."""
    generation = nvml.number("nvmlDeviceGetMaxPcieLinkGeneration", handle)
    lanes = nvml.number("nvmlDeviceGetCurrPcieLinkWidth", handle)
    most = nvml.number("nvmlDeviceGetMaxPcieLinkWidth", handle)
    if lanes and most and lanes < most:
        notes.append(f"PCIe x{lanes} in use, x{most} possible")
    if generation and lanes:
        now = nvml.number("nvmlDeviceGetCurrPcieLinkGeneration", handle)
        at_rest = f", generation {now} at rest" if now and now < generation else ""
        return pcie_bytes_per_s(generation, lanes), f"derived: NVML, PCIe {generation}.0 x{lanes}{at_rest}"
    return None, ""


def _bandwidth(nvml: Nvml, handle: Any) -> int | None:
    width = nvml.number("nvmlDeviceGetMemoryBusWidth", handle)
    clock = nvml.number("nvmlDeviceGetMaxClockInfo", handle, 2)
    return width * clock * 1_000_000 * 2 // 8 if width and clock else None


def _notes(system: System, nvml: Nvml, handle: Any) -> Iterator[str]:
    if nvml.number("nvmlDeviceGetVirtualizationMode", handle) == VGPU:
        yield "vGPU: a slice of a shared card; its speed is shared too"
    model = nvml.ask("nvmlDeviceGetDriverModel", handle).value
    current = model[0] if isinstance(model, (list, tuple)) and model else model
    if is_wsl(system) or (system.platform == "win32" and current == WDDM):
        yield "WDDM: allocations beyond free memory go to RAM, slowly and without an error"
    ecc = nvml.ask("nvmlDeviceGetEccMode", handle).value
    if isinstance(ecc, (list, tuple)) and ecc and ecc[0] == 1:
        yield "ECC on"


def is_wsl(system: System) -> bool:
    return system.exists("/dev/dxg") or "microsoft" in (system.text("/proc/sys/kernel/osrelease") or "").lower()


def _with_holders(system: System, nvml: Nvml, handle: Any, device: Device, memory: Answer) -> Device:
    """Who holds memory. WDDM does not say how much; a container does not see the others' processes."""
    held: dict[int, Holder] = {}
    for function in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
        for process in nvml.ask(function, handle).value or ():
            used = getattr(process, "usedGpuMemory", None)
            held[process.pid] = holder(system, process.pid, used if isinstance(used, int) and used < 1 << 50 else None)
    device = replace(device, held_by=tuple(sorted(held.values(), key=lambda h: -(h.used_bytes or 0))))
    if (
        memory.value is not None
        and device.total_bytes is not None
        and device.free_bytes is not None
        and not is_wsl(system)
    ):
        used_bytes = device.total_bytes - (device.reserved_bytes or 0) - device.free_bytes
        # version 1 of the memory question counts the driver's own part as used
        note = unseen_holders(device, used_bytes) if device.reserved_bytes is not None else None
        if note:
            device = replace(device, notes=(*device.notes, note))
    return device


def _mig_instances(
    system: System, nvml: Nvml, parent: Any, card: Device, pci: str, findings: list[str]
) -> Iterator[Card]:
    """MIG instances as devices of their own. Their parent may refuse every question inside a container."""
    for index in range(min(nvml.number("nvmlDeviceGetMaxMigDeviceCount", parent) or 0, 8)):
        handle = nvml.ask("nvmlDeviceGetMigDeviceHandleByIndex", parent, index)
        if handle.reason is not None:
            continue  # a slot without an instance
        memory = memory_of(nvml, handle.value)
        attributes = nvml.ask("nvmlDeviceGetAttributes", handle.value).value
        n_sm = getattr(attributes, "multiprocessorCount", None)
        name = nvml.text("nvmlDeviceGetName", handle.value) or card.name
        id = f"{card.id}.{index}"
        device = Device(
            id=id,
            index=index,
            name=name if "MIG" in name else f"{name} MIG {index}",
            api="cuda",
            total_bytes=None,
            free_bytes=None,
            vendor="nvidia",
            uuid=nvml.text("nvmlDeviceGetUUID", handle.value),
            profile=card.profile,
            compute_capability=card.compute_capability,
            n_sm=n_sm if isinstance(n_sm, int) else None,
            link_bytes_per_s=card.link_bytes_per_s,
            notes=("MIG instance", *card.notes),
        )
        sources: dict[str, str] = {}
        if memory.value is not None:
            device, sources = _with_memory(device, memory.value)
        else:
            why = why_not(memory.reason or "unknown error")
            findings.append(f"{device.name}: free memory is unknown ({why}); --on NAME:SIZE states it")
        slices = getattr(attributes, "memorySizeMB", None)
        whole = card.total_bytes or _total_of(card)
        part = device.total_bytes or (slices << 20 if isinstance(slices, int) else None)
        if part and whole and card.bandwidth_bytes_per_s:
            device = replace(device, bandwidth_bytes_per_s=int(card.bandwidth_bytes_per_s * min(1.0, part / whole)))
            sources[f"{id}.bandwidth_bytes_per_s"] = "derived: the card's, by the share of memory"
        device = _with_holders(system, nvml, handle.value, device, memory)
        numbers = [nvml.number(f"nvmlDeviceGet{what}InstanceId", handle.value) for what in ("Gpu", "Compute")]
        old_name = None if None in numbers else f"MIG-{card.uuid}/{numbers[0]}/{numbers[1]}"
        yield Card(device=device, pci=pci, speed=0, sources=sources, old_name=old_name)


def _total_of(card: Device) -> int | None:
    """The whole card's memory by its profile, where the parent refuses to tell."""
    profile = catalog.profile_of(card.name, None)
    return profile.table.get("memory_total_bytes") if profile else None
