"""How much of a device to leave free, and why: the default follows from what the figures rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autofit.domain.machine import Device
from autofit.domain.request import Margin
from autofit.domain.units import MIB
from autofit.domain.values import replace

from autofit_llama.engine.versions import Version

NOTHING = Margin()
MODELED = Margin(n_bytes=64 * MIB, fraction=0.01)
"""Where context, scratch and buffers are all modeled: what allocators lose to rounding and fragments.

With these terms in the model, 3 % of the card in all was enough on 19 tight cells (unslothai/unsloth#6718).
"""
ASSUMED = Margin(n_bytes=256 * MIB, fraction=0.02)


def margins_of(
    wished: Sequence[Margin], devices: Sequence[Device], version: Version
) -> Mapping[str, tuple[Margin, str]]:
    """By device id: what to leave free, and the reason. `wished` is one per device, the last repeated.

    A version outside the recorded ones gets what it may take more beside that, wished or not.
    """
    found = {d.id: default_margin(d) for d in devices}
    if wished:
        found = {d.id: (wished[min(i, len(wished) - 1)], "as asked") for i, d in enumerate(devices)}
    more = version.behind_bytes
    if not more:
        return found
    because = f"{more // MIB} MiB for {version.name}, which is not recorded (assumed)"
    return {
        name: (replace(margin, n_bytes=margin.n_bytes + more), f"{reason}; {because}")
        for name, (margin, reason) in found.items()
    }


def default_margin(device: Device) -> tuple[Margin, str]:
    """The margin of a device that nobody asked one for."""
    if device.runtime_bytes == 0:
        return NOTHING, "none: its free memory is stated without overhead, and buffers are exact"
    if device.api == "rpc":
        return MODELED, "64 MiB and 1 %: what else the server takes is not counted"
    if device.runtime_bytes is not None or (device.api == "cuda" and device.n_sm is not None):
        return MODELED, "64 MiB and 1 %: buffers are exact, the driver's share is modeled"
    return ASSUMED, f"256 MiB and 2 %: memory of {device.api} outside the buffers is assumed"
