"""The only place that joins the stages: reference -> model, machine, options -> plan."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from autofit.domain.values import dataclass, replace
from autofit.errors import UsageError
from autofit.host import blamed, host
from autofit.inputs import HIDES, command_inputs, engine_inputs, read_by, seen, shown, split_assignments
from autofit.machines import machine_of
from autofit.references import Found, beside, find, locate, missing, read, reference_of, with_companions, written_as
from autofit.settings.layers import HERE, Options, Surroundings
from autofit.settings.options import BY_NAME, CHECKED
from autofit.validation import (
    arguments,
    check_complete,
    check_format,
    check_names,
    check_supported,
    is_command,
    is_machine,
    is_model,
    is_plan,
)

if TYPE_CHECKING:
    from typing import Unpack

    from autofit.backend import Backend, ParsedCommand
    from autofit.containers import Inside
    from autofit.domain.machine import Machine
    from autofit.domain.model import ModelFiles, ModelSpec, Offer
    from autofit.domain.plan import Alternative, Finding, Plan
    from autofit.domain.request import Request
    from autofit.hardware.installed import Engine
    from autofit.settings.keywords import CheckOptions, PlanOptions
    from autofit.text.launchers import Wrapped


def read_model(reference: str | os.PathLike[str], *, companions: Mapping[str, str] | None = None) -> ModelSpec:
    """The model that `reference` names: a path, a directory, `example:NAME`, a repository, or what a plugin's source
    knows.

    `companions` maps a role (`mmproj`, `draft`, `lora`) to another reference.

    Raises:
        ModelNotFoundError, CorruptModelError, UnsupportedModelError
    """
    return with_companions(find(reference_of("read_model()", reference)).model, companions or {})


def plan(
    backend: str,
    model: ModelSpec | str | os.PathLike[str] | None,
    machine: Machine | None = None,
    *,
    engine_args: Sequence[object] = (),
    settings: Surroundings | None = HERE,
    **options: Unpack[PlanOptions],
) -> Plan:
    """The best plan for `model` on `machine` (this one, if not given). `None`: `engine_args` name the model.

    `options` are those of the command line, as text or as values: `context="32k"`, `margin="1GiB"`, `parallel=4`.
    `engine_args` are the engine's own flags: kept exactly, the rest is solved around them. `settings` are the
    variables and settings files that count beside them, as for the command line; `None`: none do.

    Raises:
        UsageError, ModelError, HardwareError, EngineRefusalError, PluginError. A plan that does not fit is returned,
        with `fits` false.
    """
    if not isinstance(backend, str):
        raise UsageError(
            f"plan() takes a backend's name first, not {type(backend).__name__}",
            hint=f"known: {', '.join(sorted(host().backends()))}",
        )
    check_names("plan()", options, BY_NAME)
    if machine is not None and {"on", "ram"} & options.keys():
        raise UsageError("plan() got a machine, and on or ram as well", hint="leave one of them out")
    stated = stated_options(backend, options, settings)
    return plan_of(backend, model, machine, stated, settings, engine_args=engine_args)


def stated_options(
    backend: str, given: Mapping[str, Any], settings: Surroundings | None, used: Container[str] | None = None
) -> Options:
    """Options of a backend: flags or keywords first, then variables, settings files and a preset.

    Raises:
        UsageError: a value that makes no sense, or no such preset.
    """
    from autofit.settings.layers import collect

    if settings is not None and not isinstance(settings, Surroundings):
        raise UsageError(f"settings are a Surroundings or None, not {settings!r:.40}", hint="None: no settings count")

    def preset(name: str) -> Mapping[str, object]:
        from autofit.profiles import load_preset

        return load_preset(name, host().profile_dirs())

    return collect(given, settings, backend, preset, used)


def plan_of(
    backend_name: str,
    model: ModelSpec | str | os.PathLike[str] | None,
    machine: Machine | None,
    options: Options,
    settings: Surroundings | None,
    *,
    engine_args: Sequence[object] = (),
    details: bool = True,
    nearest: bool = True,
    deploys: bool = True,
    first: Callable[[Plan], object] | None = None,
    in_ram: bool = True,
) -> Plan:
    """The plan for stated options: what the command line and `plan()` both come to."""
    return plan_on(
        backend_name,
        model,
        machine,
        options,
        settings,
        engine_args=engine_args,
        details=details,
        nearest=nearest,
        deploys=deploys,
        first=first,
        in_ram=in_ram,
    )[0]


def plan_on(
    backend_name: str,
    model: ModelSpec | Found | str | os.PathLike[str] | None,
    machine: Machine | None,
    options: Options,
    settings: Surroundings | None,
    *,
    program: Sequence[str] = (),
    engine_args: Sequence[object] = (),
    inside: Inside | None = None,
    at_most: Mapping[str, int] | None = None,
    details: bool = True,
    nearest: bool = True,
    deploys: bool = True,
    first: Callable[[Plan], object] | None = None,
    in_ram: bool = True,
) -> tuple[Plan, Machine]:
    """The plan for stated options, and the machine that it is for.

    `program` are the words that start the engine, of a command that is filled in, and `inside` the container that it
    runs in. Without `model`, the engine's own flags name it; one that is `Found` is not read again. Of several models
    under one name the largest is planned for that fits as asked at full speed; where none does, the one that the
    engine would take. `at_most` are bytes that pools have free at most, whatever is measured.

    `details`: other plans, and what the next better value of a setting lacks, are looked for too; `nearest`: where
    nothing fits, what would; `deploys`: what a container or a unit needs (`Plan.deployment`); `in_ram`: as in
    `Request`. `first` gets the plan before those are looked for that other options would give (`Alternative.pick`);
    with it they are also looked for without `details`.
    """
    job = _job_of(backend_name, model, machine is None, options, settings, program, engine_args, inside)
    asked = replace(job.request, alternatives=details, nearest=nearest, in_ram=in_ram, explain=details)
    job = replace(job, request=asked)
    here = cache(partial(_machine_for, job, machine, at_most or {}))  # looked at when the model is known to be there
    picks: dict[tuple[str, ...], Callable[[Plan], tuple[Alternative, ...]]] = {}

    def plan_one(found: ModelSpec, files: ModelFiles | None) -> Plan:
        plan, look = _planned(job, *here(), found, files, deploys=deploys)
        picks[plan.argv] = look
        return plan

    if isinstance(model, Found):
        best = plan_one(*model)
    elif job.reference is None:
        best = plan_one(*_found(job.command.model if model is None else model))  # type: ignore[arg-type]
    else:
        files = locate(job.reference)
        best = _best_offer(files, lambda: here()[0], options, plan_one) or plan_one(read(files), files)
    if first is not None:
        first(best)
    if details or first is not None:
        best = replace(best, alternatives=(*picks[best.argv](best), *best.alternatives))
    return best, here()[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What a plan is made of, but for the model's files and the machine. `reference` names the model, where text
    does."""

    backend: Backend
    command: ParsedCommand
    request: Request
    engine: Engine
    options: Options
    settings: Surroundings | None
    inside: Inside | None
    reference: str | None


