"""Apple silicon: one pool, of which Metal hands out a part."""

from __future__ import annotations

import re

from autofit.domain.machine import HOST_POOL, Device, Host
from autofit.domain.units import MIB, format_bytes
from autofit.hardware.facts import Facts, enrich
from autofit.hardware.programs import ToolError
from autofit.hardware.system import System
from autofit.hardware.working_set import working_set_bytes

LAST_BEFORE_26 = 15
"""The version taken where it is unknown: older systems hand out less."""


def find(system: System, host: Host) -> Facts:
    """The GPU of an Apple chip."""
    if system.platform != "darwin" or host.total_bytes is None or not (host.cpu_name or "").startswith("Apple"):
        return Facts()
    total, origin = _limit(system, host.total_bytes)
    free = None if host.available_bytes is None else min(total, host.available_bytes)
    device = Device(
        id="MTL0",
        index=0,
        name=host.cpu_name or "Apple GPU",
        api="metal",
        total_bytes=total,
        free_bytes=free,
        pool=HOST_POOL,
        vendor="apple",
        integrated=True,
        n_sm=_cores(system),
        notes=(f"unified memory: Metal takes up to {format_bytes(total)} (`sudo sysctl iogpu.wired_limit_mb=N`)",),
    )
    variant = f"{device.name} ({device.n_sm}-core GPU)"  # the smaller of two GPUs may have the narrower bus too
    device, known = enrich(device, variant if device.n_sm else None)
    sources = {
        "MTL0.total_bytes": origin,
        "MTL0.free_bytes": "derived: RAM available, within the limit",
        **known,
    }
    return Facts(devices=(device,), sources=sources)


def _limit(system: System, ram_bytes: int) -> tuple[int, str]:
    for key in ("iogpu.wired_limit_mb", "debug.iogpu.wired_limit"):  # macOS 14 and later, macOS 13
        try:
            match = re.search(r":\s*(\d{1,15})\s*$", system.tool("sysctl", key))
        except ToolError:
            continue
        n = int(match[1]) if match else 0
        if n:
            return min(n * MIB if key.endswith("_mb") else n, ram_bytes), f"measured: sysctl {key}"
    return working_set_bytes(ram_bytes, _macos(system) or LAST_BEFORE_26), "assumed: Metal's usual share of RAM"


def _macos(system: System) -> int | None:
    """The major version of macOS."""
    try:
        match = re.match(r"\s*(\d{1,3})\.", system.tool("sysctl", "-n", "kern.osproductversion"))
    except ToolError:
        return None
    return int(match[1]) if match else None


def _cores(system: System) -> int | None:
    try:
        match = re.search(r'"gpu-core-count"\s*=\s*(\d{1,4})\b', system.tool("ioreg", "-rc", "AGXAccelerator", "-d1"))
    except ToolError:
        return None
    return int(match[1]) if match else None
