"""The plan: a complete command that fits, around what the user has fixed.

Pins and wishes become a search problem and goals; the answer becomes settings, and those a command line
behind the user's own flags, with every decision explained.
"""

from __future__ import annotations

from collections.abc import Sequence

from autofit.domain.machine import HOST_POOL, Machine
from autofit.domain.model import ModelSpec
from autofit.domain.plan import Alternative, Decision, Finding, Plan, Speed
from autofit.domain.request import Request
from autofit.domain.units import format_bytes

from autofit_llama.command.parse import Command
from autofit_llama.command.settings import LlamaSettings
from autofit_llama.launch.defaults import n_drafted
from autofit_llama.launch.findings import findings_of
from autofit_llama.memory.estimate import Estimate, Run
from autofit_llama.planning.complete import complete
from autofit_llama.planning.explain import Explained, explain, tokens_of
from autofit_llama.planning.goals import Goals, larger_ubatch, reach
from autofit_llama.planning.problem import LaunchProblem
from autofit_llama.planning.python_kwargs import python_kwargs
from autofit_llama.planning.search import Found, Search
from autofit_llama.planning.task import Task, task_of
from autofit_llama.speed.rates import speed_of


def plan(command: Command, model: ModelSpec, machine: Machine, request: Request) -> Plan:
    """The best plan that keeps the pins and fits; if there is none, the nearest, with what it lacks.

    Raises:
        UsageError: pins that contradict each other, a wish or the machine.
        EngineRefusalError: llama.cpp would refuse what is pinned.
        UnsupportedModelError: llama.cpp does not run this model.
    """
    task = task_of(command, model, machine, request)
    search = task.search()
    goals = task.goals(search)
    found = reach(search, goals)
    if found is not None and request.prefer == "throughput":
        found = larger_ubatch(search, goals, found)
    nearest: tuple[Finding, ...] = ()
    if found is None:
        from autofit_llama.planning.nearest import nearest_values  # an import that most plans do without

        found = search.nearest(goals.candidate(goals.least, goals.kv_types[-1]))
        assert found is not None  # the host alone is always one
        nearest = nearest_values(task, search, goals, found)
    return _finish(task, search, goals, found, nearest)


def _finish(task: Task, search: Search, goals: Goals, found: Found, nearest: Sequence[Finding]) -> Plan:
    problem = search.problem
    assert isinstance(problem, LaunchProblem)
    solved = problem.solved(found.candidate, found.split)
    final = problem.estimated(found.candidate, found.split)
    settings = complete(task, solved, found, final)
    if (settings.cache_ram_mib, settings.n_checkpoints) != (solved.cache_ram_mib, solved.n_checkpoints):
        final = problem.estimate(settings)
    run = problem.run_of(settings)
    explained = explain(task, search, goals, found, settings, final)
    argv = _argv(task, explained)
    findings = [*task.pins.findings, *findings_of(task.pins.reading, run, final, fit=bool(settings.fit))]
    findings += [*nearest, *_advice(task, found, final)]
    kwargs, why_not = python_kwargs(task.model, settings, run, final, task.machine)
    decisions = explained.decisions
    if why_not is not None:
        none = Decision(setting="kwargs", value="none", origin="engine default", because=why_not)
        decisions = (*decisions, none)
    n_ctx = final.layout.context.n_ctx_seq
    others: tuple[Alternative, ...] = ()
    if task.request.alternatives and final.memory.fits:
        from autofit_llama.planning.alternatives import alternatives_of

        others = alternatives_of(task, search, goals, found)
    return Plan(
        backend="llama",
        fits=final.memory.fits,
        argv=argv,
        kwargs=kwargs,
        memory=final.memory,
        speed=_speed(task, run, final, settings),
        context_tokens=n_ctx,
        safe_fill_tokens=n_ctx if final.memory.fits else None,
        decisions=decisions,
        alternatives=others,
        findings=tuple(findings),
        engine_report=final.report,
        engine_version=task.pins.version.name,
    )


def _argv(task: Task, explained: Explained) -> tuple[str, ...]:
    """The program, the model, the user's flags as they were written, and what was solved."""
    program = task.pins.reading.words or (task.pins.reading.program,)
    return (*program, *tokens_of(explained.decisions))


def _speed(task: Task, run: Run, final: Estimate, settings: LlamaSettings) -> Speed | None:
    types = settings.spec_types or (("draft-simple",) if run.drafts else ())
    return speed_of(run, final, task.machine, n_draft=n_drafted(settings, types) if types else 0)


def _advice(task: Task, found: Found, final: Estimate) -> list[Finding]:
    findings = []
    if found.split.on_host and task.devices:
        shares = any(device.pool == HOST_POOL for device in task.devices)
        where = "are the processor's" if shares else "stay in main memory"
        n_bytes = final.layout.weight_plan.host_all_bytes
        message = f"{format_bytes(n_bytes)} of weights {where}, which decides the speed"
        findings.append(Finding(severity="info", code="weights-in-ram", message=message))
    given, candidate = task.pins.settings, found.candidate
    lossy = next((t for t in (candidate.type_k, candidate.type_v) if t.startswith(("q", "iq"))), None)
    if lossy is not None and lossy not in (given.type_k, given.type_v, task.request.kv):
        message = f"the cache is {lossy}, which loses some precision; --kv f16 keeps it all"
        findings.append(Finding(severity="info", code="lossy-cache", message=message))
    return findings
