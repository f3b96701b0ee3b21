"""Weights in main memory: `--cpu-offload-gb` and its names, and what the host pays for it."""

from __future__ import annotations

from dataclasses import dataclass

from autofit.domain.units import GIB

from autofit_vllm.budget import pinned_bytes
from autofit_vllm.model import StageWeights

STEP_BYTES = GIB // 10  #: `--cpu-offload-gb` is written with one decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Offload:
    """Parameters that stay in pinned host memory and are read over PCIe in each step
    (model_executor/offloader/uva.py).

    `gigabytes` is per rank. `params` restricts it to parameters with that segment in their name.
    """

    gigabytes: float
    params: tuple[str, ...]
    moved: tuple[int, ...]  #: bytes per stage that really move
    host_bytes: int  #: pinned, of one rank of every stage together

    def saved_bytes(self, stage: int) -> int:
        return self.moved[stage]


def movable_bytes(stage: StageWeights, params: tuple[str, ...]) -> int:
    """What offloading can move: experts alone, or all but embeddings (which are never walked)."""
    if "experts" in params:
        return stage.expert_bytes
    return stage.parameter_bytes - stage.embedding_bytes - stage.tower_bytes


def offload(stages: tuple[StageWeights, ...], gigabytes: float, params: tuple[str, ...]) -> Offload:
    """What `--cpu-offload-gb` moves: layer by layer, parameter by parameter, until the limit is passed."""
    moved, pinned = [], 0
    for stage in stages:
        wanted = int(gigabytes * GIB)
        sizes = _parameter_sizes(stage, params)
        taken: list[int] = []
        for size in sizes:
            if sum(taken) >= wanted:
                break
            taken.append(size)
        moved.append(sum(taken))
        pinned += pinned_bytes(taken)
    return Offload(gigabytes=gigabytes, params=params, moved=tuple(moved), host_bytes=pinned)


def _parameter_sizes(stage: StageWeights, params: tuple[str, ...]) -> list[int]:
    """Sizes in the order in which they are walked. Experts are two tensors per layer, in (2/3) and out (1/3);
    a dense layer is counted as its four large matrices, of which the fused gate and up is the largest."""
    total = movable_bytes(stage, params)
    per_layer = total // max(1, stage.n_layers)
    if "experts" in params:
        return [size for _ in range(stage.n_layers) for size in (2 * per_layer // 3, per_layer - 2 * per_layer // 3)]
    parts = (per_layer * 15 // 100, per_layer * 10 // 100, per_layer // 2)
    return [size for _ in range(stage.n_layers) for size in (*parts, per_layer - sum(parts))]


def smallest_gigabytes(stages: tuple[StageWeights, ...], needed: tuple[int, ...], params: tuple[str, ...]) -> float | None:
    """The smallest `--cpu-offload-gb` that frees `needed` bytes on every stage; `None` if nothing does."""
    if any(want > movable_bytes(stage, params) for want, stage in zip(needed, stages, strict=True)):
        return None
    return -(-max(0, *needed) // STEP_BYTES) / 10 if max(needed) > 0 else 0.0
