"""The only place that joins the stages: reference -> model, machine, wishes -> plan."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autofit.errors import ModelError, PluginError, UsageError
from autofit.host import blamed, host
from autofit.host import resolve as resolve_ref

if TYPE_CHECKING:
    from autofit.backend import Backend
    from autofit.domain.machine import Machine
    from autofit.domain.model import ModelFiles, ModelSpec
    from autofit.domain.plan import Plan
    from autofit.domain.ram import Ram
    from autofit.domain.request import Request
    from autofit.settings import Wish, Wishes

MAX_SETTINGS_BYTES = 1 << 20
ENGINE_VARIABLES = ("LLAMA_ARG_", "VLLM_", "GGML_", "CUDA_", "PYTORCH_")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
DEVICE_VARIABLES = frozenset({"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"})


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
    """The local files of a reference, from the first source that knows its scheme; a path needs none."""
    from autofit.domain.model import ModelFiles
    from autofit.sources import resolve, scheme_of

    scheme = scheme_of(reference)
    for ref in host().model_sources().values() if scheme else ():
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
    return resolve(reference)


def _read(files: ModelFiles) -> ModelSpec:
    """The model in these files, through the reader of their suffix, or else of their first bytes."""
    from autofit.domain.model import ModelSpec
    from autofit.readers import read_model as read
    from autofit.readers.files import first_bytes

    path = files.paths[0] if files.paths else ""
    # os.path answers for any text, pathlib raises for some; which file of a directory counts is the formats' business
    refs = () if os.path.isdir(path) else tuple(host().model_readers().values())  # noqa: PTH112
    chosen = next((ref for ref in refs if path.endswith(ref.suffixes)), None)
    if chosen is None and (magics := tuple(ref for ref in refs if ref.magic)):
        start = first_bytes(path, max(len(ref.magic) for ref in magics))
        chosen = next((ref for ref in magics if start.startswith(ref.magic)), None)
    if chosen is None:
        return read(files)
    reader = resolve_ref(chosen.factory)
    with blamed(chosen.factory):
        model = reader(files.paths)
        if not isinstance(model, ModelSpec):
            raise PluginError(f"{chosen.factory} must return a ModelSpec, not {type(model).__name__}")
        return model


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


def machine_of(wishes: Wishes, environ: Mapping[str, str] | None = None) -> Machine:
    """The machine that `on` describes, or this one, as a process with these variables sees it.

    Raises:
        HardwareError: an unknown name. UsageError: more main memory than this machine has.
    """
    names, ram = wishes.get("on"), wishes.get("ram")
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
    model: ModelSpec | str | Path,
    machine: Machine | None = None,
    *,
    engine_args: Sequence[str] = (),
    **wishes: Any,
) -> Plan:
    """The best plan for `model` on `machine` (this one, if not given).

    `wishes` are those of the command line, as text or as values: `context="32k"`, `margin="1GiB"`, `parallel=4`.
    `engine_args` are the engine's own flags: kept exactly, the rest is solved around them.

    Raises:
        UsageError, ModelError, EngineRefusalError. A plan that does not fit is returned, with `fits` false.
    """
    from autofit.settings import BY_NAME, from_environment, from_flags, merge, suggest, to_request

    if not isinstance(backend, str):
        raise UsageError(f"plan() takes a backend's name first, not {type(backend).__name__}", hint="llama or vllm")
    for name in wishes:
        if name not in BY_NAME:
            raise UsageError(f"plan() has no wish {name!r}", hint=suggest(name, list(BY_NAME)))
    if machine is not None and {"on", "ram"} & wishes.keys():
        raise UsageError("plan() got a machine, and on or ram as well", hint="leave one of them out")
    texts = {n: _as_text(value, BY_NAME[n]) for n, value in wishes.items() if value is not None}
    layers = [("user", from_flags(texts)), ("environment", from_environment(os.environ))]
    named = next((layer["preset"] for _, layer in layers if "preset" in layer), None)
    if named is not None:
        layers.append(("preset", preset(named, backend)))
    reference = None if _is_model(model) else _reference("plan()", model)
    merged = merge(layers)  # type: ignore[arg-type]
    machine = machine_of(merged) if machine is None else machine
    request = to_request(merged, engine_args=_words("engine_args", engine_args))
    found: ModelSpec = model if reference is None else read_model(reference)  # type: ignore[assignment]
    if reference is not None:
        written = written_as(reference, found)
        # an example without a file keeps its reference, which `check()` reads again
        request = replace(request, model_reference=written if Path(written).exists() else reference)
    return solve(backend, _with_companions(found, backend, request), machine, request)


def solve(backend_name: str, model: ModelSpec, machine: Machine | None, request: Request) -> Plan:
    """Join the stages for one request; the plan has been reviewed by the plugins."""
    backend = host().backend(backend_name)
    if model.format not in backend.formats:
        raise ModelError(
            f"{model.name}: {backend_name} serves {', '.join(backend.formats)} models, not {model.format}",
            hint=_other_backend(model.format, backend_name),
        )
    machine = host().adjust_machine(_given_or_here(machine), backend_name)
    return _reviewed(backend.plan(model, machine, request), model, machine)


def check(
    argv: Sequence[str],
    machine: Machine | None = None,
    *,
    model: ModelSpec | str | Path | None = None,
    engine_version: str | None = None,
    environ: Mapping[str, str] | None = None,
    **facts: Any,
) -> Plan:
    """What an engine's command takes as it stands: `check(["llama-server", "-m", "model.gguf", "-ngl", "99"])`.

    The command may start with assignments, `NAME=value ...`, with `env` before them or not. `environ` holds the
    engine's own variables (none by default), which yield to them. `facts` are `margin` and `device`, as for
    `plan()`, and measurements that replace the backend's own figures, such as vLLM's `available_kv_bytes`.

    Raises:
        UsageError: no backend understands the command. EngineRefusalError: the engine would refuse it.
    """
    assigned, argv = split_assignments(_words("check()", argv))
    if environ is not None and not isinstance(environ, Mapping):
        raise UsageError(f"environ is a mapping of variables, not {type(environ).__name__}")
    environ = {**(environ or {}), **engine_environment(assigned)}
    machine = detect_machine({**os.environ, **assigned}) if machine is None else machine
    backend = host().backend_of_program(argv)
    command = backend.parse(argv, environ, version=engine_version)
    if model is None:
        if command.model is None:
            raise UsageError(
                f"{argv[0]}: the command names no model", hint="write it as the engine takes it, such as -m model.gguf"
            )
        model = command.model
    found = model if _is_model(model) else read_model(model, companions=command.companions)  # type: ignore[arg-type]
    machine = host().adjust_machine(_given_or_here(machine), backend.name)
    facts = {name: _fact(name, value) for name, value in facts.items() if value is not None}
    if engine_version is not None:
        facts["engine_version"] = engine_version
    plan = backend.check(command, found, machine, **facts)  # type: ignore[arg-type]
    return _reviewed(replace(plan, env={**assigned, **plan.env}), found, machine)  # type: ignore[arg-type]


def split_assignments(words: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The variables that a command sets before its program, as a shell or `env` does, and the command itself."""
    rest = tuple(words[1:] if words[:1] in (["env"], ("env",)) else words)
    assigned: dict[str, str] = {}
    while rest and (match := _ASSIGNMENT.fullmatch(rest[0])):
        assigned[match[1]], rest = match[2], rest[1:]
    return assigned, rest


