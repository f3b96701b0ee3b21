"""One complete set of settings on real devices: what every rank takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from autofit.domain.machine import HOST_POOL, Device
from autofit.domain.memory import MemoryItem
from autofit.domain.request import Margin
from autofit.domain.units import GIB, MIB
from autofit.domain.values import dataclass
from autofit.errors import EngineRefusalError, HardwareError
from autofit.planning.accounting import margin_of

from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.config.connectors import stages_in_ram
from autofit_vllm.config.engine import CPU, EngineConfig, Gpu
from autofit_vllm.memory.budget import (
    LIMIT,
    UNIFIED_LIMIT,
    RankBudget,
    highest_utilization,
    rank_budget,
    requested_bytes,
)
from autofit_vllm.memory.host import HostUse, host_use, request_state_bytes
from autofit_vllm.memory.kv import KvCapacity, KvPlan, fit
from autofit_vllm.memory.offload import Offload
from autofit_vllm.modules.model import StageWeights, VllmModel

#: Kept free on each GPU unless `--margin` says otherwise: the figures beside weights and cache are bounds and
#: public measurements, and both drivers and display servers take some tens of MiB more or less.
DEFAULT_MARGIN = Margin(n_bytes=256 * MIB, fraction=0.01)


def cuda_total_bytes(device: Device) -> int:
    """Total memory as cudaMemGetInfo reports it: what the driver keeps is not in it."""
    return (device.total_bytes or 0) - (device.reserved_bytes or 0)


def margin_bytes(device: Device, index: int, margins: Sequence[Margin]) -> int:
    """The margin of a device; the last of `margins` is repeated."""
    return margin_of(index, margins, cuda_total_bytes(device), DEFAULT_MARGIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One GPU of a replica: its stage, and what is free on it for vLLM's budget.

    `n_sharing` ranks of its machine draw on RAM, as this one does where it is not 0."""

    device: Device
    stage: int
    total_bytes: int
    free_bytes: int
    margin_bytes: int
    margin_asked: bool = False  #: it must stay free, whatever fixes the cache
    n_sharing: int = 0

    def free_at_snapshot(self, budget: RankBudget) -> int:
        """Free memory when vLLM looks: the context and NCCL are there already."""
        return self.free_bytes - budget.outside_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Settings on devices, with every figure that follows."""

    settings: VllmSettings
    config: EngineConfig
    model: VllmModel
    ranks: tuple[Rank, ...]
    weights: tuple[StageWeights, ...]
    kv: KvPlan
    budgets: tuple[RankBudget, ...]  #: per stage
    utilization: float
    available_bytes: tuple[int, ...]  #: KV memory per stage: the least of its ranks
    capacity: KvCapacity | None  #: `None`: not even one request fits
    refusal: EngineRefusalError | None
    host: HostUse
    offload: Offload | None = None
    given_kv: bool = False  #: the KV memory was stated, not computed

    def budget_of(self, rank: Rank) -> RankBudget:
        """What a rank takes beside its cache; on unified memory the processes are part of it."""
        return _budget_of(rank, self.budgets, self.host)

    def used_bytes(self, rank: Rank) -> int:
        """All that a rank takes, the cache included."""
        n_blocks = self.capacity.n_blocks if self.capacity else 0
        rest = sum(item.n_bytes for item in self.budget_of(rank).items)
        return rest + n_blocks * self.kv.bytes_per_block[rank.stage]

    @property
    def shortfall_bytes(self) -> int:
        """What the fullest rank lacks for one request; 0 or less when it starts."""
        length = 1 if self.config.auto_length else self.config.max_model_len
        lacking = [self.kv.needed_bytes(length, stage) - have for stage, have in enumerate(self.available_bytes)]
        starts = [
            requested_bytes(rank.total_bytes, self.utilization) - rank.free_at_snapshot(self.budget_of(rank))
            for rank in self.ranks
        ]
        return max([*lacking, *([] if self.given_kv else starts)])

    @property
    def overrun_bytes(self) -> int:
        """How much more than it may the fullest GPU would hold, the cache and what follows it included."""
        if self.given_kv or self.capacity is None:
            return 0
        kept = [rank.margin_bytes if rank.margin_asked else 0 for rank in self.ranks]
        every = zip(self.ranks, kept, strict=True)
        return max([0, *(self.used_bytes(rank) + keep - rank.free_bytes for rank, keep in every)])

    @property
    def allowed_utilization(self) -> float:
        """The highest `--gpu-memory-utilization` that every GPU allows."""
        return _highest(self.ranks, self.budgets, self.host)

    @property
    def fits(self) -> bool:
        started = self.capacity is not None and self.shortfall_bytes <= 0
        return started and self._graphs_fit and self.overrun_bytes == 0

    @property
    def _graphs_fit(self) -> bool:
        """Recurrent models need a block per sequence to capture full graphs (config/compilation.py)."""
        if self.capacity is None or self.config.graph_mode in ("NONE", "PIECEWISE"):
            return True
        has_state = any(layer.kind == "state" for layer in self.kv.layout.layers)
        return not has_state or self.config.max_num_seqs <= self.capacity.n_blocks

    @property
    def device_bytes(self) -> int:
        return sum(self.used_bytes(rank) for rank in self.ranks if not rank.n_sharing)

    @property
    def host_bytes(self) -> int:
        """What is taken of RAM: by GPUs that share it, too."""
        sharing = [self.used_bytes(rank) for rank in self.ranks if rank.n_sharing]
        return sum(sharing) if sharing else sum(item.n_bytes for item in host_items(self))


def check_dtype(dtype: str, devices: Sequence[Device]) -> None:
    """Every worker asks its own GPU, not only the first (v1/worker/gpu_worker.py:init_device).

    Raises:
        EngineRefusalError
    """
    old = next((d for d in devices if d.compute_capability and d.compute_capability < (8, 0)), None)
    if dtype == "bfloat16" and old is not None and old.compute_capability is not None:
        raise EngineRefusalError(
            f"Bfloat16 is only supported on GPUs with compute capability of at least 8.0; {old.id} ({old.name}) has "
            f"{old.compute_capability[0]}.{old.compute_capability[1]}",
            hint="use --dtype half",
        )


def ranks_of(devices: Sequence[Device], config: EngineConfig, margins: Sequence[Margin] = ()) -> tuple[Rank, ...]:
    """Devices in rank order (DP x PP x PCP x TP), as vLLM numbers them."""
    parallel = config.parallel
    per_stage = parallel.tp * parallel.pcp
    per_node, local = parallel.world_size * parallel.dp // parallel.nnodes, len(devices) // parallel.nnodes
    devices = [device for node in range(parallel.nnodes) for device in devices[node * local :][:per_node]]
    sharing = {device.id: device.node for device in devices if device.pool == HOST_POOL}
    ranks = []
    for index, device in enumerate(devices):
        stage = index % parallel.world_size // per_stage
        total = cuda_total_bytes(device)
        if device.free_bytes is None:
            raise HardwareError(f"the free memory of {device.id} is unknown", hint="state it: --on NAME:SIZE")
        shares = list(sharing.values()).count(device.node) if device.id in sharing else 0
        free = min(total, device.free_bytes // max(1, shares))
        ranks.append(
            Rank(
                device=device,
                stage=stage,
                total_bytes=total,
                free_bytes=free,
                margin_bytes=margin_bytes(device, index, margins),
                margin_asked=bool(margins),
                n_sharing=shares,
            )
        )
    return tuple(ranks)


def gpu_of(devices: Sequence[Device]) -> Gpu:
    """The device that vLLM's rules ask: the first (platforms/cuda.py, device 0); none is its CPU build."""
    return Gpu.of(devices[0]) if devices else CPU


