"""Weights in RAM: the least of them with which a moderate load fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autofit.domain.machine import HOST_POOL
from autofit.domain.values import NamedTuple, replace
from autofit.solve import largest

from autofit_vllm.memory.offload import Offload, movable_bytes, offloadable, smallest_offload, smallest_prefetch
from autofit_vllm.modules.model import StageWeights
from autofit_vllm.planning.batch import LENGTH_STEP, LayoutBase, base_of, best_batch
from autofit_vllm.planning.load import blocks_for, mean_length
from autofit_vllm.planning.problem import Candidate, Problem
from autofit_vllm.planning.speed import offload_seconds

Way = Callable[[tuple[StageWeights, ...], tuple[int, ...], tuple[str, ...]], Offload | None]
OFFLOAD_STEP_TOKENS, OFFLOAD_SEQUENCES = 2048, 16  #: the load that weights make room for


def offloaded(problem: Problem, found: Sequence[Candidate], *, faster_than: float = 0.0) -> list[Candidate]:
    """Candidates that keep experts, or layers, in RAM: the least with which a moderate load fits, or the longest
    context where that is asked for. Those that only read them from there as long as a token of `faster_than` tokens per
    second takes are left out."""
    if any(problem.settings.pins(name) for name in ("cpu_offload_gb", "offload_group_size")):
        return []
    if any(device.pool == HOST_POOL for device in problem.devices):
        return []  # what leaves such a GPU stays in the memory that it uses
    params = ("experts",) if problem.model.is_moe else ()
    reached = max((candidate.length for candidate in found if candidate.holds), default=0)
    result: list[Candidate] = []
    for candidate in found:
        if candidate.values.get("enforce_eager"):
            continue
        base = base_of(problem, candidate)
        if not offloadable(base.weights, params):
            continue
        moved = _Moved(problem, base, params, candidate.evaluation.host_bytes, faster_than)
        for n_parallel in _counts(problem):
            for way in (smallest_offload, smallest_prefetch):
                one = moved.longest(way, n_parallel, reached) if problem.longest else None
                one = one or moved.at(problem.worth, way, n_parallel)
                if one is not None and all(one.values != other.values for other in result):
                    result.append(one)
                    reached = max(reached, one.length if one.holds else 0)
    return result


def _counts(problem: Problem) -> list[int]:
    """The sequences that weights make room for: those wished, and where their sum counts several, as a step reads what
    is in RAM once for all."""
    if problem.request.prefer == "throughput" and problem.n_slots is None:
        return list(dict.fromkeys((problem.n_parallel, max(OFFLOAD_SEQUENCES, problem.n_parallel))))
    return [problem.n_parallel]


class _Moved(NamedTuple):
    """One layout with weights in RAM."""

    problem: Problem
    base: LayoutBase
    params: tuple[str, ...]  #: those that may move; none: all of a layer
    host_bytes: int  #: what its processes take of RAM without
    faster_than: float

    def at(self, length: int, way: Way, n_parallel: int) -> Candidate | None:
        """The least offload with which a moderate load of this length fits, and what comes of it; `None` where RAM does
        not hold it."""
        offload = self._least(length, way, n_parallel)
        return None if offload is None else best_batch(self.problem, self._with(offload), length, cap=length)

    def longest(self, way: Way, n_parallel: int, reached: int) -> Candidate | None:
        """That of the longest context beyond, or up to, what is `reached` without it."""
        goal, least = self.problem.lengths
        lengths = [n for n in range(LENGTH_STEP, goal, LENGTH_STEP) if n >= max(reached, least)] + [goal]
        known: dict[int, Candidate | None] = {}

        def holds(at: int) -> bool:
            known[at] = found = self.at(lengths[at], way, n_parallel)
            return found is not None and found.holds and found.length >= lengths[at]

        last = largest(holds, 0, len(lengths) - 1)
        return None if last is None else known[last]

    def _with(self, offload: Offload) -> LayoutBase:
        return replace(self.base, offload=offload)

    def _least(self, length: int, way: Way, n_parallel: int) -> Offload | None:
        problem, base = self.problem, self.base
        sequences = max(OFFLOAD_SEQUENCES, problem.n_parallel)
        wanted = base.evaluate(max(OFFLOAD_STEP_TOKENS, sequences), sequences, length)
        needed = blocks_for(wanted.kv, length, n_parallel, mean_length(length, problem.request))
        lacking = tuple(
            needed * per_block - have
            for per_block, have in zip(wanted.kv.bytes_per_block, wanted.available_bytes, strict=True)
        )
        found = way(base.weights, lacking, self.params)
        if found is None:
            return None
        if self.faster_than and offload_seconds(found, base.ranks, problem.model, 1) * self.faster_than >= 1:
            return None
        parallel, available = base.config.parallel, problem.machine.host.available_bytes or 0
        pinned = found.host_bytes * parallel.tp * parallel.dp
        return None if available and pinned + self.host_bytes > available else found


def offloadable_bytes(candidate: Candidate) -> int:
    """Weights that RAM could take, on all ranks."""
    evaluation = candidate.evaluation
    params = ("experts",) if evaluation.model.is_moe else ()
    if not offloadable(evaluation.weights, params):
        return 0
    return sum(movable_bytes(evaluation.weights[rank.stage], params) for rank in evaluation.ranks)
