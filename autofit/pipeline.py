"""The only place that joins the stages: reference -> model, machine, options -> plan."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autofit.errors import AutofitError, ModelError, PluginError, UsageError
from autofit.files import read_bounded
from autofit.host import blamed, host
from autofit.host import resolve as resolve_ref
from autofit.settings.layers import HERE, Options, Surroundings
from autofit.settings.options import BY_NAME, CHECKED, OWN

if TYPE_CHECKING:
    from typing import Unpack

    from autofit.backend import Backend, ParsedCommand
    from autofit.domain.machine import Machine
    from autofit.domain.model import ModelFiles, ModelSpec
    from autofit.domain.plan import Plan
    from autofit.domain.ram import Ram
    from autofit.hookspecs import ModelReaderRef
    from autofit.settings.keywords import CheckOptions, PlanOptions

MAX_NEIGHBORS = 1000  #: files of a model's folder that are looked at
MAX_SETTINGS_BYTES = 1 << 20
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_HIDES = ("_VISIBLE_DEVICES", "_DEVICE_ORDER")  #: ends of variables that choose devices, or number them


def read_model(reference: str | os.PathLike[str], *, companions: Mapping[str, str] | None = None) -> ModelSpec:
    """The model that `reference` names: a path, a directory, `example:NAME`, or what a plugin's source knows.

    `companions` maps a role (`mmproj`, `draft`, `lora`) to another reference.

    Raises:
        ModelNotFoundError, CorruptModelError, UnsupportedModelError
    """
    model = _read(_locate(_reference("read_model()", reference)))
    if companions:
        extra = {role: _read(_locate(other)) for role, other in companions.items()}
        model = replace(model, companions={**model.companions, **extra})
    return model


def _locate(reference: str) -> ModelFiles:
    """The local files of a reference, from the first source of its scheme that knows it."""
    from autofit.domain.model import ModelFiles
    from autofit.sources import scheme_of, unknown

    if not reference or "\0" in reference:
        raise UsageError("the model reference is empty" if not reference else "the model reference contains a NUL byte")
    scheme = scheme_of(reference) or ""
    for ref in host().model_sources().values():
        if scheme not in ref.schemes:
            continue
        source = resolve_ref(ref.factory)
        with blamed(ref.factory):
            found = source(reference)
            if isinstance(found, ModelFiles):
                return found
            if found is not None:
                paths = [found] if isinstance(found, (str, os.PathLike)) else found
                return ModelFiles(reference=reference, paths=tuple(map(os.fspath, paths)))
    raise unknown(reference)


def _read(files: ModelFiles) -> ModelSpec:
    """The model in these files, through the reader of their suffix, or else of their first bytes."""
    from autofit.domain.model import ModelSpec

    chosen = _reader_of(files.paths[0] if files.paths else "")
    reader = resolve_ref(chosen.factory)
    with blamed(chosen.factory):
        model = reader(files.paths)
        if not isinstance(model, ModelSpec):
            raise PluginError(f"{chosen.factory} must return a ModelSpec, not {type(model).__name__}")
        return model


def _reader_of(path: str) -> ModelReaderRef:
    """By suffix, where a directory has `/`; by first bytes; else the reader of what has neither, with suffix ``."""
    from autofit.readers.files import first_bytes

    refs = tuple(host().model_readers().values())
    # os.path answers for any text, pathlib raises for some
    name = f"{path}/" if os.path.isdir(path) else path  # noqa: PTH112
    if chosen := next((ref for ref in refs if name.endswith(tuple(filter(None, ref.suffixes)))), None):
        return chosen
    magics = [ref for ref in refs if ref.magic]
    start = first_bytes(path, max(len(ref.magic) for ref in magics)) if magics else b""
    found = next((ref for ref in magics if start.startswith(ref.magic)), None)
    return found or next(ref for ref in refs if "" in ref.suffixes)


def written_as(reference: str, model: ModelSpec) -> str:
    """What a command says for the model that `reference` led to: its first file, or the checkpoint's directory."""
    from autofit.sources import scheme_of

    if model.format == "gguf":
        return model.files[0].path
    # os.path leaves a `~` alone that it cannot look up, pathlib raises
    return str(Path(model.files[0].path).parent) if scheme_of(reference) else os.path.expanduser(reference)  # noqa: PTH111


def detect_machine(environ: Mapping[str, str] | None = None) -> Machine:
    """This machine: devices, free memory, host. Never fails; what is unknown is `None` with a finding.

    `environ` stands in for the variables of this process, of which some hide devices.
    """
    from autofit.hardware import detect_machine as detect

    # a source is looked up when it is asked, so that one that cannot be imported is a finding of its own
    refs = (ref for ref in host().hardware_sources().values() if ref.name != "detect")
    return detect(environ, sources=[(ref.name, partial(_ask_source, ref.factory)) for ref in refs])