def _job_of(
    backend_name: str,
    model: ModelSpec | Found | str | os.PathLike[str] | None,
    is_here: bool,
    options: Options,
    settings: Surroundings | None,
    program: Sequence[str],
    engine_args: Sequence[object],
    inside: Inside | None,
) -> _Job:
    """The engine's command with what was asked, for the version that is installed or stated.

    Raises:
        UsageError: an option that the backend does not support, or no model is named.
    """
    from autofit.settings.request import to_request

    backend = host().backend(backend_name)
    check_supported(backend, options)
    engine = _engine(backend, options, settings, program=next(iter(program), None), here=is_here, inside=inside)
    request = to_request(
        options,
        program=program,
        engine_args=arguments("engine_args", engine_args),
        engine_env=engine_inputs(backend, settings) if inside is None else read_by(backend, shown(inside.environ)),
    )
    request = replace(request, engine_version=engine.version)
    named = model.files.reference if isinstance(model, Found) else model
    reference = None if named is None or is_model(named) else reference_of("plan()", named)
    with blamed(backend_name):
        parsed = backend.command(request, model=reference or getattr(named, "name", None))
        command = is_command(parsed, backend_name)
    command = command if inside is None else inside.command(command)
    if model is None and command.model is None:
        raise UsageError(f"{backend_name}: no model is named", hint=f"write it first: autofit {backend_name} MODEL ...")
    return _Job(
        backend=backend,
        command=command,
        request=request,
        engine=engine,
        options=options,
        settings=settings,
        inside=inside,
        reference=reference,
    )


