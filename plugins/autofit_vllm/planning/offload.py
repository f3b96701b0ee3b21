"""Weights in RAM: the least of them with which a moderate load fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autofit.domain.machine import HOST_POOL
from autofit.domain.values import replace

from autofit_vllm.memory.offload import Offload, movable_bytes, offloadable, smallest_offload, smallest_prefetch
from autofit_vllm.planning.batch import LayoutBase, base_of, best_batch
from autofit_vllm.planning.load import blocks_for, mean_length
from autofit_vllm.planning.problem import Candidate, Problem
from autofit_vllm.planning.speed import offload_seconds

OFFLOAD_STEP_TOKENS, OFFLOAD_SEQUENCES = 2048, 16  #: the load that weights make room for


def offloaded(problem: Problem, found: Sequence[Candidate], *, faster_than: float = 0.0) -> list[Candidate]:
    """Candidates that keep experts, or layers, in RAM: the least with which a moderate load fits. Those that only read
    them from there as long as a token of `faster_than` tokens per second takes are left out."""
    if any(problem.settings.pins(name) for name in ("cpu_offload_gb", "offload_group_size")):
        return []
    if any(device.pool == HOST_POOL for device in problem.devices):
        return []  # what leaves such a GPU stays in the memory that it uses
    available = problem.machine.host.available_bytes or 0
    params = ("experts",) if problem.model.is_moe else ()
    result = []
    for candidate in found:
        if candidate.values.get("enforce_eager"):
            continue
        base = base_of(problem, candidate)
        for moved in _all_ways(problem, base, params):
            if faster_than and offload_seconds(moved, base.ranks, problem.model, 1) * faster_than >= 1:
                continue
            pinned = moved.host_bytes * candidate.parallel.tp * candidate.parallel.dp
            if not available or pinned + candidate.evaluation.host_bytes <= available:
                moved_base = replace(base, offload=moved)
                result.append(best_batch(problem, moved_base, problem.worth, cap=problem.worth))
    return result


def _all_ways(problem: Problem, base: LayoutBase, params: tuple[str, ...]) -> Iterator[Offload]:
    """What to move for the wished sequences, and where their sum counts for several: a step reads what is in RAM once
    for all."""
    counts = [problem.n_parallel]
    if problem.request.prefer == "throughput" and problem.n_slots is None:
        counts.append(max(OFFLOAD_SEQUENCES, problem.n_parallel))
    found: list[Offload] = []
    for n in counts:
        found += [way for way in _ways(problem, base, problem.worth, n, params) if way not in found]
    yield from found


def _ways(
    problem: Problem, base: LayoutBase, length: int, n_parallel: int, params: tuple[str, ...]
) -> Iterator[Offload]:
    """The least of each kind of offload with which a moderate load of this length fits."""
    sequences = max(OFFLOAD_SEQUENCES, problem.n_parallel)
    wanted = base.evaluate(max(OFFLOAD_STEP_TOKENS, sequences), sequences, length)
    mean = mean_length(length, problem.request)
    needed = blocks_for(wanted.kv, length, n_parallel, mean)
    lacking = tuple(
        needed * per_block - have
        for per_block, have in zip(wanted.kv.bytes_per_block, wanted.available_bytes, strict=True)
    )
    if not offloadable(base.weights, params):
        return
    for way in (smallest_offload, smallest_prefetch):
        found = way(base.weights, lacking, params)
        if found is not None:
            yield found


def offloadable_bytes(candidate: Candidate) -> int:
    """Weights that RAM could take, on all ranks."""
    evaluation = candidate.evaluation
    params = ("experts",) if evaluation.model.is_moe else ()
    if not offloadable(evaluation.weights, params):
        return 0
    return sum(movable_bytes(evaluation.weights[rank.stage], params) for rank in evaluation.ranks)
