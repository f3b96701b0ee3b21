"""How much of RAM Metal recommends to use (`recommendedMaxWorkingSetSize`) while no limit is set."""

from __future__ import annotations

from autofit.domain.units import GIB, round_up

PAGE_BYTES = 16384
_PERCENT = ((128, 84), (64, 81), (32, 78), (16, 74))
"""From so many GiB, this percentage, as llama.cpp's Metal back end logs it on macOS 26: 12124 of 16384 MiB, 18186 of
24576, 25559 of 32768, 28753 of 36864, 38338 of 49152, 53084 of 65536, 79626 of 98304 and 110100 of 131072 MiB."""
_LARGEST = (512, 48)
"""From so many GiB, all but this many: 475136 of 524288 MiB."""


def working_set_bytes(total_bytes: int, macos: int | None = None) -> int:
    """The working set of a Mac with so much memory under a major version of macOS; the newest where it is `None`.

    Before macOS 26 two thirds of RAM below 36 GB, three quarters from there; below 16 GB still two thirds.
    """
    least, kept = _LARGEST
    if total_bytes >= least * GIB:
        return total_bytes - kept * GIB
    if macos is not None and macos < 26:
        return total_bytes * 3 // 4 if total_bytes >= 36 * GIB else total_bytes * 2 // 3
    for gib, percent in _PERCENT:
        if total_bytes >= gib * GIB:
            return round_up(total_bytes * percent // 100, PAGE_BYTES)
    return total_bytes * 2 // 3
