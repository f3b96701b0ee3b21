"""RAM: what vLLM's processes, offloaded weights and caches take of it, by when they take it."""

from __future__ import annotations

from collections.abc import Mapping

from autofit.domain.memory import MemoryItem
from autofit.domain.units import GIB
from autofit.domain.values import dataclass, replace

from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.config.connectors import offloaded_bytes
from autofit_vllm.config.engine import EngineConfig
from autofit_vllm.modules.model import VllmModel

WORKER_BYTES = 3 * GIB // 2  #: resident set of one worker process, without weights
SERVER_BYTES = 2 * GIB  #: API server and engine core
#: Compilers of kernels, and files read ahead of the weights, while vLLM starts. Where a GPU has memory of its own, they
#: are gone before RAM is short; a GPU that shares it must leave the room. On a GB10 of 121.7 GiB vLLM ran out
#: with 9.7 GiB outside its budget and started with 18.3 (recipes/pull/632).
START_BYTES = 8 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class HostUse:
    """In the order of a start: a worker looks at free memory after `processes`, and again after `loaded`."""

    processes: tuple[MemoryItem, ...]
    loaded: tuple[MemoryItem, ...]
    later: tuple[MemoryItem, ...]

    def with_staged(self, n_bytes: int) -> HostUse:
        """With buffers through which a connector sends the cache."""
        staged = MemoryItem(
            kind="cache",
            n_bytes=n_bytes,
            basis="derived",
            label="KV cache on its way",
            source="nixl/base_worker.py:initialize_host_xfer_buffer",
        )
        return replace(self, later=(*self.later, staged))

    @property
    def items(self) -> tuple[MemoryItem, ...]:
        return (*self.processes, *self.loaded, *self.later)

    def share_of(self, n_ranks: int) -> HostUse:
        """The part of one of `n_ranks` that draw on the same memory."""

        def part(items: tuple[MemoryItem, ...]) -> tuple[MemoryItem, ...]:
            return tuple(replace(item, n_bytes=-(-item.n_bytes // n_ranks)) for item in items)

        start = MemoryItem(
            kind="transient",
            n_bytes=START_BYTES,
            basis="assumed",
            label="compilers and file cache at start",
            source="GB10: out of memory at 0.92, started at 0.85",
        )
        return HostUse(processes=part(self.processes), loaded=part(self.loaded), later=part((*self.later, start)))


def request_state_bytes(model: VllmModel, config: EngineConfig) -> int:
    """Pinned by each worker: token numbers of every sequence at its longest, and their positions where a model has
    several of each (v1/worker/gpu/states.py:all_token_ids, mm/rope.py:prefill_positions)."""
    rope = model.config.get("rope_parameters") or model.config.get("rope_scaling")
    section = rope.get("mrope_section") if isinstance(rope, Mapping) else None
    rows = 1 + (len(section) if isinstance(section, (list, tuple)) and config.images else 0)
    return 0 if config.gpu.cpu else 4 * rows * config.max_num_seqs * config.max_model_len


def host_use(settings: VllmSettings, *, n_ranks: int, pinned_bytes: int, images: bool, state_bytes: int = 0) -> HostUse:
    """What all ranks of a node take together; `state_bytes` of each (`request_state_bytes`)."""
    n_ranks = max(1, n_ranks)
    processes = MemoryItem(
        kind="runtime",
        n_bytes=SERVER_BYTES + n_ranks * WORKER_BYTES,
        basis="assumed",
        label=f"server and {n_ranks} worker{'s' if n_ranks > 1 else ''}",
    )
    state = MemoryItem(
        kind="compute",
        n_bytes=n_ranks * state_bytes,
        basis="derived",
        label="request state, pinned",
        source="v1/worker/gpu/states.py, mm/rope.py",
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
        n_bytes=int((settings.kv_offloading_size or 0) * GIB) + offloaded_bytes(settings),
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
        loaded=tuple(item for item in (state, pinned) if item.n_bytes),
        later=tuple(item for item in (blocks, processed) if item.n_bytes > 0),
    )
