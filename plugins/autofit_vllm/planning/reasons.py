"""Why each setting has its value."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autofit.domain.plan import NextRejected
from autofit.domain.units import format_gib

from autofit_vllm.config.resolve.batch import batch_defaults
from autofit_vllm.memory.kv import KvPlan
from autofit_vllm.planning.batch import HELD_BACK
from autofit_vllm.planning.evaluation import DEFAULT_MARGIN, Evaluation
from autofit_vllm.planning.load import blocks_for, mean_length
from autofit_vllm.planning.problem import Candidate, Problem


def gib(n_bytes: int) -> str:
    return f"{format_gib(n_bytes)} GiB"


def _because_layout(problem: Problem, best: Candidate) -> str:
    parallel = best.parallel
    n = len(best.evaluation.ranks)
    if parallel.dp > 1:
        if problem.pads_heads(n):
            return f"{parallel.dp} replicas share the experts; tensor parallelism over {n} GPUs would pad the heads"
        return f"{parallel.dp} replicas on {n} GPUs serve the most sequences"
    if parallel.pp > 1:
        return f"{parallel.pp} pipeline stages of {parallel.tp} GPUs: fewer stages do not fit"
    return f"the attention heads divide over {parallel.tp} GPUs; weights and KV cache are sharded"


def _because_length(problem: Problem, best: Candidate) -> str:
    goal, _ = problem.lengths
    if not best.fits:
        return "nothing fits; a longer context would only increase the shortfall"
    if best.length >= goal:
        return "as asked" if problem.request.context else "the model's full length fits"
    n, moved = problem.n_parallel, best.evaluation.offload
    if moved is not None and moved.moved and any(moved.moved):
        return "as few weights as can be stay in RAM; -c asks for a longer context, for which more may have to"
    if n == 1:
        return "the longest context that fits in the KV cache"
    share = "each as long" if problem.request.fill == "full" else "the others at their average length"
    return f"the longest context of one of {n} sequences that fits in the KV cache, {share}"


def _because_sequences(problem: Problem, best: Candidate) -> str:
    config = best.evaluation.config
    if problem.n_slots is not None:
        return "as asked"
    own = config.max_num_seqs * best.evaluation.model.vocab_size * 4
    state = f"{config.max_num_seqs} sequences need {gib(own)} of sampler state"
    return f"{state}; vLLM's own default depends on the GPU"


def _because_tokens(problem: Problem, best: Candidate) -> str:
    peak = gib(best.evaluation.budgets[-1].peak.n_bytes)
    config = best.evaluation.config
    tokens0, _ = batch_defaults(config.gpu, world_size=config.parallel.world_size)
    if config.max_num_batched_tokens == config.max_num_seqs > tokens0:
        return (
            f"vLLM requires one token per step for each of {config.max_num_seqs} sequences; activations peak at {peak}"
        )
    return f"activations of a step this large peak at about {peak}; vLLM's own default depends on the GPU"


def _because_utilization(problem: Problem, best: Candidate) -> str:
    ranks = best.evaluation.ranks
    if problem.request.prefer == "memory":
        return f"as little as {best.length} tokens need; the rest stays free"
    tightest = min(ranks, key=lambda rank: rank.free_bytes / max(rank.total_bytes, 1))
    budget = best.evaluation.budget_of(tightest)
    outside = gib(budget.outside_bytes + budget.after_bytes)
    default = (
        ""
        if problem.request.margin
        else (f" (default: {gib(DEFAULT_MARGIN.n_bytes)} and {DEFAULT_MARGIN.fraction:.0%})")
    )
    return (
        f"{tightest.device.id} has {gib(tightest.free_bytes)} free of "
        f"{gib(tightest.total_bytes)}; "
        f"{'processes, ' if tightest.n_sharing else ''}CUDA context, NCCL and allocations after the KV cache take "
        f"{outside} outside the budget, and a margin of "
        f"{gib(tightest.margin_bytes)}{default} is kept"
    )


def _because_dtype(problem: Problem, best: Candidate) -> str:
    own, got = best.evaluation.model.dtype, best.evaluation.config.dtype
    if own == got:
        return "the checkpoint's dtype"
    return (
        f"vLLM does not run {own}, the checkpoint's dtype, on this GPU"
        if own != "float32"
        else "a float32 checkpoint runs in half precision"
    )


def _because_kv(problem: Problem, best: Candidate) -> str:
    if problem.request.kv not in (None, "auto"):
        return "as asked"
    return "an 8-bit KV cache makes this plan fit; --kv bf16 or f16 keeps the model's type"


def _because_eager(problem: Problem, best: Candidate) -> str:
    return "CUDA graphs do not fit; decoding is slower without them"


def _because_offload(problem: Problem, best: Candidate) -> str:
    moved = best.evaluation.offload
    parallel = best.parallel
    pinned = moved.host_bytes * parallel.tp * parallel.dp if moved else 0
    how = "copied ahead of use" if moved and moved.prefetches else "read over PCIe"
    return f"the weights do not fit in GPU memory beside the cache; {gib(pinned)} stay in pinned RAM, {how}"


def _because_experts(problem: Problem, best: Candidate) -> str:
    if best.parallel.dp > 1:
        return "each GPU holds whole experts: least traffic between GPUs"
    return f"shards over {best.parallel.tp} GPUs would cut quantization blocks; whole experts cost no byte more"


def _because_context_parallel(problem: Problem, best: Candidate) -> str:
    return "without it, the KV cache is replicated on every GPU"


def _because_devices(problem: Problem, best: Candidate) -> str:
    ids = {rank.device.id for rank in best.evaluation.ranks}
    least = min(rank.free_bytes for rank in best.evaluation.ranks)
    if any(device.id not in ids and (device.free_bytes or 0) > least for device in problem.devices):
        return "the fastest GPUs hold it alone"
    return "the GPUs with the most free memory; shards are equal in size"


def next_length(problem: Problem, best: Candidate) -> NextRejected | None:
    """The next longer context, and what it lacks."""
    goal, _ = problem.lengths
    if not best.fits or best.length >= goal:
        return None
    evaluation = best.evaluation
    kv, n = evaluation.kv, problem.n_parallel
    longer = min(goal, 2 * best.length)
    mean = mean_length(longer, problem.request)
    lacking_bytes = lacks(evaluation, longer, n, mean)
    lacking = max(lacking_bytes)
    if lacking <= 0:  # the cache beside weights that are offloaded for a shorter one holds it
        return None
    stage = lacking_bytes.index(lacking)
    rank = next((rank for rank in evaluation.ranks if rank.stage == stage), None)
    return NextRejected(
        value=str(longer),
        pool=rank.device.pool if rank else None,
        shortfall_bytes=lacking,
        because=f"{n} sequence{'s' if n > 1 else ''} of {longer} tokens "
        f"{f'at most, {mean} on average, ' if n > 1 and mean < longer else ''}"
        f"need{'' if n > 1 else 's'} {gib(needed_bytes(kv, longer, n, stage, mean))}",
    )


def lacks(evaluation: Evaluation, length: int, n_parallel: int, mean_tokens: int) -> list[int]:
    """What each stage lacks for so many sequences, with what is held back for estimates that come out higher."""
    return [
        needed_bytes(evaluation.kv, length, n_parallel, stage, mean_tokens)
        + int(HELD_BACK * (budget.peak.n_bytes + budget.graphs.n_bytes))
        - have
        for stage, (budget, have) in enumerate(zip(evaluation.budgets, evaluation.available_bytes, strict=True))
    ]


def needed_bytes(kv: KvPlan, length: int, n_parallel: int, stage: int, mean_tokens: int) -> int:
    return blocks_for(kv, length, n_parallel, mean_tokens) * kv.bytes_per_block[stage]


def _because_nodes(problem: Problem, best: Candidate) -> str:
    if best.evaluation.settings.nnodes == 1:
        return "the ranks are on several nodes of a Ray cluster"
    return f"{problem.nodes} machines with an equal part of the ranks each: fewer do not hold it"


REASONS: Mapping[str, Callable[[Problem, Candidate], str]] = {
    "tensor_parallel_size": _because_layout,
    "pipeline_parallel_size": _because_layout,
    "data_parallel_size": _because_layout,
    "max_model_len": _because_length,
    "max_num_seqs": _because_sequences,
    "max_num_batched_tokens": _because_tokens,
    "gpu_memory_utilization": _because_utilization,
    "dtype": _because_dtype,
    "kv_cache_dtype": _because_kv,
    "enforce_eager": _because_eager,
    "cpu_offload_gb": _because_offload,
    "cpu_offload_params": _because_offload,
    "offload_group_size": _because_offload,
    "offload_num_in_group": _because_offload,
    "offload_prefetch_step": _because_offload,
    "offload_params": _because_offload,
    "enable_expert_parallel": _because_experts,
    "decode_context_parallel_size": _because_context_parallel,
    "device_ids": _because_devices,
    "nnodes": _because_nodes,
    "distributed_executor_backend": _because_nodes,
}
