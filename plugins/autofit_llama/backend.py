"""llama.cpp as a backend: its command line taken apart, checked and planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from autofit.backend import Backend, ParsedCommand
from autofit.domain.machine import Machine
from autofit.domain.memory import Memory
from autofit.domain.model import ModelSpec
from autofit.domain.plan import Finding, Plan
from autofit.domain.request import Request
from autofit.domain.units import format_bytes
from autofit.errors import UsageError

from autofit_llama.estimate import Estimate, Run, estimate, size
from autofit_llama.flags import Reading, read
from autofit_llama.launch import launch_of
from autofit_llama.metadata import overridden
from autofit_llama.runs import run_of
from autofit_llama.settings import LlamaSettings, settings_of
from autofit_llama.versions import find_version


class LlamaBackend(Backend):
    name: ClassVar[str] = "llama"
    programs: ClassVar[tuple[str, ...]] = ("llama-server", "llama-cli", "llama-fit-params", "llama-bench", "llama-completion")
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
        margins = facts.pop("margin", ())
        version, findings = find_version(facts.pop("engine_version", None))
        only = facts.pop("device", ())
        if facts:
            raise UsageError(f"check() has no fact {min(facts)!r}", hint="known: margin, device, engine_version")
        if only:
            machine = _only(machine, only)
        reading, settings = command.settings.reading, command.settings.settings
        model = overridden(model, settings.kv_overrides)
        sized = size(model)
        launch = launch_of(settings, reading.program, draft=model.companions.get("draft"))
        run = run_of(launch, model, machine, sized=sized)
        found = estimate(run, machine, margins)
        return Plan(
            backend=self.name,
            fits=found.memory.fits,
            argv=command.settings.argv,
            memory=found.memory,
            context_tokens=found.layout.context.n_ctx_seq,
            findings=(*findings, *_findings(reading, run, found, fit=launch.fit and launch.is_server)),
            engine_report=found.report,
            engine_version=version.name,
        )


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

    kept = []
    for word in wanted:
        match = [d for d in machine.devices if word in (d.id, str(d.index)) or (d.uuid or "").startswith(word)]
        if not match:
            raise UsageError(f"no device {word!r}", hint=f"devices here: {', '.join(d.id for d in machine.devices) or 'none'}")
        kept.append(match[0])
    return replace(machine, devices=tuple(kept))


def _findings(reading: Reading, run: Run, found: Estimate, *, fit: bool) -> list[Finding]:
    findings = [_shortfall(found.memory)] if not found.memory.fits else []
    if found.memory.fits is False and fit:
        message = "llama-server's own --fit may change what is not pinned when it starts; add -fit off to run exactly this"
        findings.append(Finding(severity="info", code="engine-fit", message=message))
    if reading.unknown:
        message = f"not known to autofit, passed through and not counted: {' '.join(reading.unknown)}"
        findings.append(Finding(severity="warning", code="unknown-flags", message=message))
    hparams = run.sized.hparams
    if not hparams.known:
        message = f"the architecture {hparams.arch!r} is not known here: weights by its tensors, cache and compute bounded from above"
        findings.append(Finding(severity="warning", code="unknown-architecture", message=message))
    elif not found.layout.is_exact:
        message = f"no graph for the architecture {hparams.arch!r}: the compute buffers are an upper bound"
        findings.append(Finding(severity="info", code="bounded-compute", message=message))
    for device in run.devices:
        if device.api not in ("cuda", "rpc"):
            message = f"{device.id}: the memory rules of {device.api} are read from the engine's source and not verified on one"
            findings.append(Finding(severity="info", code="unverified-device", message=message))
            break
    trained = hparams.n_ctx_train
    if trained and found.layout.context.n_ctx_seq > max(trained, 256):
        message = f"{found.layout.context.n_ctx_seq} tokens per sequence, the model was trained for {trained}: it needs RoPE scaling"
        findings.append(Finding(severity="warning", code="context-beyond-training", message=message))
    return findings


def _shortfall(memory: Memory) -> Finding:
    worst = max(memory.pools, key=lambda pool: pool.shortfall_bytes)
    message = f"does not fit: {worst.id} needs {format_bytes(worst.shortfall_bytes)} ({worst.shortfall_bytes} bytes) more"
    return Finding(severity="error", code="does-not-fit", message=message)