def _ask_source(factory: str) -> Machine:
    machine: Machine = resolve_ref(factory)()
    return machine


def load_machine(*names: str, ram: Ram | str | int | None = None) -> Machine:
    """The machine that these hardware profiles describe: `load_machine("rtx-3090", "rtx-4070-ti:12GiB", ram="64GiB")`.

    Raises:
        HardwareError: an unknown name (with suggestions). UsageError: something that is neither name nor size.
    """
    from autofit.hardware import load_machine as load

    words = [_reference("load_machine()", name, 'such as "rtx-3090" or "rtx-3090:12GiB"') for name in names]
    from autofit.domain.ram import Ram

    if ram is not None and (isinstance(ram, bool) or not isinstance(ram, (str, int, Ram))):
        raise UsageError(f"ram is text or bytes, not {ram!r:.40}", hint='such as ram="64GiB"')
    return load(*words, ram=ram, profile_dirs=host().profile_dirs())


def machine_of(options: Options, environ: Mapping[str, str] | None = None) -> Machine:
    """The machine that `on` describes, or this one, as a process with these variables sees it.

    Raises:
        HardwareError: an unknown name. UsageError: more RAM than this machine has.
    """
    names, ram = options.get("on"), options.get("ram")
    if names:
        return load_machine(*names, ram=ram)
    machine = detect_machine(environ)
    if ram is None:
        return machine
    available, wanted = machine.host.available_bytes, ram.stated_bytes
    if available is not None and wanted > available:
        from autofit.domain.units import format_bytes

        raise UsageError(
            f"--ram {format_bytes(wanted)} is more than the {format_bytes(available)} available here",
            hint="describe the whole machine: --on rtx-3090 --ram 64GiB, or --on cpu",
        )
    return replace(machine, host=replace(machine.host, available_bytes=wanted))


def plan(
    backend: str,
    model: ModelSpec | str | os.PathLike[str],
    machine: Machine | None = None,
    *,
    engine_args: Sequence[object] = (),
    settings: Surroundings | None = HERE,
    **options: Unpack[PlanOptions],
) -> Plan:
    """The best plan for `model` on `machine` (this one, if not given).

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
    _check_names("plan()", options, BY_NAME)
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

    def preset(name: str) -> Mapping[str, object]:
        from autofit.profiles import load_preset

        return load_preset(name, host().profile_dirs())

    return collect(given, settings, backend, preset, used)


def plan_of(
    backend_name: str,
    model: ModelSpec | str | os.PathLike[str],
    machine: Machine | None,
    options: Options,
    settings: Surroundings | None,
    *,
    engine_args: Sequence[object] = (),
    details: bool = True,
) -> Plan:
    """The plan for stated options: what the command line and `plan()` both come to.

    `details`: other plans, and what the next better value of a setting lacks, are looked for too.
    """
    from autofit.settings.request import to_request

    backend = host().backend(backend_name)
    _check_supported(backend, options)
    request = to_request(
        options,
        engine_args=_arguments("engine_args", engine_args),
        engine_env=engine_inputs(backend, settings),
        alternatives=details,
        explain=details,
    )
    reference = None if _is_model(model) else _reference("plan()", model)
    with blamed(backend_name):
        parsed = backend.command(request, model=reference or model.name)  # type: ignore[union-attr]
        command = _is_command(parsed, backend_name)
    found: ModelSpec = model if reference is None else read_model(reference)  # type: ignore[assignment]
    if reference is not None:
        written = written_as(reference, found)
        # an example without a file keeps its reference, which a check reads again
        request = replace(request, model_reference=written if os.path.exists(written) else reference)  # noqa: PTH110
    if reference is not None:
        request = replace(request, beside=_beside(backend, found, command.companions))
    found = _with_companions(found, command.companions)
    _check_format(backend, found)
    machine = machine_of(options, _variables(settings)) if machine is None else machine
    machine = host().adjust_machine(_checked(machine), backend_name)
    with blamed(backend_name):
        plan = _is_plan(backend.plan(command, found, machine, request), backend_name)
    return _reviewed(replace(plan, findings=(*plan.findings, *options.notes)), found, machine)


def check(
    argv: Sequence[object],
    machine: Machine | None = None,
    *,
    model: ModelSpec | str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    settings: Surroundings | None = HERE,
    **options: Unpack[CheckOptions],
) -> Plan:
    """What an engine's command takes as it stands: `check(["llama-server", "-m", "model.gguf", "-ngl", "99"])`.

    The command may start with assignments, `NAME=value ...`, with `env` before them or not. `environ` holds more
    variables of the engine, which yield to them; those of `settings` yield to both. `options` are `on`, `ram`,
    `device`, `margin` and `engine_version` as for `plan()`, and measurements that replace the backend's own figures. A
    command that starts and runs short of memory later fits, and its `verdict` says so; with `strict` it does not fit.

    Raises:
        UsageError: no backend understands the command. EngineRefusalError: the engine would refuse it.
    """
    from autofit.settings.request import to_request

    assigned, argv = split_assignments(_arguments("check()", argv))
    if environ is not None and not isinstance(environ, Mapping):
        raise UsageError(f"environ is a mapping of variables, not {type(environ).__name__}")
    backend = host().backend_of_program(argv)
    _check_names("check()", options, [*CHECKED, *backend.measurements])
    if machine is not None and {"on", "ram"} & options.keys():
        raise UsageError("check() got a machine, and on or ram as well", hint="leave one of them out")
    stated = stated_options(backend.name, options, settings, CHECKED)
    hiding = next((name for name in assigned if name.endswith(_HIDES)), None)
    if machine is None and hiding and stated.get("on"):
        raise UsageError(
            f"check: {hiding} chooses among this machine's devices, not among those of --on",
            hint="--device GPU0 chooses among them",
        )
    if machine is None:
        machine = machine_of(stated, {**_variables(settings), **(environ or {}), **assigned})
    inputs = {**engine_inputs(backend, settings), **_read_by(backend, {**(environ or {}), **_shown(assigned)})}
    measured = {name: value for name, value in options.items() if name in backend.measurements}
    request = to_request(stated, engine_env=inputs, measured=measured)
    with blamed(backend.name):
        command = _is_command(backend.parse(argv, inputs, version=request.engine_version), backend.name)
    if model is None:
        if command.model is None:
            raise UsageError(
                f"{argv[0]}: the command names no model", hint="write it as the engine takes it, such as -m model.gguf"
            )
        model = command.model
    found: ModelSpec = model if _is_model(model) else read_model(model)  # type: ignore[assignment, arg-type]
    found = _with_companions(found, command.companions)
    machine = host().adjust_machine(_checked(machine), backend.name)
    with blamed(backend.name):
        plan = _is_plan(backend.check(command, found, machine, request), backend.name)
    if plan.verdict == "starts":
        plan = replace(plan, fits=not stated.get("strict"))
    elif not plan.fits:
        plan = replace(plan, speed=None)  # of what never runs
    plan = replace(plan, env={**assigned, **plan.env}, findings=(*plan.findings, *stated.notes))
    return _reviewed(plan, found, machine)


def split_assignments(words: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The variables that a command sets before its program, as a shell or `env` does, and the command itself."""
    rest = tuple(words[1:] if words[:1] in (["env"], ("env",)) else words)
    assigned: dict[str, str] = {}
    while rest and (match := _ASSIGNMENT.fullmatch(rest[0])):
        assigned[match[1]], rest = match[2], rest[1:]
    return assigned, rest


