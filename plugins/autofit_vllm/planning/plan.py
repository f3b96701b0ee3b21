"""One complete set of settings on real devices: what every rank takes, and the plan that says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from autofit.domain.machine import HOST_POOL, Device, Machine
from autofit.domain.memory import Memory, MemoryItem, PoolUse
from autofit.domain.plan import Alternative, Decision, Finding, Plan, Speed
from autofit.domain.request import Margin
from autofit.domain.units import GIB, MIB, format_bytes
from autofit.domain.values import dataclass
from autofit.errors import EngineRefusalError, HardwareError
from autofit.planning.accounting import DeviceUse, account, margin_of

from autofit_vllm.command.flags import flag_of, is_frontend
from autofit_vllm.command.settings import VllmSettings
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
from autofit_vllm.planning.codes import finding

#: Kept free on each GPU unless `--margin` says otherwise: the figures beside weights and cache are bounds and
#: public measurements, and both drivers and display servers take some tens of MiB more or less.
DEFAULT_MARGIN = Margin(n_bytes=256 * MIB, fraction=0.01)
SHM_BYTES = GIB  #: message queues and NCCL between the workers of one node


def cuda_total_bytes(device: Device) -> int:
    """Total memory as cudaMemGetInfo reports it: what the driver keeps is not in it."""
    return (device.total_bytes or 0) - (device.reserved_bytes or 0)


def margin_bytes(device: Device, index: int, margins: Sequence[Margin]) -> int:
    """The margin of a device; the last of `margins` is repeated."""
    return margin_of(index, margins, cuda_total_bytes(device), DEFAULT_MARGIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One GPU of a replica: its stage, and what is free on it for vLLM's budget.

    `n_sharing` ranks draw on RAM, as this one does where it is not 0."""

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
    n_sharing = len({device.id for device in devices if device.pool == HOST_POOL})
    ranks = []
    for index, device in enumerate(devices):
        stage = index % parallel.world_size // per_stage
        total = cuda_total_bytes(device)
        if device.free_bytes is None:
            raise HardwareError(f"the free memory of {device.id} is unknown", hint="state it: --on NAME:SIZE")
        shares = n_sharing if device.pool == HOST_POOL else 0
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
    budgets = tuple(
        rank_budget(
            model,
            config,
            stage,
            kv,
            runtime_bytes=runtime,
            vision=vision,
            offloaded_bytes=offload.saved_bytes(stage.stage) if offload else 0,
            ipc_bytes=int(settings.mm_ipc_gpu_memory_gb * GIB) if config.images else 0,
            graphs_deducted=_graphs_deducted(settings),
        )
        for stage in weights
    )
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
        utilization = min(
            (
                highest_utilization(
                    total_bytes=rank.total_bytes,
                    free_bytes=rank.free_bytes,
                    budget=_budget_of(rank, budgets, host),
                    margin_bytes=rank.margin_bytes,
                    limit=UNIFIED_LIMIT if rank.n_sharing else LIMIT,
                )
                for rank in ranks
            ),
            default=0.0,
        )
    given = available_kv_bytes is not None
    by_rank = [(rank, _budget_of(rank, budgets, host)) for rank in ranks]
    available = _available(config, by_rank, budgets, utilization, available_kv_bytes, held_back_fraction)
    capacity, refusal = None, None
    try:
        capacity = fit(kv, config, available)
    except EngineRefusalError as error:
        refusal = error
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


# -- The plan --------------------------------------------------------------------------------------


def gpu_of(devices: Sequence[Device]) -> Gpu:
    """The device that vLLM's rules ask: the first (platforms/cuda.py, device 0); none is its CPU build."""
    return Gpu.of(devices[0]) if devices else CPU