def evaluate(
    *,
    settings: VllmSettings,
    config: EngineConfig,
    model: VllmModel,
    ranks: Sequence[Rank],
    weights: Sequence[StageWeights],
    kv: KvPlan,
    vision: Mapping[str, object] | None = None,
    utilization: float | None = None,
    offload: Offload | None = None,
    available_kv_bytes: int | Sequence[int] | None = None,
    held_back_fraction: float = 0.0,
) -> Evaluation:
    """Account for every rank. `utilization` `None`: the highest that every GPU allows.

    `held_back_fraction` of the estimated peak and graphs is not counted on for the cache, so that a plan
    whose length is chosen from it starts even when these come out higher."""
    runtime = next((rank.device.runtime_bytes for rank in ranks), None)
    each = partial(_stage_budget, settings, config, model, kv, vision, offload, runtime)
    budgets = tuple(map(each, weights))
    host = host_use(
        settings,
        n_ranks=len(ranks) // config.parallel.nnodes,
        # one rank per stage is what an offload counts
        pinned_bytes=offload.host_bytes * max(1, len(ranks)) // max(1, config.parallel.pp * config.parallel.nnodes)
        if offload
        else 0,
        images=config.images,
        state_bytes=request_state_bytes(model, config),
    )
    if utilization is None:
        utilization = _highest(ranks, budgets, host)
    given = available_kv_bytes is not None
    by_rank = [(rank, _budget_of(rank, budgets, host)) for rank in ranks]
    available = _available(config, by_rank, budgets, utilization, available_kv_bytes, held_back_fraction)
    capacity, refusal = None, None
    try:
        capacity = fit(kv, config, available)
    except EngineRefusalError as error:
        refusal = error
    if capacity is not None and stages_in_ram(settings):
        here = ranks[: len(ranks) // config.parallel.nnodes]
        host = host.with_staged(sum(capacity.n_blocks * kv.bytes_per_block[rank.stage] for rank in here))
    return Evaluation(
        settings=settings,
        config=config,
        model=model,
        ranks=tuple(ranks),
        weights=tuple(weights),
        kv=kv,
        budgets=budgets,
        utilization=utilization,
        available_bytes=available,
        capacity=capacity,
        refusal=refusal,
        host=host,
        offload=offload,
        given_kv=given or config.gpu.cpu,
    )


def _stage_budget(
    settings: VllmSettings,
    config: EngineConfig,
    model: VllmModel,
    kv: KvPlan,
    vision: Mapping[str, object] | None,
    offload: Offload | None,
    runtime_bytes: int | None,
    stage: StageWeights,
) -> RankBudget:
    """What a rank of a stage takes beside its cache, by the settings."""
    return rank_budget(
        model,
        config,
        stage,
        kv,
        runtime_bytes=runtime_bytes,
        vision=vision,
        offloaded_bytes=offload.saved_bytes(stage.stage) if offload else 0,
        ipc_bytes=int(settings.mm_ipc_gpu_memory_gb * GIB) if config.images else 0,
        graphs_deducted=_graphs_deducted(settings),
    )


def _highest(ranks: Sequence[Rank], budgets: Sequence[RankBudget], host: HostUse) -> float:
    """The highest utilization that every GPU allows."""
    each = (
        highest_utilization(
            total_bytes=rank.total_bytes,
            free_bytes=rank.free_bytes,
            budget=_budget_of(rank, budgets, host),
            margin_bytes=rank.margin_bytes,
            limit=UNIFIED_LIMIT if rank.n_sharing else LIMIT,
        )
        for rank in ranks
    )
    return min(each, default=0.0)


def _budget_of(rank: Rank, budgets: Sequence[RankBudget], host: HostUse) -> RankBudget:
    budget = budgets[rank.stage]
    return budget.with_host(host.share_of(rank.n_sharing)) if rank.n_sharing else budget


def _graphs_deducted(settings: VllmSettings) -> bool:
    """Whether the estimate of the CUDA graphs is taken from the cache."""
    given = settings.env.get("VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS")
    return settings.version.cudagraph_estimate_deducted if given is None else given != "0"


def _available(
    config: EngineConfig,
    ranks: Sequence[tuple[Rank, RankBudget]],
    budgets: Sequence[RankBudget],
    utilization: float,
    stated: int | Sequence[int] | None,
    held_back_fraction: float,
) -> tuple[int, ...]:
    """KV memory per stage: stated, given by `--kv-cache-memory-bytes`, or what the utilization leaves."""
    n_stages = config.parallel.pp
    if stated is not None:
        return tuple([stated] * n_stages if isinstance(stated, int) else stated)
    if config.kv_cache_memory_bytes is not None:
        return tuple(config.kv_cache_memory_bytes - budgets[stage].ipc_bytes for stage in range(n_stages))
    available = []
    for stage in range(n_stages):
        budget = budgets[stage]
        held_back = int(held_back_fraction * (budget.peak.n_bytes + budget.graphs.n_bytes))
        here = [
            own.available_kv_bytes(requested_bytes(rank.total_bytes, utilization)) - held_back
            for rank, own in ranks
            if rank.stage == stage
        ]
        available.append(min(here, default=0))
    return tuple(available)


def host_items(evaluation: Evaluation) -> tuple[MemoryItem, ...]:
    """RAM that no GPU shares: processes, offloaded weights, caches; all of vLLM's CPU build."""
    items = list(evaluation.host.items)
    if evaluation.config.gpu.cpu:
        n_blocks = evaluation.capacity.n_blocks if evaluation.capacity else 0
        items += evaluation.budgets[0].items
        items.append(
            MemoryItem(
                kind="cache",
                n_bytes=n_blocks * evaluation.kv.bytes_per_block[0],
                basis="exact",
                label=f"KV cache, {n_blocks} blocks",
            )
        )
    return tuple(item for item in items if item.n_bytes)
