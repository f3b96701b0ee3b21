"""How many of several machines a plan takes: as few as hold what is wished, and what the others could do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from autofit.domain.machine import Machine
from autofit.domain.plan import Finding, Plan
from autofit.domain.request import Request
from autofit.domain.units import format_rate
from autofit.domain.values import replace
from autofit.errors import EngineRefusalError, HardwareError

from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.config.cluster import groups_of, taken
from autofit_vllm.config.devices import n_machines
from autofit_vllm.planning.codes import finding
from autofit_vllm.planning.problem import ENOUGH_TOKENS, USEFUL_TOKENS

MOST = 32  #: machines that one copy of a model is spread over at most, where nobody says how many
Make = Callable[[Machine, Request], Plan]


def spread(machine: Machine, settings: VllmSettings, request: Request, make: Make) -> Plan:
    """The plan on as few machines as hold it; for throughput, on as many as serve most with all of them.

    `make` plans on every machine that it is given.

    Raises:
        EngineRefusalError: vLLM would refuse what the user pinned on any number of them.
    """
    groups = groups_of(machine)
    n_all = len(groups)
    if settings.pins("nnodes") or _by_ray(settings):
        count = n_machines(settings, len(groups[0][1]))
        return _told(make(taken(machine, count, request.device), request), machine, count, n_all)
    quick = replace(request, alternatives=False, nearest=False, explain=False)
    tried: dict[int, Plan] = {}
    refusals: list[EngineRefusalError | HardwareError] = []

    def enough(count: int) -> bool:
        try:
            tried[count] = make(taken(machine, count, request.device), quick)
        except (EngineRefusalError, HardwareError) as refusal:
            refusals.append(refusal)
            return False
        found = tried[count]
        return found.fits and not _offloads(found) and (found.context_tokens or 0) >= _wished(request)

    all_of_them = request.prefer == "throughput"
    reached = [count for count in _doubled(min(n_all, MOST)) if enough(count) or all_of_them][:1]
    for count in range(reached[0] // 2 + 1, reached[0]) if reached and not all_of_them else ():
        if enough(count):
            break
    if not tried:
        raise refusals[0]
    best = max(tried, key=lambda count: _worth(tried[count], count, n_all, request))
    return _told(make(taken(machine, best, request.device), request), machine, best, n_all)


def _by_ray(settings: VllmSettings) -> bool:
    sized = settings.pins("tensor_parallel_size") or settings.pins("pipeline_parallel_size")
    return sized and "ray" in (settings.distributed_executor_backend, settings.data_parallel_backend)


def _doubled(most: int) -> Iterator[int]:
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most


def _wished(request: Request) -> int:
    """The context at which no more machines are taken."""
    if request.context:
        return request.context
    return request.min_context or min(USEFUL_TOKENS, request.max_context or USEFUL_TOKENS)


def _worth(plan: Plan, count: int, n_all: int, request: Request) -> tuple[float, ...]:
    length = min(plan.context_tokens or 0, _wished(request)) if plan.fits else 0
    copies = max(1, n_all // count)
    if request.prefer == "throughput" and length >= ENOUGH_TOKENS:
        total = plan.engine_report.get("total_tokens_per_s")
        return (1.0, copies * total if isinstance(total, (int, float)) else 0.0, -count)
    return (float(plan.fits), length, -float(_offloads(plan)), -count if plan.fits else count)


def _offloads(plan: Plan) -> bool:
    """Whether weights that nobody put there lie in RAM: another machine holds them at full speed."""
    return any(one.origin == "solved" and "offload" in one.setting for one in plan.decisions)


def _told(plan: Plan, machine: Machine, count: int, n_all: int) -> Plan:
    """The plan, with what the machines beside it could do."""
    count = max(count, len(plan.nodes))  # the replicas of others are planned for as those of one
    left = n_all - count
    if not plan.fits or left <= 0:
        return plan
    copies = _copies(machine, count)
    message = f"{left} of {n_all} machines {'is' if left == 1 else 'are'} not used"
    if copies > 1:
        total = plan.engine_report.get("total_tokens_per_s")
        message += f"; {copies - 1} more cop{'y' if copies == 2 else 'ies'} of this plan would run on them"
        if isinstance(total, (int, float)) and total:
            message += f", ~{format_rate(copies * total)} tokens/s in all behind a router"
    found: Finding = finding("idle-nodes", message)
    return replace(plan, findings=(*plan.findings, found))


def _copies(machine: Machine, count: int) -> int:
    """Copies of a plan on `count` machines that run on all: on those alone that are like the ones that it takes."""
    kinds = [
        tuple((device.name, device.total_bytes, device.free_bytes) for device in devices)
        for _, devices in groups_of(machine)
    ]
    if len(set(kinds[:count])) > 1:
        return 1
    return kinds.count(kinds[0]) // count
