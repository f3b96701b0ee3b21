"""Devices by the words of `--device`: one rule for every engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autofit.domain.machine import Device
from autofit.errors import UsageError

LEAST_UUID_CHARACTERS = 5  #: of a UUID that is not written whole: `GPU-8`


def is_named(device: Device, word: str, name: str = "") -> bool:
    """Whether `word` means this device: its id, index, name or UUID (or how it begins), or the engine's `name`.

    Small letters and capitals are the same.
    """
    word, uuid = word.lower(), (device.uuid or "").lower()
    if word in {device.id.lower(), str(device.index), device.name.lower(), name.lower(), uuid} - {""}:
        return True
    return len(word) >= LEAST_UUID_CHARACTERS and uuid.startswith(word)


def choose(
    devices: Sequence[Device], words: Sequence[str], names: Mapping[str, str] | None = None, *, where: str = "here"
) -> tuple[Device, ...]:
    """The devices that `words` mean, in their own order; all, without a word. `names` are the engine's, by id.

    Raises:
        UsageError: a word that means none of them; the hint lists them.
    """
    names = names or {}
    for word in words:
        if not any(is_named(device, word, names.get(device.id, "")) for device in devices):
            known = ", ".join(device.id for device in devices) or "none"
            raise UsageError(f"no device {word[:60]!r} {where}", hint=f"devices: {known}")
    return tuple(d for d in devices if not words or any(is_named(d, word, names.get(d.id, "")) for word in words))
