"""What holds a plan that fits back, and what the next step up would need."""

from __future__ import annotations

from collections.abc import Sequence

from autofit.domain.machine import HOST_POOL
from autofit.domain.plan import Limit, NextRejected
from autofit.domain.units import format_bytes
from autofit.domain.values import replace

from autofit_vllm.planning.batch import base_of
from autofit_vllm.planning.evaluation import Evaluation, Rank
from autofit_vllm.planning.load import mean_length, sequences_at
from autofit_vllm.planning.problem import Candidate, Problem
from autofit_vllm.planning.reasons import lacks, next_length


def limit_of(problem: Problem, best: Candidate) -> Limit:
    """The first of these that more memory would make better: weights in RAM, a shorter context, fewer sequences."""
    evaluation = best.evaluation
    moved = evaluation.offload
    if moved is not None and moved.moved and any(moved.moved):
        return _weights(problem, best)
    longer = next_length(problem, best)
    if longer is not None:
        tokens = f"{best.length:,} of {problem.lengths[0]:,} tokens"
        step = replace(longer, value=f"--max-model-len {longer.value}", because=_others(evaluation))
        return Limit(what="context", because=tokens, pool=longer.pool, next_step=step)
    return _sequences(problem, best)


def _weights(problem: Problem, best: Candidate) -> Limit:
    """All weights on the GPUs, with the same batch and context."""
    evaluation = best.evaluation
    moved, config = evaluation.offload, evaluation.config
    assert moved is not None
    n_bytes = sum(moved.moved) * best.parallel.tp * best.parallel.dp
    because = f"{format_bytes(n_bytes)} of weights stay in RAM"
    if not moved.values:
        return Limit(what="decode rate", because=f"{because}, as the given flags say")
    base = replace(base_of(problem, best), offload=None)
    whole = base.evaluate(config.max_num_batched_tokens, config.max_num_seqs, best.length)
    lacking = lacks(whole, best.length, problem.n_parallel, mean_length(best.length, problem.request))
    each = "" if len(evaluation.ranks) == 1 else " on GPUs"
    return _short(evaluation, lacking, "decode rate", because, f"all weights{each or ' on the GPU'}")


def _sequences(problem: Problem, best: Candidate) -> Limit:
    """Twice as many sequences at a time, or all there may be; a cache that holds them all limits nothing."""
    evaluation, capacity = best.evaluation, best.evaluation.capacity
    mean = mean_length(best.length, problem.request)
    n, slots = sequences_at(evaluation, mean), evaluation.config.max_num_seqs
    if capacity is None or n >= slots:
        wanted = "as asked" if problem.request.context else "the longest there is"
        every = f"; all {slots:,} sequences run at a time" if capacity is not None and slots > 1 else ""
        return Limit(because=f"all weights and a context of {best.length:,} tokens, {wanted}, are on GPUs{every}")
    more = min(slots, 2 * max(n, 1))
    blocks = more * evaluation.kv.blocks_per_request(mean) + 1 - capacity.n_blocks
    lacking = [blocks * n_bytes for n_bytes in evaluation.kv.bytes_per_block]
    because = f"{n:,} of {slots:,} at {mean:,} tokens on average"
    if problem.request.prefer == "memory":
        return Limit(what="sequences at a time", because=f"{because}, in as little memory as --prefer memory asks for")
    return _short(evaluation, lacking, "sequences at a time", because, f"{more:,} of them")


def _short(evaluation: Evaluation, lacking: Sequence[int], what: str, because: str, value: str) -> Limit:
    """A better plan with what its fullest stage lacks on each of its GPUs; nothing is short where none lacks any."""
    most = max(lacking)
    rank = next((one for one in evaluation.ranks if one.stage == list(lacking).index(most)), None)
    pool = _pool_of(rank)
    if most <= 0:
        return Limit(what=what, because=because)
    step = NextRejected(value=value, pool=pool, shortfall_bytes=most, because=_others(evaluation))
    return Limit(what=what, because=because, pool=pool, next_step=step)


def _others(evaluation: Evaluation) -> str:
    """Where the same is missing: shards are equal in size."""
    parallel = evaluation.config.parallel
    stage = " of that stage" if parallel.pp > 1 else ""
    return f"on each GPU{stage}" if parallel.tp * parallel.dp > 1 else ""


def _pool_of(rank: Rank | None) -> str:
    return HOST_POOL if rank is None else rank.device.pool