def memory_of(evaluation: Evaluation, machine: Machine) -> Memory:
    """Pools in the engine's device order, the host last; GPUs that draw on RAM are part of its pool."""
    n_blocks = evaluation.capacity.n_blocks if evaluation.capacity else 0
    uses = []
    for rank in evaluation.ranks:
        cache = MemoryItem(
            kind="cache",
            n_bytes=n_blocks * evaluation.kv.bytes_per_block[rank.stage],
            basis="exact" if evaluation.given_kv else "derived",
            label=f"KV cache, {n_blocks} blocks",
            source="v1/core/kv_cache_planning.py",
        )
        uses.append(
            DeviceUse(
                device=rank.device,
                items=(*evaluation.budget_of(rank).items, cache),
                total_bytes=rank.total_bytes,
                free_bytes=rank.free_bytes,
                margin_bytes=rank.margin_bytes,
            )
        )
    # processes are part of what a GPU takes that shares RAM with them
    return account(uses, () if any(use.shares_memory for use in uses) else host_items(evaluation), machine)


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


def report(evaluation: Evaluation) -> dict[str, object]:
    """The engine's own figures, by the names it uses."""
    config, kv, capacity = evaluation.config, evaluation.kv, evaluation.capacity
    return {
        "weights_bytes_per_rank": [stage.parameter_bytes for stage in evaluation.weights],
        "model_memory_bytes_per_rank": [stage.total_bytes for stage in evaluation.weights],
        "bytes_per_block": list(kv.bytes_per_block),
        "block_size": kv.layout.block_tokens,
        "num_gpu_blocks": capacity.n_blocks if capacity else None,
        "kv_cache_tokens": capacity.n_tokens if capacity else None,
        "max_concurrency": round(capacity.max_concurrency, 2) if capacity else None,
        "max_model_len": capacity.max_model_len if capacity else config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "max_in_flight_tokens": config.max_in_flight_tokens,
        "dtype": config.dtype,
        "quantization": config.quantization,
        "kv_cache_dtype": kv.layout.kv_dtype,
        "attention_backends": list(kv.layout.backends),
        "kv_cache_groups": [
            {
                "layers": len(group.layers),
                "kind": group.first.kind,
                "block_size": group.first.block_tokens,
                "page_bytes": sum(layer.page_bytes for layer in group.layers)
                if len(group.kinds) > 1
                else group.first.page_bytes,
            }
            for group in kv.groups
        ],
        "available_kv_cache_bytes": list(evaluation.available_bytes),
        "gpu_memory_utilization": evaluation.utilization,
        "cudagraph_mode": config.graph_mode,
        "cudagraph_capture_sizes": list(config.capture_sizes),
        "tensor_parallel_size": config.parallel.tp,
        "pipeline_parallel_size": config.parallel.pp,
        "data_parallel_size": config.parallel.dp,
    }


def build_plan(
    evaluation: Evaluation,
    machine: Machine,
    *,
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    kwargs: Mapping[str, object] | None = None,
    decisions: Sequence[Decision] = (),
    alternatives: Sequence[Alternative] = (),
    findings: Sequence[Finding] = (),
    speed: Speed | None = None,
) -> Plan:
    """The plan of an evaluation; its findings come first."""
    memory = memory_of(evaluation, machine)
    own = findings_of(evaluation, machine)
    length = evaluation.capacity.max_model_len if evaluation.capacity else evaluation.config.max_model_len
    host = memory.pool(HOST_POOL)
    # A stated KV memory replaces the accounting: whether weights fit beside it is not asked. On the CPU
    # it is RAM, which holds everything else too.
    asked = evaluation.config.gpu.cpu or not evaluation.given_kv
    if asked and host.shortfall_bytes > 0 and (evaluation.fits or not any(r.n_sharing for r in evaluation.ranks)):
        own.append(_host_finding(host))
    fits = evaluation.fits and not (asked and host.shortfall_bytes > 0)
    return Plan(
        backend="vllm",
        fits=fits,
        argv=tuple(argv),
        env=dict(env or {}),
        kwargs=dict(kwargs or {}),
        memory=memory,
        speed=speed,
        context_tokens=length,
        safe_fill_tokens=length if evaluation.capacity else None,
        decisions=tuple(decisions),
        alternatives=tuple(alternatives),
        findings=(*own, *findings),
        engine_report=report(evaluation),
        engine_version=evaluation.settings.version.version,
    )


