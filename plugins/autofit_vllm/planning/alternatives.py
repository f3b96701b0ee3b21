"""Other plans, each the best at one thing that the chosen one is not."""

from __future__ import annotations

from collections.abc import Sequence

from autofit.domain.plan import Alternative

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
    picks: list[tuple[str, Candidate, str]] = []

    def pick(title: str, pool: Sequence[Candidate], key: object, because: str) -> None:
        chosen = max(pool, key=key, default=None)  # type: ignore[call-overload]
        if chosen is not None and all(chosen is not other for _, other, _ in picks):
            picks.append((title, chosen, because))

    longer = [c for c in fitting if c.length > best.length]
    pick("longer context", longer, lambda c: (c.length, c.rate), "worse at the goal of --prefer")
    fewer = [c for c in fitting if len(c.evaluation.ranks) < len(best.evaluation.ranks)]
    pick(
        "fewer GPUs",
        fewer,
        lambda c: (-len(c.evaluation.ranks), c.length, c.rate),
        "slower, or a shorter context",
    )
    faster = [c for c in fitting if c.rate > best.rate]
    pick("faster for one sequence", faster, lambda c: (c.rate, c.length), "worse at the goal of --prefer")
    many = [c for c in fitting if c.total_speed > best.total_speed]
    pick("higher total throughput", many, lambda c: c.total_speed, "slower for one sequence, or a shorter context")
    kv = [c for c in fitting if c.evaluation.config.kv_cache_dtype != best.evaluation.config.kv_cache_dtype]
    pick("another KV cache type", kv, lambda c: c.length, "one of the two KV cache types is lossy")
    pick("another layout", fitting, lambda c: (c.length, c.rate), "no better for this request")
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


def _command(problem: Problem, chosen: Candidate, *, program: Sequence[str], reference: str | None) -> tuple[str, ...]:
    """The command of an alternative, with the variable that it needs."""
    argv = command(problem.settings, chosen.values, program=program, model=reference)
    partition = chosen.evaluation.settings.env.get(PARTITION)
    if partition is None or PARTITION in problem.settings.env:
        return argv
    return ("env", f"{PARTITION}={partition}", *argv)
