"""NVIDIA devices as `nvidia-smi` prints them: the way that is left where its library cannot be loaded."""

from __future__ import annotations

from autofit.domain.machine import HOST_POOL, Device, Host
from autofit.domain.text import printable
from autofit.domain.units import MIB
from autofit.domain.values import replace
from autofit.hardware.facts import number
from autofit.hardware.programs import ToolError
from autofit.hardware.system import System

FIELDS = ("index", "name", "uuid", "memory.total", "memory.free")
NEWER_FIELDS = (*FIELDS, "memory.reserved", "compute_cap")  #: drivers before 510 refuse the last two


def read(system: System, host: Host) -> list[Device]:
    """The devices, as far as `nvidia-smi` tells.

    Raises:
        ToolError: not installed, failed, or too slow.
    """
    for fields in (NEWER_FIELDS, FIELDS):
        try:
            text = system.tool("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
        except ToolError as cause:
            if fields is NEWER_FIELDS and "not a valid field" in str(cause):
                continue
            raise
        return parse(text, fields, host)
    return []


def parse(text: str, fields: tuple[str, ...], host: Host) -> list[Device]:
    """Devices out of the CSV lines; a line that is none is skipped (warnings, "No devices were found")."""
    devices = []
    for line in text.splitlines():
        # a name may hold a comma, never ", " at the place of another field: split from both ends
        values = [value.strip() for value in line.split(", ")]
        if len(values) > len(fields):
            extra = len(values) - len(fields)
            values[1 : 2 + extra] = [", ".join(values[1 : 2 + extra])]
        row = dict(zip(fields, values, strict=False))
        index = number(row.get("index", ""))
        if index is None or len(values) != len(fields):
            continue
        devices.append(_device(index, row, host))
    return devices


def _device(index: int, row: dict[str, str], host: Host) -> Device:
    total, free, reserved = (number(row.get(f"memory.{what}", "")) for what in ("total", "free", "reserved"))
    major, _, minor = row.get("compute_cap", "").partition(".")
    device = Device(
        id=f"cuda{index}",
        index=index,
        name=printable(row["name"]),
        api="cuda",
        total_bytes=None if total is None else total * MIB,
        free_bytes=None if free is None else free * MIB,
        reserved_bytes=None if reserved is None else reserved * MIB,
        vendor="nvidia",
        uuid=row["uuid"] if row["uuid"].startswith(("GPU-", "MIG-")) else None,
        compute_capability=(int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None,
    )
    if row["memory.total"] in ("[N/A]", "N/A", "[Not Supported]"):
        # GB10 and Jetson: RAM is their memory. [Insufficient Permissions] is another matter
        return replace(
            device,
            pool=HOST_POOL,
            integrated=True,
            total_bytes=host.total_bytes,
            free_bytes=host.available_bytes,
            notes=("unified memory: the pool is RAM",),
        )
    return device
