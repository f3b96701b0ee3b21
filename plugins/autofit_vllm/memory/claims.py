"""What a process holds of a GPU at most: vLLM fills its share up with cache, whatever the rest comes to.

v1/worker/gpu_worker.py:determine_available_memory gives to the cache what the peaks leave of the share, so that a peak
below its bound makes the cache larger, and not the process smaller. v1/worker/utils.py:request_memory refuses to start
where less than the share is free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autofit.domain.machine import HOST_POOL
from autofit.domain.memory import Memory, MemoryItem, PoolUse

from autofit_vllm.memory.budget import CAPTURE, CONTEXT, FLASHINFER, GRAPHS, NCCL, TABLES, requested_bytes

_OUTSIDE = (CONTEXT, NCCL)
_AFTER = (TABLES, FLASHINFER, CAPTURE)


def claims(memory: Memory, utilization: float, available: Sequence[int], *, is_stated: bool) -> Mapping[str, int]:
    """Bytes of each pool. `available` is the cache's memory on each GPU in the plan's order, as it was planned;
    `is_stated`: it has a size of its own, and the share is only asked for at the start.

    GPUs that draw on RAM take of it what their share leaves beside the planned cache.
    """
    gpus = [pool for pool in memory.pools if pool.id != HOST_POOL and pool.total_bytes is not None]
    shares = {pool.id: requested_bytes(pool.total_bytes or 0, utilization) for pool in gpus}
    on_top = any(_planned(pool) + have > shares[pool.id] for pool, have in zip(gpus, available, strict=False))
    found = {pool.id: pool.used_bytes for pool in memory.pools}
    on_host = memory.pool(HOST_POOL)
    if on_host.limits and not is_stated:
        filled = sum(available[: len(on_host.limits)])
        found[HOST_POOL] += max(0, filled - on_host.sum_bytes("cache"))
    for pool in gpus:
        most = shares[pool.id] + _sum(pool.items, _OUTSIDE)
        if not is_stated:
            most += _sum(pool.items, _AFTER) + (_graphs(pool) if on_top else 0)
        found[pool.id] = max(pool.used_bytes, most)
    return found


def _planned(pool: PoolUse) -> int:
    """What the share covers without a cache, graphs included, which some releases take on top."""
    return pool.used_bytes - pool.sum_bytes("cache") - _sum(pool.items, (*_OUTSIDE, *_AFTER))


def _graphs(pool: PoolUse) -> int:
    return sum(item.n_bytes for item in pool.items if item.label.endswith(GRAPHS))


def _sum(items: Sequence[MemoryItem], labels: Sequence[str]) -> int:
    return sum(item.n_bytes for item in items if item.label in labels)