def preset(name: str, backend: str) -> dict[str, Any]:
    """The parsed wishes of a preset.

    Raises:
        UsageError: no such preset, or a key or value in it that makes no sense.
    """
    from autofit.profiles import load_preset
    from autofit.settings import from_table

    return from_table(load_preset(name, host().profile_dirs()), f"preset {name}", backend)


def engine_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that engines read, but those that choose devices: detection has followed these, and
    hardware that is only described is not behind them."""
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(ENGINE_VARIABLES) and name not in DEVICE_VARIABLES
    }


def engine_surroundings(backend: Backend, environ: Mapping[str, str]) -> dict[str, str]:
    """What an engine reads beside its command line: texts of settings files by path, and variables by name.

    Raises:
        UsageError: a settings file that cannot be read, or is no such thing.
    """
    files: dict[str, str] = {}
    for path in filter(os.path.isfile, backend.settings_files(environ)):
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - a path as the engine spells it
                data = file.read(MAX_SETTINGS_BYTES + 1)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror or error}", hint=f"{backend.name} reads it too") from error
        if len(data) > MAX_SETTINGS_BYTES:
            raise UsageError(f"{path}: more than {MAX_SETTINGS_BYTES} bytes of settings")
        files[path] = data.decode("utf-8", "surrogateescape")
    return {**files, **engine_environment(environ)}


def _with_companions(model: ModelSpec, backend_name: str, request: Request) -> ModelSpec:
    """The model with the files that the engine's own flags name beside it."""
    backend = host().backend(backend_name)
    words = [backend.programs[0], *request.engine_args]
    named = backend.parse(words, request.engine_env, version=request.engine_version).companions
    missing = {role: path for role, path in named.items() if role not in model.companions}
    if not missing:
        return model
    extra = {role: _read(_locate(path)) for role, path in missing.items()}
    return replace(model, companions={**model.companions, **extra})


def _reviewed(plan: Plan, model: ModelSpec, machine: Machine) -> Plan:
    """The plan with what the machine's sources said, what could not be checked, and the plugins' findings."""
    from autofit.domain.plan import Finding

    said = tuple(Finding(severity="info", code="machine", message=text) for text in machine.findings)
    unknown = tuple(
        Finding(
            severity="warning",
            code="unknown-memory",
            message=f"free memory of {pool.name} ({pool.id}) is unknown: not checked; --ram SIZE states it",
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


def _as_text(value: object, wish: Wish) -> object:
    """A value of a wish as the command line has it; `True` is one only of switches."""
    if isinstance(value, bool) and wish.metavar is None:
        return value
    if isinstance(value, (list, tuple)):
        words = [str(item) for item in value]
        return words if wish.many else ",".join(words)
    return str(value)


def _fact(name: str, value: object) -> object:
    """A fact of `check()`: the wishes among them as they are parsed, the others as the backend takes them."""
    from autofit.domain.request import Margin
    from autofit.settings import BY_NAME, from_flags

    if name not in BY_NAME or (isinstance(value, tuple) and all(isinstance(item, Margin) for item in value)):
        return value
    return from_flags({name: _as_text(value, BY_NAME[name])})[name]


def _words(where: str, words: Sequence[object]) -> tuple[str, ...]:
    """An argument list; numbers and paths are written out.

    Raises:
        UsageError: one text, which would have to be taken apart as a shell does, or no list.
    """
    if isinstance(words, (str, bytes)):
        raise UsageError(f"{where} takes a list of words, not one text", hint="take it apart: shlex.split(text)")
    try:
        return tuple(map(str, words))
    except TypeError:
        raise UsageError(f"{where} takes a list of words, not {type(words).__name__}") from None


def _given_or_here(machine: Machine | None) -> Machine:
    if machine is None:
        return detect_machine()
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