def _machine_for(job: _Job, machine: Machine | None, at_most: Mapping[str, int]) -> tuple[Machine, tuple[Finding, ...]]:
    """The machine as the engine will see it, and what is to say of it."""
    around = _variables(job.settings) if job.inside is None else seen(_variables(job.settings), job.inside.environ)
    known = machine_of(job.options, around) if machine is None else is_machine(machine)
    asks, version = machine is None or "rpc" in job.options.origins, job.request.engine_version
    known, lent = _with_lent(known, job.backend, job.command, job.options, version, may_ask=asks)
    known = host().adjust_machine(known, job.backend.name)
    known = known if job.inside is None else job.inside.machine(known)
    if not at_most:
        return known, lent
    from autofit.launch.reservations import held_to

    return held_to(known, at_most), lent


def _planned(
    job: _Job,
    machine: Machine,
    notes: tuple[Finding, ...],
    model: ModelSpec,
    files: ModelFiles | None,
    *,
    deploys: bool,
) -> tuple[Plan, Callable[[Plan], tuple[Alternative, ...]]]:
    """The plan for a model, and what looks for those that other options would give."""
    backend, command, request = job.backend, job.command, job.request
    companions = command.companions
    if files is not None:
        written = written_as(files.reference, model, files)
        companions = {**companions, **backend.loads(command, written, files.beside)}
        if job.reference is not None:
            request = replace(request, model_reference=written, beside=beside(backend, model, files, companions))
    model = with_companions(model, companions, command.sought)
    check_format(backend, model)
    on, measured = _calibrated(machine, backend.name, job.engine, model, job.settings)
    with blamed(backend.name):
        plan = is_plan(backend.plan(command, model, on, request), backend.name)
        if deploys:
            plan = _deployable(plan, backend, on, (request.model_reference or command.model, *companions.values()))
    picks = partial(_picks, backend, command, model, on, request)
    plan = _for_engine(plan, job.engine, backend, (*job.options.notes, *notes, *measured))
    return _reviewed(plan, model, on, files), picks


def _picks(
    backend: Backend, command: ParsedCommand, model: ModelSpec, machine: Machine, request: Request, plan: Plan
) -> tuple[Alternative, ...]:
    from autofit.planning.picks import picks_of

    def again(changed: Request) -> Plan:
        with blamed(backend.name):
            return is_plan(backend.plan(command, model, machine, changed), backend.name)

    return picks_of(plan, request, backend, model.context_train_tokens, again)


