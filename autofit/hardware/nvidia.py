"""NVIDIA devices through the driver's management library, in the order in which CUDA numbers them.

Every question goes through `Nvml.ask`, which tells the ways apart in which NVML declines. Where the library
does not answer, `nvidia-smi` and then `/proc/driver/nvidia` are asked.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from autofit.domain.machine import HOST_POOL, Device, Holder, Host, Link
from autofit.domain.text import printable
from autofit.hardware import nvidia_smi, visible
from autofit.hardware.facts import Facts, enrich, holder, pcie_bytes_per_s, unseen_holders
from autofit.hardware.system import MAX_NUMBER, System, ToolError

REASONS = {
    1: "not initialised",
    2: "invalid argument",
    3: "not supported",
    4: "no permission",
    6: "not found",
    9: "driver not loaded",
    10: "timeout",
    12: "library not found",
    13: "missing symbol",
    15: "lost",
    16: "reset required",
    17: "blocked by the operating system",
    18: "driver mismatch",
    25: "version mismatch",
    28: "not found",
}  #: NVML's error numbers, in words; any other is "unknown error"
UNUSABLE = ("lost", "reset required")
REMEDIES = {
    "driver mismatch": "the driver was updated under a loaded one: reboot, or reload the kernel module",
    "driver not loaded": "the kernel module is not loaded: `modprobe nvidia`, or install the driver",
    "no permission": "this user may not open /dev/nvidia*: check groups, or how the container was started",
    "library not found": "no NVIDIA driver library is installed here",
}
CORES_PER_SM = {(6, 0): 64, (7, 0): 64, (7, 2): 64, (7, 5): 64, (8, 0): 64}  #: all others: 128
NVLINK_BYTES_PER_S = {1: 20_000_000_000, 5: 14_062_500_000, 7: 50_000_000_000}
#: one link, one direction, by NVML's number of the version (5 is GA102's); all others: 25 GB/s
MAX_DEVICES = 64
MAX_NVLINKS = 18
EXCLUSIVE, PROHIBITED = 3, 2  #: compute modes
WDDM = 0
VGPU = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """A value, or why there is none (a word of `REASONS`)."""

    value: Any = None
    reason: str | None = None


class Nvml:
    """NVML behind one question."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def ask(self, function: str, *arguments: Any) -> Answer:
        """Call one function of NVML. Never raises: a library older than the function is an answer too."""
        try:
            return Answer(getattr(self._module, function)(*arguments))
        except AttributeError:
            return Answer(reason="missing symbol")
        except TypeError:
            return Answer(reason="version mismatch")  # an nvidia-ml-py older than an argument
        except UnicodeDecodeError:
            return Answer(reason="unknown error")
        except Exception as error:  # NVMLError, whose class is only known to the module itself
            code = getattr(error, "value", None)
            if not isinstance(code, int):
                return Answer(reason=f"unknown error ({type(error).__name__})")
            return Answer(reason=REASONS.get(code, "unknown error"))

    def constant(self, name: str) -> Any:
        return getattr(self._module, name, None)

    def text(self, function: str, *arguments: Any) -> str | None:
        value = self.ask(function, *arguments).value
        if isinstance(value, bytes):  # nvidia-ml-py before 11.515
            value = value.decode("utf-8", "replace")
        return printable(value) if isinstance(value, str) and value else None

    def int(self, function: str, *arguments: Any) -> int | None:
        value = self.ask(function, *arguments).value
        return value if isinstance(value, int) and 0 <= value <= MAX_NUMBER else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Card:
    """A physical GPU or a MIG instance, before the environment chooses."""

    device: Device
    pci: str
    speed: int  #: what CUDA's "fastest first" goes by, as well as it can be known
    sources: dict[str, str]
    migs: tuple[_Card, ...] = ()
    mig_enabled: bool = False
    old_name: str | None = None


