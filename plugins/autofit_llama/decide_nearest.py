"""When nothing fits: the nearest value of a pin that would, or the context that would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from autofit.domain.plan import Finding
from autofit.errors import EngineRefusalError

from autofit_llama.decide_pins import relaxed
from autofit_llama.search import Found
from autofit_llama.search_goals import Goals, reach
from autofit_llama.search_problem import LaunchProblem
from autofit_llama.settings import LlamaSettings, render

if TYPE_CHECKING:
    from autofit_llama.decide import Task

#: pins in the order in which giving one up hurts least
_PINS = ("overrides", "n_gpu_layers", "tensor_split", "n_ubatch", "devices", "n_ctx", "type_k", "type_v")
LEAST_TOKENS = 512


def nearest_values(task: Task, goals: Goals) -> tuple[Finding, ...]:
    """One finding for each pin or wish that, changed alone, would make it fit; the first two."""
    found = []
    for message in _relaxations(task, goals):
        found.append(Finding(severity="info", code="would-fit", message=message))
        if len(found) == 2:
            break
    return tuple(found)


def _relaxations(task: Task, goals: Goals) -> Iterator[str]:
    pinned = task.pins.settings.pinned()
    for name in _PINS:
        if name in pinned:
            word = _said(LlamaSettings(**{name: pinned[name]}))
            value = _without(task, name)
            if value is not None:
                yield f"{word} cannot hold; {value} would fit"
    if "n_ctx" not in pinned and goals.least > LEAST_TOKENS:
        shorter = _shorter(task, goals)
        if shorter is not None:
            yield f"a context of {shorter.candidate.n_ctx_seq} tokens instead of {goals.least} would fit"


def _without(task: Task, name: str) -> str | None:
    """The value that one pin would get if it were free, if then it fits."""
    pins = relaxed(task.pins, name)
    if name == "devices":
        return None
    base = replace(task.base, **{name: getattr(pins.settings, name)})
    free = replace(task, pins=pins, base=base)
    try:
        search = free.search()
        goals = free.goals(search)
        if name == "n_ctx":
            goals = replace(goals, least=LEAST_TOKENS)
        answer = reach(search, goals)
    except EngineRefusalError:
        return None
    if answer is None:
        return None
    problem = search.problem
    assert isinstance(problem, LaunchProblem)
    settings = problem.solved(answer.candidate, answer.split)
    value = getattr(settings, name)
    if name == "overrides" and not value:
        return None
    return None if value is None else _said(LlamaSettings(**{name: value}))


def _shorter(task: Task, goals: Goals) -> Found | None:
    search = task.search()
    return reach(search, replace(goals, prefer="speed", least=LEAST_TOKENS, most=goals.least))


def _said(settings: LlamaSettings) -> str:
    return " ".join(render(settings))
