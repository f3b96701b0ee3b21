"""Weights in RAM: what vLLM's two ways of it free on the GPU, and what the host pays."""

from __future__ import annotations

from collections.abc import Mapping

from autofit.domain.units import GIB
from autofit.domain.values import dataclass, field, replace
from autofit.errors import EngineRefusalError

from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.memory.budget import pinned_bytes
from autofit_vllm.modules.model import StageWeights

STEP_BYTES = GIB // 10  #: `--cpu-offload-gb` is written with one decimal
MOST_GIB = 1 << 30
EXPERT_NAMES = ("experts", "routed_experts", "w13_weight", "w2_weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offload:
    """Parameters that stay in pinned host memory, per rank of each stage.

    UVA (model_executor/offloader/uva.py) reads them over PCIe when they are used. Prefetch (offloader/prefetch.py)
    copies the next layer into a pool on the GPU while the current one computes."""

    params: tuple[str, ...]  #: names that restrict it; none: all of a layer
    moved: tuple[int, ...]  #: bytes in RAM, per stage
    pool: tuple[int, ...]  #: bytes on the GPU that stand in for them, per stage
    host_bytes: int  #: pinned, of one rank of every stage together
    prefetches: bool = False
    values: Mapping[str, object] = field(default_factory=dict)  #: the flags that say so

    def saved_bytes(self, stage: int) -> int:
        """What leaves the GPU; negative where the pool is larger than what moves."""
        return self.moved[stage] - self.pool[stage]

    @property
    def experts_only(self) -> bool:
        return experts_only(self.params)


def experts_only(params: tuple[str, ...]) -> bool:
    return bool(params) and all(name in EXPERT_NAMES for name in params)


def movable_bytes(stage: StageWeights, params: tuple[str, ...]) -> int:
    """What offloading can move: experts alone, or all but embeddings (which are never walked)."""
    if experts_only(params):
        return stage.expert_bytes
    return stage.parameter_bytes - stage.embedding_bytes - stage.tower_bytes


def given_offload(settings: VllmSettings, stages: tuple[StageWeights, ...]) -> Offload | None:
    """What the flags ask for.

    Raises:
        EngineRefusalError: groups that make no sense.
    """
    group, count, step = (
        settings.offload_group_size,
        settings.offload_num_in_group,
        settings.offload_prefetch_step,
    )
    prefetches = settings.offload_backend == "prefetch" or group > 0
    if prefetches and count > group:
        raise EngineRefusalError(f"offload_num_in_group ({count}) must be <= offload_group_size ({group})")
    if prefetches and step < 1:
        raise EngineRefusalError(
            f"offload_prefetch_step ({step}) must be >= 1 when prefetch offloading is enabled (offload_group_size > 0)"
        )
    found = None
    if settings.offload_backend in ("auto", "prefetch") and group > 0:
        found = prefetch(stages, group, count, step, settings.offload_params)
    elif not 0 <= settings.cpu_offload_gb <= MOST_GIB:
        raise EngineRefusalError(
            f"cpu_offload_gb must be at least 0, and a size that exists: {settings.cpu_offload_gb}"
        )
    elif settings.offload_backend in ("auto", "uva") and settings.cpu_offload_gb > 0:
        found = offload(stages, settings.cpu_offload_gb, settings.cpu_offload_params)
    if found is None:
        return None
    if any(found.moved) and not offloadable(stages, settings.cpu_offload_params or settings.offload_params):
        raise EngineRefusalError(
            "Cannot copy out of meta tensor; no data! Weights that are quantized while they load cannot be offloaded",
            hint="offload a checkpoint that is quantized already, or leave --quantization or offloading away",
        )
    return replace(found, values={})


def offloadable(stages: tuple[StageWeights, ...], params: tuple[str, ...]) -> bool:
    """Whether what is moved has data when layers are built: online quantization creates its weights on the meta device
    (layers/quantization/online/fp8.py:OnlineLinearBase), and offloaders copy them then (offloader/uva.py,
    offloader/prefetch.py)."""
    touched = {"experts"} if experts_only(params) else {"linear"} if params else {"linear", "experts"}
    return not any(touched & set(stage.on_meta) for stage in stages)


# -- UVA -------------------------------------------------------------------------------------------


def offload(stages: tuple[StageWeights, ...], gigabytes: float, params: tuple[str, ...]) -> Offload:
    """What `--cpu-offload-gb` moves: layer by layer, parameter by parameter, until the limit is passed."""
    moved, pinned = [], 0
    for stage in stages:
        wanted = int(gigabytes * GIB)
        sizes = _layer_sizes(stage, params)
        n_whole = min(stage.n_layers, wanted // sum(sizes)) if sum(sizes) else stage.n_layers
        total, rest = n_whole * sum(sizes), []
        for size in sizes if n_whole < stage.n_layers else ():
            if total >= wanted:
                break
            rest.append(size)
            total += size
        moved.append(total)
        pinned += n_whole * pinned_bytes(sizes) + pinned_bytes(rest)
    values: dict[str, object] = {"cpu_offload_gb": gigabytes}
    if params:
        values["cpu_offload_params"] = params
    return Offload(
        params=params,
        moved=tuple(moved),
        pool=(0,) * len(stages),
        host_bytes=pinned,
        values=values,
    )


def _layer_sizes(stage: StageWeights, params: tuple[str, ...]) -> list[int]:
    """Sizes in the order in which they are walked. Experts are two tensors per layer, in (2/3) and out (1/3);
    a dense layer is counted as its four large matrices, of which the fused gate and up is the largest."""
    per_layer = movable_bytes(stage, params) // max(1, stage.n_layers)
    if experts_only(params):
        return [2 * per_layer // 3, per_layer - 2 * per_layer // 3]
    parts = (per_layer * 15 // 100, per_layer * 10 // 100, per_layer // 2)
    return [*parts, per_layer - sum(parts)]


def smallest_offload(
    stages: tuple[StageWeights, ...], needed: tuple[int, ...], params: tuple[str, ...]
) -> Offload | None:
    """The least UVA offload that frees `needed` bytes on every stage; `None` if nothing does."""
    if any(want > movable_bytes(stage, params) for want, stage in zip(needed, stages, strict=True)):
        return None
    most = max(needed)
    return offload(stages, -(-most // STEP_BYTES) / 10, params) if most > 0 else None


# -- Prefetch --------------------------------------------------------------------------------------


def prefetch(stages: tuple[StageWeights, ...], group: int, count: int, step: int, params: tuple[str, ...]) -> Offload:
    """What `--offload-group-size` moves: the last `count` layers of each group of a stage."""
    moved, pool, pinned = [], [], 0
    for stage in stages:
        n_groups, rest = divmod(stage.n_layers, group)
        n = n_groups * count + max(0, rest - (group - count))
        sizes = _layer_sizes(stage, params)
        moved.append(n * sum(sizes))
        pool.append(step * sum(sizes) if n else 0)
        pinned += n * pinned_bytes(sizes)
    values: dict[str, object] = {
        "offload_group_size": group,
        "offload_num_in_group": count,
        "offload_prefetch_step": step,
    }
    if params:
        values["offload_params"] = params
    return Offload(
        params=params,
        moved=tuple(moved),
        pool=tuple(pool),
        host_bytes=pinned,
        prefetches=True,
        values=values,
    )


def smallest_prefetch(
    stages: tuple[StageWeights, ...], needed: tuple[int, ...], params: tuple[str, ...], step: int = 1
) -> Offload | None:
    """The fewest layers whose prefetch frees `needed` bytes on every stage; `None` if nothing does."""
    if max(needed) <= 0:
        return None
    n_layers = max(stage.n_layers for stage in stages)
    for group, count in _patterns(n_layers):
        found = prefetch(stages, group, count, step, params)
        if all(found.saved_bytes(stage.stage) >= want for stage, want in zip(stages, needed, strict=True)):
            return found
    return None


def _patterns(n_layers: int) -> list[tuple[int, int]]:
    """(group, layers of it) by growing share: one of many, then all but one of few, then all."""
    few = [(group, 1) for group in range(n_layers, 1, -1)]
    many = [(group, group - 1) for group in range(3, n_layers + 1)]
    return [*few, *many, (1, 1)]
