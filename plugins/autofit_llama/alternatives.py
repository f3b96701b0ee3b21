"""Other plans worth knowing: each is better in something, and the reason why it is not the answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from autofit.domain.machine import HOST_POOL
from autofit.domain.plan import Alternative, Speed
from autofit.solve import pareto_front

from autofit_llama.decide_explain import command_of
from autofit_llama.search import Found, Search
from autofit_llama.search_goals import Goals, larger_ubatch, reach, stretch
from autofit_llama.search_problem import LaunchProblem
from autofit_llama.speeds import speed_of

if TYPE_CHECKING:
    from autofit_llama.decide import Task

MOST = 5
COMFORTABLE_TOKENS = 32_768
_BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8, "q5_1": 6, "q5_0": 5, "q4_1": 5, "q4_0": 4, "iq4_nl": 4}


class _Option(NamedTuple):
    title: str
    because: str
    found: Found


def alternatives_of(task: Task, search: Search, goals: Goals, found: Found) -> tuple[Alternative, ...]:
    """Up to five plans that are better than the answer in speed, context, precision or prompts."""
    options = [_Option("this plan", "", found), *_options(task, search, goals, found)]
    speeds = {id(option): _speed(task, search, option.found) for option in options}

    def score(option: _Option) -> tuple[float, ...]:
        speed, candidate = speeds[id(option)], option.found.candidate
        rate = -option.found.seconds if speed is None else speed.decode_tokens_per_s
        prefill = 0.0 if speed is None else speed.prefill_tokens_per_s or 0.0
        bits = min(_BITS.get(candidate.type_k, 4), _BITS.get(candidate.type_v, 4))
        return round(rate, 3), candidate.n_ctx_seq, bits, round(prefill, 1)

    front = [option for option in pareto_front(options, score) if option.found is not found]
    return tuple(_alternative(task, search, option, speeds[id(option)]) for option in front[:MOST])


def _options(task: Task, search: Search, goals: Goals, found: Found) -> Iterator[_Option]:
    given, candidate = task.pins.settings, found.candidate
    rate = goals.rate(found.seconds)
    if task.exact_context is None:
        for n_ctx in (COMFORTABLE_TOKENS, goals.most):
            if candidate.n_ctx_seq < n_ctx <= goals.most:
                longer = reach(search, replace(goals, prefer="speed", least=n_ctx, most=n_ctx))
                if longer is not None:
                    slower = f"decodes {goals.rate(longer.seconds):.3g} instead of {rate:.3g} tokens/s"
                    yield _Option(f"{n_ctx} tokens of context", slower, longer)
    if found.split.on_host and task.exact_context is None:
        shorter = reach(search, replace(goals, prefer="speed", least=min(goals.least, 2048), most=2048))
        if shorter is not None and shorter.seconds < found.seconds:
            yield _Option("the least context, for speed", "has less context than is useful", shorter)
    if given.type_k is None and given.type_v is None and task.request.kv is None and _may_be_lossy(task):
        lossy = reach(search, replace(goals, kv_types=(("q8_0", "q8_0"),)))
        if lossy is not None:
            yield _Option("a q8_0 cache", "loses some precision, which --kv did not allow", lossy)
    if found.split.on_host:
        faster = larger_ubatch(search, goals, _lighter(search, found))
        if faster.candidate.n_ubatch > candidate.n_ubatch:
            yield _Option(
                f"prompts in micro-batches of {faster.candidate.n_ubatch}",
                "reads prompts faster, decodes slower",
                faster,
            )
    if found.candidate.n_ctx_seq > goals.least and task.exact_context is None and not found.split.on_host:
        larger = larger_ubatch(search, goals, found._replace(candidate=candidate._replace(n_ctx_seq=goals.least)))
        if larger.candidate.n_ubatch > candidate.n_ubatch:
            longest = stretch(search, larger, goals.most)
            yield _Option(f"prompts in micro-batches of {larger.candidate.n_ubatch}", "has less context", longest)


def _may_be_lossy(task: Task) -> bool:
    return len(replace(task, request=replace(task.request, kv="auto")).kv_types()) > 1


def _lighter(search: Search, found: Found) -> Found:
    """The same plan with the bulk of two more blocks in RAM: room for larger compute buffers."""
    split = found.split
    tables = search.tables(found.candidate)
    lean = min(max(split.lean, split.head) + 3, len(tables.blocks) - 1)
    lighter = split._replace(lean=lean, spilled=())
    lighter = lighter._replace(seconds=tables.seconds(lighter))
    return found._replace(split=lighter, memory=search.measure(found.candidate, lighter))


def _speed(task: Task, search: Search, found: Found) -> Speed | None:
    problem = search.problem
    assert isinstance(problem, LaunchProblem)
    run = problem.run_of(problem.solved(found.candidate, found.split))
    return speed_of(run, problem.estimated(found.candidate, found.split), task.machine)


def _alternative(task: Task, search: Search, option: _Option, speed: Speed | None) -> Alternative:
    problem, found = search.problem, option.found
    assert isinstance(problem, LaunchProblem)
    settings = replace(problem.solved(found.candidate, found.split), fit=task.pins.settings.fit or False)
    return Alternative(
        title=option.title,
        argv=command_of(task, found, settings),
        context_tokens=found.candidate.n_ctx_seq,
        device_bytes=sum(pool.used_bytes for pool in found.memory.pools if pool.id != HOST_POOL),
        host_bytes=found.memory.pool(HOST_POOL).used_bytes,
        speed=speed,
        because=option.because,
    )
