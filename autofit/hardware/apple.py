"""Apple silicon: one pool, of which Metal hands out a part."""

from __future__ import annotations

from autofit.domain.units import GIB


def working_set_bytes(total_bytes: int) -> int:
    """What Metal recommends as working set (`recommendedMaxWorkingSetSize`), if `iogpu.wired_limit_mb` is not set.

    Two thirds of main memory up to 36 GB, three quarters above; seen in the logs of llama.cpp's Metal back end.
    """
    return total_bytes * 3 // 4 if total_bytes > 36 * GIB else total_bytes * 2 // 3