def find(system: System, host: Host) -> Facts:
    """The NVIDIA devices that CUDA will show to a process started from here."""
    try:
        module = system.load_nvml()
    except ToolError as cause:
        return _without_nvml(system, host, str(cause))
    nvml = Nvml(module)
    start = nvml.ask("nvmlInit")
    if start.reason is not None:
        return _without_nvml(system, host, f"NVML: {start.reason}", start.reason)
    try:
        return _through_nvml(system, host, nvml)
    finally:
        nvml.ask("nvmlShutdown")


def _through_nvml(system: System, host: Host, nvml: Nvml) -> Facts:
    findings: list[str] = []
    cards: list[_Card] = []
    seen: set[str] = set()
    count = nvml.ask("nvmlDeviceGetCount")
    if not isinstance(count.value, int):
        return _without_nvml(
            system, host, f"NVML: the number of devices is unknown ({count.reason})", count.reason
        )
    for index in range(min(count.value, MAX_DEVICES)):
        handle = nvml.ask("nvmlDeviceGetHandleByIndex", index)
        if handle.reason is not None:
            findings.append(f"NVIDIA device {index} cannot be used: {_why(handle.reason)}")
            continue
        pci = _pci(nvml, handle.value)
        if pci:
            seen.add(pci)
        card = _card(system, host, nvml, handle.value, index, pci, findings)
        if card is not None:
            cards.append(card)
    cards = _cuda_order(system, cards, findings)
    chosen = _choose(system, cards, findings)
    devices, sources = _number(chosen)
    links = _nvlinks(nvml, devices, [card.pci for card in chosen]) if len(chosen) > 1 else ()
    return Facts(
        devices=devices, links=links, findings=tuple(findings), sources=sources, seen=frozenset(seen)
    )


def _why(reason: str) -> str:
    return f"{reason}; {REMEDIES[reason]}" if reason in REMEDIES else reason


def _card(
    system: System, host: Host, nvml: Nvml, handle: Any, index: int, pci: str, findings: list[str]
) -> _Card | None:
    """One physical GPU; `None` if it cannot be used."""
    name = nvml.text("nvmlDeviceGetName", handle) or f"NVIDIA device {index}"
    memory = _memory(nvml, handle)
    if memory.reason in UNUSABLE:
        findings.append(f"{name} ({pci or index}) cannot be used: {memory.reason}")
        return None
    if nvml.int("nvmlDeviceGetComputeMode", handle) == PROHIBITED:
        findings.append(
            f"{name} ({pci or index}) cannot be used: compute mode prohibited; `nvidia-smi -c 0` lifts that"
        )
        return None
    id = f"cuda{index}"
    capability = nvml.ask("nvmlDeviceGetCudaComputeCapability", handle).value
    cc = (
        (int(capability[0]), int(capability[1]))
        if isinstance(capability, (tuple, list)) and len(capability) == 2
        else None
    )
    cores = nvml.int("nvmlDeviceGetNumGpuCores", handle)
    n_sm = cores // CORES_PER_SM.get(cc, 128) if cores and cc else None
    clock = nvml.int("nvmlDeviceGetMaxClockInfo", handle, 1)
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
    mig_mode = nvml.ask("nvmlDeviceGetMigMode", handle).value
    is_mig = isinstance(mig_mode, (list, tuple)) and bool(mig_mode) and mig_mode[0] == 1
    if memory.value is not None:
        device, basis = _with_memory(device, memory.value)
        sources |= basis
    elif memory.reason == "not supported" and not is_mig:
        # GB10 and Jetson: no memory of its own, NVML says so by declining
        device = replace(
            device,
            pool=HOST_POOL,
            integrated=True,
            total_bytes=host.total_bytes,
            free_bytes=host.available_bytes,
        )
        notes.append("unified memory: the pool is main memory")
        sources |= {
            f"{id}.total_bytes": "derived: main memory",
            f"{id}.free_bytes": "derived: main memory available",
        }
    elif not is_mig:
        findings.append(
            f"{name}: free memory is unknown ({_why(memory.reason or 'unknown error')}); --on states it"
        )
    notes += _notes(system, nvml, handle)
    device, known = enrich(replace(device, notes=tuple(notes)))
    sources |= known
    if device.bandwidth_bytes_per_s is None and (rate := _bandwidth(nvml, handle)) is not None:
        device = replace(device, bandwidth_bytes_per_s=rate)
        sources[f"{id}.bandwidth_bytes_per_s"] = "derived: NVML, bus width x memory clock x 2"
    if link is not None:
        device = replace(device, link_bytes_per_s=link)
        sources[f"{id}.link_bytes_per_s"] = link_source
    device = _with_holders(system, nvml, handle, device, memory)
    migs = tuple(_mig_instances(system, nvml, handle, device, pci, findings)) if is_mig else ()
    if is_mig and not migs:
        findings.append(
            f"{name} ({pci or index}) is in MIG mode without an instance: CUDA shows nothing of it"
        )
        return None
    return _Card(
        device=device,
        pci=pci,
        speed=(cores or 0) * (clock or 0),
        sources=sources,
        migs=migs,
        mig_enabled=is_mig,
    )


