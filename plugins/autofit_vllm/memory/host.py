"""Main memory: what vLLM's processes, offloaded weights and caches take of it, by when they take it."""

from __future__ import annotations

from autofit.domain.memory import MemoryItem
from autofit.domain.units import GIB
from autofit.domain.values import dataclass, replace

from autofit_vllm.command.settings import VllmSettings

WORKER_BYTES = 3 * GIB // 2  #: resident set of one worker process, without weights
SERVER_BYTES = 2 * GIB  #: API server and engine core


@dataclass(frozen=True, slots=True, kw_only=True)
class HostUse:
    """In the order of a start: a worker looks at free memory after `processes`, and again after `loaded`."""

    processes: tuple[MemoryItem, ...]
    loaded: tuple[MemoryItem, ...]
    later: tuple[MemoryItem, ...]

    @property
    def items(self) -> tuple[MemoryItem, ...]:
        return (*self.processes, *self.loaded, *self.later)

    def share_of(self, n_ranks: int) -> HostUse:
        """The part of one of `n_ranks` that draw on the same memory."""

        def part(items: tuple[MemoryItem, ...]) -> tuple[MemoryItem, ...]:
            return tuple(replace(item, n_bytes=-(-item.n_bytes // n_ranks)) for item in items)

        return HostUse(processes=part(self.processes), loaded=part(self.loaded), later=part(self.later))


def host_use(settings: VllmSettings, *, n_ranks: int, pinned_bytes: int, images: bool) -> HostUse:
    """What all ranks of a node take together."""
    n_ranks = max(1, n_ranks)
    processes = MemoryItem(
        kind="runtime",
        n_bytes=SERVER_BYTES + n_ranks * WORKER_BYTES,
        basis="assumed",
        label=f"server and {n_ranks} worker{'s' if n_ranks > 1 else ''}",
    )
    pinned = MemoryItem(
        kind="weights",
        n_bytes=pinned_bytes,
        basis="derived",
        label="offloaded weights, pinned",
        source="each pinned allocation is rounded up to a power of two",
    )
    blocks = MemoryItem(
        kind="cache",
        n_bytes=int((settings.kv_offloading_size or 0) * GIB),
        basis="exact",
        label="offloaded KV blocks",
    )
    processed = MemoryItem(
        kind="transient",
        n_bytes=int(2 * settings.mm_processor_cache_gb * GIB) if images else 0,
        basis="derived",
        label="image processor caches",
        source="--mm-processor-cache-gb, per API process and engine",
    )
    return HostUse(
        processes=(processes,),
        loaded=(pinned,) if pinned.n_bytes else (),
        later=tuple(item for item in (blocks, processed) if item.n_bytes > 0),
    )
