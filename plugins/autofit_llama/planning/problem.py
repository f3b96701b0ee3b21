"""One launch as a search problem: what may be moved, what it costs, and what it takes in all.

A candidate and a split are written into the settings of a command, and those go the way that `check` takes:
through the program's defaults to a run and its estimate. What is planned is thereby what is checked.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from autofit.domain.machine import HOST_POOL, Device, Machine
from autofit.domain.memory import Memory
from autofit.domain.model import ModelSpec
from autofit.domain.plan import Speed
from autofit.domain.request import Margin
from autofit.domain.values import dataclass, field, replace
from autofit.speed import LayerWork, Place, Roofline, Step

from autofit_llama.command.options import PYTHON_SERVER, Program, offers
from autofit_llama.command.settings import LlamaSettings
from autofit_llama.engine.versions import LATEST, Version
from autofit_llama.engine.vocabulary import FlashAttention, Override
from autofit_llama.graph.devices import DeviceRules, rules_for
from autofit_llama.launch.defaults import Launch, launch_of
from autofit_llama.launch.process import buffers_of, engine_devices, run_of
from autofit_llama.memory.estimate import Estimate, Run, estimate
from autofit_llama.memory.layout import MemoryLayout, ParsedModel
from autofit_llama.memory.placement import matcher
from autofit_llama.memory.weights import Weight
from autofit_llama.model.context import Context
from autofit_llama.model.resolve import caches, resolve_context
from autofit_llama.planning.search import Bounds, Candidate
from autofit_llama.planning.tables import Split, Tables, Target
from autofit_llama.planning.terms import HOST_BUFFER, terms_of
from autofit_llama.speed.costs import Kind, blocks
from autofit_llama.speed.efficiencies import EFFICIENCIES
from autofit_llama.speed.rates import speed_of, work_of

FILLED_TOKENS = 8192
"""The fill at which decode rates are compared: the same for every context that is longer."""
ASSUMED_DEVICE_BYTES_PER_S = 400_000_000_000
"""To rank devices whose bandwidth nobody stated; no rate is told then."""
ONE_BY_ONE = "no_such_tensor"
"""Any pattern of `-ot` keeps micro-batches from overlapping on several devices (llama-context.cpp)."""


@dataclass(slots=True, kw_only=True)
class LaunchProblem:
    """The `Problem` of one launch.

    `settings` hold what is fixed whatever the search finds; `devices` are those it may use, `listed` those that
    flags count: more than one with `-sm none`. `margins` are by
    device id. `deep` compares rates with half of the context filled instead of `FILLED_TOKENS`.
    """

    model: ModelSpec
    sized: ParsedModel
    machine: Machine
    program: Program
    settings: LlamaSettings
    devices: tuple[Device, ...]
    bounds: Bounds
    margins: Mapping[str, Margin] = field(default_factory=dict)
    listed: tuple[Device, ...] = ()
    n_parallel: int = 1
    n_busy: int = 1  #: sequences that decode at the same time, where rates are compared
    deep: bool = False
    version: Version = LATEST
    run: Run = field(init=False)
    names: Mapping[str, str] = field(init=False)  #: device id -> the engine's name
    buffers: Mapping[str, str] = field(init=False)  #: device id -> its memory as `-ot` names it
    pool_of: Mapping[str, str] = field(init=False)
    limits: Mapping[str, int | None] = field(init=False)
    targets: tuple[Target, ...] = field(init=False)
    roofline: Roofline = field(init=False)
    kind: Kind = field(init=False)
    counts_blocks: bool = field(init=False)
    _flash: dict[frozenset[DeviceRules], bool] = field(default_factory=dict, init=False)
    _estimates: dict[tuple[Candidate, Split], Estimate] = field(default_factory=dict, init=False)
    machine_with_rates: Machine = field(init=False)  #: every device has a bandwidth, if only to be compared
    _tables: dict[Candidate, Tables] = field(default_factory=dict, init=False)
    _works: dict[tuple[Candidate, Split], list[tuple[LayerWork, Place]]] = field(default_factory=dict, init=False)
    _speeds: dict[tuple[Candidate, Split, int, int | None], Speed | None] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.names = {device.id: name for name, device in self._engine_devices()}
        named = self._engine_devices()
        every = buffers_of(named, self.machine, self.settings.rpc)
        self.buffers = {device.id: buffer for (_, device), buffer in zip(named, every, strict=True)}
        self.pool_of = {device.id: device.pool for device in self.devices}
        self.limits = self._limits()
        self.run = self.run_of(self.settings)
        special = {self.run.projector_device} if self.run.projector is not None else set()
        special |= {device.id for draft in self.run.drafts for device in draft.devices}
        self.targets = tuple(
            Target(
                id=device.id,
                kind=(_make(device, alone=device.id in special), *self._memory(device)),
                make=_make(device, alone=device.id in special),
                rules=rules_for(device.api, device.compute_capability, self.version, behind=device.behind),
            )
            for device in self.devices
        )
        self.machine_with_rates = _with_bandwidths(self.machine)
        self.roofline = Roofline(self.machine_with_rates, EFFICIENCIES, op_offload="" if self.run.offloads else None)
        self.kind = "experts" if self.sized.hparams.n_expert > 0 else "dense"
        flag = "n-cpu-moe" if self.kind == "experts" else "n-cpu-ffn"
        self.counts_blocks = offers(self.version, flag, self.program)

    def run_of(self, settings: LlamaSettings) -> Run:
        launch = self._launch_of(settings)
        return run_of(launch, self.model, self.machine, sized=self.sized)

    def _launch_of(self, settings: LlamaSettings) -> Launch:
        draft = self.model.companions.get("draft")
        return launch_of(settings, self.program, draft=draft, version=self.version)

    def _engine_devices(self) -> tuple[tuple[str, Device], ...]:
        return engine_devices(self.machine, merged=self.settings.split_mode == "tensor")

    @property
    def n_rows(self) -> int:
        return self.sized.hparams.n_layer_all + 1

    def _limits(self) -> dict[str, int | None]:
        shared = sum(self.reserve_bytes(device) for device in self.devices if device.pool == HOST_POOL)
        limits = {device.id: _less(device.free_bytes, self.reserve_bytes(device)) for device in self.devices}
        return {**limits, HOST_POOL: _less(self.machine.host.available_bytes, shared)}

    def _memory(self, device: Device) -> tuple[Hashable, ...]:
        return device.total_bytes, device.free_bytes, self.margins.get(device.id)

    def reserve_bytes(self, device: Device) -> int:
        margin = self.margins.get(device.id)
        return 0 if margin is None else margin.of(device.total_bytes or device.free_bytes or 0)

    @property
    def can_overlap(self) -> bool:
        """Whether the engine would overlap micro-batches on several devices (llama-context.cpp)."""
        arguments = self.run.arguments
        return (
            self.program != PYTHON_SERVER  # it has no -ot to turn that off
            and arguments.by_layer
            and arguments.context.offload_kqv
            and not arguments.overrides
            and all(target.rules.pipeline for target in self.targets)
        )

    def step(self, candidate: Candidate) -> Step:
        if self.settings.embedding:  # whole inputs, and nothing is decoded
            n_tokens = min(FILLED_TOKENS, candidate.n_ctx_seq)
            return Step(n_tokens, 1, 0)
        filled = min(FILLED_TOKENS, candidate.n_ctx_seq)
        if self.deep:
            filled = max(filled, candidate.n_ctx_seq // 2)
        return Step(self.n_busy, self.n_busy, filled)

    def tables(self, candidate: Candidate) -> Tables:
        # The micro-batch matters for the cells of sliding windows alone.
        n_ubatch = 0 if self.sized.hparams.swa_type == "none" else candidate.n_ubatch
        key = candidate._replace(n_batch=0, n_ubatch=n_ubatch, one_by_one=False)
        found = self._tables.get(key)
        if found is None:
            found = self._tables[key] = self._make_tables(candidate)
        return found

    def cache_bytes(self, candidate: Candidate) -> int:
        kept = caches(self.sized.hparams, self._context(candidate))
        return sum(tensor.n_bytes for cache in kept for tensor in cache.tensors)

    def _context(self, candidate: Candidate) -> Context:
        launch = self._launch_of(self.chosen(candidate))
        return resolve_context(self.sized.hparams, launch.context)

    def _make_tables(self, candidate: Candidate) -> Tables:
        hp, arguments = self.sized.hparams, self.run.arguments
        context = self._context(candidate)
        weights = self.sized.weights(load_mtp=arguments.load_mtp, lazy_mode=arguments.lazy_mode, version=self.version)
        fixed = [matcher(override) for override in arguments.overrides]

        def is_fixed(weight: Weight) -> bool:
            return any(matches(weight.name) for matches in fixed)

        return Tables(
            blocks(hp, context, weights, caches(hp, context)),
            self.targets,
            self.roofline,
            self.step(candidate),
            ffn_kind=self.kind,
            cache_on_host=not context.offload_kqv,
            is_fixed=is_fixed if fixed else None,
            result_bytes=4 * hp.n_vocab * self.step(candidate).n_sequences,
        )

    def chosen(self, candidate: Candidate) -> LlamaSettings:
        """The settings with a candidate written in; `-c` counts the tokens of all sequences."""
        return replace(
            self.settings,
            n_ctx=candidate.n_ctx_seq * self.n_parallel,
            n_batch=candidate.n_batch,
            n_ubatch=candidate.n_ubatch,
            type_k=candidate.type_k,
            type_v=candidate.type_v,
            # what that comes to is said in the end; its own default is off
            flash_attn=self.settings.flash_attn or ("auto" if self.program == PYTHON_SERVER else None),
        )

    def solved(self, candidate: Candidate, split: Split) -> LlamaSettings:
        """The settings with a candidate and a split written in: a complete command."""
        any_tables = next(iter(self._tables.values()), None) or self.tables(candidate)
        pinned = self.settings
        terms = terms_of(split, any_tables.blocks, self.kind, counted=self.counts_blocks)
        overrides = list(pinned.overrides)
        if terms.n_cpu_ffn:
            kind = "n_cpu_moe" if self.kind == "experts" else "n_cpu_ffn"
            overrides.append(Override(kind=kind, n_blocks=terms.n_cpu_ffn))  # type: ignore[arg-type]
        for pattern, place in terms.patterns:
            overrides.append(Override(kind="pattern", pattern=pattern, buffer=self.buffers.get(place, place)))
        if candidate.one_by_one and not overrides:
            overrides.append(Override(kind="pattern", pattern=ONE_BY_ONE, buffer=HOST_BUFFER))
        devices = tuple(self.names[name] for name in terms.devices)
        return replace(
            self.chosen(candidate),
            devices=pinned.devices if pinned.devices is not None else self._device_words(self._named(devices)),
            n_gpu_layers=terms.n_gpu_layers if pinned.n_gpu_layers is None else pinned.n_gpu_layers,
            tensor_split=self._split_numbers(devices, terms.tensor_split),
            overrides=tuple(overrides),
            flash_attn=pinned.flash_attn or self._flash_attn(split),
        )

    def _named(self, devices: tuple[str, ...]) -> tuple[str, ...]:
        """The devices that the engine is to see, layers or none: with `-ts` pinned all that its numbers stand for.

        What `-ot` names has to be there as well.
        """
        every = tuple(self.names[device.id] for device in self.devices)
        if self.settings.tensor_split is not None and devices:
            return every
        meant = {override.buffer for override in self.settings.overrides}
        return (*devices, *(name for name in every if name in meant and name not in devices))

    def _device_words(self, devices: tuple[str, ...]) -> tuple[str, ...] | None:
        """What `-dev` has to say: nothing where the engine takes these devices in this order anyway.

        llama-cpp-python has no such flag: all are there, whatever layers they get.
        """
        if self.program == PYTHON_SERVER:
            return None
        every = tuple(name for name, _ in self._engine_devices())
        if self.settings.split_mode == "none" or self.settings.tensor_split is not None:
            # Their numbers count devices, so the list has to stay what the user took it to be.
            devices = tuple(self.names[device.id] for device in self.listed or self.devices)
        return None if devices == every else devices

    def _split_numbers(self, devices: tuple[str, ...], rows: tuple[int, ...]) -> tuple[float, ...] | None:
        """What `-ts` has to say: rows per device; with `-dev` pinned, 0 for the devices that get none."""
        if self.settings.tensor_split is not None:
            return self.settings.tensor_split
        if self.settings.split_mode == "tensor":
            return tuple(map(float, rows)) if len(set(rows)) > 1 else None
        counts = dict(zip(devices, rows, strict=True))
        listed = self.settings.devices or self._named(devices)
        if self.program == PYTHON_SERVER:
            listed = tuple(name for name, _ in self._engine_devices())
        if self.settings.split_mode == "none" or len(listed) < 2 or not rows:
            return None
        return tuple(float(counts.get(name, 0)) for name in listed)

    def _flash_attn(self, split: Split) -> FlashAttention:
        known = self._flash.get(self._rules_of(split))
        return "auto" if known is None else "on" if known else "off"

    def _rules_of(self, split: Split) -> frozenset[DeviceRules]:
        return frozenset(target.rules for target in self.targets if target.id in split.order)

    def estimated(self, candidate: Candidate, split: Split) -> Estimate:
        """The full estimate. What `-fa auto` comes to is learnt on the way, and then said."""
        key = candidate, split._replace(seconds=0.0)
        found = self._estimates.get(key)
        if found is None:
            settings = self.solved(candidate, split)
            found = self.estimate(settings)
            if settings.flash_attn == "auto":
                rules = self._rules_of(split)
                self._flash[rules] = found.layout.compute.flash_attn
                if not self._flash[rules]:
                    found = self.estimate(self.solved(candidate, split))
            self._estimates[key] = found
        return found

    def estimate(self, settings: LlamaSettings, *, layout: MemoryLayout | None = None) -> Estimate:
        run = self.run_of(settings)
        return estimate(run, self.machine, self.margins_of(run), layout=layout)

    def margins_of(self, run: Run) -> tuple[Margin, ...]:
        return tuple(self.margins.get(device.id, Margin()) for device in run.devices)

    def measure(self, candidate: Candidate, split: Split) -> Memory:
        return self.estimated(candidate, split).memory

    def device_bytes(self, candidate: Candidate, split: Split) -> Mapping[str, int]:
        return self.estimated(candidate, split).device_bytes

    def constant_seconds(self, device_ids: Sequence[str]) -> float:
        """What every step costs beside the layers."""
        places = [*device_ids, HOST_POOL]
        return max(self.roofline.step_seconds([(LayerWork(), Place(name))], Step()) for name in places)

    def narrowed(self, spare: Mapping[str, int]) -> LaunchProblem:
        less = {d.id: Margin(n_bytes=self.reserve_bytes(d) + spare.get(d.id, 0)) for d in self.devices}
        return replace(self, margins=less)

    def speed_with(
        self, candidate: Candidate, split: Split, kv: tuple[str, str], *, n_filled: int | None
    ) -> Speed | None:
        """The rates of this split with other types of the cache, read where it lies; buffers are not counted again."""
        found = self.estimated(candidate, split)
        layout, run = found.layout, self.run_of(self.solved(candidate, split))
        context = self._context(candidate._replace(type_k=kv[0], type_v=kv[1]))
        layout = replace(layout, context=context, caches=caches(layout.hparams, context))
        found = replace(found, layout=layout)
        return speed_of(run, found, self.machine_with_rates, n_filled=n_filled, tells_start=False)

    def speed(
        self, candidate: Candidate, split: Split, *, n_ubatch: int | None = None, n_filled: int | None = None
    ) -> Speed | None:
        """The rates of this candidate and split that plans are compared by; with `n_ubatch` instead of the candidate's.

        With `n_filled` tokens in the context instead of all, and a prompt of as many.
        """
        key = candidate, split._replace(seconds=0.0), n_ubatch or candidate.n_ubatch, n_filled
        if key not in self._speeds:
            found = self.estimated(candidate, split)
            run = self.run_of(self.solved(candidate, split))
            work = self._works.get(key[:2])
            if work is None:
                work = self._works[key[:2]] = work_of(found.layout, run)
            self._speeds[key] = speed_of(
                run,
                found,
                self.machine_with_rates,
                n_ubatch=n_ubatch,
                n_filled=n_filled,
                work=work,
                tells_start=False,
            )
        return self._speeds[key]


def _less(free: int | None, reserve: int) -> int | None:
    return None if free is None else max(0, free - reserve)


def _make(device: Device, *, alone: bool) -> Hashable:
    """Equal for devices that are interchangeable but for their memory; `alone` for one that is like no other."""
    same = replace(
        device, id="", index=0, name="", pool="", uuid=None, profile=None, held_by=(), notes=(),
        total_bytes=None, free_bytes=None, reserved_bytes=None,
    )  # fmt: skip
    return same, device.pool == HOST_POOL, device.id if alone else ""


def _with_bandwidths(machine: Machine) -> Machine:
    devices = tuple(
        device
        if device.bandwidth_bytes_per_s is not None or device.pool == HOST_POOL
        else replace(device, bandwidth_bytes_per_s=ASSUMED_DEVICE_BYTES_PER_S)
        for device in machine.devices
    )
    return replace(machine, devices=devices)
