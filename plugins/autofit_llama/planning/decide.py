"""The plan: a complete command that fits, around what the user has fixed.

Pins and wishes become a search problem and goals; the answer becomes settings, and those a command line
behind the user's own flags, with every decision explained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autofit.domain.machine import Machine
from autofit.domain.model import ModelSpec
from autofit.domain.plan import Alternative, Finding, Plan, Speed
from autofit.domain.request import Margin, Request
from autofit.domain.text import printable
from autofit.domain.units import format_rate
from autofit.domain.values import replace
from autofit.planning.decisions import arguments, remark

from autofit_llama.command.options import PYTHON_SERVER
from autofit_llama.command.parse import Command
from autofit_llama.command.python_class import python_arguments
from autofit_llama.command.settings import LlamaSettings
from autofit_llama.engine.codes import finding
from autofit_llama.launch.defaults import PYTHONS, n_drafted
from autofit_llama.launch.findings import findings_of
from autofit_llama.launch.workers import node_commands, workers_finding
from autofit_llama.memory.estimate import Estimate, Run
from autofit_llama.model.context import CELL_PADDING
from autofit_llama.planning.complete import complete, kept_prompts, settled
from autofit_llama.planning.explain import Explained, explain
from autofit_llama.planning.goals import Answer, Goals, reach
from autofit_llama.planning.prices import prices
from autofit_llama.planning.problem import LaunchProblem
from autofit_llama.planning.search import Found, Search
from autofit_llama.planning.task import Task, slower_than_wished, task_of
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
    goals, answer = _reached(task, search)
    if answer is not None:
        unused = _unused_servers(task, answer)
        if unused:
            return _without(unused, command, model, machine, request)
        return _finish(task, search, goals, answer, ())
    found = search.nearest(goals.candidate(goals.least, goals.kv_types[-1]))
    assert found is not None  # the host alone is always one
    if not request.nearest:
        return _finish(task, search, goals, Answer(found), ())
    from autofit_llama.planning.nearest import nearest_values  # an import that most plans do without

    return _finish(task, search, goals, Answer(found), nearest_values(task, search, goals, found))


def _reached(task: Task, search: Search) -> tuple[Goals, Answer | None]:
    """The best answer, and the goals that it is of: the longest context may be shorter than those that are planned when
    nobody asks for one."""
    goals = task.goals(search)
    answer = reach(search, goals)
    is_enough = answer is not None and goals.may_meet(answer.found)
    if is_enough or not task.longest or task.request.min_context or goals.least <= CELL_PADDING:
        return goals, answer
    shorter = goals._replace(least=CELL_PADDING, most=goals.least)
    found = reach(search, shorter)
    is_better = found is not None and (answer is None or shorter.may_meet(found.found))
    return (shorter, found) if is_better else (goals, answer)


def _unused_servers(task: Task, answer: Answer) -> tuple[str, ...]:
    """Nodes that lend no device to the plan, where nobody fixed which servers there are."""
    given, used = task.pins.settings, set(answer.found.split.order)
    if given.rpc or given.devices is not None or given.tensor_split is not None or given.overrides:
        return ()
    lends = {device.node: False for device in task.machine.devices if device.api == "rpc" and device.node}
    for device in task.machine.devices:
        if device.node in lends and device.id in used:
            lends[device.node] = True
    return tuple(node for node, is_used in lends.items() if not is_used)


def _without(unused: Sequence[str], command: Command, model: ModelSpec, machine: Machine, request: Request) -> Plan:
    """The plan on the machine without these nodes: the engine connects to no server for nothing."""
    devices = tuple(device for device in machine.devices if device.node not in unused)
    nodes = tuple(node for node in machine.nodes if node.name not in unused)
    found = plan(command, model, replace(machine, devices=devices, nodes=nodes), request)
    names = printable(", ".join(unused), 200)
    said = finding("device-left-out", f"{names} left out: no layer fits there, or more machines make nothing faster")
    return replace(found, findings=(*found.findings, said))


def _finish(task: Task, search: Search, goals: Goals, answer: Answer, nearest: Sequence[Finding]) -> Plan:
    problem, found = search.problem, answer.found
    assert isinstance(problem, LaunchProblem)
    settings, final = _completed(task, problem, found)
    run = problem.run_of(settings)
    explained = explain(task, search, goals, found, settings, final)
    argv = _argv(task, explained)
    findings = [*task.pins.findings, *findings_of(task.pins.reading, run, final, fit=bool(settings.fit))]
    findings += [*nearest, *prices(task, goals, answer, final), *kept_prompts(task, settings, final)]
    if task.request.beside or task.sized.hparams.n_layer_nextn:
        from autofit_llama.planning.beside import offers  # most models come alone

        findings += offers(task, settings, final)
    kwargs, why_not = _kwargs(task, settings, run, final)
    decisions = explained.decisions
    if why_not is not None:
        decisions = (*decisions, remark("kwargs", "none", "engine default", why_not))
    n_ctx = final.layout.context.n_ctx_seq
    speed = _speed(task, run, final, settings) if final.memory.fits else None
    findings += _in_all(task, run, final)
    if task.request.engine_version is None:
        from autofit_llama.planning.newer import with_newest  # where nobody says which build it is

        findings += with_newest(run, final, task.machine, problem.margins_of(run))
    missed = slower_than_wished(task.request, speed, n_ctx) if final.memory.fits else ()
    findings += [finding("too-slow", message) for message in missed]
    if missed:
        from autofit_llama.planning.nearest import faster_values

        findings += faster_values(search, goals, speed if task.request.min_tps is not None else None)
    others: tuple[Alternative, ...] = ()
    if task.request.alternatives and final.memory.fits:
        from autofit_llama.planning.alternatives import alternatives_of

        others = alternatives_of(task, search, goals, answer)
    limit = None
    if task.request.nearest and final.memory.fits:
        from autofit_llama.planning.limit import limit_of  # where somebody reads it

        limit = limit_of(task, search, goals, found, final)
    lending = () if task.pins.settings.rpc else found.split.order  # servers of the user's own flags run already
    nodes = node_commands(argv, {}, task.machine, lending, task.pins.version)
    findings += workers_finding(nodes)
    return Plan(
        backend="llama",
        nodes=nodes,
        fits=final.memory.fits and not missed,
        argv=argv,
        kwargs=kwargs,
        memory=final.memory,
        speed=speed,
        context_tokens=n_ctx,
        safe_fill_tokens=n_ctx if final.memory.fits else None,
        decisions=decisions,
        limit=limit,
        alternatives=others,
        findings=tuple(findings),
        engine_report=final.report,
        engine_version=task.pins.version.name,
    )


def _completed(task: Task, problem: LaunchProblem, found: Found) -> tuple[LlamaSettings, Estimate]:
    """The settings of what was found, with those that it leaves open, and what they come to."""
    solved = problem.solved(found.candidate, found.split)
    final = problem.estimated(found.candidate, found.split)
    settings = complete(task, solved, found, final)
    if (settings.cache_ram_mib, settings.n_checkpoints) != (solved.cache_ram_mib, solved.n_checkpoints):
        final = problem.estimate(settings, layout=final.layout)
    if task.pins.is_python:
        settings = settled(task, problem, settings, final)
        final = problem.estimate(settings, layout=final.layout)
    return settings, final


def _kwargs(task: Task, settings: LlamaSettings, run: Run, final: Estimate) -> tuple[Mapping[str, object], str | None]:
    """The keyword arguments of `llama_cpp.Llama`, where they are asked for; else none, and maybe why."""
    if task.pins.is_python:
        said = settings.or_else(PYTHONS[PYTHON_SERVER])  # other defaults than those of the class
        return python_arguments(replace(said, model=said.model or task.model.files[0].path, cache_ram_mib=None)), None
    if not task.request.explain:
        return {}, None
    from autofit_llama.planning.python_kwargs import python_kwargs  # a search of its own

    return python_kwargs(task.model, settings, run, final, task.machine, _margins(task))


def _in_all(task: Task, run: Run, final: Estimate) -> list[Finding]:
    """The rate of all sequences at once, where several were asked for."""
    n = task.n_parallel
    speed = None if task.request.parallel is None or n < 2 else speed_of(run, final, task.machine, n_sequences=n)
    if speed is None or not (speed.decodes and final.memory.fits):
        return []
    each = speed.start_tokens_per_s or speed.decode_tokens_per_s
    message = f"{n} sequences at once decode ~{format_rate(each)} tokens/s each, ~{format_rate(n * each)} in all"
    return [finding("rate-in-all", message)]


def _margins(task: Task) -> dict[str, Margin]:
    return {name: margin for name, (margin, _) in task.margins.items()}


def _argv(task: Task, explained: Explained) -> tuple[str, ...]:
    """The program, the model, the user's flags as they were written, and what was solved."""
    program = task.pins.reading.words or (task.pins.reading.program,)
    return (*program, *arguments(explained.decisions))


def _speed(task: Task, run: Run, final: Estimate, settings: LlamaSettings) -> Speed | None:
    types = settings.spec_types or (("draft-simple",) if run.drafts else ())
    return speed_of(run, final, task.machine, n_draft=n_drafted(settings, types) if types else 0)
