"""The compute buffers of llama.cpp, to the byte: a replay of its graph, scheduler and allocator."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import accumulate, count

from autofit.domain.text import is_number
from autofit.domain.values import NamedTuple, dataclass, replace
from autofit.errors import EngineRefusalError, UnsupportedModelError

from autofit_llama.graph.assertions import check
from autofit_llama.graph.builder import DELTA_OPS, HYPER_OPS, Builder, Fused, Graph
from autofit_llama.graph.cpu import check_placed
from autofit_llama.graph.devices import DeviceRules
from autofit_llama.graph.ggml import HOST, HOST_PINNED
from autofit_llama.graph.model import GraphModel
from autofit_llama.graph.periods import Cut, Edge, choose_layers, is_periodic, moments
from autofit_llama.graph.scheduler import PIPELINE_COPIES, Schedule, Scheduler
from autofit_llama.model.architecture import Architecture, architecture_of
from autofit_llama.model.hparams import HParams

_ATTEMPTS = 3  #: at leaving blocks out
_MOST_KNOWN = 4096  #: replays, or kinds of block, remembered of one model


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeBuffers:
    """Bytes of the compute buffer on every device and on the host; `flash_attn` is what `auto` came to."""

    device_bytes: tuple[int, ...]
    host_bytes: int
    flash_attn: bool
    n_copies: int
    n_splits: int


class Replay(NamedTuple):
    """Bytes of every backend's buffer, and how many splits; not to be believed if blocks were left out in `vain`."""

    sizes: list[int]
    n_splits: int
    vain: tuple[Cut, ...] = ()


class ReplayCache:
    """What replays of one model came to, by everything that they depend on.

    Placements that differ in how many equal blocks follow each other alone are one and the same when shortened.
    """

    __slots__ = ("_next", "_numbers", "fusions", "levels", "replays", "sound")

    def __init__(self) -> None:
        self.replays: dict[Hashable, Replay] = {}
        self.fusions: dict[Hashable, _Fusions] = {}
        self.levels: dict[Hashable, dict[Edge, int]] = {}  #: efforts of stretches, by backends
        self.sound: set[Hashable] = set()  #: graphs whose shapes were held to what ggml asserts
        self._numbers: dict[Hashable, int] = {}
        self._next = count()  # not the length: two threads may plan for one model

    def number(self, value: Hashable) -> int:
        """The same for equal values, and quick to compare."""
        number = self._numbers.get(value)
        return self._numbers.setdefault(value, next(self._next)) if number is None else number

    @property
    def is_full(self) -> bool:
        """Whether there is no more room to learn."""
        return len(self.replays) > _MOST_KNOWN or len(self._numbers) > _MOST_KNOWN


def compute_buffers(
    model: GraphModel,
    devices: Sequence[DeviceRules],
    *,
    pipeline: bool = False,
    dry_run: bool = False,
    shorten: bool = True,
    known: ReplayCache | None = None,
) -> ComputeBuffers:
    """What llama-context.cpp:sched_reserve reserves.

    `pipeline`: several micro-batches in flight, if every device can. `dry_run`: the figure of the engine's
    own dry run, which forgets where norms are pinned. `shorten=False` builds every block. `known` is of this model,
    and learns.

    Raises:
        UnsupportedModelError: no graph for this architecture.
        EngineRefusalError: the engine's own graph cannot be built.
    """
    context = model.context
    arch = architecture_of(model.hparams.arch)
    builder = _builder(arch, model.hparams, draft=context.mtp)
    shorten = shorten and not context.mtp
    n_copies = PIPELINE_COPIES if pipeline and all(d.pipeline for d in devices) else 1
    scheduler = Scheduler(devices, op_offload=context.op_offload, n_copies=n_copies, version=context.version)
    reserves = _Reserves(builder, model, scheduler, known or ReplayCache())
    fusions = reserves.fusions()

    def reserve(*batch: int) -> Replay:
        return reserves.reserve(fusions, _Batch(*batch), pinned=not dry_run, shorten=shorten)

    n_tokens, n_seqs, n_outputs = context.n_tokens, context.n_seq_max, context.n_outputs
    sizes, n_splits, _ = reserve(n_tokens, n_seqs, n_outputs)
    if arch.reserves_one_sequence and n_tokens % model.n_streams and not all(model.hparams.is_recr[:-1]):
        raise EngineRefusalError(
            f"llama.cpp aborts: {n_tokens} tokens do not divide into {model.n_streams} sequences",
            hint="with this architecture, make -ub a multiple of -np, or unify the cache with -kvu",
        )
    if not dry_run:
        batches = [(n_seqs, n_seqs, n_seqs)]
        if arch.reserves_one_sequence:
            batches.append((n_tokens, 1, n_outputs))
        for batch in batches:
            sizes = [max(a, b) for a, b in zip(sizes, reserve(*batch).sizes, strict=True)]
    return ComputeBuffers(
        device_bytes=tuple(sizes[:-1]),
        host_bytes=sizes[-1],
        flash_attn=fusions.flash_attn,
        n_copies=n_copies,
        n_splits=n_splits,
    )


