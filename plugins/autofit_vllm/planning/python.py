"""The keyword arguments of a plan for `vllm.LLM`, which runs one replica in its own process."""

from __future__ import annotations

from autofit.domain.values import replace
from autofit.errors import EngineRefusalError

from autofit_vllm.planning.command import keyword_arguments
from autofit_vllm.planning.problem import Candidate, Problem
from autofit_vllm.planning.search import solve

_REPLICAS = "data_parallel_size"


def program_arguments(problem: Problem, best: Candidate, model: str) -> dict[str, object]:
    """Those of the best candidate; where it has replicas that nobody asked for, of the best that has one
    (entrypoints/llm.py:LLM refuses more)."""
    if best.parallel.dp > 1 and not problem.settings.pins(_REPLICAS):
        best = _alone(problem) or best
    return keyword_arguments(problem.settings, _typed(best), model)


def _alone(problem: Problem) -> Candidate | None:
    settings = problem.settings
    one = replace(settings, data_parallel_size=1, given={**settings.given, _REPLICAS: 1})
    try:
        found, _ = solve(replace(problem, settings=one))
    except EngineRefusalError:
        return None
    return found if found.fits else None


def _typed(candidate: Candidate) -> dict[str, object]:
    """Values as Python wants them."""
    values = dict(candidate.values)
    ids = values.get("device_ids")
    if isinstance(ids, str):
        values["device_ids"] = [int(part) for part in ids.split(",")]
    return values
