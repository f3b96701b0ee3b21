"""One layout: the longest context, then the largest batch that keeps it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autofit.domain.values import dataclass, replace

from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.config.engine import EngineConfig
from autofit_vllm.config.resolve.batch import batch_defaults
from autofit_vllm.config.resolve.dtype import supported_dtypes
from autofit_vllm.memory.budget import requested_bytes
from autofit_vllm.memory.kv import KvPlan, plan_kv
from autofit_vllm.memory.offload import Offload, given_offload
from autofit_vllm.modules.model import StageWeights
from autofit_vllm.planning.command import replace_settings
from autofit_vllm.planning.evaluation import Evaluation, Rank, check_dtype, evaluate, gpu_of, ranks_of
from autofit_vllm.planning.layouts import LAYOUT_VALUES, PARTITION
from autofit_vllm.planning.load import blocks_for, mean_length, sequences_at
from autofit_vllm.planning.problem import ENOUGH_TOKENS, Candidate, Problem, RankLayout

HELD_BACK = 0.45  #: of the estimated peak and graphs, when a length is chosen: what logs spread by
STEP_TOKENS = (16384, 8192, 4096, 2048, 1024, 512)
FIRST_STEP, FIRST_SEQUENCES = 2048, 256  #: vLLM's defaults on cards below 70 GiB
SEQUENCES = (1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1)
FEW_SEQUENCES = 16  #: fewer are taken only when nothing else fits
KEPT = 0.9  #: of the full contexts at a time, with a larger batch
LENGTH_STEP = 256  #: solved lengths are multiples of this


def best_of_layout(
    problem: Problem, layout: RankLayout, values: Mapping[str, Any], *, cap: int | None = None
) -> Candidate:
    """The largest steps and the most sequences with which the target length fits, else the longest length.

    Raises:
        EngineRefusalError
    """
    # with a longer context than was wished, sequences would be longer on average, and fewer at a time
    if problem.request.prefer == "throughput":
        cap = min(cap or problem.wished, problem.wished)
    return best_batch(
        problem, LayoutBase.of(problem, layout, values), min(problem.target, cap or problem.target), cap=cap
    )


def best_batch(problem: Problem, base: LayoutBase, target: int, *, cap: int | None = None) -> Candidate:
    """The longest length at the first batch, then the largest batch that keeps it; where the target is not reached, the
    first of the smaller ones that reaches it. `cap` bounds the length."""
    smaller, larger = _batches(problem, base)
    first = base.candidate(*smaller[0], limit=cap)
    if _reaches(first, target):
        for tokens, seqs in larger:
            candidate = base.candidate(tokens, seqs, limit=first.length)
            if _keeps(candidate, first, problem):
                return candidate
        return first
    found = first
    limit = target if cap is None else min(target, cap)
    for tokens, seqs in smaller[1:]:
        if seqs < FEW_SEQUENCES and problem.n_slots is None and found.holds:
            break
        candidate = base.candidate(tokens, seqs, limit=limit)
        if _reaches(candidate, target):
            return candidate
        if _better(candidate, found):
            found = candidate
    return found


def _keeps(larger: Candidate, first: Candidate, problem: Problem) -> bool:
    """Whether a larger batch costs neither context nor sequences: windows hold what is in flight beside them, and with
    long steps that is most of the cache (v1/core/kv_cache_utils.py). Where the sum counts, not one sequence."""
    if not larger.holds or larger.length < first.length or larger.served < first.served:
        return False
    if problem.request.prefer == "throughput":
        many, few = (
            sequences_at(each.evaluation, mean_length(first.length, problem.request)) for each in (larger, first)
        )
        return many >= few
    after, before = larger.evaluation.capacity, first.evaluation.capacity
    return before is None or after is None or after.max_concurrency >= KEPT * before.max_concurrency


def _reaches(candidate: Candidate, target: int) -> bool:
    return candidate.holds and candidate.length >= target and candidate.served >= 1.0


def _lacking(candidate: Candidate) -> tuple[int, int]:
    return max(0, candidate.evaluation.shortfall_bytes), max(0, candidate.short_bytes)


def _better(one: Candidate, other: Candidate) -> bool:
    if one.holds != other.holds:
        return one.holds
    if not one.holds:
        return _lacking(one) < _lacking(other)
    return (one.length, one.served) > (other.length, other.served)


def _batches(problem: Problem, base: LayoutBase) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Batches from vLLM's smallest default downwards, and those above it from the largest."""
    steps = list(_ladder(problem, base))
    tokens, seqs = max(FIRST_STEP, steps[-1][0]), max(FIRST_SEQUENCES, steps[-1][1])
    larger = [step for step in steps if step[0] > tokens or step[1] > seqs]
    return [step for step in steps if step not in larger], larger


