"""What AMD's own tools say of devices where sysfs is hidden, as in some containers: `amdsmi`, else `rocm-smi`.

Both read what the kernel driver counts. sysfs comes first (`amd.py`): it has the same figures, and nothing to load.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from autofit.domain.machine import HOST_POOL, Device, Host
from autofit.domain.text import printable
from autofit.domain.values import replace
from autofit.hardware.facts import enrich, holder, number
from autofit.hardware.programs import ToolError
from autofit.hardware.system import System

APU_GFX = frozenset(
    {
        *("gfx902", "gfx909", "gfx90c", "gfx1013", "gfx1033", "gfx1035", "gfx1036"),
        *("gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153"),
    }
)  #: instruction sets that AMD builds into APUs alone
MAX_DEVICES = 64

Found = tuple[Device, dict[str, str]]


def find(system: System, host: Host, findings: list[str]) -> list[Found]:
    """The devices, in the tool's order, which is ROCm's; what cannot be had is told in `findings`."""
    causes = []
    for ask in (_amdsmi, _rocm_smi):
        try:
            return list(ask(system, host))
        except ToolError as cause:
            causes.append(str(cause))
    findings.append(f"/dev/kfd exists, but no AMD device can be read: {'; '.join(causes)}")
    return []


def _amdsmi(system: System, host: Host) -> Iterator[Found]:
    """AMD's library through its Python package, which ROCm brings along.

    Source: https://rocm.docs.amd.com/projects/amdsmi/en/latest/reference/amdsmi-py-api.html
    """
    smi = system.load_amdsmi()
    try:
        smi.amdsmi_init()
        handles = list(smi.amdsmi_get_processor_handles())[:MAX_DEVICES]
    except Exception as cause:  # the package has exceptions of its own, and ctypes those of a missing symbol
        raise ToolError(f"amdsmi: {printable(str(cause), 120)}") from cause
    try:
        for position, handle in enumerate(handles):
            yield _amdsmi_device(system, host, smi, handle, position)
    finally:
        _ask(smi, "amdsmi_shut_down")


def _amdsmi_device(system: System, host: Host, smi: Any, handle: object, position: int) -> Found:
    memory = getattr(smi, "AmdSmiMemoryType", None)
    vram, gtt = getattr(memory, "VRAM", None), getattr(memory, "GTT", None)
    total = _bytes(_ask(smi, "amdsmi_get_gpu_memory_total", handle, vram))
    used = _bytes(_ask(smi, "amdsmi_get_gpu_memory_usage", handle, vram))
    asic = _ask(smi, "amdsmi_get_gpu_asic_info", handle)
    asic = asic if isinstance(asic, dict) else {}
    serial = number(str(asic.get("asic_serial", "")))
    processes = _ask(smi, "amdsmi_get_gpu_process_list", handle)
    holders = []
    for process in processes[:256] if isinstance(processes, list) else ():
        pid, n_bytes = _bytes(process.get("pid")), _bytes((process.get("memory_usage") or {}).get("vram_mem"))
        if pid and n_bytes:
            holders.append(holder(system, pid, n_bytes))
    device, known = _device(
        position,
        str(asic.get("market_name") or "AMD device"),
        total,
        used,
        f"GPU-{serial:016x}" if serial else None,
        "amdsmi",
    )
    device = replace(device, held_by=tuple(sorted(holders, key=lambda h: -(h.used_bytes or 0))))
    gfx = str(asic.get("target_graphics_version", ""))
    return _shared(device, host, gfx, _bytes(_ask(smi, "amdsmi_get_gpu_memory_total", handle, gtt))), known


def _ask(smi: Any, name: str, *arguments: object) -> Any:
    """One answer of the library; `None` where it has none."""
    try:
        return getattr(smi, name)(*arguments)
    except Exception:
        return None


def _bytes(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 60 else None


def _rocm_smi(system: System, host: Host) -> Iterator[Found]:
    """`rocm-smi --json`, whose keys changed their spelling over the years."""
    import json

    text = system.tool("rocm-smi", "--showmeminfo", "vram", "gtt", "--showproductname", "--showuniqueid", "--json")
    try:
        table = json.loads(text[text.index("{") :])  # warnings may come before the object
    except (ValueError, RecursionError):
        raise ToolError("rocm-smi: its answer is not JSON") from None
    rows = table if isinstance(table, dict) else {}
    for position, (card, row) in enumerate(sorted(rows.items())[:MAX_DEVICES]):
        if not (re.fullmatch(r"card\d+", card) and isinstance(row, dict)):
            continue
        fields = {str(key).lower(): str(value) for key, value in row.items()}
        unique = number(fields.get("unique id", ""))
        device, known = _device(
            position,
            fields.get("card series") or fields.get("card model") or "AMD device",
            number(fields.get("vram total memory (b)", "")),
            number(fields.get("vram total used memory (b)", "")),
            f"GPU-{unique:016x}" if unique else None,
            "rocm-smi",
        )
        gtt = number(fields.get("gtt total memory (b)", ""))
        yield _shared(device, host, fields.get("gfx version", ""), gtt), known


def _device(
    position: int, name: str, total: int | None, used: int | None, uuid: str | None, tool: str
) -> tuple[Device, dict[str, str]]:
    id = f"amd{position}"
    device, known = enrich(
        Device(
            id=id,
            index=position,
            name=printable(name, 80),
            api="rocm",
            total_bytes=total,
            free_bytes=max(0, total - used) if total is not None and used is not None else None,
            vendor="amd",
            uuid=uuid,
        )
    )
    return device, {**known, **{f"{id}.{what}_bytes": f"measured: {tool}" for what in ("total", "free")}}


def _shared(device: Device, host: Host, gfx: str, gtt: int | None) -> Device:
    """An APU whose larger part of memory is RAM."""
    if gfx in APU_GFX and device.total_bytes is not None and gtt is not None and device.total_bytes < gtt:
        return replace(device, integrated=True, pool=HOST_POOL, total_bytes=gtt, free_bytes=host.available_bytes)
    return device
