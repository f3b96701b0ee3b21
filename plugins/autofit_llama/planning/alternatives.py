"""Other plans worth knowing: each is better in something, and the reason why it is not the answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import log
from typing import TYPE_CHECKING, NamedTuple

from autofit.domain.machine import HOST_POOL
from autofit.domain.plan import Alternative, Speed
from autofit.domain.units import format_bytes
from autofit.solve import pareto_front

from autofit_llama.command.settings import LlamaSettings
from autofit_llama.memory.estimate import Estimate, Run
from autofit_llama.planning.complete import complete
from autofit_llama.planning.explain import command_of
from autofit_llama.planning.goals import COMFORTABLE_TOKENS, Goals, larger_ubatch, reach, stretch
from autofit_llama.planning.problem import LaunchProblem
from autofit_llama.planning.search import Found, Search
from autofit_llama.speed.rates import FILLED_TOKENS, speed_of

if TYPE_CHECKING:
    from autofit_llama.planning.task import Task

MOST = 5
PROMPT_GAIN = 1.1  #: how much faster prompts have to be read, to be worth a plan
_BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8, "q5_1": 6, "q5_0": 5, "q4_1": 5, "q4_0": 4, "iq4_nl": 4}


class _Option(NamedTuple):
    title: str
    because: str
    found: Found


def alternatives_of(task: Task, search: Search, goals: Goals, found: Found) -> tuple[Alternative, ...]:
    """Up to five plans that are better than the answer in speed, context, precision or prompts."""
    options = [_Option("this plan", "", found), *_options(task, search, goals, found)]
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


def _options(task: Task, search: Search, goals: Goals, found: Found) -> Iterator[_Option]:
    given, candidate = task.pins.settings, found.candidate
    if task.exact_context is None:
        for n_ctx in (COMFORTABLE_TOKENS, goals.most):
            if candidate.n_ctx_seq < n_ctx <= goals.most:
                longer = reach(search, goals._replace(prefer="speed", least=n_ctx, most=n_ctx))
                if longer is not None:
                    yield _Option(f"{n_ctx} tokens of context", _costs(found, longer, goals), longer)
    if given.type_k is None and given.type_v is None and task.request.kv is None and _may_be_lossy(task):
        lossy = reach(search, goals._replace(kv_types=(("q8_0", "q8_0"),)))
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
    if not found.split.on_host and task.exact_context is None and candidate.n_ctx_seq > goals.least:
        least = found._replace(candidate=candidate._replace(n_ctx_seq=goals.least))
        larger = larger_ubatch(search, goals, least)
        if larger.candidate.n_ubatch > candidate.n_ubatch:
            longest = stretch(search, larger, candidate.n_ctx_seq)
            shorter = longest.candidate.n_ctx_seq < candidate.n_ctx_seq
            why = "has less context" if shorter else "takes more memory, for prompts alone"
            yield _Option(f"prompts in micro-batches of {larger.candidate.n_ubatch}", why, longest)


def _costs(found: Found, longer: Found, goals: Goals) -> str:
    rate, other = goals.rate(found.seconds), goals.rate(longer.seconds)
    if other < rate * 0.995:
        return f"decodes {other:.3g} instead of {rate:.3g} tokens/s"
    more = sum(pool.used_bytes for pool in longer.memory.pools) - sum(pool.used_bytes for pool in found.memory.pools)
    return f"takes {format_bytes(more)} more memory"


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


def _run(task: Task, search: Search, found: Found) -> tuple[Run, Estimate, LlamaSettings]:
    problem = search.problem
    assert isinstance(problem, LaunchProblem)
    solved, final = problem.solved(found.candidate, found.split), problem.estimated(found.candidate, found.split)
    return problem.run_of(solved), final, solved


def _speed(task: Task, search: Search, found: Found, n_filled: int | None = None) -> Speed | None:
    run, final, _ = _run(task, search, found)
    return speed_of(run, final, task.machine, n_filled=n_filled)


def _alternative(task: Task, search: Search, option: _Option) -> Alternative:
    found = option.found
    _, final, solved = _run(task, search, found)
    return Alternative(
        title=option.title,
        argv=command_of(task, found, complete(task, solved, found, final)),
        context_tokens=found.candidate.n_ctx_seq,
        device_bytes=sum(pool.used_bytes for pool in found.memory.pools if pool.id != HOST_POOL),
        host_bytes=found.memory.pool(HOST_POOL).used_bytes,
        speed=_speed(task, search, found),
        because=option.because,
    )
