"""One launch as a search problem: what may be moved, what it costs, and what it takes in all.

Made from a `Run` that already holds everything the user fixed; a candidate and a split are written into
it, and the same estimate that `check` uses says what comes of it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from autofit.domain.machine import HOST_POOL, Device, Machine
from autofit.domain.memory import Memory
from autofit.domain.request import Margin
from autofit.errors import UsageError
from autofit.speed import LayerWork, Place, Roofline, Step

from autofit_llama.cache import caches
from autofit_llama.context import ContextParams, resolve_context
from autofit_llama.costs import Kind, blocks
from autofit_llama.estimate import Companion, Estimate, Run, estimate
from autofit_llama.graph.devices import rules_for
from autofit_llama.layout import Arguments
from autofit_llama.placement import Override, matcher
from autofit_llama.search import Bounds, Candidate
from autofit_llama.search_tables import Split, Tables, Target
from autofit_llama.search_terms import HOST_BUFFER, terms_of
from autofit_llama.weights import Weight

FILLED_TOKENS = 4096
"""The fill at which decode rates are compared and told: the same for every context."""
ASSUMED_DEVICE_BYTES_PER_S = (
    400_000_000_000  #: to rank devices whose bandwidth nobody stated; no rate is told then
)
ONE_BY_ONE = "no_such_tensor"  #: any pattern turns the overlap of micro-batches off (llama-context.cpp)


@dataclass(slots=True)
class LaunchProblem:
    """The `Problem` of one launch. `margins` are by device id; `parts` allows blocks to be taken apart."""

    run: Run
    machine: Machine
    bounds: Bounds
    margins: Mapping[str, Margin] = field(default_factory=dict)
    tensor_buffers: Mapping[str, str] = field(
        default_factory=dict
    )  #: device id -> the buffer type that -ot names
    n_parallel: int = 1
    targets: tuple[Target, ...] = field(init=False)
    roofline: Roofline = field(init=False)
    kind: Kind = field(init=False)
    estimates: dict[tuple[Candidate, Split], Estimate] = field(default_factory=dict)
    _tables: dict[Candidate, Tables] = field(default_factory=dict)

    def __post_init__(self) -> None:
        special = {self.run.projector_device} if self.run.projector is not None else set()
        special |= {device.id for draft in self.run.drafts for device in draft.devices}
        self.targets = tuple(
            Target(
                id=device.id,
                kind=_kind(device, self.margins.get(device.id), alone=device.id in special),
                rules=rules_for(device.api, device.compute_capability),
            )
            for device in self.run.devices
        )
        self.roofline = Roofline(
            _with_bandwidths(self.machine), op_offload="" if self.run.arguments.context.op_offload else None
        )
        self.kind = "experts" if self.run.sized.hparams.n_expert > 0 else "dense"

    @property
    def pool_of(self) -> Mapping[str, str]:
        return {device.id: device.pool for device in self.run.devices}

    @property
    def budgets(self) -> Mapping[str, int | None]:
        budgets: dict[str, int | None] = {HOST_POOL: self.machine.host.available_bytes}
        for device in self.run.devices:
            if device.pool != HOST_POOL:
                budgets[device.id] = self.budget_of(device)
        return budgets

    def budget_of(self, device: Device) -> int | None:
        if device.free_bytes is None:
            return None
        return max(0, device.free_bytes - self.reserve_bytes(device))

    def reserve_bytes(self, device: Device) -> int:
        margin = self.margins.get(device.id)
        return 0 if margin is None else margin.of(device.total_bytes or device.free_bytes or 0)

    @property
    def can_overlap(self) -> bool:
        """Whether the engine would overlap micro-batches on several devices (llama-context.cpp)."""
        arguments = self.run.arguments
        return (
            arguments.by_layer
            and arguments.context.offload_kqv
            and not arguments.overrides
            and all(target.rules.pipeline for target in self.targets)
        )

    @property
    def step(self) -> Step:
        return Step(self.n_parallel, self.n_parallel, FILLED_TOKENS)

    def tables(self, candidate: Candidate) -> Tables:
        key = candidate._replace(n_batch=0, one_by_one=False)
        found = self._tables.get(key)
        if found is None:
            found = self._tables[key] = self._make_tables(candidate)
        return found

    def _make_tables(self, candidate: Candidate) -> Tables:
        arguments = self.run.arguments
        context = resolve_context(self.run.sized.hparams, self.context(candidate))
        weights = self.run.sized.weights(load_mtp=arguments.load_mtp, lazy_mode=arguments.lazy_mode)
        found = blocks(self.run.sized.hparams, context, weights, caches(self.run.sized.hparams, context))
        fixed = [matcher(override) for override in arguments.overrides]

        def is_fixed(weight: Weight) -> bool:
            return any(matches(weight.name) for matches in fixed)

        filled = min(FILLED_TOKENS, candidate.n_ctx_seq)
        return Tables(
            found,
            self.targets,
            self.roofline,
            self.step._replace(n_filled=filled),
            bulk_kind=self.kind,
            cache_on_host=not context.offload_kqv,
            is_fixed=is_fixed if fixed else None,
        )

    def context(self, candidate: Candidate, base: ContextParams | None = None) -> ContextParams:
        """What the engine is asked for: `-c` counts the tokens of all sequences."""
        base = base or self.run.arguments.context
        return replace(
            base,
            n_ctx=candidate.n_ctx_seq * self.n_parallel,
            n_batch=candidate.n_batch,
            n_ubatch=candidate.n_ubatch,
            type_k=candidate.type_k,
            type_v=candidate.type_v,
        )

    def applied(self, candidate: Candidate, split: Split, tables: Tables) -> Run:
        """The run with a candidate and a split written into it."""
        terms = terms_of(split, tables.blocks, self.kind)
        by_id = {device.id: device for device in self.run.devices}
        devices = tuple(by_id[name] for name in terms.devices)
        overrides = [*self.run.arguments.overrides]
        if terms.n_lean:
            overrides.append(
                Override(kind="n_cpu_moe" if self.kind == "experts" else "n_cpu_ffn", n_blocks=terms.n_lean)
            )
        for pattern, place in terms.patterns:
            overrides.append(Override(kind="pattern", pattern=pattern, buffer=self.buffer_of(place)))
        if candidate.one_by_one and not overrides:
            overrides.append(Override(kind="pattern", pattern=ONE_BY_ONE, buffer=HOST_BUFFER))
        names = tuple(self.buffer_of(device.id) for device in devices)

        def arguments(base: Arguments) -> Arguments:
            return replace(
                base,
                context=self.context(candidate, base.context),
                n_gpu_layers=terms.n_gpu_layers,
                splits=tuple(map(float, terms.tensor_split)),
                overrides=tuple(overrides),
                buffer_names=names,
            )

        def companion(draft: Companion) -> Companion:
            context = replace(draft.arguments.context, n_ctx=candidate.n_ctx_seq * self.n_parallel)
            return replace(draft, arguments=replace(draft.arguments, context=context))

        return replace(
            self.run,
            devices=devices,
            arguments=arguments(self.run.arguments),
            mtp=None if self.run.mtp is None else _same_place(self.run.mtp, arguments(self.run.arguments)),
            drafts=tuple(map(companion, self.run.drafts)),
        )

    def buffer_of(self, place: str) -> str:
        return self.tensor_buffers.get(place, place)

    def estimated(self, candidate: Candidate, split: Split) -> Estimate:
        key = candidate, split._replace(seconds=0.0)
        found = self.estimates.get(key)
        if found is None:
            run = self.applied(candidate, split, self.tables(candidate))
            margins = tuple(self.margins.get(device.id, Margin()) for device in run.devices)
            found = self.estimates[key] = estimate(run, self.machine, margins)
        return found

    def measure(self, candidate: Candidate, split: Split) -> Memory:
        return self.estimated(candidate, split).memory

    def constant_seconds(self, device_ids: Sequence[str]) -> float:
        """What every step costs beside the blocks."""
        return max(
            (self.roofline.step_seconds([(LayerWork(), Place(name))], Step()) for name in device_ids),
            default=0.0,
        )


def _same_place(mtp: Arguments, main: Arguments) -> Arguments:
    """The draft head's context: its own caches, the model's placement."""
    context = replace(
        mtp.context, n_ctx=main.context.n_ctx, n_batch=main.context.n_batch, n_ubatch=main.context.n_ubatch
    )
    return replace(main, context=context)


def _kind(device: Device, margin: Margin | None, *, alone: bool) -> Hashable:
    """Equal for devices that are interchangeable in every respect."""
    same = replace(device, id="", index=0, name="", pool="", uuid=None, profile=None, held_by=(), notes=())
    return same, margin, device.pool == HOST_POOL, device.id if alone else ""


def _with_bandwidths(machine: Machine) -> Machine:
    devices = tuple(
        device
        if device.bandwidth_bytes_per_s is not None or device.pool == HOST_POOL
        else replace(device, bandwidth_bytes_per_s=ASSUMED_DEVICE_BYTES_PER_S)
        for device in machine.devices
    )
    return replace(machine, devices=devices)


def devices_named(machine: Machine, words: Sequence[str]) -> tuple[Device, ...]:
    """The machine's devices that `words` (ids, indices, UUIDs, names) mean, in the machine's order.

    Raises:
        UsageError: a word that means none of them.
    """
    if not words:
        return machine.devices
    wanted = set()
    for word in words:
        found = [
            device
            for device in machine.devices
            if word in (device.id, str(device.index), device.uuid)
            or (device.uuid or "").startswith(f"GPU-{word}")
        ]
        if not found:
            known = ", ".join(device.id for device in machine.devices) or "none"
            raise UsageError(f"no device {word[:60]!r} on this machine", hint=f"devices: {known}")
        wanted.add(found[0].id)
    return tuple(device for device in machine.devices if device.id in wanted)
