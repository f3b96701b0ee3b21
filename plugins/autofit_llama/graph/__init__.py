"""The compute buffers of llama.cpp, to the byte: a replay of its graph, scheduler and allocator."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial

from autofit.domain.values import dataclass, replace
from autofit.errors import EngineRefusalError

from autofit_llama.graph.archs import builder_for
from autofit_llama.graph.builder import HYPER_OPS, Builder, Fused, Graph
from autofit_llama.graph.devices import DeviceRules
from autofit_llama.graph.ggml import HOST
from autofit_llama.graph.model import GraphModel
from autofit_llama.graph.periods import EFFORTS, Cut, Effort, choose_layers, is_periodic, moments
from autofit_llama.graph.scheduler import PIPELINE_COPIES, Schedule, Scheduler

#: architectures whose last reserve is a prompt of one sequence: decays grow with its square
_ONE_SEQUENCE = frozenset({"kimi-linear", "minimax-01"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeBuffers:
    """Bytes of the compute buffer on every device and on the host; `flash_attn` is what `auto` came to."""

    device_bytes: tuple[int, ...]
    host_bytes: int
    flash_attn: bool
    n_copies: int
    n_splits: int


Replays = dict[Hashable, tuple[list[int], int] | None]
"""What replays of one model came to, by everything that they depend on; `None`: blocks could not be left out."""


def compute_buffers(
    model: GraphModel,
    devices: Sequence[DeviceRules],
    *,
    pipeline: bool = False,
    dry_run: bool = False,
    shorten: bool = True,
    known: Replays | None = None,
) -> ComputeBuffers:
    """What llama-context.cpp:sched_reserve reserves.

    `pipeline`: several micro-batches in flight, if every device can. `dry_run`: the figure of the engine's
    own dry run, which forgets where norms are pinned. `shorten=False` builds every block. `known` are replays of
    this model, to which new ones are added: placements that differ in how many equal blocks follow each other alone
    are one and the same when shortened.

    Raises:
        UnsupportedModelError: no graph for this architecture.
        EngineRefusalError: the engine's own graph cannot be built.
    """
    context = model.context
    builder = builder_for(model.hparams.arch, draft=context.mtp)
    shorten = shorten and not context.mtp
    n_copies = PIPELINE_COPIES if pipeline and all(d.pipeline for d in devices) else 1
    scheduler = Scheduler(devices, op_offload=context.op_offload, n_copies=n_copies)
    resolved = _resolve(builder, model, scheduler, context.flash_attn)

    n_tokens, n_seqs, n_outputs = context.n_tokens, context.n_seq_max, context.n_outputs
    signatures = _signatures(builder, model) if shorten else None
    known = {} if known is None else known
    reserve = partial(_reserve, builder, model, scheduler, resolved, signatures, known)
    sizes, n_splits = reserve(n_tokens, n_seqs, n_outputs, pinned=not dry_run)
    one_sequence = model.hparams.arch in _ONE_SEQUENCE
    if one_sequence and n_tokens % model.n_streams and not all(model.hparams.is_recr[:-1]):
        raise EngineRefusalError(
            f"llama.cpp aborts: {n_tokens} tokens do not divide into {model.n_streams} sequences",
            hint="with this architecture, make -ub a multiple of -np, or unify the cache with -kvu",
        )
    if not dry_run:
        reserves = [(n_seqs, n_seqs, n_seqs)]
        if one_sequence:
            reserves.append((n_tokens, 1, n_outputs))
        for batch in reserves:
            more, _ = reserve(*batch, pinned=True)
            sizes = [max(a, b) for a, b in zip(sizes, more, strict=True)]
    return ComputeBuffers(
        device_bytes=tuple(sizes[:-1]),
        host_bytes=sizes[-1],
        flash_attn=resolved.flash_attn,
        n_copies=n_copies,
        n_splits=n_splits,
    )


@dataclass(frozen=True, slots=True)
class _Fusions:
    flash_attn: bool
    hyper: frozenset[str] = HYPER_OPS


def _graph(
    builder: Builder,
    model: GraphModel,
    fusions: _Fusions,
    n_tokens: int,
    n_seqs: int,
    n_outputs: int,
    order: tuple[int, ...],
) -> Graph:
    n_tokens = -(-n_tokens // n_seqs) * n_seqs
    g = Graph(model, n_tokens, n_seqs, n_outputs, fusions.flash_attn, order, fusions.hyper)
    builder(g)
    g.pooling()
    g.set_outputs()
    return g


def _resolve(builder: Builder, model: GraphModel, scheduler: Scheduler, flash_attn: str) -> _Fusions:
    """Which fused operations the engine uses: each is tried on a one-token graph (resolve_fused_ops)."""
    fusions = _Fusions(flash_attn != "off")
    if (
        flash_attn == "auto"
        and fusions.flash_attn
        and not _all_on_device(builder, model, scheduler, fusions, "flash_attn")
    ):
        fusions = replace(fusions, flash_attn=False)
    if model.hparams.arch in ("deepseek4", "dflash", "glm5-next", "qwen4exp"):
        for kind in ("hc_pre", "hc_comb", "hc_post"):
            if not _all_on_device(builder, model, scheduler, fusions, kind):
                fusions = replace(fusions, hyper=fusions.hyper - {kind})
    return fusions


def _all_on_device(builder: Builder, model: GraphModel, scheduler: Scheduler, fusions: _Fusions, kind: str) -> bool:
    n_seqs = model.context.n_seq_max
    order, _ = choose_layers(_signatures(builder, model), EFFORTS[0])
    g = _graph(builder, model, fusions, n_seqs, n_seqs, n_seqs, order)
    _pin(g, scheduler)
    scheduler.assign(g.leafs, g.nodes)

    def fits(f: Fused) -> bool:
        home = model.layer_dev[f.il]
        return f.node.dev == (scheduler.cpu if home == HOST else home)

    return all(fits(f) for f in g.fused if f.kind == kind)


def _pin(g: Graph, scheduler: Scheduler) -> None:
    for t, home in g.pins:
        dev = scheduler.cpu if home == HOST else home
        if scheduler.supports(dev, t):
            t.dev = dev


def _reserve(
    builder: Builder,
    model: GraphModel,
    scheduler: Scheduler,
    fusions: _Fusions,
    signatures: Sequence[Hashable] | None,
    known: Replays,
    n_tokens: int,
    n_seqs: int,
    n_outputs: int,
    *,
    pinned: bool,
) -> tuple[list[int], int]:
    """Bytes of every backend's buffer, and how many splits; without `signatures` every block is built."""

    def scheduled(order: tuple[int, ...]) -> tuple[Graph, Schedule]:
        g = _graph(builder, model, fusions, n_tokens, n_seqs, n_outputs, order)
        if pinned:
            _pin(g, scheduler)
        scheduler.assign(g.leafs, g.nodes)
        return g, scheduler.split(g.leafs, g.nodes)

    def shortened(order: tuple[int, ...], cuts: tuple[Cut, ...], effort: Effort) -> tuple[list[int], int] | None:
        g, schedule = scheduled(order)
        if len(g.starts) != len(order) + 1:
            return None
        at = [schedule.position[g.starts[i]] for i in moments(cuts, effort)]
        sizes, states = scheduler.reserve(schedule, at)
        n = effort.cycle + 1
        if all(
            is_periodic(schedule, g.starts, cut, states[i * n : i * n + n], n_copies=scheduler.n_copies)
            for i, cut in enumerate(cuts)
        ):
            return sizes, len(schedule.splits)
        return None

    def whole() -> tuple[list[int], int]:
        _, schedule = scheduled(tuple(range(model.hparams.n_layer)))
        return scheduler.reserve(schedule)[0], len(schedule.splits)

    if signatures is None:
        return whole()
    copies = _copies(model)
    blocks = [(signature, copies.get(il)) for il, signature in enumerate(signatures)]
    beside = (
        (n_tokens, n_seqs, n_outputs, pinned, fusions, model.context, scheduler.devices, scheduler.n_copies),
        tuple((name, home) for name, home in model.homes.items() if not name.startswith("blk.")),
        (copies.get(model.hparams.n_layer_all), tuple(model.layer_dev[len(blocks) :]), model.full_offload),
    )
    # An effort that was not enough on these devices is seldom enough for another placement on them.
    vain: dict[Effort, Hashable] = {effort: (effort, scheduler.devices, scheduler.n_copies) for effort in EFFORTS}
    for effort in sorted(EFFORTS, key=lambda effort: vain[effort] in known):
        order, cuts = choose_layers(signatures, effort)
        if not cuts:
            continue
        key: Hashable = beside, effort, cuts, tuple([blocks[il] for il in order])
        if key not in known:
            known[key] = shortened(order, cuts, effort)
        found = known[key]
        if found is not None:
            return found
        known[vain[effort]] = None
    key = beside, None, (), tuple(blocks)
    found = known.get(key)
    if found is None:
        found = known[key] = whole()
    return found


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
            il = int(number)
            if il < h.n_layer_all:
                info = tensors[name]
                parts[il].append((rest, info.shape, home, "" if home >= 0 else info.type))
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
