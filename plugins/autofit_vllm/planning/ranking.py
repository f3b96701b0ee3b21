"""Which candidate is best: what it holds, then how fast it is."""

from __future__ import annotations

import math

from autofit.domain.plan import Speed
from autofit.domain.values import replace

from autofit_vllm.planning.load import load_of, mean_length, sequences_at
from autofit_vllm.planning.problem import LOSSY_KV, Candidate, Problem
from autofit_vllm.planning.speed import speed_of

READABLE = 20.0  #: tokens per second, faster than is read
MUCH_FASTER = 1.3  #: times the rate is worth a cache of 8 bits


def timed(candidate: Candidate, problem: Problem) -> Candidate:
    """With the speed of one sequence alone, of as many as are served at a time, and whether that is fast enough."""
    if not candidate.holds:
        return candidate
    request = problem.request
    one = speed_of(candidate.evaluation, problem.roofline)
    mean = mean_length(candidate.length, request)
    load = load_of(candidate.evaluation, problem.roofline, mean, min_tps=request.min_tps)
    late = _late(candidate, problem, one)
    return replace(candidate, speed=one, pace=_pace(candidate, problem, one), load=load, late=late)


def _pace(candidate: Candidate, problem: Problem, one: Speed | None) -> float:
    """The rate that plans are compared by: a cache of 8 bits that nobody asked for counts as the lossless one. So more
    memory, with which that one fits, loses no rate."""
    if one is None or not _chose_lossy(candidate, problem):
        return one.decode_tokens_per_s if one else 0.0
    plain = speed_of(candidate.evaluation, problem.roofline, as_lossless=True)
    return plain.decode_tokens_per_s if plain else 0.0


def _late(candidate: Candidate, problem: Problem, one: Speed | None) -> str | None:
    """Which wish for speed is not met, and by how much."""
    request = problem.request
    if request.min_tps is not None and one is not None:
        together, filled = _served(candidate, problem, candidate.length)
        rate = _wished_rate(candidate, problem, together, filled)
        if rate is not None and rate < request.min_tps:
            each = f" each with {together} sequences" if together > 1 else ""
            return (
                f"--min-tps {request.min_tps:g} is not reached: ~{rate:.3g} tokens/s{each} with {filled:,} tokens in "
                "the context"
            )
    if request.max_ttft is not None and one is not None:
        seconds, prompt = first_seconds(candidate, problem), f"the first token of a prompt of {candidate.length} tokens"
        if seconds is None:
            return f"--max-ttft {request.max_ttft:g} is not known to be reached: nobody knows when {prompt} comes"
        if seconds > request.max_ttft:
            return f"--max-ttft {request.max_ttft:g} is not reached: ~{seconds:.3g} s until {prompt}"
    return None


def _served(candidate: Candidate, problem: Problem, length: int) -> tuple[int, int]:
    """How many sequences a wish for speed is about, and how many tokens each holds: one its whole context, as the rate
    that a plan shows; several their average, which is what the cache is sized for."""
    mean = mean_length(length, problem.request)
    together = min(problem.n_parallel, sequences_at(candidate.evaluation, mean))
    return (together, mean) if together > 1 else (1, length)


def _wished_rate(candidate: Candidate, problem: Problem, together: int, filled: int) -> float | None:
    speed = speed_of(candidate.evaluation, problem.roofline, n_sequences=together, n_filled=filled)
    return None if speed is None else speed.decode_tokens_per_s


def decodes_in_time(candidate: Candidate, problem: Problem, length: int) -> bool:
    """Whether sequences of a context of `length` decode as fast as `--min-tps` wishes; so where no rate is known."""
    wish = problem.request.min_tps
    rate = None if wish is None else _wished_rate(candidate, problem, *_served(candidate, problem, length))
    return wish is None or rate is None or rate >= wish


def first_seconds(candidate: Candidate, problem: Problem, n_prompt: int | None = None) -> float | None:
    """Seconds until the first token of a prompt of so many tokens, or of the whole context; `None` where the rate is
    unknown."""
    n_prompt = candidate.length if n_prompt is None else n_prompt
    speed = speed_of(candidate.evaluation, problem.roofline, n_filled=n_prompt)
    return n_prompt / speed.prefill_tokens_per_s if speed is not None and speed.prefill_tokens_per_s else None


def score(candidate: Candidate, problem: Problem) -> tuple[float, ...]:
    """Larger is better. A plan that fits beats all that do not; a useful length comes before speed. What is compared
    never depends on the other candidates, so that more memory never makes the choice worse."""
    if not candidate.fits:
        short = max(0, candidate.evaluation.shortfall_bytes) + max(0, candidate.short_bytes)
        lacking = 0.0 if candidate.holds else -float(short)
        return (0.0, float(candidate.holds), lacking, candidate.rate)
    lossless = 0.0 if _chose_lossy(candidate, problem) else 1.0
    eager = 0.0 if candidate.values.get("enforce_eager") else 1.0
    parallel = candidate.parallel
    # heads that are padded are computed and thrown away: replicas on all GPUs then serve most, for some rate of one
    # sequence alone; the fewer ranks a replica has, the fewer copies of the cache, and of its stages the fewer wait
    replicas = (1.0, -float(parallel.tp), -float(parallel.pp)) if parallel.dp > 1 else (0.0, 0.0, 0.0)
    whole = (-float(problem.pads_heads(parallel.tp)), *replicas)
    fewer = -float(len(candidate.evaluation.ranks))
    length, useful = float(candidate.length), float(min(candidate.length, problem.target))
    prefer, rate = problem.request.prefer, float(f"{candidate.pace:.3g}")
    price = _price(candidate, problem)
    wished = float(min(candidate.length, problem.wished))
    if prefer == "throughput":  # the sum decides, whatever makes it: bits of the cache, slots, where weights lie
        return (1.0, wished, candidate.served, candidate.total_speed, lossless, eager, useful, length, fewer)
    if prefer == "context":
        return (1.0, wished, candidate.served, *price, length, eager, *whole, rate, lossless, fewer)
    if prefer == "memory":
        return (1.0, wished, *price, useful, candidate.served, fewer, eager, *whole, rate, lossless, length)
    if prefer == "quality":
        return (1.0, lossless, useful, candidate.served, *price, eager, *whole, rate, length, fewer)
    # 8 bits are taken where nothing else holds as much, or where what does is slower
    return (1.0, wished, *price, useful, candidate.served, eager, *whole, rate, lossless, length, fewer)


def _chose_lossy(candidate: Candidate, problem: Problem) -> bool:
    """Whether the cache has 8 bits though nobody asked for them."""
    return candidate.values.get("kv_cache_dtype") == LOSSY_KV and problem.request.kv in (None, "auto")


def _price(candidate: Candidate, problem: Problem) -> tuple[float, float]:
    """What weights in RAM and waiting stages cost, before other things are weighed: a plan that is slow to read loses
    to one of `MUCH_FASTER` times its rate. Where the context counts, weights stay on GPUs if they can."""
    moved = candidate.evaluation.offload
    least_moved = -float(sum(moved.moved)) if moved else 0.0
    if problem.request.prefer == "context":
        return (candidate.pace if moved else math.inf, least_moved)
    rate = candidate.pace
    if not rate:
        return (0.0, least_moved)
    return (math.floor(math.log(min(rate, READABLE)) / math.log(MUCH_FASTER)), 0.0)
