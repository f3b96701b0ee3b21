"""Devices that only an installed engine can name: Ascend, Vulkan without a vendor's tools, what others miss.

`llama-server --list-devices` prints one line each; the prefix of the name is the back end.
"""

from __future__ import annotations

from autofit.domain.machine import HOST_POOL, Api, Device, Host
from autofit.domain.patterns import lazy_pattern
from autofit.domain.text import printable
from autofit.domain.units import MIB
from autofit.hardware.facts import Facts, enrich
from autofit.hardware.programs import ToolError
from autofit.hardware.system import System

PROGRAMS = ("llama-server", "llama-cli")
APIS: dict[str, Api] = {
    "CUDA": "cuda",
    "ROCm": "rocm",
    "HIP": "rocm",
    "MTL": "metal",
    "Metal": "metal",
    "Vulkan": "vulkan",
    "SYCL": "sycl",
    "CANN": "cann",
    "RPC": "rpc",
}
_LINE = lazy_pattern(r"\s*([A-Za-z]+)([0-9]{0,4})(?:\[[^\]]*\])?: (.*) \(([0-9]{1,9}) MiB, ([0-9]{1,9}) MiB free\)\s*")
MAX_DEVICES = 64  #: a back end has 16, SYCL 48 at most (ggml-sycl.h)


def find(system: System, host: Host) -> Facts:
    """What an installed llama.cpp lists. It initialises its back ends for that, which may take too long."""
    program = system.env.get("AUTOFIT_LLAMA_SERVER")
    problem = "no llama.cpp is installed that could be asked"
    for candidate in (program,) if program else PROGRAMS:
        try:
            text = system.tool(candidate, "--list-devices")
        except ToolError as cause:
            if "not installed" not in str(cause):
                problem = str(cause)
            continue
        return parse(text, host)
    return Facts(findings=(problem,))


def parse(text: str, host: Host) -> Facts:
    """The devices of a `--list-devices`; lines that are none (logs of the back ends) are skipped."""
    devices: list[Device] = []
    sources: dict[str, str] = {}
    findings: list[str] = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        api = APIS.get(match[1]) if match else None
        if match is None or api is None:
            continue
        total, free = int(match[4]) * MIB, int(match[5]) * MIB
        id = f"{match[1]}{match[2] or 0}"
        if f"{id}.total_bytes" in sources:
            continue
        if len(devices) == MAX_DEVICES:
            findings.append(f"--list-devices lists more than {MAX_DEVICES} devices: the others are left out")
            break
        shared = api == "metal"
        notes: tuple[str, ...] = ()
        if total == 0:
            # an APU whose carve-out the firmware leaves to "auto" shows none of its memory
            findings.append(f"{printable(match[3].strip(), 100)}: its driver shows no memory; --on NAME:SIZE states it")
            continue
        if api == "sycl" and free == total:
            # without Level Zero's sysman SYCL does not know, and says that all is free
            notes = ("SYCL does not know what is free; ZES_ENABLE_SYSMAN=1 lets it",)
        device, known = enrich(
            Device(
                id=id,
                index=int(match[2] or 0),
                name=printable(match[3].strip(), 100),
                api=api,
                total_bytes=total,
                free_bytes=free,
                pool=HOST_POOL if shared else id,
                integrated=shared,
                notes=notes,
            )
        )
        devices.append(device)
        sources |= {
            **known,
            f"{id}.total_bytes": "measured: --list-devices",
            f"{id}.free_bytes": "measured: --list-devices",
        }
    return Facts(devices=tuple(devices), findings=tuple(findings), sources=sources)
