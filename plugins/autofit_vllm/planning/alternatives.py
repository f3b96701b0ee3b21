"""Other plans, each the best at one thing that the chosen one is not."""

from __future__ import annotations

from collections.abc import Sequence

from autofit.domain.plan import Alternative
from autofit.domain.units import SAME_RATE, format_rate

from autofit_vllm.planning.command import command
from autofit_vllm.planning.layouts import PARTITION
from autofit_vllm.planning.problem import ENOUGH_TOKENS, Candidate, Problem
from autofit_vllm.planning.speed import full_speed_of

MAX_ALTERNATIVES = 5


def alternatives(
    problem: Problem, best: Candidate, others: Sequence[Candidate], *, program: Sequence[str], reference: str | None
) -> list[Alternative]:
    """Up to five other plans, each the best at one thing that this one is not."""
    worth = min(problem.target, ENOUGH_TOKENS, best.length)
    fitting = [other for other in others if other.fits and other.length >= worth]
    picks: list[tuple[str, Candidate]] = []

    def pick(title: str, pool: Sequence[Candidate], key: object) -> None:
        chosen = max(pool, key=key, default=None)  # type: ignore[call-overload]
        if chosen is not None and all(chosen is not other for _, other in picks):
            picks.append((title, chosen))

    longer = [c for c in fitting if c.length > best.length]
    pick("longer context", longer, lambda c: (c.length, c.rate))
    fewer = [c for c in fitting if len(c.evaluation.ranks) < len(best.evaluation.ranks)]
    pick("fewer GPUs", fewer, lambda c: (-len(c.evaluation.ranks), c.length, c.rate))
    faster = [c for c in fitting if c.rate > SAME_RATE * best.rate]
    pick("faster for one sequence", faster, lambda c: (c.rate, c.length))
    many = [c for c in fitting if c.total_speed > SAME_RATE * best.total_speed]
    pick("higher total throughput", many, lambda c: c.total_speed)
    kv = [c for c in fitting if c.evaluation.config.kv_cache_dtype != best.evaluation.config.kv_cache_dtype]
    pick("another KV cache type", kv, lambda c: c.length)
    pick("another layout", fitting, lambda c: (c.length, c.rate))
    return [
        Alternative(
            title=title,
            argv=_command(problem, chosen, program=program, reference=reference),
            context_tokens=chosen.length,
            device_bytes=chosen.evaluation.device_bytes,
            host_bytes=chosen.evaluation.host_bytes,
            speed=full_speed_of(chosen.evaluation, problem.roofline) if chosen.fits else None,
            because=_differences(best, chosen),
        )
        for title, chosen in picks[:MAX_ALTERNATIVES]
    ]


def _differences(best: Candidate, other: Candidate) -> str:
    """How another plan differs: GPUs, context, cache type, rates at the same fill."""
    said = []
    n, n_other = len(best.evaluation.ranks), len(other.evaluation.ranks)
    if n != n_other:
        said.append(f"{n_other} instead of {n} GPUs")
    if best.length != other.length:
        said.append(f"{other.length:,} instead of {best.length:,} tokens of context")
    kv, kv_other = (one.evaluation.config.kv_cache_dtype for one in (best, other))
    if kv != kv_other:
        said.append(f"KV cache type {kv_other} instead of {kv}")
    rates = [format_rate(one.rate) for one in (best, other)]
    if rates[0] != rates[1]:
        said.append(f"one sequence decodes ~{rates[1]} instead of ~{rates[0]} tokens/s")
    totals = [format_rate(one.total_speed) for one in (best, other)]
    if totals[0] != totals[1] and best.speed is not None:
        said.append(f"all together ~{totals[1]} instead of ~{totals[0]}")
    return ", ".join(said) or "no better at what is preferred"


def _command(problem: Problem, chosen: Candidate, *, program: Sequence[str], reference: str | None) -> tuple[str, ...]:
    """The command of an alternative, with the variable that it needs."""
    argv = command(problem.settings, chosen.values, program=program, model=reference)
    partition = chosen.evaluation.settings.env.get(PARTITION)
    if partition is None or PARTITION in problem.settings.env:
        return argv
    return ("env", f"{PARTITION}={partition}", *argv)