def _ladder(problem: Problem, base: LayoutBase) -> Iterator[tuple[int, int]]:
    """(tokens per step, sequences) from the device's defaults downwards; each step frees memory."""
    settings = problem.settings
    tokens0, seqs0 = batch_defaults(base.config.gpu, world_size=base.config.parallel.world_size)
    if problem.request.prefer == "throughput":
        tokens0, seqs0 = max(tokens0, 8192), max(seqs0, 512)
    wanted = problem.n_slots
    if settings.max_num_seqs is not None:
        all_seqs: Sequence[int] = (settings.max_num_seqs,)
    elif wanted is not None:
        all_seqs = (wanted,)
    else:
        all_seqs = [n for n in SEQUENCES if problem.n_parallel <= n <= seqs0] or [problem.n_parallel]
    if settings.max_num_batched_tokens is not None:
        all_tokens: Sequence[int] = (settings.max_num_batched_tokens,)
    else:
        all_tokens = [n for n in STEP_TOKENS if n <= max(tokens0, 512)]
    goal, _ = problem.lengths
    at_tokens, at_seqs = 0, 0
    while True:
        tokens, seqs = all_tokens[at_tokens], all_seqs[at_seqs]
        if settings.max_num_batched_tokens is None:
            tokens = max(tokens, seqs)
            if base.config.chunked_prefill is False:
                tokens = max(tokens, goal)
        # with fewer sequences than were wished it would be another plan: vLLM's own refusal says why
        yield tokens, seqs if wanted is not None else min(seqs, tokens)
        if at_tokens + 1 < len(all_tokens) and (at_tokens <= at_seqs or at_seqs + 1 == len(all_seqs)):
            at_tokens += 1
        elif at_seqs + 1 < len(all_seqs):
            at_seqs += 1
        else:
            return


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutBase:
    """What does not change while a layout's batch is chosen: weights, the cache's layout, the ranks."""

    problem: Problem
    layout: RankLayout
    values: Mapping[str, Any]
    settings: VllmSettings
    config: EngineConfig
    ranks: tuple[Rank, ...]
    weights: tuple[StageWeights, ...]
    kv: KvPlan
    offload: Offload | None

    @classmethod
    def of(cls, problem: Problem, layout: RankLayout, values: Mapping[str, Any]) -> LayoutBase:
        devices = layout.devices
        settings = _with(problem, layout, values, max_model_len=problem.lengths[0])
        gpu = gpu_of(devices)
        config = problem.resolve(settings, gpu)
        used = devices[: layout.world_size]
        oldest = min(used, key=lambda device: device.compute_capability or (0, 0), default=None)
        if oldest is not None and not settings.pins("dtype") and config.dtype not in supported_dtypes(gpu_of([oldest])):
            values = {**values, "dtype": problem.resolve(settings, gpu_of([oldest])).dtype}
            settings = _with(problem, layout, values, max_model_len=problem.lengths[0])
            config = problem.resolve(settings, gpu)
        check_dtype(config.dtype, used)
        weights = problem.weigh(config)
        return cls(
            problem=problem,
            layout=layout,
            values=values,
            settings=settings,
            config=config,
            ranks=ranks_of(devices, config, problem.request.margin),
            weights=weights,
            kv=plan_kv(problem.model, config),
            offload=given_offload(settings, weights),
        )

    def candidate(self, tokens: int, seqs: int, *, limit: int | None = None) -> Candidate:
        """The longest length at this batch, up to a limit, with every setting written out."""
        goal, least = self.problem.lengths
        goal = max(least, min(goal, limit or goal))
        evaluation = self.evaluate(tokens, seqs, goal)
        length = self.longest(evaluation, goal)
        if evaluation.capacity is not None and not self.settings.pins("max_num_seqs"):
            seqs = self._capture_limit(evaluation, seqs)
        if length < max(least, 1):
            length = 0
        shown = length or max(least, min(goal, ENOUGH_TOKENS))
        evaluation = self.evaluate(tokens, seqs, shown, held_back=0.0 if length else HELD_BACK)
        served = self._served(evaluation, shown)
        return Candidate(
            evaluation=evaluation,
            values=self._printed(evaluation),
            length=length,
            served=served,
            short_bytes=self._short_of_ram(evaluation),
        )

    def _short_of_ram(self, evaluation: Evaluation) -> int:
        """What RAM lacks for the processes, the state of the requests and weights that are there."""
        available = self.problem.machine.host.available_bytes
        shared = evaluation.config.gpu.cpu or any(rank.n_sharing for rank in evaluation.ranks)
        return 0 if available is None or shared else evaluation.host_bytes - available

    def longest(self, evaluation: Evaluation, goal: int) -> int:
        """Tokens of a full context, the other sequences at their average; of a full context alone where that was
        wished, or nothing useful would be left."""
        request, n = self.problem.request, self.problem.n_parallel
        if self.settings.pins("max_model_len"):
            wanted = evaluation.config.max_model_len
            if evaluation.config.auto_length:
                return evaluation.kv.longest(evaluation.available_bytes, wanted)
            return wanted if _holds(evaluation, wanted, n if request.fill == "full" else 1, wanted) else 0
        together = self._longest(evaluation, goal, n)
        least = max(self.problem.lengths[1], min(goal, ENOUGH_TOKENS))
        if n == 1 or request.fill == "full" or together >= least:
            return together
        return min(least, self._longest(evaluation, goal, 1))

    def _longest(self, evaluation: Evaluation, goal: int, n_sequences: int) -> int:
        def holds(length: int) -> bool:
            return _holds(evaluation, length, n_sequences, mean_length(length, self.problem.request))

        if holds(goal):
            return goal
        low, high, best = 1, goal, 0
        while low <= high:
            middle = (low + high) // 2
            if holds(middle):
                best, low = middle, middle + 1
            else:
                high = middle - 1
        return best // LENGTH_STEP * LENGTH_STEP or best

    def _capture_limit(self, evaluation: Evaluation, seqs: int) -> int:
        """Recurrent models capture full graphs only with a block per sequence."""
        assert evaluation.capacity is not None
        states = any(layer.kind == "state" for layer in evaluation.kv.layout.layers)
        return min(seqs, evaluation.capacity.n_blocks) if states else seqs

    def leanest(self, candidate: Candidate) -> Candidate:
        """The same plan with the least of each GPU that holds it, what is held back for estimates included."""
        config, request, n = candidate.evaluation.config, self.problem.request, self.problem.n_parallel
        tokens, seqs, length = config.max_num_batched_tokens, config.max_num_seqs, candidate.length
        full = self.evaluate(tokens, seqs, length)
        blocks = blocks_for(full.kv, length, n, mean_length(length, request))
        if any(layer.kind == "state" for layer in full.kv.layout.layers):
            blocks = max(blocks, seqs + 1)
        spare = [have - blocks * each for have, each in zip(full.available_bytes, full.kv.bytes_per_block, strict=True)]
        least = max(
            (requested_bytes(rank.total_bytes, full.utilization) - spare[rank.stage]) / rank.total_bytes
            for rank in full.ranks
        )
        utilization = math.ceil(1e4 * least) / 1e4
        if utilization >= full.utilization:
            return candidate
        evaluation = self.evaluate(tokens, seqs, length, held_back=0.0, utilization=utilization)
        found = replace(candidate, evaluation=evaluation, values=self._printed(evaluation))
        return found if found.holds and candidate.served == self._served(evaluation, length) else candidate

    def _served(self, evaluation: Evaluation, length: int) -> float:
        """The part of the sequences wished that the cache holds at their average length."""
        return min(1.0, sequences_at(evaluation, mean_length(length, self.problem.request)) / self.problem.n_parallel)

    def evaluate(
        self, tokens: int, seqs: int, length: int, *, held_back: float = HELD_BACK, utilization: float | None = None
    ) -> Evaluation:
        settings = _with(
            self.problem,
            self.layout,
            self.values,
            max_model_len=length,
            max_num_batched_tokens=tokens,
            max_num_seqs=seqs,
        )
        config = self.problem.resolve(settings, self.config.gpu)
        kv = replace(self.kv, max_len=config.max_model_len, in_flight_tokens=config.max_in_flight_tokens)
        if not config.prefix_caching and self.problem.model.is_hybrid:
            kv = plan_kv(self.problem.model, config)  # states then span the whole length
        pinned = settings.gpu_memory_utilization if settings.pins("gpu_memory_utilization") else utilization
        return evaluate(
            settings=settings,
            config=config,
            model=self.problem.model,
            ranks=self.ranks,
            weights=self.weights,
            kv=kv,
            vision=self.problem.vision,
            utilization=pinned,
            offload=self.offload,
            held_back_fraction=held_back,
        )

    def _printed(self, evaluation: Evaluation) -> dict[str, Any]:
        """Settings in the order of the command line: layout, length, batch, memory, type."""
        config = evaluation.config
        values = dict(self.values)
        values.pop("dtype", None)
        kv_dtype = values.pop("kv_cache_dtype", None)
        eager = values.pop("enforce_eager", None)
        values["max_model_len"] = evaluation.capacity.max_model_len if evaluation.capacity else config.max_model_len
        values["max_num_seqs"] = config.max_num_seqs
        values["max_num_batched_tokens"] = config.max_num_batched_tokens
        if not config.gpu.cpu:
            values["gpu_memory_utilization"] = evaluation.utilization
        values["dtype"] = config.dtype
        if kv_dtype is not None:
            values["kv_cache_dtype"] = kv_dtype
        if eager:
            values["enforce_eager"] = True
        if self.offload is not None:
            values.update(self.offload.values)
        return values