def engine_inputs(backend: Backend, settings: Surroundings | None) -> dict[str, str]:
    """What an engine reads beside its command line: texts of settings files by path, and variables by name.

    Variables that choose devices are left out: detection has followed them, and hardware that is only described is
    not behind them.

    Raises:
        UsageError: a settings file that cannot be read, or is no such thing.
    """
    if settings is None:
        return {}
    environ, files = settings.variables, {}
    for path in filter(os.path.isfile, backend.settings_files(environ)):
        try:
            data = read_bounded(path, MAX_SETTINGS_BYTES)
        except OSError as error:
            what = " of settings" if error.errno == errno.EFBIG else ""
            raise UsageError(f"{path}: {error.strerror or error}{what}", hint=f"{backend.name} reads it too") from error
        files[path] = data.decode("utf-8", "surrogateescape")
    return {**files, **_read_by(backend, _shown(environ))}


def _read_by(backend: Backend, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that the engine reads."""
    prefixes = tuple(name for name in backend.variables if name.endswith("_"))
    return {name: value for name, value in environ.items() if name in backend.variables or name.startswith(prefixes)}


def _shown(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables but those that choose devices."""
    return {name: value for name, value in environ.items() if not name.endswith(_HIDES)}


def _variables(settings: Surroundings | None) -> Mapping[str, str]:
    return os.environ if settings is None else settings.variables


def _check_names(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in given:
        if name not in known:
            from autofit.text.suggest import suggest

            raise UsageError(f"{where} got an unknown option {name!r}", hint=suggest(name, known))


def _check_supported(backend: Backend, options: Options) -> None:
    """Refuse what the backend would pass over.

    Raises:
        UsageError: an option that the backend does not support, or a KV type that its engine has not.
    """
    for name, origin in options.origins.items():
        if name not in OWN and name not in backend.supports:
            known = ", ".join(BY_NAME[other].flag for other in sorted(backend.supports)) or "none"
            by = "" if origin == "user" else f" (set in the {origin})"
            raise UsageError(f"{backend.name} does not support {BY_NAME[name].flag}{by}", hint=f"it supports: {known}")
    kv = options.get("kv")
    if kv not in (None, "auto", *backend.kv_types):
        raise UsageError(
            f"--kv {kv}: not a KV cache type of {backend.engine}", hint=f"known: auto, {', '.join(backend.kv_types)}"
        )


def _check_format(backend: Backend, model: ModelSpec) -> None:
    if model.format not in backend.formats:
        raise ModelError(
            f"{model.name}: {backend.name} serves {', '.join(backend.formats)} models, not {model.format}",
            hint=_other_backend(model.format, backend.name),
        )


def _is_plan(found: object, backend: str) -> Plan:
    """A plan that is one, as far as those who print it rely on it.

    Raises:
        PluginError: it is none.
    """
    from autofit.domain.memory import Memory
    from autofit.domain.plan import Decision, Finding, Plan, Speed

    if not isinstance(found, Plan):
        raise PluginError(f"{backend} must return a Plan, not {type(found).__name__}")
    parts: list[tuple[str, object, type]] = [("memory", found.memory, Memory)]
    parts += [("argv", word, str) for word in found.argv]
    parts += [("findings", one, Finding) for one in found.findings]
    parts += [("decisions", one, Decision) for one in found.decisions]
    parts += [("speed", found.speed, Speed)] if found.speed is not None else []
    for name, value, kind in parts:
        if not isinstance(value, kind):
            raise PluginError(f"{backend}: {name} of its Plan must be {kind.__name__}, not {type(value).__name__}")
    return found


def _is_command(found: object, backend: str) -> ParsedCommand:
    from autofit.backend import ParsedCommand

    if not isinstance(found, ParsedCommand):
        raise PluginError(f"{backend}: parse() must return a ParsedCommand, not {type(found).__name__}")
    return found


def _with_companions(model: ModelSpec, named: Mapping[str, str]) -> ModelSpec:
    """The model with the files that the engine's own flags name beside it."""
    missing = {role: path for role, path in named.items() if role not in model.companions}
    if not missing:
        return model
    extra = {role: _read(_locate(path)) for role, path in missing.items()}
    return replace(model, companions={**model.companions, **extra})


def _beside(backend: Backend, model: ModelSpec, named: Mapping[str, str]) -> dict[str, ModelSpec]:
    """The models of the same folder that the engine could load too, but for roles that the command names."""
    path = model.files[0].path if model.files else ""
    if not os.path.isfile(path):  # noqa: PTH113 - a path of any text; an example has no file
        return {}
    folder = os.path.dirname(path)  # noqa: PTH120
    own = {os.path.basename(file.path) for file in model.files}  # noqa: PTH119
    found = {}
    with suppress(OSError), os.scandir(folder or ".") as entries:
        names = sorted(entry.name for entry in islice(entries, MAX_NEIGHBORS) if entry.name not in own)
        for role, name in backend.beside(names).items():
            if role not in named:
                with suppress(AutofitError):
                    found[role] = _read(_locate(os.path.join(folder, name)))  # noqa: PTH118
    return found


def _reviewed(plan: Plan, model: ModelSpec, machine: Machine) -> Plan:
    """The plan with what the machine's sources said, what could not be checked, and the plugins' findings."""
    from autofit.planning.findings import COMMON, tell

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
    return host().review_plan(replace(plan, findings=(*plan.findings, *said, *unknown)), model, machine)


def _is_model(value: object) -> bool:
    return hasattr(value, "tensors")


def _reference(where: str, value: object, hint: str = "a path, or example:NAME") -> str:
    """A name or a path as text.

    Raises:
        UsageError: something else.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise UsageError(f"{where} takes a name or a path, not {type(value).__name__}", hint=hint)
    return str(os.fspath(value))


def _arguments(where: str, words: Sequence[object]) -> tuple[str, ...]:
    """An argument list; numbers and paths are written out.

    Raises:
        UsageError: one text, which would have to be taken apart as a shell does, or no list.
    """
    if isinstance(words, (str, bytes)):
        raise UsageError(f"{where} takes a list of arguments, not a single string", hint="split it: shlex.split(text)")
    try:
        return tuple(map(str, words))
    except TypeError:
        raise UsageError(f"{where} takes a list of arguments, not {type(words).__name__}") from None


def _checked(machine: Machine) -> Machine:
    if not hasattr(machine, "devices"):
        raise UsageError(
            f"a machine is needed, not {type(machine).__name__}", hint='such as autofit.load_machine("rtx-3090")'
        )
    return machine


def _other_backend(model_format: str, not_this: str) -> str | None:
    for name in host().backends():
        if name != not_this and model_format in host().backend(name).formats:
            return f"try `autofit {name}`"
    return None
