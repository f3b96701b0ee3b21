"""What a process holds of a GPU at most: vLLM fills its share up with cache, whatever the rest comes to.

v1/worker/gpu_worker.py:determine_available_memory gives to the cache what the peaks leave of the share, so that a peak
below its bound makes the cache larger, and not the process smaller. v1/worker/utils.py:request_memory refuses to start
where less than the share is free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autofit.domain.machine import HOST_POOL
from autofit.domain.memory import Memory, MemoryItem

from autofit_vllm.memory.budget import CAPTURE, CONTEXT, FLASHINFER, GRAPHS, NCCL, TABLES, requested_bytes

_OUTSIDE = (CONTEXT, NCCL)
_AFTER = (TABLES, FLASHINFER, CAPTURE)


def claims(memory: Memory, utilization: float, *, graphs_deducted: bool, is_stated: bool) -> Mapping[str, int]:
    """Bytes of each pool. `is_stated`: the cache has a size of its own, and the share is only asked for at the start.

    GPUs that draw on RAM are counted as the plan does: what is measured there is all of RAM.
    """
    found = {}
    for pool in memory.pools:
        found[pool.id] = pool.used_bytes
        if pool.id != HOST_POOL and pool.total_bytes is not None:
            share = requested_bytes(pool.total_bytes, utilization) + _sum(pool.items, _OUTSIDE)
            if not is_stated:
                share += _sum(pool.items, _AFTER)
                if not graphs_deducted:
                    share += sum(item.n_bytes for item in pool.items if item.label.endswith(GRAPHS))
            found[pool.id] = max(pool.used_bytes, share)
    return found


def _sum(items: Sequence[MemoryItem], labels: Sequence[str]) -> int:
    return sum(item.n_bytes for item in items if item.label in labels)
