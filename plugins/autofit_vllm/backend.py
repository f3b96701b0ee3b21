"""vLLM as a backend of autofit: its command line, its cost, its launch."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar

from autofit.backend import Backend, Contained, ParsedCommand
from autofit.domain.machine import HOST_POOL, Device, Machine
from autofit.domain.memory import Kind
from autofit.domain.model import ModelSpec
from autofit.domain.names import is_elsewhere, parse_bare, parse_hub
from autofit.domain.plan import Code, Finding, Plan, Speed
from autofit.domain.request import NOTHING_ASKED, Margin, Request
from autofit.domain.text import printable
from autofit.domain.values import replace
from autofit.errors import EngineRefusalError, UsageError

from autofit_vllm.checkpoint.draft import (
    attach,
    draft_reference,
    is_here,
)
from autofit_vllm.command.flags import AUTO_LENGTH, parse_flags
from autofit_vllm.command.settings import (
    PYTHON_MODULES,
    SERVER_MODULE,
    VllmSettings,
    from_given,
    named_by_flags,
    parse_command,
    settings_of,
)
from autofit_vllm.config.cluster import is_cluster
from autofit_vllm.config.devices import count_nodes
from autofit_vllm.config.resolve import resolve
from autofit_vllm.engine.caution import margins_for, safer, told
from autofit_vllm.engine.codes import OWN as ENGINE_OWN
from autofit_vllm.engine.versions import find_engine, find_version
from autofit_vllm.memory.kv import plan_kv, stated_kv_bytes
from autofit_vllm.modules.model import StageWeights, VllmModel
from autofit_vllm.planning.codes import OWN
from autofit_vllm.planning.command import keyword_arguments
from autofit_vllm.planning.evaluation import DEFAULT_MARGIN, Evaluation, check_dtype, evaluate, gpu_of, ranks_of
from autofit_vllm.planning.findings import lacks_finding
from autofit_vllm.planning.inputs import (
    draft_of,
    on_nodes,
    problem_of,
    read_quantization,
    read_vllm_model,
    vision_of,
    weigh,
)
from autofit_vllm.planning.nodes import nodes_finding
from autofit_vllm.planning.plan import build_plan
from autofit_vllm.planning.usage import capacity_findings, code_findings, draft_findings, usage_findings

if TYPE_CHECKING:
    from autofit.domain.efficiency import Efficiencies
    from autofit.domain.observed import Observed
    from autofit.domain.quantization import Quantization as Form
    from autofit.domain.repair import Repair
    from autofit.logs.watch import Watch

    from autofit_vllm.planning.load import Load

SERVE = ("vllm", "serve")


class VllmBackend(Backend):
    """vLLM 0.33's GPU engine, and its CPU build where the environment names one."""

    name: ClassVar[str] = "vllm"
    programs: ClassVar[tuple[str, ...]] = ("vllm",)
    engine: ClassVar[str] = "vLLM"
    formats: ClassVar[tuple[str, ...]] = ("safetensors", "config", "gguf")
    variables: ClassVar[tuple[str, ...]] = ("VLLM_", "CUDA_VISIBLE_DEVICES")
    supports: ClassVar[frozenset[str]] = frozenset(
        {
            "context",
            "min_context",
            "max_context",
            "parallel",
            "mean_tokens",
            "fill",
            "min_tps",
            "max_ttft",
            "margin",
            "device",
            "prefer",
            "kv",
            "engine_version",
            "nodes",
            "link",
            "replicas",
            "disaggregate",
        }
    )
    findings: ClassVar[Mapping[str, Code]] = {**OWN, **ENGINE_OWN}
    packages: ClassVar[tuple[str, ...]] = ("vllm",)
    modules: ClassVar[tuple[str, ...]] = PYTHON_MODULES
    informing: ClassVar[frozenset[str]] = frozenset({"-h", "--help", "-v", "--version"})
    has_workers: ClassVar[bool] = True
    spans_nodes: ClassVar[bool] = True
    python_class: ClassVar[str] = "vllm.LLM"
    measures_at_start: ClassVar[bool] = True  # v1/worker/gpu_worker.py:determine_available_memory
    irrelevant: ClassVar[frozenset[str]] = frozenset(
        {"--port", "--host", "--api-key", "--served-model-name", "--root-path", "--uvicorn-log-level"}
        | {"--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs", "--chat-template"}
    )
    file_flags: ClassVar[frozenset[str]] = frozenset(
        {"--chat-template", "--tokenizer", "--hf-config-path", "--lora-modules", "--generation-config", "--config"}
        | {"--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs"}
    )
    kv_types: ClassVar[tuple[str, ...]] = ("f16", "bf16", "fp8", "fp8_e4m3", "fp8_e5m2")
    small_kv: ClassVar[str] = "fp8"
    measurements: ClassVar[frozenset[str]] = frozenset({"available_kv_bytes"})
    #: what is left for the cache is what all else has left of the share of the card
    counts: ClassVar[Mapping[str, tuple[str, str]]] = {
        "KV cache tokens": ("kv_tokens", "kv_cache_tokens"),
        "longest request": ("max_seq_len", "max_model_len"),
    }
    calibrates: ClassVar[Mapping[Kind, int]] = {"cache": -1}

    def context_flag(self, argv: Sequence[str]) -> str:
        return "--max-model-len"

    def parse(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        version: str | None = None,
        model: str | None = None,
    ) -> ParsedCommand:
        program, settings = parse_command(argv, env, version=version, model=model)
        draft = draft_reference(settings)
        companions = {"draft": draft} if draft is not None and is_here(draft) else {}
        sought = {"draft": draft} if draft is not None else {}
        named = _named(settings)
        return ParsedCommand(program=program, model=named, companions=companions, sought=sought, settings=settings)

    def quantizations(self, model: ModelSpec, words: Sequence[str] = ()) -> Sequence[Form]:
        from autofit_vllm.planning.forms import forms

        return () if words else forms(model)

    def program_in(self, argv: Sequence[str]) -> tuple[str, ...]:
        words = super().program_in(argv)
        if words and words[-1] != SERVER_MODULE:  # its other subcommands load no model, or not as a server
            words = (*words, "serve") if "".join(argv[len(words) : len(words) + 1]) == "serve" else ()
        return () if any(flag.startswith("--help=") for flag in argv[len(words) :]) else words

    def claims(self, plan: Plan, machine: Machine) -> Mapping[str, int]:
        from autofit_vllm.memory.claims import claims

        settings = self.parse(plan.argv, plan.env, version=plan.engine_version).settings
        report: Mapping[str, Any] = plan.engine_report
        per_stage, tp = report["available_kv_cache_bytes"], report["tensor_parallel_size"]
        return claims(
            plan.memory,
            report["gpu_memory_utilization"],
            [per_stage[rank // tp % len(per_stage)] for rank in range(len(plan.memory.pools))],
            is_stated=settings.kv_cache_memory_bytes is not None,
        )

    def watch(self) -> Watch:
        from autofit.logs.watch import Watch

        from autofit_vllm.logs.messages import MESSAGES

        return Watch(self.engine, MESSAGES)

    def devices_in(self, observed: Observed) -> Sequence[Device]:
        return tuple(
            Device(
                id=told.place,
                index=index,
                name=told.name or told.place,
                api="cuda",
                total_bytes=told.total_bytes,
                free_bytes=told.free_bytes,
            )
            for index, told in enumerate(observed.devices)
        )

    def repair(
        self,
        observed: Observed,
        argv: Sequence[str],
        machine: Machine,
        request: Request,
        model: ModelSpec | None = None,
    ) -> Repair:
        from autofit_vllm.logs.repair import repair

        return repair(observed, argv, machine.devices)

    def places(self, machine: Machine) -> Mapping[str, str]:
        devices = {f"cuda:{index}": device.pool for index, device in enumerate(machine.devices)}
        return devices or {"cuda:0": HOST_POOL}  # its CPU build logs as rank 0

    def version_in(self, text: str, path: str = "") -> str | None:
        found = find_version(text)
        return None if found is None else found[0]

    def image(self, version: str | None, api: str | None) -> str | None:
        from autofit_vllm.engine.images import image_of

        return image_of(version, api)

    def in_image(
        self, image: str, words: Sequence[str], *, entrypoint: Sequence[str] | None = None
    ) -> Contained | None:
        from autofit_vllm.engine.images import in_image

        return in_image(image, words, entrypoint)

    def alone(self, argv: Sequence[str], version: str | None) -> tuple[Sequence[int], tuple[str, ...]] | None:
        from autofit_vllm.command.flags import device_ids_alone

        return device_ids_alone(argv)

    def check(
        self, command: ParsedCommand, model: ModelSpec, machine: Machine, request: Request = NOTHING_ASKED
    ) -> Plan:
        """What the command takes. The measured `available_kv_bytes` replaces the KV memory of a rank (or of each
        stage)."""
        settings: VllmSettings = command.settings
        engine = settings.version if request.engine_version is None else find_engine(request.engine_version)
        request = replace(request, margin=margins_for(engine, request.margin or (Margin(),)))
        sides = [self._check(command, settings_of(settings, side), model, machine, request) for side in engine.sides()]
        return told(functools.reduce(safer, sides), engine)

    def _check(
        self, command: ParsedCommand, settings: VllmSettings, model: ModelSpec, machine: Machine, request: Request
    ) -> Plan:
        """By the rules of one release."""
        stated = stated_kv_bytes(request.measured.get("available_kv_bytes"))
        margins = request.margin
        vllm_model = read_vllm_model(model, settings)
        local = machine
        machine, devices = on_nodes(machine, settings, request.device, checked=True)
        evaluation = self._evaluate(settings, vllm_model, model, devices, margins, stated)
        if stated is not None and evaluation.refusal is not None:
            raise evaluation.refusal
        argv = (*(command.program or SERVE), *settings.args)
        speed, load = _rates(evaluation, machine, request)
        near = self._nearest(evaluation, settings, vllm_model, model, devices, margins) if request.nearest else []
        more: list[Finding] = []
        if request.nearest and not near and stated is None and evaluation.ranks and not evaluation.fits:
            from autofit_vllm.planning.lighter import other_hardware

            more = other_hardware(problem_of(settings, model, local, request), evaluation.config.max_model_len)
        lacking = lacks_finding(evaluation) if stated is None else []
        if (near or lacking) and evaluation.refusal is not None:  # its own advice is not the cheapest change
            evaluation = replace(evaluation, refusal=EngineRefusalError(str(evaluation.refusal)))
        plan = build_plan(
            evaluation,
            machine,
            argv=argv,
            env={name: settings.env[name] for name in sorted(settings.env) if name.startswith("VLLM_")},
            kwargs=keyword_arguments(settings, {}, settings.model or model.name),
            speed=speed,
            findings=[
                *capacity_findings(evaluation, load),
                *lacking,
                *near,
                *more,
                *nodes_finding(evaluation),
                *usage_findings(settings, vllm_model),
                *draft_findings(settings, model),
                *code_findings(settings, model),
            ],
        )
        if load is None:
            return plan
        return replace(plan, engine_report={**plan.engine_report, **load.report})

    def _nearest(
        self,
        evaluation: Evaluation,
        settings: VllmSettings,
        vllm_model: VllmModel,
        model: ModelSpec,
        devices: Sequence[Device],
        margins: Sequence[Margin],
    ) -> list[Finding]:
        if evaluation.fits or not devices:
            return []
        from autofit_vllm.planning.nearest import nearest

        def again(change: Mapping[str, Any]) -> Evaluation:
            changed = replace(settings, **change)
            return self._evaluate(changed, vllm_model, model, devices, margins, None, known=evaluation.weights)

        return nearest(evaluation, again)

    def _evaluate(
        self,
        settings: VllmSettings,
        vllm_model: VllmModel,
        model: ModelSpec,
        devices: Sequence[Device],
        margins: Sequence[Margin],
        stated: int | Sequence[int] | None,
        known: Sequence[StageWeights] = (),
    ) -> Evaluation:
        """`known` are weights of a command that differs in nothing that they depend on."""
        from autofit_vllm.memory.offload import given_offload

        gpu = gpu_of(devices)
        quantization = read_quantization(vllm_model, model, settings, gpu)
        draft = draft_of(model, settings, gpu, needed=False)
        if draft is None and draft_reference(settings) is not None:
            vllm_model = replace(vllm_model, draft=None)  # what drafts is not known
        vllm_model = attach(vllm_model, draft)
        n_gpus = None if stated is not None else len(devices) // count_nodes(devices)
        config = resolve(settings, vllm_model, gpu, quantization=quantization, n_gpus=n_gpus)
        if isinstance(stated, tuple) and len(stated) != config.parallel.pp:
            raise UsageError(f"available_kv_bytes has {len(stated)} values for {config.parallel.pp} pipeline stages")
        check_dtype(config.dtype, devices[: config.parallel.world_size * config.parallel.dp])
        weights = tuple(known) or weigh(vllm_model, config, settings, quantization, draft)
        kv = plan_kv(vllm_model, config)
        return evaluate(
            settings=settings,
            config=config,
            model=vllm_model,
            ranks=ranks_of(devices, config, margins),
            weights=weights,
            kv=kv,
            vision=vision_of(model),
            utilization=config.gpu_memory_utilization,
            offload=given_offload(settings, weights),
            available_kv_bytes=stated,
        )

    def command(self, request: Request, *, model: str | None = None) -> ParsedCommand:
        return self.parse(
            (*(request.program or SERVE), *request.engine_args),
            request.engine_env,
            version=request.engine_version,
            model=model,
        )

    def flags(self, program: str = "") -> Mapping[str, Sequence[str] | None]:
        from autofit_vllm.command.flags import flags_of

        return flags_of() if program in ("", "vllm") else {}

    def efficiencies(self) -> Efficiencies:
        from autofit_vllm.planning.efficiencies import EFFICIENCIES

        return EFFICIENCIES

    def plan(self, command: ParsedCommand, model: ModelSpec, machine: Machine, request: Request) -> Plan:
        settings: VllmSettings = command.settings
        engine = settings.version
        if engine.status == "newer":
            request = replace(request, margin=margins_for(engine, request.margin or (DEFAULT_MARGIN,)))
        if request.replicas is not None or request.disaggregate is not None:
            from autofit_vllm.planning.instances import plan_instances

            return plan_instances(machine, settings, request, lambda one, asked: self._told(command, model, one, asked))
        if is_cluster(machine):
            from autofit_vllm.planning.spread import spread

            return spread(machine, settings, request, lambda some, asked: self._told(command, model, some, asked))
        return self._told(command, model, machine, request)

    def _told(self, command: ParsedCommand, model: ModelSpec, machine: Machine, request: Request) -> Plan:
        """The plan by the rules of every release that the version may be."""
        settings: VllmSettings = command.settings
        engine = settings.version
        *others, older = engine.sides()
        plan = self._plan(command, settings_of(settings, older), model, machine, request)
        if not older.newest:
            parse_flags(plan.argv[len(command.program or SERVE) :], older)  # what it has not is refused, not written
        for side in others:  # what the older release writes is known to both; it must fit by both
            words = plan.argv[len(command.program or SERVE) :]
            written = parse_flags(words, side)
            there = from_given(written, args=words, env=settings.env, version=side)
            asked = replace(request, margin=request.margin or (Margin(),))
            account = self._check(command, there, model, machine, asked)
            if not account.fits:
                plan = self._plan(command, settings_of(settings, side), model, machine, request)
        return told(plan, engine)

    def _plan(
        self, command: ParsedCommand, settings: VllmSettings, model: ModelSpec, machine: Machine, request: Request
    ) -> Plan:
        """By the rules of one release."""
        from autofit_vllm.planning.explain import explain
        from autofit_vllm.planning.search import solve

        if request.model_reference is None and named_by_flags(settings):
            reference = None
        else:
            reference, revision = _served_as(request.model_reference or model.name)
            settings = replace(
                settings,
                model=reference,
                given={**settings.given, "model": reference},
                args=(*revision, *settings.args),
            )
        _check_options(request, settings)
        problem = problem_of(settings, model, machine, request)
        best, others = solve(problem)
        return explain(
            problem,
            best,
            others,
            program=command.program,
            reference=reference,
            findings=[*usage_findings(settings, problem.model), *code_findings(settings, model)],
        )


def _named(settings: VllmSettings) -> str | None:
    """The model of a command; of a repository with the revision that `--revision` chooses."""
    revision = settings.given.get("revision")
    if settings.model is None or revision is None or os.path.lexists(settings.model):
        return settings.model
    return f"{settings.model}@{revision}" if parse_bare(settings.model) else settings.model


def _served_as(reference: str) -> tuple[str, tuple[str, ...]]:
    """What `vllm serve` is told for a reference, and the flags that belong to it.

    Raises:
        UsageError: a kind of name that vLLM does not take.
    """
    if not is_elsewhere(reference):
        return _directory_of(reference), ()
    name = parse_hub(reference.removeprefix("hf:")) if reference.startswith("hf:") else None
    if name is None or name.file is not None:
        raise UsageError(
            f"vLLM does not load {printable(reference, 80)}", hint="download it and give its path, or name a repository"
        )
    served = f"{name.repository}:{name.choice}" if name.choice else name.repository
    return served, ("--revision", name.revision) if name.revision else ()


def _directory_of(reference: str) -> str:
    """vLLM is started with a directory, though a file of it was named."""
    path = PurePath(reference)
    return str(path.parent) if path.suffix in (".safetensors", ".json") else reference


def _check_options(request: Request, settings: VllmSettings) -> None:
    """Raises: UsageError, for what vLLM has not, or a flag of its own contradicts."""
    for flag, pinned, wishes in (
        ("--max-num-seqs", settings.max_num_seqs, {"--parallel": (request.parallel, None)}),
        (
            "--max-model-len",
            None if settings.max_model_len == AUTO_LENGTH else settings.max_model_len,
            {
                "--context": (request.context, request.context),
                "--min-context": (request.min_context, None),
                "--max-context": (None, request.max_context),
            },
        ),
    ):
        for wish, (least, most) in wishes.items():
            if pinned is not None and ((least and pinned < least) or (most and pinned > most)):
                raise UsageError(
                    f"{wish} {least or most} and {flag} {pinned} contradict each other", hint="leave one of them out"
                )


def _rates(evaluation: Evaluation, machine: Machine, request: Request) -> tuple[Speed | None, Load | None]:
    """Of one sequence alone, and of as many as run at a time; of a command that fits."""
    if not evaluation.ranks or not evaluation.fits or evaluation.capacity is None:
        return None, None
    from autofit.speed import Roofline

    from autofit_vllm.planning.efficiencies import EFFICIENCIES
    from autofit_vllm.planning.load import load_of, mean_length
    from autofit_vllm.planning.speed import full_speed_of

    roofline = Roofline(machine, EFFICIENCIES)
    mean = mean_length(evaluation.capacity.max_model_len, request)
    return full_speed_of(evaluation, roofline), load_of(evaluation, roofline, mean)