def plan_command(
    argv: Sequence[object],
    given: Mapping[str, Any],
    settings: Surroundings,
    machine: Machine | None = None,
    *,
    at_most: Mapping[str, int] | None = None,
    details: bool = False,
    deploys: bool = True,
) -> tuple[Plan, Machine]:
    """An engine's command with what it leaves open filled in, everything it says kept; and the machine it is for.

    It is the plan of `autofit BACKEND -- FLAGS`, for the program that the command names, also in a container that it
    starts. `settings` are the variables that the command will have, and the directory it is started in; `at_most` and
    `deploys` as for `plan_on`.

    Raises:
        UsageError: no backend understands the command, or it names no model. Others as for `plan()`.
    """
    whole = arguments("run", argv)
    inside = _opened(whole, settings.variables, may_ask=machine is None)
    words = whole if inside is None else inside.argv
    backend = host().backend_of_program(words)
    options = stated_options(backend.name, given, settings)
    with blamed(backend.name):
        n_program = len(backend.program_in(words)) or 1
    plan, on = plan_on(
        backend.name,
        None,
        machine,
        options,
        settings,
        program=words[:n_program],
        engine_args=words[n_program:],
        inside=inside,
        at_most=at_most,
        details=details,
        deploys=deploys,
    )
    return (plan if inside is None else replace(plan, argv=inside.filled(plan), env={})), on


def _calibrated(
    machine: Machine, backend: str, engine: Engine, model: ModelSpec, settings: Surroundings | None
) -> tuple[Machine, tuple[Finding, ...]]:
    """The machine as starts that were measured on it say, where there are any (docs/calibration.md)."""
    if settings is None or machine.origin != "detected":
        return machine, ()
    from autofit.calibration.place import place

    path = place(settings.variables)
    if path is None or not os.path.exists(path):  # noqa: PTH110 - one stat
        return machine, ()
    from autofit.calibration.apply import calibrated

    return calibrated(machine, backend, engine.version, model.architecture, settings.variables)


def _best_offer(
    files: ModelFiles,
    here: Callable[[], Machine],
    options: Options,
    plan_one: Callable[[ModelSpec, ModelFiles], Plan],
) -> Plan | None:
    """The plan for one of several models of a name, where one of them fits well."""
    if files.is_chosen or len(files.offers) < 2:
        return None
    from autofit.planning.findings import COMMON, tell
    from autofit.planning.offers import choose

    def plan_offer(offer: Offer) -> Plan:
        model, one = find(offer.reference)
        return plan_one(model, replace(one, offers=files.offers))

    found = choose(files.offers, here(), options.get("prefer"), plan_offer)
    if found is None:
        return None
    plan, because = found
    return replace(plan, findings=(*plan.findings, tell(COMMON, "model-source", because)))


