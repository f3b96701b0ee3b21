"""One model laid out on devices: every weight, cache and compute buffer of one llama.cpp context, to the byte."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import add
from typing import TYPE_CHECKING

from autofit.domain.model import ModelSpec, TensorInfo
from autofit.domain.values import dataclass, replace
from autofit.errors import EngineRefusalError, UnsupportedModelError

from autofit_llama.engine.versions import LATEST, Version
from autofit_llama.engine.vocabulary import LazyMode, Override
from autofit_llama.graph.buffers import ComputeBuffers, ReplayCache, compute_buffers
from autofit_llama.graph.devices import DeviceRules, device_bytes
from autofit_llama.graph.ggml import HOST
from autofit_llama.graph.model import GraphModel
from autofit_llama.memory.placement import Placement, buffer_rules, place_layers
from autofit_llama.memory.weights import HOST_ALIGNMENT, Weight, WeightPlan, loaded_weights, place_weights
from autofit_llama.model.architecture import architecture_of
from autofit_llama.model.caches import Cache
from autofit_llama.model.context import Context, ContextParams
from autofit_llama.model.hparams import HParams
from autofit_llama.model.resolve import caches, resolve_context
from autofit_llama.model.rules import PATTERN_LISTS

if TYPE_CHECKING:
    from autofit_llama.memory.expert_cache import ExpertCache
    from autofit_llama.memory.tensor_split import Slices


EXPERTS_COPIED = 32  #: llama-moe-cache.cpp: in micro-batches up to so many the graph reads the cache of experts
_MOST_SLICES = 64  #: ways to cut a model for `-sm tensor` that are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadParams:
    """What a program asks the library for: the model's parameters and the context's.

    `splits` are `-ts`, or free bytes per device; `n_gpu_layers` below 0 is all; `mmap` keeps host weights in the file.
    `sliced`: each device holds a part of every tensor; then `splits` are `-ts` or nothing.
    """

    context: ContextParams
    n_gpu_layers: int = -1
    splits: tuple[float, ...] = ()
    overrides: tuple[Override, ...] = ()
    expert_cache_bytes: int = 0  #: asked for, on all devices together
    buffer_names: tuple[str, ...] = ()
    by_layer: bool = True  #: -sm layer; otherwise no pipeline
    pipeline: bool = True  #: several micro-batches in flight where that can be; not after a failed attempt
    sliced: bool = False  #: -sm tensor
    repack: bool = True
    no_host: bool = False
    mmap: bool = False
    load_mtp: bool = False
    lazy_mode: LazyMode = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLayout:
    """Bytes per device (in the order given) and on the host, with what they were made from.

    With `-sm tensor` there is one device, number 0, in `placement` and in the plan's homes.
    """

    hparams: HParams
    context: Context
    placement: Placement
    weights: tuple[Weight, ...]
    weight_plan: WeightPlan
    caches: tuple[Cache, ...]
    cache_device_bytes: tuple[int, ...]
    cache_host_bytes: int
    experts: ExpertCache | None  #: a cache of those in main memory
    compute: ComputeBuffers
    partial_bytes: int  #: -sm tensor: what each device keeps to sum up with the others
    has_graph: bool  #: the compute buffers come from a graph, not from a bound
    is_exact: bool  #: and by rules that were held against the engine


class ParsedModel:
    """A model whose header has been taken apart once, to be laid out many times."""

    __slots__ = ("_loaded", "_slices", "hparams", "known", "model", "tensors")

    def __init__(self, model: ModelSpec, hparams: HParams) -> None:
        self.model = model
        self.hparams = hparams
        self.tensors: Mapping[str, TensorInfo] = {tensor.name: tensor for tensor in model.tensors}
        self.known = ReplayCache()
        self._loaded: dict[tuple[bool, LazyMode, Version], tuple[Weight, ...]] = {}
        self._slices: dict[tuple[tuple[DeviceRules, ...], tuple[float, ...], bool], Slices] = {}

    @property
    def is_full(self) -> bool:
        """Whether it has remembered so much that it is time to begin again."""
        return self.known.is_full or len(self._slices) > _MOST_SLICES

    def hparams_of(self, version: Version) -> HParams:
        """The hyperparameters as a build of the engine reads them."""
        hp = self.hparams
        windows = architecture_of(hp.arch).windows_since
        if windows is not None and not version.follows(windows):
            return replace(hp, n_swa=0, swa_type="none", is_swa=(False,) * len(hp.is_swa))
        if not hp.is_swa_by_period or version.follows(PATTERN_LISTS):
            return hp
        return replace(hp, is_swa=hp.is_swa_by_period)

    def weights(
        self, *, load_mtp: bool = False, lazy_mode: LazyMode = "auto", version: Version = LATEST
    ) -> tuple[Weight, ...]:
        key = (load_mtp, lazy_mode, version)
        if key not in self._loaded:
            self._loaded[key] = loaded_weights(
                self.model, self.hparams, load_mtp=load_mtp, lazy_mode=lazy_mode, version=version
            )
        return self._loaded[key]

    def slices(self, devices: tuple[DeviceRules, ...], splits: tuple[float, ...], *, load_mtp: bool) -> Slices:
        """How `-sm tensor` cuts the model for these devices."""
        from autofit_llama.memory.tensor_split import Slices  # few commands need it

        key = (devices, splits, load_mtp)
        if key not in self._slices:
            types = {weight.name: weight.type for weight in self.weights(load_mtp=load_mtp)}
            self._slices[key] = Slices(hparams=self.hparams, devices=devices, splits=splits, types=types)
        return self._slices[key]


def lay_out(
    sized: ParsedModel, devices: Sequence[DeviceRules], arguments: LoadParams, *, dry_run: bool = True
) -> MemoryLayout:
    """Where everything of `sized` goes on `devices`.

    `dry_run` gives the compute buffers of the engine's own dry run, which are never below what is then allocated but
    for what its generation graph adds.

    Raises:
        EngineRefusalError: the engine would refuse these arguments.
    """
    hp = sized.hparams_of(arguments.context.version)
    context = resolve_context(hp, arguments.context)
    weights = sized.weights(load_mtp=arguments.load_mtp, lazy_mode=arguments.lazy_mode, version=context.version)
    slices, splits = None, arguments.splits
    if arguments.sliced:
        slices = sized.slices(tuple(devices), splits, load_mtp=arguments.load_mtp)
        devices, splits = (slices.whole,), (1.0,)
    placement = place_layers(hp.n_layer_all, arguments.n_gpu_layers, splits, len(devices))
    buffers = buffer_rules(
        devices,
        names=arguments.buffer_names,
        overrides=arguments.overrides,
        no_host=arguments.no_host,
        repack=arguments.repack,
        mmap=arguments.mmap,
    )
    plan = place_weights(weights, hp, placement, buffers, slices)
    kept = caches(hp, context)
    if slices is not None:
        slices.check(placement, plan.homes, context, has_cache=bool(kept))
    on_device, on_host, per_layer = _cache_bytes(kept, context, placement, devices, slices)
    experts = _expert_cache(sized, hp, placement, plan, devices, arguments)
    full_offload = arguments.n_gpu_layers < 0 or arguments.n_gpu_layers > hp.n_layer_all
    pipeline = len(devices) > 1 and full_offload and context.offload_kqv and _asks_for_pipeline(arguments)
    graph = GraphModel(
        hparams=hp,
        context=context,
        tensors=sized.tensors,
        layer_dev=(*placement.blocks, placement.output),
        homes=plan.homes,
        copies=plan.copies,
        full_offload=full_offload,
    )
    compute, has_graph = _compute(graph, sized.known, devices, per_layer, pipeline=pipeline, dry_run=dry_run)
    partial_bytes = 0
    if slices is not None:
        compute = replace(compute, device_bytes=compute.device_bytes * len(slices.devices))
        partial_bytes = _partial_bytes(slices, weights, plan, context)
    return MemoryLayout(
        hparams=hp,
        context=context,
        placement=placement,
        weights=weights,
        weight_plan=plan,
        caches=kept,
        cache_device_bytes=on_device,
        cache_host_bytes=on_host,
        experts=experts,
        compute=compute,
        partial_bytes=partial_bytes,
        has_graph=has_graph,
        is_exact=has_graph
        and all(rules.is_exact for rules in devices)
        and not arguments.context.version.behind_bytes
        and (experts is None or context.n_tokens > EXPERTS_COPIED),
    )


def _expert_cache(
    sized: ParsedModel,
    hp: HParams,
    placement: Placement,
    plan: WeightPlan,
    devices: Sequence[DeviceRules],
    arguments: LoadParams,
) -> ExpertCache | None:
    if not arguments.expert_cache_bytes:
        return None
    from autofit_llama.memory.expert_cache import expert_cache  # few commands ask for one

    if arguments.sliced:
        raise EngineRefusalError(
            "llama.cpp refuses: MoE cache does not support tensor parallelism",
            hint="use -sm layer, or leave --moe-cache-mib out",
        )
    n_bytes = arguments.expert_cache_bytes
    return expert_cache(n_bytes, hp, sized.tensors, plan.homes, placement, devices, arguments.splits)


def _asks_for_pipeline(arguments: LoadParams) -> bool:
    """Whether nothing among the arguments keeps micro-batches from overlapping on several devices.

    An override does where the engine is given a pattern at all, matching or not; `-ncmoe 0` gives none.
    """
    overrides = any(o.kind in ("pattern", "cpu_moe") or o.n_blocks > 0 for o in arguments.overrides)
    return arguments.by_layer and arguments.pipeline and not overrides and not arguments.expert_cache_bytes


def _compute(
    graph: GraphModel,
    known: ReplayCache,
    devices: Sequence[DeviceRules],
    layer_bytes: Mapping[int, int],
    *,
    pipeline: bool,
    dry_run: bool,
) -> tuple[ComputeBuffers, bool]:
    """Compute buffers, and whether they are those of the model's graph: an unknown architecture has bounds."""
    try:
        return compute_buffers(graph, devices, pipeline=pipeline, dry_run=dry_run, known=known), True
    except UnsupportedModelError:
        from autofit_llama.memory.bound import bound_buffers

        known_of = (graph.hparams, graph.context, graph.tensors, graph.homes)
        return bound_buffers(*known_of, devices, layer_bytes=layer_bytes, pipeline=pipeline), False


