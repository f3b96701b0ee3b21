"""Which devices a process will see, and in which order: the environment variables of CUDA and ROCm.

Entries are indices or prefixes of UUIDs, and the first that names nothing ends the list. CUDA does not mix
the two (the first entry decides), and a device that is named twice leaves none at all; ROCm mixes them, and
the second naming ends the list (ROCR-Runtime: amd_filter_device).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from autofit.domain.machine import Device, Machine
from autofit.domain.values import dataclass, replace
from autofit.errors import UsageError

_CUDA, _HIP, _ROCR = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"
_ORDER = "CUDA_DEVICE_ORDER"
_VULKAN = "GGML_VK_VISIBLE_DEVICES"  #: ggml-vulkan.cpp, ggml_vk_instance_init: indices alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Indices of the visible devices, in their new order; `problem` says what the list got wrong."""

    chosen: tuple[int, ...]
    problem: str | None = None


def select(variable: str, text: str | None, uuids: Sequence[str | None], *, rocm: bool = False) -> Selection:
    """Apply one list to devices that are in their default order.

    `uuids` holds one UUID (`GPU-...`, `MIG-...`) per device. `text` `None` means that the variable is not
    set.
    """
    if text is None:
        return Selection(chosen=tuple(range(len(uuids))))
    entries = [entry.strip() for entry in text.split(",")]
    if not entries[0]:
        return Selection(chosen=(), problem=f"{variable} is empty: every device is hidden")
    prefix = _prefix(entries[0])
    chosen: list[int] = []
    for position, entry in enumerate(entries):
        if rocm:
            prefix = _prefix(entry)
        index = _by_uuid(entry, prefix, uuids) if prefix else _by_index(entry, len(uuids))
        if index in chosen and not rocm:
            return Selection(
                chosen=(), problem=f"{variable} names a device twice ({entry[:60]!r}): every device is hidden"
            )
        if index is None or index in chosen:
            return Selection(chosen=tuple(chosen), problem=_ended(variable, entries, position))
        chosen.append(index)
    return Selection(chosen=tuple(chosen))


def described(machine: Machine, environ: Mapping[str, str]) -> Machine:
    """The machine as a process with these variables would see it, its cards numbered as they are described.

    For hardware that is not here; what is detected has followed its variables.

    Raises:
        UsageError: a variable names a card that is not described, or chooses devices of another kind.
    """
    known = (_CUDA, _HIP, _ROCR, _VULKAN, _ORDER)
    other = next((name for name in environ if name.endswith("_VISIBLE_DEVICES") and name not in known), None)
    if other is not None:
        raise UsageError(
            f"{other} chooses among this machine's devices, not among those of --on",
            hint="--device GPU0 chooses among them",
        )
    hip = _HIP if environ.get(_HIP) is not None or not environ.get(_CUDA) else _CUDA
    devices = list(machine.devices)
    for api, variables in (("cuda", (_CUDA,)), ("rocm", (_ROCR, hip)), ("vulkan", (_VULKAN,))):
        for variable in variables:
            devices = _behind(devices, api, variable, environ.get(variable))
    return machine if devices == list(machine.devices) else replace(machine, devices=tuple(devices))


def _behind(devices: list[Device], api: str, variable: str, text: str | None) -> list[Device]:
    """The devices with those of one kind as one variable leaves them, at the place of the first."""
    cards = [device for device in devices if device.api == api]
    if text is None or not cards:
        return devices
    picked = select(variable, text, [device.uuid for device in cards], rocm=api == "rocm")
    hides_all = not text.strip() or text.strip().startswith("-1")
    if picked.problem is not None and not hides_all:
        n_cards = "one card is" if len(cards) == 1 else f"{len(cards)} cards are"
        raise UsageError(picked.problem, hint=f"{n_cards} described, numbered from 0: describe all of them (--on)")
    first = devices.index(cards[0])
    chosen = [cards[index] for index in picked.chosen]
    return [*devices[:first], *chosen, *(device for device in devices[first:] if device.api != api)]


def _prefix(entry: str) -> str | None:
    return next((prefix for prefix in ("GPU-", "MIG-") if entry.upper().startswith(prefix)), None)


def _ended(variable: str, entries: Sequence[str], position: int) -> str | None:
    entry, n_after = entries[position], len(entries) - position - 1
    if entry == "-1":  # the usual way to say "no more"
        return None if position else f"{variable} is -1: every device is hidden"
    tail = f" and hides the {n_after} after it" if n_after else ""
    return f"{variable}: entry {entry[:60]!r} names no device{tail}"


def _by_index(entry: str, n_devices: int) -> int | None:
    # the driver reads a number as strtol does: what follows the digits is ignored
    match = re.match(r"[+-]?\d+", entry)
    index = int(match[0]) if match and len(match[0]) < 10 else -1
    return index if 0 <= index < n_devices else None


def _by_uuid(entry: str, prefix: str, uuids: Sequence[str | None]) -> int | None:
    if not entry.upper().startswith(prefix):
        return None
    found = [i for i, uuid in enumerate(uuids) if uuid and uuid.lower().startswith(entry.lower())]
    return found[0] if len(found) == 1 else None