def _host_finding(host: PoolUse) -> Finding:
    """RAM is short; what takes most of it is named."""
    most = max(host.items, key=lambda item: item.n_bytes if item.kind != "reserve" else 0)
    return finding(
        "does-not-fit",
        f"{host.name} needs {format_bytes(host.shortfall_bytes)} more; the largest item is {most.label}: "
        f"{format_bytes(most.n_bytes)} of {format_bytes(host.free_bytes or 0)} free",
    )


def findings_of(evaluation: Evaluation, machine: Machine) -> list[Finding]:
    """What somebody who starts this ought to know."""
    config, capacity = evaluation.config, evaluation.capacity
    found = [finding("model-note", note) for note in evaluation.model.notes]
    if evaluation.model.basis == "bound":
        found.append(
            finding(
                "unknown-architecture",
                f"unknown architecture {evaluation.model.architecture}: figures are upper bounds",
            )
        )
    if evaluation.refusal is not None:
        message = str(evaluation.refusal)
        if evaluation.refusal.hint:
            message += f" ({evaluation.refusal.hint})"
        found.append(finding("kv-cache-too-small", message))
    if not evaluation.given_kv:
        found += _start_findings(evaluation)
    if capacity and not evaluation._graphs_fit:
        found.append(
            finding(
                "too-many-sequences",
                f"max_num_seqs ({config.max_num_seqs}) exceeds available Mamba cache blocks "
                f"({capacity.n_blocks}); use --max-num-seqs {capacity.n_blocks} or less",
            )
        )
    found += _device_findings(evaluation)
    moves = bool(evaluation.offload or evaluation.settings.kv_offloading_size)
    if moves and any(rank.n_sharing for rank in evaluation.ranks):
        found.append(
            finding(
                "one-memory",
                "unified memory: offloading weights frees nothing and uses additional pinned memory",
            )
        )
    towers = sum(stage.tower_bytes for stage in evaluation.weights)
    if config.images and towers:
        found.append(
            finding(
                "images-kept",
                f"image and audio encoders take {format_bytes(towers)} of weights, and memory in the first "
                "step; --language-model-only leaves them out for text alone",
            )
        )
    n_ranks = len(evaluation.ranks)
    shm = machine.host.shm_bytes
    if n_ranks > 1 and shm is not None and shm < SHM_BYTES:
        found.append(
            finding(
                "small-shm",
                f"shared memory: {format_bytes(shm)} for {n_ranks} workers, which need about 1 GiB; "
                "in a container, start it with --ipc=host",
            )
        )
    names = {rank.device.name for rank in evaluation.ranks}
    if len(names) > 1 and config.parallel.layer_partition is None:
        found.append(
            finding(
                "mixed-gpus",
                f"{', '.join(sorted(names))}: shards are equal in size, so the smallest GPU sets the limit",
            )
        )
    if evaluation.model.is_moe and config.gpu.cc[0] == 10 and config.graph_mode != "NONE":
        found.append(
            finding(
                "blackwell-graphs",
                "CUDA graphs of large MoE models take tens of GiB on this GPU, by public reports; "
                "smaller --cudagraph-capture-sizes limit them",
            )
        )
    return found