def _cache_bytes(
    kept: Sequence[Cache],
    context: Context,
    placement: Placement,
    devices: Sequence[DeviceRules],
    slices: Slices | None,
) -> tuple[tuple[int, ...], int, Mapping[int, int]]:
    on_device, on_host = [0] * len(devices if slices is None else slices.devices), 0
    per_layer: dict[int, int] = {}
    for cache in kept:
        for tensor in cache.tensors:
            home = placement.of(tensor.il) if context.offload_kqv else HOST
            if home >= 0 and slices is not None:
                parts = slices.cache_bytes(tensor)
                on_device = list(map(add, on_device, parts))
                n_bytes = sum(parts)
            elif home >= 0:
                n_bytes = device_bytes(devices[home], tensor.type, tensor.n_elements, tensor.n_bytes)
                on_device[home] += n_bytes
            else:
                n_bytes = -(-tensor.n_bytes // HOST_ALIGNMENT) * HOST_ALIGNMENT
                on_host += n_bytes
            per_layer[tensor.il] = per_layer.get(tensor.il, 0) + n_bytes
    return tuple(on_device), on_host, per_layer


def _partial_bytes(slices: Slices, weights: Sequence[Weight], plan: WeightPlan, context: Context) -> int:
    """Buffers for the sums over devices, kept from the first full prompt on: one for each step of adding up.

    Source: ggml-backend-meta.cpp:ggml_backend_meta_graph_compute (max_tmp_size, n_reduce_steps). An upper bound where
    the last block is alone with its kind: it may work on nothing but the rows whose logits are wanted.
    """
    hp, largest = slices.hparams, 0
    for weight in weights:
        if plan.homes.get(weight.name) != 0 or (rows := slices.partial_rows(weight.name, weight.ne)) == 0:
            continue
        n_used = hp.n_expert_used[weight.slot] if weight.op == "MUL_MAT_ID" else 1
        largest = max(largest, 4 * rows * n_used * context.n_tokens)
    return largest * (len(slices.devices) - 1).bit_length()