def check(
    argv: Sequence[object],
    machine: Machine | None = None,
    *,
    model: ModelSpec | str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    settings: Surroundings | None = HERE,
    may_ask: bool = True,
    **options: Unpack[CheckOptions],
) -> Plan:
    """What an engine's command takes as it stands: `check(["llama-server", "-m", "model.gguf", "-ngl", "99"])`.

    The command may start with assignments, `NAME=value ...`, and with launchers (`env`, `nice -n 5`, `uv run`:
    `autofit.text.launchers`), or be a `docker run` of an engine's image (`autofit.containers`). `environ` holds more
    variables of the engine, which yield to them; those of `settings` yield to both. `options` are `on`, `ram`,
    `device`, `margin`, `mean_tokens` and `engine_version` as for `plan()`, and measurements that replace the backend's
    own figures. Servers of other machines that the command names are asked what they have, unless `may_ask` is false or
    a `machine` is given. A command that starts and runs short of memory later fits, and its `verdict` says so; with
    `strict` it does not fit.

    Raises:
        UsageError: no backend understands the command. EngineRefusalError: the engine would refuse it.
    """
    from autofit.hardware.visible import described
    from autofit.settings.request import to_request
    from autofit.text.launchers import unwrap

    assigned, rest = split_assignments(arguments("check()", argv))
    wrapped = unwrap(rest)
    if environ is not None and not isinstance(environ, Mapping):
        raise UsageError(f"environ is a mapping of variables, not {type(environ).__name__}")
    around = {**_variables(settings), **(environ or {}), **assigned}
    launched = wrapped.variables(around)
    inside = _opened(wrapped.argv, launched, may_ask=settings is not None and machine is None)
    argv = wrapped.argv if inside is None else inside.argv
    backend = host().backend_of_program(argv)
    check_names("check()", options, [*CHECKED, *backend.measurements])
    if machine is not None and {"on", "ram"} & options.keys():
        raise UsageError("check() got a machine, and on or ram as well", hint="leave one of them out")
    stated = stated_options(backend.name, options, settings, CHECKED)
    check_supported(backend, stated, CHECKED)
    is_here, given = machine is None, environ or {}
    if machine is None:
        machine = machine_of(stated, seen(around, launched if inside is None else inside.environ))
        if stated.get("on"):
            names = (*given, *assigned, *wrapped.assigned)
            of_command = {name: launched[name] for name in names if name.endswith(HIDES) and name in launched}
            machine = described(machine, of_command if inside is None else inside.environ)
            given = shown(given)
    inputs = command_inputs(backend, settings, wrapped, {**given, **shown(assigned)}, inside)
    measured = {name: value for name, value in options.items() if name in backend.measurements}
    engine = _engine(backend, stated, settings, program=argv[0], here=is_here, inside=inside)
    request = replace(to_request(stated, engine_env=inputs, measured=measured), engine_version=engine.version)
    with blamed(backend.name):
        command = is_command(backend.parse(argv, inputs, version=request.engine_version), backend.name)
    if inside is not None:
        command = inside.command(command)
    if model is None and command.model is None:
        raise UsageError(
            f"{argv[0]}: the command names no model", hint="write it as the engine takes it, such as -m model.gguf"
        )
    found, files = _loaded(backend, command, command.model if model is None else model)
    asks = may_ask and (is_here or "rpc" in stated.origins)
    machine, lent = _with_lent(is_machine(machine), backend, command, stated, request.engine_version, may_ask=asks)
    machine = host().adjust_machine(machine, backend.name)
    if inside is not None:
        machine = inside.machine(machine)
    machine, learnt = _calibrated(machine, backend.name, engine, found, settings)
    with blamed(backend.name):
        plan = is_plan(backend.check(command, found, machine, request), backend.name)
    plan = _as_written(_judged(plan, strict=bool(stated.get("strict"))), assigned, wrapped, inside)
    return _reviewed(_for_engine(plan, engine, backend, (*stated.notes, *lent, *learnt)), found, machine, files)


def _with_lent(
    machine: Machine, backend: Backend, command: ParsedCommand, options: Options, version: str | None, *, may_ask: bool
) -> tuple[Machine, tuple[Finding, ...]]:
    """The machine with devices of others that the engine is to use."""
    wished = command.servers or any(options.get(name) for name in ("rpc", "link", "nodes"))
    if not wished and not machine.nodes and all(device.api != "rpc" for device in machine.devices):
        return machine, ()  # most commands
    from autofit.lent import with_lent

    return with_lent(
        machine,
        backend,
        command.servers,
        options,
        version=version,
        may_ask=may_ask,
        profile_dirs=host().profile_dirs(),
    )


def _as_written(plan: Plan, assigned: Mapping[str, str], wrapped: Wrapped, inside: Inside | None) -> Plan:
    """The plan with the command as it was handed in, launchers and containers in front; these change variables by
    themselves."""
    argv = (*wrapped.prefix, *(plan.argv if inside is None else wrapped.argv))
    is_behind = wrapped.prefix or inside is not None
    return replace(plan, argv=argv, env={**assigned, **({} if is_behind else plan.env)})


def _judged(plan: Plan, *, strict: bool) -> Plan:
    if plan.verdict == "starts":
        return replace(plan, fits=not strict)
    return plan if plan.fits else replace(plan, speed=None)  # of what never runs