def _memory(nvml: Nvml, handle: Any) -> Answer:
    """The memory of a device; version 2 tells what the driver keeps, version 1 counts that as used."""
    version = nvml.constant("nvmlMemory_v2")
    answer = (
        nvml.ask("nvmlDeviceGetMemoryInfo", handle, version)
        if version is not None
        else Answer(reason="missing symbol")
    )
    if answer.reason in ("missing symbol", "version mismatch", "invalid argument"):
        answer = nvml.ask("nvmlDeviceGetMemoryInfo", handle)
    total = getattr(answer.value, "total", None)
    if answer.value is not None and (not isinstance(total, int) or not 0 < total <= MAX_NUMBER):
        return Answer(reason="not supported")
    return answer


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


def _pci(nvml: Nvml, handle: Any) -> str:
    """`0000:01:00.0`, as sysfs writes it."""
    info = nvml.ask("nvmlDeviceGetPciInfo", handle).value
    text = getattr(info, "busId", b"")
    text = text.decode("ascii", "replace") if isinstance(text, bytes) else str(text)
    return pci_address(text)


def pci_address(text: str) -> str:
    """NVML's `00000000:01:00.0` and sysfs' `0000:01:00.0` in one spelling; empty for anything else."""
    match = re.fullmatch(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", text.strip().lower())
    return f"{(match[1] or '0000')[-4:]}:{match[2]}:{match[3]}.{match[4]}" if match else ""


def _link(nvml: Nvml, handle: Any, notes: list[str]) -> tuple[int | None, str]:
    """Bytes per second to the host. An idle card lowers the generation, never the width."""
    generation = nvml.int("nvmlDeviceGetMaxPcieLinkGeneration", handle)
    lanes = nvml.int("nvmlDeviceGetCurrPcieLinkWidth", handle)
    most = nvml.int("nvmlDeviceGetMaxPcieLinkWidth", handle)
    if lanes and most and lanes < most:
        notes.append(f"PCIe x{lanes} in use, x{most} possible")
    if generation and lanes:
        now = nvml.int("nvmlDeviceGetCurrPcieLinkGeneration", handle)
        at_rest = f", generation {now} at rest" if now and now < generation else ""
        return pcie_bytes_per_s(generation, lanes), f"derived: NVML, PCIe {generation}.0 x{lanes}{at_rest}"
    return None, ""


def _bandwidth(nvml: Nvml, handle: Any) -> int | None:
    width = nvml.int("nvmlDeviceGetMemoryBusWidth", handle)
    clock = nvml.int("nvmlDeviceGetMaxClockInfo", handle, 2)
    return width * clock * 1_000_000 * 2 // 8 if width and clock else None


def _notes(system: System, nvml: Nvml, handle: Any) -> Iterator[str]:
    if nvml.int("nvmlDeviceGetVirtualizationMode", handle) == VGPU:
        yield "vGPU: a slice of a card that others share; its speed is theirs too"
    model = nvml.ask("nvmlDeviceGetDriverModel", handle).value
    current = model[0] if isinstance(model, (list, tuple)) and model else model
    if is_wsl(system) or (system.platform == "win32" and current == WDDM):
        yield "WDDM: what exceeds free memory spills into main memory, slowly and without an error"
    ecc = nvml.ask("nvmlDeviceGetEccMode", handle).value
    if isinstance(ecc, (list, tuple)) and ecc and ecc[0] == 1:
        yield "ECC on"


def is_wsl(system: System) -> bool:
    return (
        system.exists("/dev/dxg") or "microsoft" in (system.text("/proc/sys/kernel/osrelease") or "").lower()
    )


def _with_holders(system: System, nvml: Nvml, handle: Any, device: Device, memory: Answer) -> Device:
    """Who holds memory. WDDM does not say how much; a container does not see the others' processes."""
    held: dict[int, Holder] = {}
    for function in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
        for process in nvml.ask(function, handle).value or ():
            used = getattr(process, "usedGpuMemory", None)
            held[process.pid] = holder(
                system, process.pid, used if isinstance(used, int) and used < 1 << 50 else None
            )
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
) -> Iterator[_Card]:
    """MIG instances as devices of their own. Their parent may refuse every question inside a container."""
    for index in range(min(nvml.int("nvmlDeviceGetMaxMigDeviceCount", parent) or 0, 8)):
        handle = nvml.ask("nvmlDeviceGetMigDeviceHandleByIndex", parent, index)
        if handle.reason is not None:
            continue  # a slot without an instance
        memory = _memory(nvml, handle.value)
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
            why = _why(memory.reason or "unknown error")
            findings.append(f"{device.name}: free memory is unknown ({why}); --on states it")
        slices = getattr(attributes, "memorySizeMB", None)
        whole = card.total_bytes or _total_of(card)
        part = device.total_bytes or (slices << 20 if isinstance(slices, int) else None)
        if part and whole and card.bandwidth_bytes_per_s:
            device = replace(
                device, bandwidth_bytes_per_s=int(card.bandwidth_bytes_per_s * min(1.0, part / whole))
            )
            sources[f"{id}.bandwidth_bytes_per_s"] = "derived: the card's, by the share of memory"
        device = _with_holders(system, nvml, handle.value, device, memory)
        numbers = [nvml.int(f"nvmlDeviceGet{what}InstanceId", handle.value) for what in ("Gpu", "Compute")]
        old_name = None if None in numbers else f"MIG-{card.uuid}/{numbers[0]}/{numbers[1]}"
        yield _Card(device=device, pci=pci, speed=0, sources=sources, old_name=old_name)