def _builder(arch: Architecture, hp: HParams, *, draft: bool) -> Builder:
    builder = arch.draft_graph if draft else arch.graph
    if builder is None or builder == "not replayed":
        what = "draft head" if draft else "architecture"
        raise UnsupportedModelError(f"no memory graph for the {what} {hp.arch!r}")
    return builder


@dataclass(frozen=True, slots=True)
class _Fusions:
    flash_attn: bool
    hyper: frozenset[str] = HYPER_OPS
    delta: frozenset[str] = DELTA_OPS


class _Batch(NamedTuple):
    """Of one reserve: how many tokens of how many sequences, and rows of output."""

    n_tokens: int
    n_seqs: int
    n_outputs: int


class _Reserves:
    """The graphs of one context on its devices: built, scheduled and allocated, each kind once.

    `_blocks` has a number for each block, equal for equal blocks, and `_place` what else a graph depends on.
    """

    def __init__(self, builder: Builder, model: GraphModel, scheduler: Scheduler, known: ReplayCache) -> None:
        self.builder, self.model, self.scheduler, self.known = builder, model, scheduler, known
        copies, n_layer_all = _copies(model), model.hparams.n_layer_all
        self._blocks = [known.number((each, copies.get(il))) for il, each in enumerate(_signatures(builder, model))]
        backends = scheduler.devices, scheduler.n_copies
        outside = tuple((name, _seen(home)) for name, home in model.homes.items() if not name.startswith("blk."))
        output = copies.get(n_layer_all), tuple(model.layer_dev[len(self._blocks) :]), model.full_offload
        self._place = known.number((model.context, backends, outside, output))
        self._levels = known.levels.setdefault(backends, {})
        self._tried_graphs: dict[tuple[_Fusions, _Batch, tuple[int, ...]], Graph] = {}

    def fusions(self) -> _Fusions:
        """Which fused operations the engine uses: each is tried on a small graph (resolve_fused_ops)."""
        key = self._place, tuple(self._blocks)
        found = self.known.fusions.get(key)
        if found is None:
            found = self.known.fusions[key] = self._tried()
        return found

    def _tried(self) -> _Fusions:
        context, hp = self.model.context, self.model.hparams
        found = _Fusions(context.flash_attn != "off")
        if context.flash_attn == "auto" and not self._all_on_device(found, "flash_attn"):
            found = replace(found, flash_attn=False)
        if any(hp.is_recr):
            from autofit_llama.graph.recurrent import delta_probes

            for kind, n_tokens in delta_probes(context.version):
                if not self._all_on_device(found, kind, n_tokens):
                    found = replace(found, delta=found.delta - {kind})
        if hp.dsv4_hc_mult > 0:
            for kind in ("hc_pre", "hc_comb", "hc_post"):
                if not self._all_on_device(found, kind):
                    found = replace(found, hyper=found.hyper - {kind})
        return found

    def _all_on_device(self, fusions: _Fusions, kind: str, n_tokens: int = 1) -> bool:
        """Whether all operations of a kind lie where their blocks do, with so many tokens of each sequence."""
        n_seqs, scheduler = self.model.context.n_seq_max, self.scheduler
        if not scheduler.devices:
            return True
        order, _ = choose_layers(self._blocks)
        batch = _Batch(n_tokens * n_seqs, n_seqs, n_tokens * n_seqs)
        g = self._tried_graphs[fusions, batch, order] = self._assigned(fusions, batch, order, pinned=True)

        def fits(f: Fused) -> bool:
            home = self.model.layer_dev[f.il]
            return f.node.dev == (scheduler.cpu if home == HOST else home)

        return all(fits(f) for f in g.fused if f.kind == kind)

    def reserve(self, fusions: _Fusions, batch: _Batch, *, pinned: bool, shorten: bool) -> Replay:
        """One reserve; without `shorten` every block is built."""
        every = tuple(range(self.model.hparams.n_layer))
        if not shorten:
            return self._replayed(fusions, batch, every, (), pinned=pinned)
        beside = self._place, fusions, batch, pinned

        def once(order: tuple[int, ...], cuts: tuple[Cut, ...]) -> Replay:
            key = beside, cuts, tuple([self._blocks[il] for il in order])
            found = self.known.replays.get(key)
            if found is None:
                found = self.known.replays[key] = self._replayed(fusions, batch, order, cuts, pinned=pinned)
            return found

        for _ in range(_ATTEMPTS):
            found = once(*choose_layers(self._blocks, self._levels))
            if not found.vain:
                return found
            self._levels.update((cut.edge, cut.level + 1) for cut in found.vain)
        return once(every, ())

    def _replayed(
        self, fusions: _Fusions, batch: _Batch, order: tuple[int, ...], cuts: tuple[Cut, ...], *, pinned: bool
    ) -> Replay:
        scheduler = self.scheduler
        g, schedule = self._scheduled(fusions, batch, order, pinned=pinned)
        if not cuts:
            return Replay(scheduler.reserve(schedule)[0], len(schedule.splits))
        if len(g.starts) != len(order) + 1:
            return Replay([], 0, cuts)
        at = [moments(cut) for cut in cuts]
        sizes, states = scheduler.reserve(schedule, [schedule.position[g.starts[i]] for each in at for i in each])
        ends = list(accumulate(map(len, at)))
        vain = [
            cut
            for cut, each, end in zip(cuts, at, ends, strict=True)
            if not is_periodic(schedule, g.starts, cut, states[end - len(each) : end], n_copies=scheduler.n_copies)
        ]
        return Replay(sizes, len(schedule.splits), tuple(vain))

    def _scheduled(
        self, fusions: _Fusions, batch: _Batch, order: tuple[int, ...], *, pinned: bool
    ) -> tuple[Graph, Schedule]:
        context, scheduler = self.model.context, self.scheduler
        g = self._assigned(fusions, batch, order, pinned=pinned)
        shapes = fusions, batch.n_tokens, batch.n_seqs, context.type_k, context.type_v, context.kv_unified, context.mtp
        if shapes not in self.known.sound:
            check(g.nodes, g.h)
            self.known.sound.add(shapes)
        check_placed(g.nodes, g.h, scheduler.cpu)
        return g, scheduler.split(g.leafs, g.nodes)

    def _assigned(self, fusions: _Fusions, batch: _Batch, order: tuple[int, ...], *, pinned: bool) -> Graph:
        """A graph with a backend for each node; the one that showed which operations are fused is also reserved."""
        g = self._tried_graphs.pop((fusions, batch, order), None) if pinned else None
        if g is None:
            g = self._graph(fusions, batch, order)
            if pinned:
                _pin(g, self.scheduler)
            self.scheduler.assign(g.leafs, g.nodes)
        return g

    def _graph(self, fusions: _Fusions, batch: _Batch, order: tuple[int, ...]) -> Graph:
        n_tokens, n_seqs, n_outputs = batch
        n_tokens = -(-n_tokens // n_seqs) * n_seqs
        g = Graph(self.model, n_tokens, n_seqs, n_outputs, fusions.flash_attn, order, fusions.hyper, fusions.delta)
        self.builder(g)
        g.pooling()
        g.set_outputs()
        return g


def _pin(g: Graph, scheduler: Scheduler) -> None:
    for t, home in g.pins:
        dev = scheduler.cpu if home == HOST else home
        if scheduler.supports(dev, t):
            t.dev = dev


def _seen(home: int) -> int:
    """A home as graphs see it: pinned memory is memory of the host like any other."""
    return HOST if home == HOST_PINNED else home


def _copies(model: GraphModel) -> dict[int, tuple[tuple[str, int], ...]]:
    """By block, or the output layer: where the second copies lie that weights have for it (rope factors)."""
    copies: dict[int, tuple[tuple[str, int], ...]] = {}
    for (name, slot), home in model.copies.items():
        copies[slot] = (*copies.get(slot, ()), (name, home))
    return copies


def _signatures(builder: Builder, model: GraphModel) -> list[Hashable]:
    """One value per block; equal for blocks that give the same nodes.

    The type of a weight counts only where the weight may be copied: on the host, for a device to work on.
    """
    h = model.hparams
    parts: list[list[object]] = [[] for _ in range(h.n_layer_all)]
    tensors = model.tensors
    for name, home in model.homes.items():
        if name.startswith("blk."):
            number, _, rest = name[4:].partition(".")
            il = int(number) if is_number(number, 9) else h.n_layer_all
            if il < h.n_layer_all:
                info = tensors[name]
                parts[il].append((rest, info.shape, _seen(home), "" if home >= 0 else info.type))
    per_layer = [
        value
        for field in h.__slots__
        if isinstance(value := getattr(h, field), tuple) and len(value) >= h.n_layer_all and len(set(value)) > 1
    ]
    every = getattr(builder, "every", None)
    step = max(1, every(h)) if every is not None else 1
    first = getattr(builder, "first", None)
    n_first = first(h) if first is not None else 0
    return [
        (
            tuple(parts[il]),
            tuple(value[il] for value in per_layer),
            model.layer_dev[il],
            il < n_first,
            il < h.n_layer_dense_lead,
            il < h.n_deepstack_layers,
            h.has_kv(il),
            il % step,
            il == h.n_layer - 1,
        )
        for il in range(h.n_layer)
    ]
