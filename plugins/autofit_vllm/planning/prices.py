"""What the choices of a plan cost, for its summary: GPUs left out, an 8-bit cache, weights in RAM."""

from __future__ import annotations

from collections.abc import Sequence

from autofit.domain.plan import Finding
from autofit.domain.units import format_rate

from autofit_vllm.config.resolve.parallel import possible_tp
from autofit_vllm.planning.codes import finding
from autofit_vllm.planning.lighter import lighter
from autofit_vllm.planning.nodes import nodes_finding
from autofit_vllm.planning.problem import LOSSY_KV, Candidate, Problem
from autofit_vllm.planning.relief import gpus_needed, longest_plan

#: findings that speak of a plan that fits
PRICES = frozenset({"kv-capacity", "idle-gpus", "lossy-cache", "no-graphs", "offload-price", "nodes"})


def prices(problem: Problem, best: Candidate, others: Sequence[Candidate]) -> list[Finding]:
    """Of a plan that fits."""
    return [
        *_left_out(problem, best, others),
        *_eight_bits(problem, best, others),
        *_eager(problem, best),
        *_offloaded_price(problem, best),
        *nodes_finding(best.evaluation),
    ]


def _left_out(problem: Problem, best: Candidate, others: Sequence[Candidate]) -> list[Finding]:
    used = {rank.device.id for rank in best.evaluation.ranks}
    idle = [device.id for device in problem.devices if device.id not in used]
    if not idle or not used:
        return []
    names = ", ".join(idle) if len(idle) <= 3 else f"{idle[0]} to {idle[-1]} ({len(idle)} GPUs)"
    whole = [c for c in others if c.holds and len(c.evaluation.ranks) == len(problem.devices)]
    every = max(whole, key=lambda c: (min(c.length, best.length), c.total_speed, c.rate), default=None)
    if every is None:
        heads = ", ".join(map(str, possible_tp(problem.model, len(problem.devices))))
        message = f"{names} not used: no way to shard this model over all {len(problem.devices)} GPUs fits"
        message += f" (tensor parallel sizes: {heads})"
    else:
        parallel = every.parallel
        sizes = (("-tp", parallel.tp), ("-pp", parallel.pp), ("-dp", parallel.dp))
        flags = " ".join(f"{flag} {size}" for flag, size in sizes if size > 1)
        message = f"{names} not used: {flags} on all GPUs holds {every.length:,} tokens"
        if every.speed is not None and best.speed is not None:
            rates = f"~{format_rate(every.rate)} tokens/s instead of ~{format_rate(best.rate)} for one sequence"
            total = f"~{format_rate(every.total_speed)} instead of ~{format_rate(best.total_speed)} in all"
            message += f" at {rates}, {total}"
    are_alike = len({(device.name, device.total_bytes) for device in problem.devices}) == 1
    copies = len(problem.devices) // len(used) if are_alike else 1
    if copies > 1 and problem.request.prefer != "throughput" and not problem.settings.pins("data_parallel_size"):
        message += f"; --prefer throughput, or -- -dp {copies}, runs copies of the model on them"
    return [finding("idle-gpus", message)]


def _eight_bits(problem: Problem, best: Candidate, others: Sequence[Candidate]) -> list[Finding]:
    if best.values.get("kv_cache_dtype") != LOSSY_KV or problem.request.kv not in (None, "auto"):
        return []
    dtype = best.evaluation.config.dtype
    keep = {"bfloat16": "--kv bf16", "float16": "--kv f16"}.get(dtype, f"-- --kv-cache-dtype {dtype}")
    plain = [c for c in others if c.values.get("kv_cache_dtype") is None and c.holds and c.evaluation.offload is None]
    longest = max((c.length for c in plain), default=0)
    if best.evaluation.offload is not None:
        message = "with an fp8 KV cache, more weights fit on the GPU"
    elif longest < best.length:
        instead = f"{longest:,} tokens fit without it" if longest else "without it they do not"
        message = f"an fp8 KV cache makes {best.length:,} tokens fit: {instead}"
    else:
        message = f"with an fp8 KV cache, more sequences of {best.length:,} tokens run at a time"
    message += f"; {keep} keeps {dtype}"
    return [finding("lossy-cache", message)]


def _eager(problem: Problem, best: Candidate) -> list[Finding]:
    if not best.values.get("enforce_eager"):
        return []
    message = f"without CUDA graphs, whose memory makes {best.length:,} tokens fit: each step waits for its launches"
    return [finding("no-graphs", f"{message}; -- --no-enforce-eager keeps them")]


def _offloaded_price(problem: Problem, best: Candidate) -> list[Finding]:
    moved = best.evaluation.offload
    if moved is None or not moved.values:
        return []
    message = "reading offloaded weights limits decoding"  # the summary says to what, with the context full
    shorter = longest_plan(problem)
    if shorter is not None:
        rate = f" at ~{format_rate(shorter.rate)} tokens/s" if shorter.speed else ""
        kv = " with an fp8 KV cache" if shorter.values.get("kv_cache_dtype") == LOSSY_KV else ""
        message += f"; -c {shorter.length} needs no offloading{kv}{rate}"
    if not problem.request.nearest:
        return [finding("offload-price", message)]
    less = lighter(problem, best.length)
    if less is not None:
        message += f"; {less.text}, all on GPUs"
    needed = gpus_needed(problem, best.length, 16)
    if needed is not None:
        count = needed.world_size
        message += f"; {count} GPUs like {problem.devices[0].name} hold {best.length:,} tokens without it"
    return [finding("offload-price", message)]


def nearest_wish(problem: Problem, best: Candidate) -> list[Finding]:
    """The longest context that does fit, where the wished one does not."""
    if not problem.request.context and not problem.request.min_context:
        return []
    shorter = longest_plan(problem)
    if shorter is None or shorter.length >= best.evaluation.config.max_model_len:
        return []
    rate = f", ~{format_rate(shorter.rate)} tokens/s" if shorter.speed else ""
    kv = " with an fp8 KV cache" if shorter.values.get("kv_cache_dtype") == LOSSY_KV else ""
    message = f"nearest: -c {shorter.length} fits{kv}{rate}"
    return [finding("would-fit", message)]