def _device_findings(evaluation: Evaluation) -> list[Finding]:
    """What the kind of GPU, or weights that are not on it, mean for the run."""
    config, found = evaluation.config, []
    least = evaluation.settings.version.least_capability
    old = next((r.device for r in evaluation.ranks if (r.device.compute_capability or least) < least), None)
    if old is not None and old.compute_capability is not None:
        have, need = (f"{cc[0]}.{cc[1]}" for cc in (old.compute_capability, least))
        message = (
            f"vLLM {evaluation.settings.version.version} is published for compute capability {need} and newer; "
            f"{old.name} has {have}: build it from source; kernels may be missing"
        )
        found.append(finding("old-gpu", message))
    if config.dtype == "float32" and evaluation.model.dtype != "float32":
        message = (
            f"the model runs in float32 here: {config.gpu.name} has no bfloat16, and vLLM does not run "
            f"{evaluation.model.model_type} in float16; weights and cache take twice the memory"
        )
        if evaluation.settings.dtype != "float32" or not evaluation.settings.pins("dtype"):
            found.append(finding("float32", message))
    if evaluation.offload is not None and not any(rank.n_sharing for rank in evaluation.ranks):
        moved = format_bytes(sum(evaluation.offload.moved) * config.parallel.tp * config.parallel.dp)
        message = f"{moved} of weights stay in RAM; reading them over PCIe limits decoding"
        found.append(finding("weights-in-ram", message))
    return found


def _start_findings(evaluation: Evaluation) -> list[Finding]:
    """The check at start: so much must be free (v1/worker/utils.py:request_memory)."""
    found = []
    for rank in evaluation.ranks:
        requested = requested_bytes(rank.total_bytes, evaluation.utilization)
        free = rank.free_at_snapshot(evaluation.budget_of(rank))
        if free < requested:
            highest = max(0.0, free / rank.total_bytes - 0.005)
            found.append(
                finding(
                    "not-enough-free",
                    f"Free memory on device {rank.device.id} ({free / GIB:.2f}/"
                    f"{rank.total_bytes / GIB:.2f} GiB) on startup is less than desired GPU memory "
                    f"utilization ({evaluation.utilization}, {requested / GIB:.2f} GiB); "
                    f"at most {highest:.2f} will start",
                )
            )
            break
    if evaluation.overrun_bytes and not found:
        pins = evaluation.settings.pins
        pinned = next((flag_of(n) for n in ("num_gpu_blocks_override", "kv_cache_memory_bytes") if pins(n)), None)
        why = (
            f"vLLM uses {pinned} as given; lower it"
            if pinned
            else "graphs, tables and workspaces come on top of the utilization; lower --gpu-memory-utilization"
        )
        message = f"{format_bytes(evaluation.overrun_bytes)} more than {_allowed(evaluation)}: {why}"
        found.append(finding("does-not-fit", message))
    return found


def _allowed(evaluation: Evaluation) -> str:
    margins = [rank.margin_bytes for rank in evaluation.ranks if rank.margin_asked]
    return f"is free with a margin of {format_bytes(max(margins))}" if any(margins) else "is free"


# -- Command lines ---------------------------------------------------------------------------------


def command(
    settings: VllmSettings, values: Mapping[str, object], *, program: Sequence[str], model: str
) -> tuple[str, ...]:
    """The command: our values first, then the user's flags exactly as given."""
    argv = [*program, model]
    for name, value in values.items():
        if name in settings.given:
            continue
        argv += written(name, value)
    return (*argv, *settings.args)


def written(name: str, value: object) -> tuple[str, ...]:
    """The arguments of one value."""
    flag = flag_of(name)
    if value is True:
        return (flag,)
    if value is None or value is False:
        return ()
    if isinstance(value, (tuple, list)):
        return (flag, *map(str, value))
    return flag, str(value)


def keyword_arguments(settings: VllmSettings, values: Mapping[str, object], model: str) -> dict[str, object]:
    """Arguments of `vllm.LLM` and `AsyncEngineArgs` that mean the same."""
    result: dict[str, object] = {"model": model}
    for name, value in {**values, **settings.given}.items():
        if name == "model" or value is None or is_frontend(name, settings.version):
            continue
        result[name] = list(value) if isinstance(value, tuple) else value
    return result


def replace_settings(settings: VllmSettings, values: Mapping[str, Any]) -> VllmSettings:
    """`settings` with `values` where the user pinned none."""
    return dataclasses.replace(
        settings, **{name: value for name, value in values.items() if name not in settings.given}
    )
