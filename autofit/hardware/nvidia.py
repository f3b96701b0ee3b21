"""NVIDIA devices through the driver's management library, in the order in which CUDA numbers them.

Where the library does not answer, `nvidia-smi` and then `/proc/driver/nvidia` are asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import combinations

from autofit.domain.machine import HOST_POOL, Device, Host, Link
from autofit.domain.text import printable
from autofit.domain.values import replace
from autofit.hardware import nvidia_smi, visible
from autofit.hardware.facts import Facts, enrich
from autofit.hardware.nvidia_card import Card, read_card
from autofit.hardware.nvml import REMEDIES, Nvml, pci_address, pci_of, why_not
from autofit.hardware.programs import ToolError, ToolTimeoutError
from autofit.hardware.system import System

NVLINK_BYTES_PER_S = {1: 20_000_000_000, 5: 14_062_500_000, 7: 50_000_000_000}
#: one link, one direction, by NVML's number of the version (5 is GA102's); all others: 25 GB/s
MAX_DEVICES = 64
MAX_NVLINKS = 18


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
    cards: list[Card] = []
    seen: set[str] = set()
    count = nvml.ask("nvmlDeviceGetCount")
    if not isinstance(count.value, int):
        return _without_nvml(system, host, f"NVML: the number of devices is unknown ({count.reason})", count.reason)
    for index in range(min(count.value, MAX_DEVICES)):
        handle = nvml.ask("nvmlDeviceGetHandleByIndex", index)
        if handle.reason is not None:
            findings.append(f"NVIDIA device {index} cannot be used: {why_not(handle.reason)}")
            continue
        pci = pci_of(nvml, handle.value)
        if pci:
            seen.add(pci)
        card = read_card(system, host, nvml, handle.value, index, pci, findings)
        if card is not None:
            cards.append(card)
    cards = _cuda_order(system, cards, findings)
    chosen = _choose(system, cards, findings)
    devices, sources = _number(chosen)
    links = _nvlinks(nvml, devices, [card.pci for card in chosen]) if len(chosen) > 1 else ()
    return Facts(devices=devices, links=links, findings=tuple(findings), sources=sources, seen=frozenset(seen))


def _cuda_order(system: System, cards: list[Card], findings: list[str]) -> list[Card]:
    """CUDA's own order: fastest first unless told to go by the bus."""
    by_bus = sorted(cards, key=lambda card: card.pci)
    order = system.env.get("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    if order == "PCI_BUS_ID" or len({card.device.name for card in cards}) < 2:
        return by_bus
    ordered = sorted(by_bus, key=lambda card: -card.speed)
    listed = ", ".join(card.device.name for card in ordered)
    findings.append(
        f"CUDA numbers unlike cards fastest first, assumed to be {listed}; "
        "CUDA_DEVICE_ORDER=PCI_BUS_ID makes it certain"
    )
    return ordered


def _choose(system: System, cards: Sequence[Card], findings: list[str]) -> list[Card]:
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


def _new_mig_names(text: str, instances: Sequence[Card]) -> str:
    """The list with `MIG-GPU-<uuid>/<instance>/<compute instance>` (before driver 470) spelt anew."""
    renamed = {mig.old_name.lower(): mig.device.uuid for mig in instances if mig.old_name}
    return ",".join(renamed.get(entry.strip().lower()) or entry for entry in text.split(","))


def _number(chosen: Sequence[Card]) -> tuple[tuple[Device, ...], dict[str, str]]:
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
            version = nvml.number("nvmlDeviceGetNvLinkVersion", handle, lane)
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
        return Facts(findings=(f"{names} cannot be used: {why_not(reason)}",), seen=seen)
    tegra = _tegra(system, host)
    if tegra is not None:
        return tegra
    findings: list[str] = []
    late = None
    try:
        found = nvidia_smi.read(system, host)
        if found:
            enriched = [enrich(device) for device in found]
            listed = [
                Card(
                    device=device,
                    pci="",
                    speed=device.fp16_flops_per_s or 0,
                    sources={**known, **_smi_sources(device)},
                )
                for device, known in enriched
            ]
            devices, sources = _number(_choose(system, _cuda_order(system, listed, findings), findings))
            unknown = [device.name for device in devices if device.free_bytes is None]
            findings += [f"{name}: free memory is unknown; --on NAME:SIZE states it" for name in unknown]
            return Facts(devices=devices, findings=tuple(findings), sources=sources, seen=seen)
    except ToolTimeoutError as cause:
        late = f"{cause}, AUTOFIT_DETECT_SECONDS=5 waits longer"
    except ToolError:
        pass
    if not cards and late:
        return Facts(findings=(f"NVIDIA: {late}",))
    if not cards:
        known = reason in REMEDIES and reason != "library not found"
        return Facts(findings=(f"{why}; {REMEDIES[reason or '']}",) if known else ())
    return unanswered(system, late or why)


def unanswered(system: System, why: str) -> Facts:
    """The kernel module's cards, where nothing tells their memory: a plan must not pass them over."""
    findings: list[str] = []
    named: list[Card] = []
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
        named.append(Card(device=device, pci=pci, speed=0, sources=sources))
        findings.append(f"{name}: its memory is unknown ({why}); --on {device.profile or 'NAME'}:SIZE states it")
    devices, sources = _number(_choose(system, named, findings))
    seen = frozenset(card.pci for card in named)
    return Facts(devices=devices, findings=tuple(findings), sources=sources, seen=seen)


def _smi_sources(device: Device) -> dict[str, str]:
    return {f"{device.id}.{what}_bytes": "measured: nvidia-smi" for what in ("total", "free", "reserved")}


def _proc_cards(system: System) -> Iterator[tuple[str, str | None, str]]:
    """Name, UUID and address of each card the kernel module drives."""
    for pci in system.names("/proc/driver/nvidia/gpus"):
        text = system.text(f"/proc/driver/nvidia/gpus/{pci}/information") or ""
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
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
    """A Jetson, which has no NVML before JetPack 6: the device tree names the chip; memory is RAM."""
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
        notes=("unified memory: the pool is RAM",),
    )
    device, sources = enrich(device)
    sources |= {
        "CUDA0.total_bytes": "derived: RAM",
        "CUDA0.free_bytes": "derived: RAM available",
    }
    return Facts(devices=(device,), sources=sources)
