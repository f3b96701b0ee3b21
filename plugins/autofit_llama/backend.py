"""llama.cpp as a backend: its command line taken apart, checked and planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from autofit.backend import Backend, ParsedCommand
from autofit.domain.machine import HOST_POOL, Machine
from autofit.domain.model import ModelSpec
from autofit.domain.plan import Plan
from autofit.domain.request import Margin, Request
from autofit.errors import ModelError, UsageError

from autofit_llama.estimate import Run, allocated_compute, estimate, size
from autofit_llama.findings import findings_of
from autofit_llama.flags import Reading, read
from autofit_llama.launch import launch_of
from autofit_llama.margins import margins_of
from autofit_llama.metadata import overridden
from autofit_llama.runs import run_of
from autofit_llama.settings import LlamaSettings, settings_of
from autofit_llama.speeds import speed_of
from autofit_llama.versions import find_version


class LlamaBackend(Backend):
    name: ClassVar[str] = "llama"
    programs: ClassVar[tuple[str, ...]] = (
        "llama-server",
        "llama-cli",
        "llama-fit-params",
        "llama-bench",
        "llama-completion",
    )
    formats: ClassVar[tuple[str, ...]] = ("gguf",)

    def parse(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, *, version: str | None = None
    ) -> ParsedCommand:
        reading = read(argv, env, version=find_version(version)[0])
        settings = settings_of(reading)
        companions = {f"lora{i or ''}": path for i, path in enumerate(settings.loras)}
        if settings.mmproj is not None:
            companions["mmproj"] = settings.mmproj
        if settings.draft_model is not None:
            companions["draft"] = settings.draft_model
        return ParsedCommand(
            program=reading.words or (reading.program,),
            model=settings.model,
            companions=companions,
            settings=Command(reading, settings, tuple(argv)),
        )

    def plan(self, model: ModelSpec, machine: Machine, request: Request) -> Plan:
        from autofit_llama.decide import plan

        return plan(model, machine, request)

    def check(self, command: ParsedCommand, model: ModelSpec, machine: Machine, **facts: Any) -> Plan:
        margins = dict(margins_of(facts.pop("margin", ()) or (Margin(),), machine.devices))
        version, findings = find_version(facts.pop("engine_version", None))
        only = facts.pop("device", ())
        if facts:
            raise UsageError(
                f"check() has no fact {min(facts)!r}", hint="known: margin, device, engine_version"
            )
        if only:
            machine = _only(machine, only)
        reading, settings = command.settings.reading, command.settings.settings
        if model.format not in self.formats:
            raise ModelError(
                f"{model.name}: llama.cpp reads GGUF files, not {model.format}", hint="`autofit vllm` plans this model"
            )
        model = overridden(model, settings.kv_overrides)
        sized = size(model)
        launch = launch_of(settings, reading.program, draft=model.companions.get("draft"))
        run = run_of(launch, model, machine, sized=sized)
        found = estimate(run, machine, [margins[device.id][0] for device in run.devices])
        return Plan(
            backend=self.name,
            fits=found.memory.fits,
            argv=command.settings.argv,
            memory=found.memory,
            speed=speed_of(run, found, machine),
            context_tokens=found.layout.context.n_ctx_seq,
            findings=(*findings, *findings_of(reading, run, found, fit=launch.fit and launch.is_server)),
            engine_report={**found.report, "allocated_compute_bytes": _allocated(run)},
            engine_version=version.name,
        )


def _allocated(run: Run) -> dict[str, int]:
    on_devices, on_host = allocated_compute(run)
    return {**{device.id: n for device, n in zip(run.devices, on_devices, strict=True)}, HOST_POOL: on_host}


class Command:
    """What `parse` learnt: the flags as they were given, what they pin, and the command itself."""

    __slots__ = ("argv", "reading", "settings")

    def __init__(self, reading: Reading, settings: LlamaSettings, argv: tuple[str, ...]) -> None:
        self.reading = reading
        self.settings = settings
        self.argv = argv


def _only(machine: Machine, wanted: Sequence[str]) -> Machine:
    """The machine with these devices alone.

    Raises:
        UsageError: a name that is neither an id, an index nor a UUID of it.
    """
    from dataclasses import replace

    kept = set()
    for word in wanted:
        match = [
            d for d in machine.devices if word in (d.id, str(d.index)) or (d.uuid or "").startswith(word)
        ]
        if not match or not word:
            raise UsageError(
                f"no device {word[:60]!r} here",
                hint=f"devices: {', '.join(d.id for d in machine.devices) or 'none'}",
            )
        kept.add(match[0].id)
    return replace(machine, devices=tuple(device for device in machine.devices if device.id in kept))
