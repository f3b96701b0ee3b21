"""Other plans worth knowing: each is better in something, and the reason why it is not the answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from math import log
from typing import TYPE_CHECKING

from autofit.domain.machine import HOST_POOL
from autofit.domain.plan import Alternative, Speed
from autofit.domain.units import format_bytes, format_rate
from autofit.domain.values import NamedTuple
from autofit.errors import EngineRefusalError
from autofit.solve import pareto_front

from autofit_llama.command.settings import LlamaSettings
from autofit_llama.memory.estimate import Estimate, Run
from autofit_llama.planning.complete import complete
from autofit_llama.planning.explain import command_of
from autofit_llama.planning.goals import Answer, Goals, PromptTrade, larger_ubatch, reach, stretch
from autofit_llama.planning.problem import LaunchProblem
from autofit_llama.planning.search import Found, Search
from autofit_llama.speed.rates import FILLED_TOKENS, speed_of

if TYPE_CHECKING:
    from autofit_llama.planning.task import Task

MOST = 5
COMFORTABLE_TOKENS = 32_768
PROMPTS_FIRST = (PromptTrade(1.25, 0.25, 0.0),)
PROMPT_GAIN = 1.1  #: how much faster prompts have to be read, to be worth a plan
_BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8, "q5_1": 6, "q5_0": 5, "q4_1": 5, "q4_0": 4, "iq4_nl": 4}


class _Option(NamedTuple):
    title: str
    because: str
    found: Found


def alternatives_of(task: Task, search: Search, goals: Goals, answer: Answer) -> tuple[Alternative, ...]:
    """Up to five plans that are better than the answer in decode rate, context, precision or prompt processing."""
    found = answer.found
    options = [_Option("this plan", "", found)]
    for some in (_contexts, _caches, _micro_batches):
        # What the engine refuses is no alternative, and no reason to give no answer.
        with suppress(EngineRefusalError):
            options += some(task, search, goals, answer)
    # Rates of unlike contexts are compared with the same fill.
    alike = [_speed(task, search, option.found, n_filled=FILLED_TOKENS) for option in options]

    def score(pair: tuple[_Option, Speed | None]) -> tuple[float, ...]:
        option, speed = pair
        candidate = option.found.candidate
        rate = 1 / option.found.seconds if speed is None else speed.decode_tokens_per_s
        prefill = 0.0 if speed is None else speed.prefill_tokens_per_s or 0.0
        bits = min(_BITS.get(candidate.type_k, 4), _BITS.get(candidate.type_v, 4))
        steps = int(log(prefill, PROMPT_GAIN)) if prefill > 0 else 0
        return round(rate, 2), candidate.n_ctx_seq, bits, steps

    front = pareto_front(list(zip(options, alike, strict=True)), score)
    others = [option for option, _ in front if option.found is not found]
    return tuple(_alternative(task, search, option) for option in others[:MOST])


def _contexts(task: Task, search: Search, goals: Goals, answer: Answer) -> Iterator[_Option]:
    found = answer.found
    if answer.compared is not None:
        n_ctx = answer.compared.candidate.n_ctx_seq
        differs = _differences(found, answer.compared, goals)
        yield _Option(f"{n_ctx:,} tokens of context", differs, answer.compared)
    if task.exact_context is not None:
        return
    for n_ctx in (COMFORTABLE_TOKENS, goals.most):
        if found.candidate.n_ctx_seq < n_ctx <= goals.most:
            longer = reach(search, goals._replace(prefer="speed", least=n_ctx, most=n_ctx))
            if longer is not None:
                yield _Option(f"{n_ctx:,} tokens of context", _differences(found, longer.found, goals), longer.found)


def _caches(task: Task, search: Search, goals: Goals, answer: Answer) -> Iterator[_Option]:
    if answer.lossless is not None:
        yield _Option("an f16 KV cache", _differences(answer.found, answer.lossless, goals), answer.lossless)
    elif len(goals.kv_types) > 1 and goals.kv_types[0] == ("f16", "f16"):
        lossy = reach(search, goals._replace(kv_types=goals.kv_types[1:]))
        if lossy is not None:
            costs = f"{_differences(answer.found, lossy.found, goals)}, and loses some precision"
            yield _Option("a q8_0 KV cache", costs, lossy.found)


def _micro_batches(task: Task, search: Search, goals: Goals, answer: Answer) -> Iterator[_Option]:
    found = answer.found
    if answer.plain is not None:
        size = answer.plain.candidate.n_ubatch
        yield _Option(f"micro-batches of {size}", _differences(found, answer.plain, goals), answer.plain)
    if not goals.free_ubatch:
        return
    start = found
    if not found.split.on_host and task.exact_context is None and found.candidate.n_ctx_seq > goals.least:
        start = found._replace(candidate=found.candidate._replace(n_ctx_seq=goals.least))
    larger = larger_ubatch(search, goals._replace(trades=PROMPTS_FIRST), start)
    if larger.candidate.n_ubatch > found.candidate.n_ubatch:
        longest = stretch(search, larger, found.candidate.n_ctx_seq)
        title = f"micro-batches of {larger.candidate.n_ubatch}: faster prompt processing"
        yield _Option(title, _differences(found, longest, goals), longest)


def _differences(found: Found, other: Found, goals: Goals) -> str:
    """How `other` differs from the answer: rates, context, and memory where nothing else does."""
    rate, others = format_rate(goals.rate(found)), format_rate(goals.rate(other))
    said = [] if rate == others else [f"decodes ~{others} instead of ~{rate} tokens/s{goals.filled}"]
    n_ctx, n_other = found.candidate.n_ctx_seq, other.candidate.n_ctx_seq
    if n_ctx != n_other:
        said.append(f"{n_other:,} instead of {n_ctx:,} tokens of context")
    n_ubatch, n_other = found.candidate.n_ubatch, other.candidate.n_ubatch
    if n_ubatch != n_other:
        prompts = [format_rate(goals.prompts(one, n)) for one, n in ((other, n_other), (found, n_ubatch))]
        said.append(f"prompts at ~{prompts[0]} instead of ~{prompts[1]} tokens/s")
    more = sum(pool.used_bytes for pool in other.memory.pools) - sum(pool.used_bytes for pool in found.memory.pools)
    return ", ".join(said) or f"takes {format_bytes(abs(more))} {'more' if more > 0 else 'less'} memory"


def _run(task: Task, search: Search, found: Found) -> tuple[Run, Estimate, LlamaSettings]:
    problem = search.problem
    assert isinstance(problem, LaunchProblem)
    solved, final = problem.solved(found.candidate, found.split), problem.estimated(found.candidate, found.split)
    return problem.run_of(solved), final, solved


def _speed(task: Task, search: Search, found: Found, n_filled: int | None = None) -> Speed | None:
    run, final, _ = _run(task, search, found)
    return speed_of(run, final, task.machine, n_filled=n_filled)


def _alternative(task: Task, search: Search, option: _Option) -> Alternative:
    found, problem = option.found, search.problem
    assert isinstance(problem, LaunchProblem)
    _, final, solved = _run(task, search, found)
    settings = complete(task, solved, found, final)
    memory = problem.estimate(settings, layout=final.layout).memory
    return Alternative(
        title=option.title,
        argv=command_of(task, found, settings),
        context_tokens=found.candidate.n_ctx_seq,
        device_bytes=sum(pool.used_bytes for pool in memory.pools if pool.id != HOST_POOL),
        host_bytes=memory.pool(HOST_POOL).used_bytes,
        speed=_speed(task, search, found),
        because=option.because,
    )
