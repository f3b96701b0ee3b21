"""The devices of a log, as the engine listed them."""

from __future__ import annotations

import re

from autofit.domain.machine import HOST_POOL, Api, Device
from autofit.domain.observed import Observed, ReportedDevice
from autofit.domain.text import printable

from autofit_llama.memory.runtime import context_bytes

_APIS: tuple[tuple[str, Api], ...] = (
    ("CUDA", "cuda"),
    ("MUSA", "cuda"),
    ("ROCm", "rocm"),
    ("Vulkan", "vulkan"),
    ("SYCL", "sycl"),
    ("CANN", "cann"),
    ("RPC", "rpc"),
    ("MTL", "metal"),
    ("Metal", "metal"),
)


def devices_of(observed: Observed) -> tuple[Device, ...]:
    """The devices that the model was put on, in the engine's order; what is not in the log is `None`.

    What the log calls free is asked for when the process has its context on the device already.
    """
    known = {device.place: device for device in observed.devices}
    used = observed.facts.get("devices.used")
    places = list(dict.fromkeys(used)) if isinstance(used, tuple) and used else list(known)
    places += [part.place for part in observed.parts if not part.is_host and part.place not in places]
    failed = observed.failure.place if observed.failure is not None else None
    if not places and failed and _api_of(failed) is not None:
        places = [failed]
    found: list[Device] = []
    for place in dict.fromkeys(places):
        api = _api_of(place)
        if api is not None:
            found.append(_device(known.get(place) or ReportedDevice(place=place, name=""), api, len(found)))
    return tuple(found)


def _api_of(place: str) -> Api | None:
    return next((api for prefix, api in _APIS if place.startswith(prefix)), None)


def _device(told: ReportedDevice, api: Api, index: int) -> Device:
    capability = re.search(r"compute capability (\d{1,3})\.(\d{1,2})", told.detail)
    shares = api == "metal" or told.detail == "uma: 1"
    return Device(
        id=told.place,
        index=index,
        name=printable(told.name, 80) or told.place,
        api=api,
        total_bytes=told.total_bytes,
        free_bytes=told.free_bytes,
        pool=HOST_POOL if shares else told.place,
        integrated=shares,
        compute_capability=(int(capability[1]), int(capability[2])) if capability and api == "cuda" else None,
    )


def with_own_context(device: Device) -> Device:
    """The device before the engine's own context took its share of it, which plans count."""
    if device.free_bytes is None:
        return device
    from autofit.domain.values import replace

    return replace(device, free_bytes=device.free_bytes + context_bytes(device))
