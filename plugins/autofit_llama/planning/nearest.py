"""When nothing fits: the nearest value of a pin that would, or the context that would."""

from __future__ import annotations

from collections.abc import Iterator
from math import floor
from typing import TYPE_CHECKING

from autofit.domain.plan import Finding, Speed
from autofit.domain.units import format_bytes
from autofit.domain.values import replace
from autofit.errors import EngineRefusalError

from autofit_llama.command.settings import LlamaSettings
from autofit_llama.engine.codes import finding
from autofit_llama.planning.goals import Goals, reach
from autofit_llama.planning.pins import relaxed
from autofit_llama.planning.problem import LaunchProblem
from autofit_llama.planning.search import Found, Search
from autofit_llama.planning.tables import Split

if TYPE_CHECKING:
    from autofit_llama.planning.task import Task

#: pins in the order in which giving one up hurts least
_PINS = ("overrides", "n_gpu_layers", "tensor_split", "n_ubatch", "devices", "n_ctx", "type_k", "type_v")
LEAST_TOKENS = 512


def nearest_values(task: Task, search: Search, goals: Goals, nearest: Found) -> tuple[Finding, ...]:
    """What would make it fit: a pin or wish changed alone (the first two), or more memory."""
    found = []
    for message in (*_relaxations(task, goals), *_memory(task, search, nearest)):
        found.append(finding("would-fit", message))
        if len(found) == 3:
            break
    return tuple(found)


def faster_values(search: Search, goals: Goals, speed: Speed | None) -> tuple[Finding, ...]:
    """The context with which the wishes for speed would be met, where there is one; `speed`: of the fastest plan,
    where a rate is what was asked for."""
    shorter = goals._replace(prefer="speed", least=min(LEAST_TOKENS, goals.least), most=goals.least, floor_tokens=0)
    answer = reach(search, shorter) if goals.least > LEAST_TOKENS else None
    if answer is None or not goals.meets(answer.found, answer.found.candidate.n_ubatch):
        message = "no shorter context is fast enough; a smaller quantization or a device with more bandwidth may be"
        if speed is not None and speed.decode_tokens_per_s >= 0.1:
            message = f"nearest: --min-tps {floor(10 * speed.decode_tokens_per_s) / 10:g} is reached; {message}"
        return (finding("would-fit", message),)
    n_ctx = answer.found.candidate.n_ctx_seq
    return (finding("would-fit", f"a context of {n_ctx} tokens would be fast enough"),)


def _relaxations(task: Task, goals: Goals) -> Iterator[str]:
    pinned = task.pins.settings.pinned()
    for name in _PINS:
        if name in pinned:
            word = _said(task, LlamaSettings(**{name: pinned[name]}))
            value = _without(task, name)
            if value is not None:
                yield f"{word} does not fit; {value} would fit"
    if "n_ctx" not in pinned and goals.least > LEAST_TOKENS:
        shorter = _shorter(task, goals)
        if shorter is not None:
            yield f"a context of {shorter.candidate.n_ctx_seq} tokens instead of {goals.least} would fit"


def _memory(task: Task, search: Search, nearest: Found) -> Iterator[str]:
    """More of what is short, and what one device would need for all of it."""
    short = [pool for pool in nearest.memory.pools if pool.shortfall_bytes > 0]
    if short:
        lacks = [f"{format_bytes(pool.shortfall_bytes)} more on {pool.id}" for pool in short]
        yield f"{' and '.join(lacks)} would be enough"
    tables, bounds = search.tables(nearest.candidate), search.problem.bounds
    if task.shares_blocks:
        return
    if nearest.split.on_host and task.devices and 0 in bounds.heads and bounds.split is None:
        first = tables.targets[0].id
        alone = Split(0, ((first, len(tables.blocks)),))
        memory = search.measure(nearest.candidate, alone)
        pool = memory.pool(search.problem.pool_of[first])
        reserve = (pool.free_bytes or 0) - (pool.budget_bytes or 0)
        yield f"one device like {first} with {format_bytes(pool.used_bytes + reserve)} free would hold the whole model"


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
            goals = goals._replace(least=LEAST_TOKENS)
        answer = reach(search, goals)
    except EngineRefusalError:
        return None
    if answer is None:
        return None
    problem = search.problem
    assert isinstance(problem, LaunchProblem)
    settings = problem.solved(answer.found.candidate, answer.found.split)
    value = getattr(settings, name)
    if name == "overrides" and not value:
        return None
    return None if value is None else _said(task, LlamaSettings(**{name: value}))


def _shorter(task: Task, goals: Goals) -> Found | None:
    search = task.search()
    answer = reach(search, goals._replace(prefer="context", floors=(), least=LEAST_TOKENS, most=goals.least))
    return None if answer is None else answer.found


def _said(task: Task, settings: LlamaSettings) -> str:
    return " ".join(task.pins.written(settings))
