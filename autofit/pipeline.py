"""The only place that joins the stages: reference -> model, machine, wishes -> plan."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from autofit.errors import ModelError, UsageError
from autofit.host import host
from autofit.host import resolve as resolve_ref

if TYPE_CHECKING:
    from pathlib import Path

    from autofit.domain.machine import Machine
    from autofit.domain.model import ModelSpec
    from autofit.domain.plan import Plan
    from autofit.domain.request import Request

ENGINE_VARIABLES = ("LLAMA_ARG_", "VLLM_", "GGML_", "CUDA_", "PYTORCH_")


def read_model(
    reference: str | os.PathLike[str], *, companions: Mapping[str, str] | None = None
) -> ModelSpec:
    """The model that `reference` names: a path, a directory, or `example:NAME`.

    `companions` maps a role (`mmproj`, `draft`, `lora`) to another reference.

    Raises:
        ModelNotFoundError, CorruptModelError, UnsupportedModelError
    """
    from autofit.readers import read_model as read
    from autofit.sources import resolve

    model = read(resolve(os.fspath(reference)))
    if companions:
        extra = {role: read(resolve(other)) for role, other in companions.items()}
        model = replace(model, companions={**model.companions, **extra})
    return model


def detect_machine() -> Machine:
    """This machine: devices, free memory, host. Never fails; what is unknown is `None` with a finding."""
    from autofit.hardware import detect_machine as detect

    # a source is looked up when it is asked, so that one that cannot be imported is a finding of its own
    refs = (ref for ref in host().hardware_sources().values() if ref.name != "detect")
    return detect(sources=[(ref.name, partial(_ask_source, ref.factory)) for ref in refs])


def _ask_source(factory: str) -> Machine:
    machine: Machine = resolve_ref(factory)()
    return machine


def load_machine(*names: str, ram: str | int | None = None) -> Machine:
    """The machine that these hardware profiles describe: `load_machine("rtx-3090", "rtx-4070-ti:12GiB", ram="64GiB")`.

    Raises:
        HardwareError: an unknown name (with suggestions).
    """
    from autofit.hardware import load_machine as load

    return load(*names, ram=ram, profile_dirs=host().profile_dirs())


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

    for name in wishes:
        if name not in BY_NAME:
            raise UsageError(f"plan() has no wish {name!r}", hint=suggest(name, list(BY_NAME)))
    texts = {name: _as_text(value) for name, value in wishes.items() if value is not None}
    layers = [("user", from_flags(texts)), ("environment", from_environment(os.environ))]
    if "preset" in wishes:
        layers.append(("preset", preset(str(wishes["preset"]), backend)))
    reference = None if _is_model(model) else os.fspath(model)  # type: ignore[arg-type]
    request = to_request(merge(layers), engine_args=engine_args, model_reference=reference)  # type: ignore[arg-type]
    return solve(backend, model if _is_model(model) else read_model(reference or ""), machine, request)  # type: ignore[arg-type]


def solve(backend_name: str, model: ModelSpec, machine: Machine | None, request: Request) -> Plan:
    """Join the stages for one request; the plan has been reviewed by the plugins."""
    backend = host().backend(backend_name)
    if model.format not in backend.formats:
        raise ModelError(
            f"{model.name}: {backend_name} serves {', '.join(backend.formats)} models, not {model.format}",
            hint=_other_backend(model.format, backend_name),
        )
    machine = host().adjust_machine(machine or detect_machine(), backend_name)
    return host().review_plan(backend.plan(model, machine, request), model, machine)


def check(
    argv: Sequence[str],
    machine: Machine | None = None,
    *,
    model: ModelSpec | None = None,
    engine_version: str | None = None,
    environ: Mapping[str, str] | None = None,
    **facts: Any,
) -> Plan:
    """What an engine's command takes as it stands: `check(["llama-server", "-m", "model.gguf", "-ngl", "99"])`.

    `environ` holds the engine's own variables (none by default). `facts` are measurements that replace the
    backend's own figures, such as vLLM's `available_kv_bytes`.

    Raises:
        UsageError: no backend understands the command. EngineRefusalError: the engine would refuse it.
    """
    argv = tuple(argv)
    backend = host().backend_of_program(argv)
    command = backend.parse(argv, environ, version=engine_version)
    if model is None:
        if command.model is None:
            raise UsageError(f"{argv[0]}: the command names no model")
        model = read_model(command.model, companions=command.companions)
    machine = host().adjust_machine(machine or detect_machine(), backend.name)
    if engine_version is not None:
        facts["engine_version"] = engine_version
    return host().review_plan(backend.check(command, model, machine, **facts), model, machine)


def preset(name: str, backend: str) -> dict[str, Any]:
    """The parsed wishes of a preset.

    Raises:
        UsageError: no such preset, or a key or value in it that makes no sense.
    """
    from autofit.profiles import load_preset
    from autofit.settings import from_table

    return from_table(load_preset(name, host().profile_dirs()), f"preset {name}", backend)


def engine_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that engines read."""
    return {name: value for name, value in environ.items() if name.startswith(ENGINE_VARIABLES)}


def _is_model(value: object) -> bool:
    return hasattr(value, "tensors")


def _as_text(value: object) -> object:
    if isinstance(value, bool):
        return value
    if isinstance(value, (list, tuple)):
        return [str(item) for item in value]
    return str(value)


def _other_backend(model_format: str, not_this: str) -> str | None:
    for name in host().backends():
        if name != not_this and model_format in host().backend(name).formats:
            return f"try `autofit {name}`"
    return None
