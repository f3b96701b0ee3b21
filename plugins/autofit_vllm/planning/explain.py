"""The solved plan put into words: decisions with their reasons, alternatives, findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autofit.domain.plan import Alternative, Decision, Finding, NextRejected, Origin, Plan
from autofit.domain.units import format_bytes
from autofit.planning.decisions import arguments, origin_of

from autofit_vllm.config.resolve.batch import batch_defaults
from autofit_vllm.memory.kv import KvPlan
from autofit_vllm.planning.codes import finding
from autofit_vllm.planning.load import blocks_for, capacity_finding, mean_length
from autofit_vllm.planning.plan import DEFAULT_MARGIN, Evaluation, Rank, build_plan, command, keyword_arguments, written
from autofit_vllm.planning.prices import PRICES, nearest_wish, prices
from autofit_vllm.planning.search import (
    ENOUGH_TOKENS,
    HELD_BACK,
    PARTITION,
    Candidate,
    Problem,
    gpus_needed,
    offloadable_bytes,
)
from autofit_vllm.planning.speed import full_speed_of

MAX_ALTERNATIVES = 5


def explain(
    problem: Problem,
    best: Candidate,
    others: Sequence[Candidate],
    *,
    program: Sequence[str],
    reference: str,
    findings: Sequence[Finding] = (),
) -> Plan:
    """The plan of the best candidate, with its reasons."""
    decided = decisions(problem, best, others)
    plan = build_plan(
        best.evaluation,
        problem.machine,
        argv=(*program, reference, *arguments(decided), *problem.settings.args),
        env=_env(best),
        kwargs=keyword_arguments(problem.settings, _typed(best), reference),
        decisions=decided,
        alternatives=alternatives(problem, best, others, program=program, reference=reference),
        findings=[
            *(capacity_finding(best.evaluation, best.load) if best.load and best.fits else ()),
            *(prices(problem, best, others) if best.fits else ()),
            *findings,
            *_findings(problem, best, others),
        ],
        speed=full_speed_of(best.evaluation, problem.roofline) if best.fits else None,
    )
    if best.fits and not plan.fits:  # RAM is short: rates and prices are of nothing
        kept = tuple(found for found in plan.findings if found.code not in PRICES)
        return replace(plan, speed=None, findings=kept)
    if best.fits and best.load is not None:
        plan = replace(plan, engine_report={**plan.engine_report, **best.load.report})
    if best.fits:
        return plan
    # One sequence may start where the wish does not fit. What the engine would say of a utilization that the user
    # did not choose helps nobody.
    own = problem.settings.pins("gpu_memory_utilization")
    told = tuple(found for found in plan.findings if own or found.code != "kv-cache-too-small")
    return replace(plan, fits=False, findings=told)


def _env(candidate: Candidate) -> dict[str, str]:
    """Variables of the plan: the user's own of the engine, and those that were chosen."""
    env = candidate.evaluation.settings.env
    return {name: env[name] for name in sorted(env) if name.startswith("VLLM_")}


def _typed(candidate: Candidate) -> dict[str, object]:
    """Values as Python wants them."""
    values = dict(candidate.values)
    ids = values.get("device_ids")
    if isinstance(ids, str):
        values["device_ids"] = [int(part) for part in ids.split(",")]
    return values


# -- Decisions -------------------------------------------------------------------------------------


def decisions(problem: Problem, best: Candidate, others: Sequence[Candidate]) -> list[Decision]:
    """One per setting of the command, in its order; then what the user pinned."""
    reasons = {
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
    }
    found = []
    for name, value in best.values.items():
        if name in problem.settings.given:
            continue
        because = reasons[name](problem, best)
        rejected = _next_length(problem, best, others) if name == "max_model_len" else None
        found.append(
            Decision(
                setting=_spelled(name),
                value=_text(value),
                origin=_origin(problem, name),
                because=because,
                next_rejected=rejected,
                argv=written(name, value),
            )
        )
    partition = best.evaluation.settings.env.get(PARTITION)
    if partition is not None:
        given = PARTITION in problem.settings.env
        because = "kept as given" if given else "stages on smaller GPUs take fewer layers"
        origin: Origin = "environment" if given else "solved"
        found.append(Decision(setting=PARTITION, value=partition, origin=origin, because=because))
    for name, value in problem.settings.given.items():
        if name in ("model", "spec_method", "spec_model", "spec_tokens"):
            continue
        found.append(
            Decision(
                setting=_spelled(name),
                value=_text(value),
                origin="user",
                because="kept as given",
            )
        )
    return found


def _origin(problem: Problem, name: str) -> Origin:
    wishes = {"max_model_len": "context", "max_num_seqs": "parallel", "kv_cache_dtype": "kv"}
    wish = wishes.get(name)
    slots = name == "max_num_seqs" and problem.n_slots is None
    return origin_of(problem.request, wish or "", bool(wish and getattr(problem.request, wish) and not slots))


def _spelled(name: str) -> str:
    return "--" + name.replace("_", "-")


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


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
    n = problem.n_parallel
    if n == 1:
        return "the longest context that fits in the KV cache"
    share = "each as long" if problem.request.fill == "full" else "the others at their average length"
    return f"the longest context of one of {n} sequences that fits in the KV cache, {share}"