def _total_of(card: Device) -> int | None:
    """The whole card's memory by its profile, where the parent refuses to tell."""
    from autofit.hardware import catalog

    profile = catalog.profile_of(card.name, None)
    return profile.table.get("memory_total_bytes") if profile else None


def _cuda_order(system: System, cards: list[_Card], findings: list[str]) -> list[_Card]:
    """CUDA's own order: fastest first unless told to go by the bus."""
    by_bus = sorted(cards, key=lambda card: card.pci)
    order = system.env.get("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    if order == "PCI_BUS_ID" or len({card.device.name for card in cards}) < 2:
        return by_bus
    ordered = sorted(by_bus, key=lambda card: -card.speed)
    listed = ", ".join(card.device.name for card in ordered)
    findings.append(
        f"CUDA numbers unlike cards fastest first: {listed}, we think; CUDA_DEVICE_ORDER=PCI_BUS_ID is sure"
    )
    return ordered


def _choose(system: System, cards: Sequence[_Card], findings: list[str]) -> list[_Card]:
    """What `CUDA_VISIBLE_DEVICES` leaves, in its order."""
    text = system.env.get("CUDA_VISIBLE_DEVICES")
    instances = [mig for card in cards for mig in card.migs]
    if text is not None and text.strip().upper().startswith("MIG-"):
        picked = visible.select(
            "CUDA_VISIBLE_DEVICES", _new_mig_names(text, instances), [mig.device.uuid for mig in instances]
        )
        chosen = [instances[i] for i in picked.chosen]
    else:
        picked = visible.select("CUDA_VISIBLE_DEVICES", text, [card.device.uuid for card in cards])
        whole = [cards[i] for i in picked.chosen]
        chosen = [device for card in whole for device in (card.migs if card.mig_enabled else (card,))]
    if picked.problem:
        findings.append(picked.problem)
    if any("MIG instance" in card.device.notes for card in chosen) and len(chosen) > 1:
        first = next(card for card in chosen if "MIG instance" in card.device.notes)
        others = ", ".join(f"{card.device.name} ({card.device.uuid})" for card in chosen if card is not first)
        findings.append(
            f"CUDA sees one MIG instance: {first.device.name}; CUDA_VISIBLE_DEVICES chooses another: {others}"
        )
        chosen = [first]
    return chosen


def _new_mig_names(text: str, instances: Sequence[_Card]) -> str:
    """The list with `MIG-GPU-<uuid>/<instance>/<compute instance>` (before driver 470) spelt anew."""
    renamed = {mig.old_name.lower(): mig.device.uuid for mig in instances if mig.old_name}
    return ",".join(renamed.get(entry.strip().lower()) or entry for entry in text.split(","))


def _number(chosen: Sequence[_Card]) -> tuple[tuple[Device, ...], dict[str, str]]:
    devices: list[Device] = []
    sources: dict[str, str] = {}
    for index, card in enumerate(chosen):
        old, new = card.device.id, f"CUDA{index}"
        pool = HOST_POOL if card.device.pool == HOST_POOL else new
        devices.append(replace(card.device, id=new, index=index, pool=pool))
        sources |= {f"{new}.{key.removeprefix(old + '.')}": basis for key, basis in card.sources.items()}
    return tuple(devices), sources


def _nvlinks(nvml: Nvml, devices: Sequence[Device], addresses: Sequence[str]) -> tuple[Link, ...]:
    """NVLink between the chosen devices. Through a switch, each reaches each with all of its links."""
    speed: dict[tuple[int, int], int] = {}
    total: dict[int, int] = {}
    for i, device in enumerate(devices):
        handle = nvml.ask("nvmlDeviceGetHandleByUUID", device.uuid).value if device.uuid else None
        if handle is None:
            continue
        for lane in range(MAX_NVLINKS):
            state = nvml.ask("nvmlDeviceGetNvLinkState", handle, lane)
            if state.reason is not None:
                break  # no such link: neither are those after it
            if not state.value:
                continue
            version = nvml.int("nvmlDeviceGetNvLinkVersion", handle, lane)
            rate = NVLINK_BYTES_PER_S.get(version or 0, 25_000_000_000)
            remote = nvml.ask("nvmlDeviceGetNvLinkRemotePciInfo", handle, lane).value
            bus = getattr(remote, "busId", b"")
            peer = pci_address(bus.decode("ascii", "replace") if isinstance(bus, bytes) else str(bus))
            if peer in addresses:
                key = (min(i, addresses.index(peer)), max(i, addresses.index(peer)))
                speed[key] = speed.get(key, 0) + rate
            else:
                total[i] = total.get(i, 0) + rate
    links = [
        Link(a=devices[i].id, b=devices[j].id, kind="NVLink", bytes_per_s=rate // 2)
        for (i, j), rate in sorted(speed.items())
        if i != j
    ]
    links += [
        Link(a=devices[i].id, b=devices[j].id, kind="NVLink switch", bytes_per_s=min(total[i], total[j]))
        for i, j in combinations(sorted(total), 2)
    ]
    return tuple(links)


def _without_nvml(system: System, host: Host, why: str, reason: str | None = None) -> Facts:
    """What can still be said when NVML does not answer."""
    cards = list(_proc_cards(system))
    seen = frozenset(pci for _, _, pci in cards)
    if reason == "driver mismatch":
        # CUDA fails for the same cause, so the cards are there but of no use
        names = ", ".join(name for name, _, _ in cards) or "NVIDIA devices"
        return Facts(findings=(f"{names} cannot be used: {_why(reason)}",), seen=seen)
    tegra = _tegra(system, host)
    if tegra is not None:
        return tegra
    findings: list[str] = []
    with contextlib.suppress(ToolError):
        found = nvidia_smi.read(system, host)
        if found:
            enriched = [enrich(device) for device in found]
            listed = [
                _Card(device=device, pci="", speed=0, sources={**known, **_smi_sources(device)})
                for device, known in enriched
            ]
            devices, sources = _number(_choose(system, _cuda_order(system, listed, findings), findings))
            unknown = [device.name for device in devices if device.free_bytes is None]
            findings += [f"{name}: free memory is unknown; --on states it" for name in unknown]
            return Facts(devices=devices, findings=tuple(findings), sources=sources, seen=seen)
    if not cards:
        known = reason in REMEDIES and reason != "library not found"
        return Facts(findings=(f"{why}; {REMEDIES[reason or '']}",) if known else ())
    return unanswered(system, why)


def unanswered(system: System, why: str) -> Facts:
    """The kernel module's cards, where nothing tells their memory: a plan must not pass them over."""
    findings: list[str] = []
    named: list[_Card] = []
    for index, (name, uuid, pci) in enumerate(_proc_cards(system)):
        card = Device(
            id=f"cuda{index}",
            index=index,
            name=name,
            api="cuda",
            total_bytes=None,
            free_bytes=None,
            vendor="nvidia",
            uuid=uuid,
        )
        device, sources = enrich(card)
        named.append(_Card(device=device, pci=pci, speed=0, sources=sources))
        findings.append(
            f"{name}: its memory is unknown ({why}); --on {device.profile or 'NAME'}:SIZE states it"
        )
    devices, sources = _number(_choose(system, named, findings))
    seen = frozenset(card.pci for card in named)
    return Facts(devices=devices, findings=tuple(findings), sources=sources, seen=seen)


def _smi_sources(device: Device) -> dict[str, str]:
    return {f"{device.id}.{what}_bytes": "measured: nvidia-smi" for what in ("total", "free", "reserved")}


def _proc_cards(system: System) -> Iterator[tuple[str, str | None, str]]:
    """Name, UUID and address of each card the kernel module drives."""
    for pci in system.names("/proc/driver/nvidia/gpus"):
        text = system.text(f"/proc/driver/nvidia/gpus/{pci}/information") or ""
        fields = {
            key.strip(): value.strip()
            for key, _, value in (line.partition(":") for line in text.splitlines())
        }
        uuid = fields.get("GPU UUID", "")
        yield (
            printable(fields.get("Model") or "NVIDIA device"),
            uuid if re.fullmatch(r"GPU-[0-9a-f-]+", uuid) else None,
            pci_address(pci),
        )


TEGRA = {
    "tegra194": (7, 2),
    "tegra234": (8, 7),
    "tegra264": (11, 0),
}  #: Xavier, Orin, Thor: compute capability


def _tegra(system: System, host: Host) -> Facts | None:
    """A Jetson, which has no NVML before JetPack 6: the device tree names the chip; memory is main memory."""
    compatible = system.text("/proc/device-tree/compatible") or ""
    chip = next((chip for chip in TEGRA if f"nvidia,{chip}" in compatible), None)
    if chip is None:
        return None
    name = printable((system.text("/proc/device-tree/model") or "NVIDIA Jetson").strip("\0 "))
    device = Device(
        id="CUDA0",
        index=0,
        name=name,
        api="cuda",
        total_bytes=host.total_bytes,
        free_bytes=host.available_bytes,
        pool=HOST_POOL,
        vendor="nvidia",
        integrated=True,
        compute_capability=TEGRA[chip],
        notes=("unified memory: the pool is main memory",),
    )
    device, sources = enrich(device)
    sources |= {
        "CUDA0.total_bytes": "derived: main memory",
        "CUDA0.free_bytes": "derived: main memory available",
    }
    return Facts(devices=(device,), sources=sources)
