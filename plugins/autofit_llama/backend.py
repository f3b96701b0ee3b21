"""llama.cpp as a backend: its command line taken apart, checked and planned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from autofit.backend import Backend, Contained, ParsedCommand, Served
from autofit.domain.machine import HOST_POOL, Machine
from autofit.domain.memory import Memory
from autofit.domain.model import ModelSpec
from autofit.domain.plan import Code, Finding, Plan
from autofit.domain.request import NOTHING_ASKED, Margin, Request
from autofit.domain.text import printable
from autofit.domain.values import replace
from autofit.errors import ModelError, UsageError
from autofit.planning.devices import choose
from autofit.text.programs import n_module_words, program_name

from autofit_llama.command.model_files import check_first, companions_of, loaded_with, model_of
from autofit_llama.command.options import FILES, INFORMING, IRRELEVANT, SECRET
from autofit_llama.command.parse import Command, runs_of
from autofit_llama.command.reading import WORDS, Reading, find_program, read
from autofit_llama.command.settings import LlamaSettings
from autofit_llama.engine.codes import OWN, finding
from autofit_llama.engine.naming import find_version, stranger_of, version_in
from autofit_llama.engine.programs import PRESETS, PROGRAMS, PYTHON_VARIABLES, TOOLS, UNPLANNED
from autofit_llama.engine.versions import Version
from autofit_llama.engine.vocabulary import KV_TYPES
from autofit_llama.launch.defaults import launch_of
from autofit_llama.launch.findings import findings_of
from autofit_llama.launch.margins import margins_of
from autofit_llama.loading.check import check_loads
from autofit_llama.memory.estimate import Run, allocated_compute, size
from autofit_llama.model.known import check_architectures
from autofit_llama.model.metadata import overridden
from autofit_llama.model.validate import contradictions
from autofit_llama.speed.rates import speed_of

if TYPE_CHECKING:
    from autofit.domain.efficiency import Efficiencies
    from autofit.domain.machine import Device, Offered
    from autofit.domain.observed import Observed
    from autofit.domain.quantization import Quantization, Recipe
    from autofit.domain.repair import Repair
    from autofit.logs.watch import Watch


class LlamaBackend(Backend):
    name: ClassVar[str] = "llama"
    programs: ClassVar[tuple[str, ...]] = PROGRAMS
    engine: ClassVar[str] = "llama.cpp"
    formats: ClassVar[tuple[str, ...]] = ("gguf",)
    variables: ClassVar[tuple[str, ...]] = ("LLAMA_ARG_", *PYTHON_VARIABLES)
    supports: ClassVar[frozenset[str]] = frozenset(
        {"context", "min_context", "max_context", "parallel", "margin", "device", "prefer", "kv", "engine_version"}
        | {"min_tps", "max_ttft", "rpc", "link"}
    )
    asked: ClassVar[tuple[str, ...]] = ("llama-server", "llama-cli")
    wrapped: ClassVar[tuple[str, ...]] = ("llama-server", "llama-cli", "llama-completion", "llama-bench", "llama")
    modules: ClassVar[tuple[str, ...]] = ("llama_cpp.server",)
    unplanned: ClassVar[Mapping[str, str]] = UNPLANNED
    tools: ClassVar[frozenset[str]] = TOOLS
    informing: ClassVar[frozenset[str]] = INFORMING
    command_files: ClassVar[Mapping[str, str]] = {".ini": "autofit_llama.command.presets:commands"}
    port: ClassVar[int] = 8080
    python_class: ClassVar[str] = "llama_cpp.Llama"
    irrelevant: ClassVar[frozenset[str]] = IRRELEVANT
    file_flags: ClassVar[frozenset[str]] = FILES
    packages: ClassVar[tuple[str, ...]] = ("llama-cpp-python",)
    findings: ClassVar[Mapping[str, Code]] = OWN
    kv_types: ClassVar[tuple[str, ...]] = KV_TYPES
    small_kv: ClassVar[str] = "q8_0"
    least_kv_bits: ClassVar[int] = 8
    reads_at_once: ClassVar[bool] = False  # -sm layer; -sm tensor only where it is asked for

    def context_flag(self, argv: Sequence[str]) -> str:
        if self.starts_module(argv):
            return "--n_ctx"
        return "" if program_name(argv) == "llama-bench" else "-c"

    def port_flag(self, argv: Sequence[str]) -> str:
        return "--port" if self.starts_module(argv) or find_program(argv)[0] == "llama-server" else ""

    def parse(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        version: str | None = None,
        model: str | None = None,
    ) -> ParsedCommand:
        reading = self._read(argv, env or {}, find_version(version)[0])
        settings = runs_of(reading)[0]
        return ParsedCommand(
            program=reading.words or (reading.program,),
            model=model_of(settings),
            companions=companions_of(settings),
            servers=tuple(settings.rpc),
            settings=Command(reading=reading, settings=settings, argv=tuple(argv), env=_counted(reading, env or {})),
        )

    def _read(self, argv: Sequence[str], env: Mapping[str, str], version: Version) -> Reading:
        if not self.starts_module(argv):
            return read(argv, env, version=version)
        from autofit_llama.command.python_server import read_server  # few commands need it

        n = n_module_words(argv)
        return read_server(argv[:n], argv[n:], env, version)

    def offers(self, servers: Sequence[str], version: str | None = None) -> Sequence[Offered]:
        from autofit_llama.launch.servers import offers

        return offers(servers, find_version(version)[0])

    def program_in(self, argv: Sequence[str]) -> tuple[str, ...]:
        words = super().program_in(argv)
        if words and program_name(argv) == "llama":
            return find_program(argv)[1] if "".join(argv[1:2]) in WORDS else ()
        if not words and stranger_of(program_name(argv)):
            find_program(argv)  # refuses it by name
        return words

    def why_unplanned(self, argv: Sequence[str]) -> str | None:
        if program_name(argv) == "llama" and "".join(argv[1:2]) not in WORDS:
            return super().why_unplanned((f"llama-{''.join(argv[1:2])}", *argv[2:]))
        return super().why_unplanned(argv)

    def version_in(self, text: str, path: str = "") -> str | None:
        return version_in(text, path)

    def image(self, version: str | None, api: str | None) -> str | None:
        from autofit_llama.engine.images import image_of

        return image_of(version, api)

    def in_image(
        self, image: str, words: Sequence[str], *, entrypoint: Sequence[str] | None = None
    ) -> Contained | None:
        from autofit_llama.engine.images import in_image

        return in_image(image, words, entrypoint)

    def served(self, argv: Sequence[str], environ: Mapping[str, str], version: str | None) -> Served | None:
        known = find_version(version)[0]
        if self.starts_module(argv):
            from autofit_llama.command.python_server import served as of_file

            n = n_module_words(argv)
            return of_file(argv[:n], argv[n:], environ, known)
        if PRESETS not in environ and not any("preset" in word for word in argv):
            return None  # most commands
        from autofit_llama.command.presets import served as of_presets

        return of_presets(argv, environ, known)

    def alone(self, argv: Sequence[str], version: str | None) -> tuple[Sequence[int], tuple[str, ...]] | None:
        if self.starts_module(argv):
            return None  # it names no devices
        from autofit_llama.command.devices import alone

        return alone(argv, find_version(version)[0])

    def settings_files(self, environ: Mapping[str, str]) -> tuple[str, ...]:
        from autofit_llama.command.config_file import paths

        return paths(environ)

    def beside(self, names: Sequence[str]) -> Mapping[str, str]:
        from autofit_llama.command.model_files import beside

        return beside(names)

    def quantizations(self, model: ModelSpec, words: Sequence[str] = ()) -> Sequence[Quantization]:
        from autofit_llama.quantization.forms import forms

        if model.format not in self.formats:
            from autofit_llama.quantization.conversion import converted

            return tuple(replace(form, at_hand=False) for form in forms(converted(model), words))
        with contradictions(model):
            return forms(model, words)

    def recipe(self, model: ModelSpec, size_bytes: int, words: Sequence[str] = ()) -> Recipe | None:
        from autofit_llama.quantization.recipe import recipe

        if model.format not in self.formats:
            return None
        with contradictions(model):
            return recipe(model, size_bytes, words)

    def watch(self) -> Watch:
        from autofit.logs.watch import Watch

        from autofit_llama.logs.messages import MESSAGES

        return Watch(self.engine, MESSAGES)

    def places(self, machine: Machine) -> Mapping[str, str]:
        from autofit_llama.launch.process import engine_devices

        return {name: device.pool for name, device in engine_devices(machine)}

    def devices_in(self, observed: Observed) -> Sequence[Device]:
        from autofit_llama.logs.devices import devices_of

        return devices_of(observed)

    def command_in(self, observed: Observed) -> Sequence[str]:
        from autofit_llama.logs.command import command_of

        return command_of(observed, find_version(observed.version)[0]) if "context.n_ctx" in observed.facts else ()

    def model_in(self, observed: Observed) -> tuple[ModelSpec | None, tuple[str, ...]]:
        from autofit_llama.logs.model import rebuild

        found, missing = rebuild(observed)
        return (None, missing) if found is None else (found.model, (f"the model is rebuilt from the log: {found.how}",))

    def dry_run(self, argv: Sequence[str], environ: Mapping[str, str]) -> Sequence[str]:
        from autofit_llama.logs.dry_run import dry_run_of

        return dry_run_of(argv, environ)

    def read_dry_run(self, text: str) -> Observed:
        from autofit_llama.logs.dry_run import read_dry_run

        return read_dry_run(text, self.engine)

    def benchmark(self, model: str) -> Sequence[str]:
        from autofit_llama.engine.benchmark import command

        return command(model)

    def read_benchmark(self, text: str) -> Sequence[Mapping[str, Any]]:
        from autofit_llama.engine.benchmark import parse

        return parse(text)

    def repair(
        self,
        observed: Observed,
        argv: Sequence[str],
        machine: Machine,
        request: Request,
        model: ModelSpec | None = None,
    ) -> Repair:
        from autofit_llama.logs.repair import repair

        return repair(self, observed, argv, machine, request, model)

    def loads(self, command: ParsedCommand, written: str, offered: Mapping[str, str]) -> Mapping[str, str]:
        return loaded_with(command.settings.reading.program, command.settings.settings, written, offered)

    def flags(self, program: str = "") -> Mapping[str, Sequence[str] | None]:
        from autofit_llama.command.options import flags_of

        return flags_of(program or "llama-server")

    def efficiencies(self) -> Efficiencies:
        from autofit_llama.speed.efficiencies import EFFICIENCIES

        return EFFICIENCIES

    def plan(self, command: ParsedCommand, model: ModelSpec, machine: Machine, request: Request) -> Plan:
        from autofit_llama.planning.decide import plan

        if command.settings.reading.settings_file is not None:
            _check_nothing_wished(command.settings.reading, request)
            return self.check(command, model, machine, request)
        with contradictions(model):
            return plan(command.settings, model, machine, request)

    def check(
        self, command: ParsedCommand, model: ModelSpec, machine: Machine, request: Request = NOTHING_ASKED
    ) -> Plan:
        with contradictions(model):
            return self._check(command, model, machine, request)

    def _check(self, command: ParsedCommand, model: ModelSpec, machine: Machine, request: Request) -> Plan:
        version, findings = find_version(request.engine_version)
        margins = dict(margins_of(request.margin or (Margin(),), machine.devices, version))
        if request.device:
            machine = replace(machine, devices=choose(machine.devices, request.device))
        reading, settings = command.settings.reading, command.settings.settings
        if model.format not in self.formats:
            raise ModelError(
                f"{model.name}: llama.cpp reads GGUF files, not {model.format}", hint="`autofit vllm` plans this model"
            )
        check_first(command.model or "", model)
        model = overridden(model, settings.kv_overrides)
        findings += check_architectures(model, version, named=request.engine_version is not None)
        sized = size(model)
        findings += check_loads(model, version)

        # an import that plans do without
        from autofit_llama.launch.changes import changes_of, chosen_by_engine, fit_report
        from autofit_llama.launch.effective import Effective, effective

        kept = [(name, margin) for name, (margin, _) in margins.items()]

        def measured(given: LlamaSettings) -> Effective:
            draft = model.companions.get("draft")
            launch = launch_of(given, reading.program, draft=draft, version=version)
            return effective(launch, model, machine, sized, kept)

        runs = runs_of(reading)
        tried = [measured(one) for one in runs]
        shown = min(range(len(runs)), key=lambda i: _room(tried[i].found.memory))
        one = tried[shown]
        run, found = one.run, one.found
        if request.engine_version is None:
            from autofit_llama.planning.newer import with_newest  # where nobody says which build it is

            asked = [margins[device.id][0] if device.id in margins else Margin() for device in run.devices]
            findings += tuple(with_newest(run, found, machine, asked))
        findings += tuple(_several(runs, shown, [one.found.memory.fits for one in tried]))
        if request.nearest and not found.memory.starts:
            from autofit_llama.logs.nearest import nearest_changes  # a search of its own
            from autofit_llama.logs.repair import Case

            argv = command.settings.argv
            case = Case(self, argv, model, machine, request, version)
            findings += nearest_changes(case, found.memory, fitted=one.fitted is not None and not one.fitted.gave_up)
        return Plan(
            backend=self.name,
            fits=found.memory.fits,
            argv=command.settings.argv,
            env=command.settings.env,
            memory=found.memory,
            speed=speed_of(run, found, machine),
            context_tokens=found.layout.context.n_ctx_seq,
            decisions=chosen_by_engine(one),
            findings=(*findings, *changes_of(one), *findings_of(reading, run, found, fit=False)),
            engine_report={**found.report, "allocated_compute_bytes": _allocated(run), **fit_report(one)},
            engine_version=version.name,
        )


def _check_nothing_wished(reading: Reading, request: Request) -> None:
    """Refuse wishes that no flag can fulfil.

    Raises:
        UsageError: a file holds all settings.
    """
    wishes = {"--context": request.context is not None, "--kv": request.kv not in (None, "auto")}
    wishes |= {"--parallel": request.parallel is not None}
    for flag in (name for name, is_wished in wishes.items() if is_wished):
        raise UsageError(
            f"{flag}: {reading.program} takes its settings from {printable(str(reading.settings_file), 80)} alone",
            hint="change them there, or write them as flags instead of --config_file",
        )


def _room(memory: Memory) -> float:
    """Bytes of the pool that has least left, negative where it lacks some."""
    return min((p.room_bytes for p in memory.pools if p.room_bytes is not None), default=math.inf)


def _several(runs: Sequence[LlamaSettings], shown: int, fits: Sequence[bool]) -> Iterator[Finding]:
    if len(runs) == 1:
        return
    from autofit_llama.command.llama_bench import what_differs

    which = what_differs(runs[shown], runs)
    message = f"llama-bench runs {len(runs)} combinations of these lists, {sum(fits)} of them fit; shown is the one"
    yield finding("bench-combinations", f"{message} with the least memory left: {which}")


def _counted(reading: Reading, env: Mapping[str, str]) -> Mapping[str, str]:
    """The variables that the command was read with, but for secrets."""
    flags = (flag for flag, replaced in reading.unwritten("env") if not replaced and flag.option.key not in SECRET)
    return {flag.spelling: env[flag.spelling] for flag in flags}


def _allocated(run: Run) -> dict[str, int]:
    on_devices, on_host = allocated_compute(run)
    return {**{device.id: n for device, n in zip(run.devices, on_devices, strict=True)}, HOST_POOL: on_host}