def _loaded(backend: Backend, command: ParsedCommand, model: Any) -> tuple[ModelSpec, ModelFiles | None]:
    """The model of a command with all that it loads beside it, and where it was found."""
    found, files = _found(model)
    check_complete(found)
    companions = command.companions
    if files is not None and files.beside:
        loaded = backend.loads(command, written_as(files.reference, found, files), files.beside)
        companions = {**companions, **loaded}
    return with_companions(found, companions, command.sought), files


def _opened(argv: tuple[str, ...], around: Mapping[str, str], *, may_ask: bool) -> Inside | None:
    """What runs in the container that a command starts; `None`: it starts none."""
    from autofit.text.programs import RUNNERS

    if not argv or argv[0].rpartition("/")[2] not in RUNNERS:
        return None
    from autofit.containers import opened

    return opened(argv, around, may_ask=may_ask)


def _deployable(plan: Plan, backend: Backend, machine: Machine, references: Iterable[str | None]) -> Plan:
    """The plan with what formats of containers and units need; a backend that has no such thing plans without."""
    from autofit.deployable import deployment

    return replace(plan, deployment=deployment(plan, backend, machine, [text for text in references if text]))


def _engine(
    backend: Backend,
    options: Options,
    settings: Surroundings | None,
    *,
    program: str | None = None,
    here: bool,
    inside: Inside | None = None,
) -> Engine:
    """Which version of the engine the plan is for. Programs are only run for a machine that was not handed in."""
    from autofit.hardware.installed import engine_of

    environ = settings.variables if settings is not None and here else None
    stated = options.get("engine_version")
    if stated is None and inside is not None:
        with blamed(backend.name):
            return inside.engine(backend)
    origin = options.origins.get("engine_version", "user")
    here = here and not options.get("on")
    with blamed(backend.name):
        return engine_of(backend, stated, origin, environ, program=program, here=here)


def with_engine(backend: str, options: Options, settings: Surroundings | None) -> Options:
    """The options with the engine's version in them, for several plans on a machine that the caller did not hand in."""
    version = _engine(host().backend(backend), options, settings, here=True).version
    return options if version is None else replace(options, values={**options.values, "engine_version": version})


def _for_engine(plan: Plan, engine: Engine, backend: Backend, notes: Sequence[Finding]) -> Plan:
    """The plan with how its version is known, and what else there is to say."""
    from autofit.planning.findings import COMMON, tell

    said = () if engine.problem is None else (tell(COMMON, "engine-not-told", engine.problem),)
    source = plan.engine_version and f"{backend.engine} {plan.engine_version}, {engine.source}"
    return replace(plan, engine_source=source, findings=(*plan.findings, *notes, *said))


def _variables(settings: Surroundings | None) -> Mapping[str, str]:
    return os.environ if settings is None else settings.variables


def _found(model: ModelSpec | str | os.PathLike[str]) -> tuple[ModelSpec, ModelFiles | None]:
    """The model itself, or that of a reference and where it was found."""
    if is_model(model):
        return model, None  # type: ignore[return-value]
    return find(reference_of("read_model()", model))


def _reviewed(plan: Plan, model: ModelSpec, machine: Machine, files: ModelFiles | None) -> Plan:
    """The plan with what sources of the model and the machine said, what could not be checked, and the plugins'
    findings."""
    from autofit.planning.findings import COMMON, tell

    about = tuple(tell(COMMON, "model-source", text) for text in (files.notes if files is not None else ()))
    lacking = tuple(tell(COMMON, "incomplete-files", text) for text in missing(model))
    said = tuple(tell(COMMON, "machine", text) for text in machine.findings)
    unknown = tuple(
        tell(
            COMMON,
            "unknown-memory",
            f"free memory of {pool.name} ({pool.id}) is unknown and not checked; state it with --ram SIZE",
        )
        for pool in plan.memory.pools
        if pool.budget_bytes is None
    )
    return host().review_plan(
        replace(plan, findings=(*plan.findings, *about, *lacking, *said, *unknown)), model, machine
    )