def _with(problem: Problem, layout: RankLayout, values: Mapping[str, Any], **more: Any) -> VllmSettings:
    given = {name: value for name, value in {**values, **more}.items() if name != "device_ids"}
    settings = replace_settings(problem.settings, given)
    return replace(settings, env={**settings.env, **layout.env}) if layout.env else settings


def _holds(evaluation: Evaluation, length: int, n_sequences: int, mean_tokens: int) -> bool:
    """Whether one sequence of this length and the others at the average have blocks, beside the null block, on every
    stage."""
    kv = evaluation.kv
    needed = blocks_for(kv, length, n_sequences, mean_tokens)
    have = [
        available // per_block
        for available, per_block in zip(evaluation.available_bytes, kv.bytes_per_block, strict=True)
        if per_block
    ]
    if evaluation.config.num_gpu_blocks_override is not None:
        have = [evaluation.config.num_gpu_blocks_override]
    return not have or needed <= min(have)


def base_of(problem: Problem, candidate: Candidate) -> LayoutBase:
    """What a candidate was made from, without its batch."""
    kept = (*LAYOUT_VALUES, "kv_cache_dtype", "enforce_eager")
    values = {name: value for name, value in candidate.values.items() if name in kept}
    evaluation = candidate.evaluation
    partition = evaluation.settings.env.get(PARTITION)
    devices = tuple(rank.device for rank in evaluation.ranks)
    env = {} if partition is None or PARTITION in problem.settings.env else {PARTITION: partition}
    return LayoutBase.of(problem, RankLayout(values=values, devices=devices, world_size=len(devices), env=env), values)