def _because_sequences(problem: Problem, best: Candidate) -> str:
    config = best.evaluation.config
    if problem.n_slots is not None:
        return "as asked"
    own = config.max_num_seqs * best.evaluation.model.vocab_size * 4
    state = f"{config.max_num_seqs} sequences need {format_bytes(own)} of sampler state"
    return f"{state}; vLLM's own default depends on the GPU"


def _because_tokens(problem: Problem, best: Candidate) -> str:
    peak = format_bytes(best.evaluation.budgets[-1].peak.n_bytes)
    config = best.evaluation.config
    tokens0, _ = batch_defaults(config.gpu, world_size=config.parallel.world_size)
    if config.max_num_batched_tokens == config.max_num_seqs > tokens0:
        return (
            f"vLLM requires one token per step for each of {config.max_num_seqs} sequences; activations peak at {peak}"
        )
    return f"activations of a step this large peak at about {peak}; vLLM's own default depends on the GPU"


def _because_utilization(problem: Problem, best: Candidate) -> str:
    ranks = best.evaluation.ranks
    tightest = min(ranks, key=lambda rank: rank.free_bytes / max(rank.total_bytes, 1))
    budget = best.evaluation.budget_of(tightest)
    outside = format_bytes(budget.outside_bytes + budget.after_bytes)
    default = (
        ""
        if problem.request.margin
        else (f" (default: {format_bytes(DEFAULT_MARGIN.n_bytes)} and {DEFAULT_MARGIN.fraction:.0%})")
    )
    return (
        f"{tightest.device.id} has {format_bytes(tightest.free_bytes)} free of "
        f"{format_bytes(tightest.total_bytes)}; "
        f"{'processes, ' if tightest.n_sharing else ''}CUDA context, NCCL and allocations after the KV cache take "
        f"{outside} outside the budget, and a margin of "
        f"{format_bytes(tightest.margin_bytes)}{default} is kept"
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
    return f"the weights do not fit in GPU memory; {format_bytes(pinned)} stay in pinned RAM, {how}"


def _because_experts(problem: Problem, best: Candidate) -> str:
    if best.parallel.dp > 1:
        return "each GPU holds whole experts: least traffic between GPUs"
    return f"shards over {best.parallel.tp} GPUs would cut quantization blocks; whole experts cost no byte more"


def _because_context_parallel(problem: Problem, best: Candidate) -> str:
    return "without it, the KV cache is replicated on every GPU"


def _because_devices(problem: Problem, best: Candidate) -> str:
    return "the GPUs with the most free memory; shards are equal in size in size"


def _next_length(problem: Problem, best: Candidate, others: Sequence[Candidate]) -> NextRejected | None:
    """The next longer context, and what it lacks."""
    goal, _ = problem.lengths
    if not best.fits or best.length >= goal:
        return None
    evaluation = best.evaluation
    kv, n = evaluation.kv, problem.n_parallel
    longer = min(goal, 2 * best.length)
    mean = mean_length(longer, problem.request)
    lacks = _lacks(evaluation, longer, n, mean)
    lacking = max(lacks)
    stage = lacks.index(lacking)
    rank = next((rank for rank in evaluation.ranks if rank.stage == stage), None)
    return NextRejected(
        value=str(longer),
        pool=rank.device.pool if rank else None,
        shortfall_bytes=lacking,
        because=f"{n} sequence{'s' if n > 1 else ''} of {longer} tokens "
        f"{f'at most, {mean} on average, ' if n > 1 and mean < longer else ''}"
        f"need{'' if n > 1 else 's'} {format_bytes(_needed(kv, longer, n, stage, mean))}",
    )


def _lacks(evaluation: Evaluation, length: int, n_parallel: int, mean_tokens: int) -> list[int]:
    """What each stage lacks for so many sequences, with what is held back for estimates that come out higher."""
    return [
        _needed(evaluation.kv, length, n_parallel, stage, mean_tokens)
        + int(HELD_BACK * (budget.peak.n_bytes + budget.graphs.n_bytes))
        - have
        for stage, (budget, have) in enumerate(zip(evaluation.budgets, evaluation.available_bytes, strict=True))
    ]


def _needed(kv: KvPlan, length: int, n_parallel: int, stage: int, mean_tokens: int) -> int:
    return blocks_for(kv, length, n_parallel, mean_tokens) * kv.bytes_per_block[stage]


def _room(evaluation: Evaluation, rank: Rank, n_parallel: int) -> int:
    """What a rank has beside so many sequences of the shown length."""
    beside = sum(item.n_bytes for item in evaluation.budget_of(rank).items)
    length = evaluation.config.max_model_len
    needed = _needed(evaluation.kv, length, n_parallel, rank.stage, length)
    return rank.free_bytes - beside - needed


# -- Alternatives ----------------------------------------------------------------------------------


def alternatives(
    problem: Problem, best: Candidate, others: Sequence[Candidate], *, program: Sequence[str], reference: str
) -> list[Alternative]:
    """Up to five other plans, each the best at one thing that this one is not."""
    worth = min(problem.target, ENOUGH_TOKENS, best.length)
    fitting = [other for other in others if other.fits and other.length >= worth]
    picks: list[tuple[str, Candidate, str]] = []

    def pick(title: str, pool: Sequence[Candidate], key: object, because: str) -> None:
        chosen = max(pool, key=key, default=None)  # type: ignore[call-overload]
        if chosen is not None and all(chosen is not other for _, other, _ in picks):
            picks.append((title, chosen, because))

    longer = [c for c in fitting if c.length > best.length]
    pick("longer context", longer, lambda c: (c.length, _rate(c)), "worse at the goal of --prefer")
    fewer = [c for c in fitting if len(c.evaluation.ranks) < len(best.evaluation.ranks)]
    pick(
        "fewer GPUs",
        fewer,
        lambda c: (-len(c.evaluation.ranks), c.length, _rate(c)),
        "slower, or a shorter context",
    )
    faster = [c for c in fitting if _rate(c) > _rate(best)]
    pick("faster for one sequence", faster, lambda c: (_rate(c), c.length), "worse at the goal of --prefer")
    many = [c for c in fitting if c.total_speed > best.total_speed]
    pick("higher total throughput", many, lambda c: c.total_speed, "slower for one sequence, or a shorter context")
    kv = [c for c in fitting if c.evaluation.config.kv_cache_dtype != best.evaluation.config.kv_cache_dtype]
    pick("another KV cache type", kv, lambda c: c.length, "one of the two KV cache types is lossy")
    pick("another layout", fitting, lambda c: (c.length, _rate(c)), "no better for this request")
    return [
        Alternative(
            title=title,
            argv=_command(problem, chosen, program=program, reference=reference),
            context_tokens=chosen.length,
            device_bytes=chosen.evaluation.device_bytes,
            host_bytes=chosen.evaluation.host_bytes,
            speed=full_speed_of(chosen.evaluation, problem.roofline) if chosen.fits else None,
            because=because,
        )
        for title, chosen, because in picks[:MAX_ALTERNATIVES]
    ]


def _command(problem: Problem, chosen: Candidate, *, program: Sequence[str], reference: str) -> tuple[str, ...]:
    """The command of an alternative, with the variable that it needs."""
    argv = command(problem.settings, chosen.values, program=program, model=reference)
    partition = chosen.evaluation.settings.env.get(PARTITION)
    if partition is None or PARTITION in problem.settings.env:
        return argv
    return ("env", f"{PARTITION}={partition}", *argv)


def _rate(candidate: Candidate) -> float:
    return candidate.speed.decode_tokens_per_s if candidate.speed else 0.0


def _findings(problem: Problem, best: Candidate, others: Sequence[Candidate]) -> list[Finding]:
    """What is missing when nothing fits, and what would be enough."""
    if best.fits:
        return []
    if best.late is not None:
        return [finding("too-slow", best.late)]
    evaluation = best.evaluation
    n, length = problem.n_parallel, evaluation.config.max_model_len
    n = n if problem.request.fill == "full" else 1
    lacks = _lacks(evaluation, length, n, length)
    if max(lacks) <= 0 and (evaluation.shortfall_bytes > 0 or evaluation.overrun_bytes):
        return []  # a pinned budget does not fit what is free, which is told already
    shortfall = max(evaluation.shortfall_bytes, *lacks)
    fullest = min(evaluation.ranks, key=lambda rank: evaluation.available_bytes[rank.stage], default=None)
    where = fullest.device.id if fullest else "the GPU"
    load = f"{n} sequences of {length} tokens" if n > 1 else f"{length} tokens"
    message = f"{where} needs {format_bytes(max(shortfall, 0))} more for {load}"
    if fullest is not None and fullest.margin_asked and fullest.margin_bytes:
        message += f" with the margin of {format_bytes(fullest.margin_bytes)}"
    found = [finding("does-not-fit", message)]
    found += nearest_wish(problem, best)
    room = _room(evaluation, fullest, n) if fullest is not None and fullest.margin_asked else 0
    if room > 0:
        message = f"with a --margin of at most {format_bytes(room)}, {load} fit"
        return [*found, finding("margin-too-large", message)]
    needed = gpus_needed(problem, length)
    if needed is not None:
        world, per_node = needed.world_size, len(problem.devices)
        nodes = f" in {-(-world // per_node)} nodes like this one" if 1 < per_node < world else ""
        found.append(
            finding(
                "gpus-needed",
                f"{world} GPUs like {problem.devices[0].name}{nodes} would hold it: -tp {needed.tp} -pp {needed.pp}",
            )
        )
    elif offloadable_bytes(best) < shortfall or all(rank.n_sharing for rank in evaluation.ranks):
        found.append(finding("gpus-needed", "it does not fit on 64 of these GPUs either"))
    else:
        free = format_bytes(problem.machine.host.available_bytes or 0)
        message = f"offloading the missing weights would fit, but only {free} of RAM is free"
        found.append(finding("main-memory-needed", message))
    return found
