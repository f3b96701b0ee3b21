"""How ranks may share the model: what the pins, the GPUs and the model's divisions allow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from autofit.domain.machine import Device
from autofit.domain.units import GIB
from autofit.domain.values import replace

from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.config.cluster import is_cluster
from autofit_vllm.config.resolve.parallel import possible_tp
from autofit_vllm.planning.problem import Problem, RankLayout

MAX_PIPELINE = 8
PARTITION = "VLLM_PP_LAYER_PARTITION"
UNEVEN = 0.1  #: stages that differ by more get layers by what they hold
STAGE_BYTES = 2 * GIB  #: what a stage takes beside layers and cache, roughly
LAYOUT_VALUES = frozenset(
    {
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "data_parallel_size",
        "enable_expert_parallel",
        "decode_context_parallel_size",
        "device_ids",
        "nnodes",
        "distributed_executor_backend",
    }
)


def layouts(problem: Problem) -> Iterator[list[RankLayout]]:
    """Families of layouts: what the pins and the model's divisions allow, each by growing pipeline."""
    settings, model, n = problem.settings, problem.model, len(problem.devices)
    if n == 0:
        yield [RankLayout(values={}, devices=(), world_size=1)]
        return
    nodes = problem.nodes
    heads = [tp for tp in possible_tp(model) if tp <= n // nodes]
    for tp in _pinned(settings, "tensor_parallel_size", heads):
        most = min(n // tp, MAX_PIPELINE, max(model.n_layers, 1)) if model.supports_pipeline else 1
        stages = _pinned(settings, "pipeline_parallel_size", range(1, max(1, most) + 1))
        for replicas in _pinned(settings, "data_parallel_size", _replicas(problem, tp)):
            for expert in _pinned(settings, "enable_expert_parallel", _expert_parallel(problem, tp, replicas)):
                for dcp in _pinned(settings, "decode_context_parallel_size", _context_parallel(problem, tp)):
                    family = []
                    for pp in stages:
                        dp = replicas or n // (tp * pp)
                        if (replicas or dp > 1) and _spans(
                            tp * pp * dp, tp, nodes, whole=not settings.pins("tensor_parallel_size")
                        ):
                            for layout in _placed(problem, tp=tp, pp=pp, dp=dp, expert=expert, dcp=dcp):
                                family += [layout, *_uneven(problem, layout, tp=tp, pp=pp, dp=dp)]
                    yield family


def _spans(world_size: int, tp: int, nodes: int, *, whole: bool) -> bool:
    """Whether each node has an equal part of the ranks, and tensor parallel ones within it where `whole`."""
    return nodes == 1 or (world_size % nodes == 0 and not (whole and world_size // nodes % tp))


def _pinned(settings: VllmSettings, name: str, options: Sequence[Any]) -> Sequence[Any]:
    return (getattr(settings, name),) if settings.pins(name) else options


def _replicas(problem: Problem, tp: int) -> list[int]:
    """Replicas multiply throughput; of a mixture of experts they share the experts, so that attention whose heads would
    be padded, and whose cache would be the same on every GPU, is better replicated. 0 stands for as many as there are
    GPUs for."""
    whole = problem.model.is_moe and not problem.pads_heads(tp) and problem.pads_heads(len(problem.devices))
    return [1, 0] if problem.request.prefer == "throughput" or whole else [1]


def _expert_parallel(problem: Problem, tp: int, replicas: int) -> list[bool]:
    """Whole experts per rank where replicas share them, or where slices would cut the blocks of a quantization, which
    costs no byte as long as they divide among the ranks."""
    if not problem.model.is_moe or tp * (replicas or len(problem.devices)) == 1:
        return [False]
    if replicas != 1:
        return [True]
    if problem.slices_experts(tp):
        return [False]
    return [True] if problem.model.n_experts % tp == 0 else [True, False]


def _context_parallel(problem: Problem, tp: int) -> list[int]:
    """Latent caches, and KV heads that repeat, can be divided by tokens instead."""
    model = problem.model
    if problem.request.prefer not in ("context", "throughput") or tp == 1:
        return [1]
    if (
        any(getattr(cache, "kind", None) in ("sliding", "chunked") for cache in model.distinct_caches)
        or model.is_hybrid
    ):
        return [1]
    if model.uses_mla:
        return [1, tp]
    copies = tp // max(1, model.n_kv_heads)
    fits = copies > 1 and (model.n_heads // max(1, model.n_kv_heads)) % copies == 0
    return [1, copies] if fits else [1]


def _placed(problem: Problem, *, tp: int, pp: int, dp: int, expert: bool, dcp: int) -> Iterator[RankLayout]:
    """These sizes on the GPUs with the most room, and on the fastest where those are others."""
    values: dict[str, Any] = {}
    if tp > 1:
        values["tensor_parallel_size"] = tp
    if pp > 1:
        values["pipeline_parallel_size"] = pp
    if dp > 1:
        values["data_parallel_size"] = dp
    if expert:
        values["enable_expert_parallel"] = True
    if dcp > 1:
        values["decode_context_parallel_size"] = dcp
    pinned = map(problem.settings.pins, ("nnodes", "distributed_executor_backend", "data_parallel_backend"))
    if problem.nodes > 1 and is_cluster(problem.machine) and not any(pinned):
        by_ray = problem.machine.origin == "ray"
        values |= {"distributed_executor_backend": "ray"} if by_ray else {"nnodes": problem.nodes}
    world, devices = tp * pp * dp, problem.devices
    if problem.settings.pins("device_ids") or world > len(devices) or problem.nodes > 1:
        yield RankLayout(values=values, devices=devices, world_size=world)
        return
    for chosen in _choices(devices, world, n_stages=pp):
        ids = [(problem.visible or devices).index(device) for device in chosen]
        own = {} if ids == list(range(world)) else {"device_ids": ",".join(map(str, ids))}
        yield RankLayout(values={**values, **own}, devices=chosen, world_size=world)


def _uneven(problem: Problem, layout: RankLayout, *, tp: int, pp: int, dp: int) -> Iterator[RankLayout]:
    """The same with fewer layers on the stages whose GPUs have less room (`VLLM_PP_LAYER_PARTITION`)."""
    model, env = problem.model, problem.settings.env
    if pp < 2 or dp > 1 or PARTITION in env or model.n_layers < pp or len(layout.devices) < tp * pp:
        return
    free = [
        min(device.free_bytes or device.total_bytes or 0 for device in layout.devices[at * tp : (at + 1) * tp])
        for at in range(pp)
    ]
    if max(free) - min(free) < UNEVEN * max(free):
        return
    vocabulary = 2 * model.vocab_size * model.hidden_size // tp
    ends = [vocabulary if at in (0, pp - 1) else 0 for at in range(pp)]
    room = [max(1, have - STAGE_BYTES - end) for have, end in zip(free, ends, strict=True)]
    counts = [max(1, model.n_layers * part // sum(room)) for part in room]
    while sum(counts) != model.n_layers:
        step = 1 if sum(counts) < model.n_layers else -1
        open_ = [at for at in range(pp) if step > 0 or counts[at] > 1]
        at = max(open_, key=lambda at: step * (room[at] / counts[at]))
        counts[at] += step
    yield replace(layout, env={PARTITION: ",".join(map(str, counts))})


def _choices(devices: tuple[Device, ...], n: int, *, n_stages: int = 1) -> list[tuple[Device, ...]]:
    """`n` devices in their own order: those with the most free memory, of which the least governs since shards are
    equal; and the fastest. Stages of unlike devices are laid from the roomiest to the least one and back, in whatever
    order they are plugged in: those that share a stage are alike then, and the vocabulary falls to either end.
    """
    room = [device.free_bytes or 0 for device in devices]
    rate = [device.bandwidth_bytes_per_s or 0 for device in devices]
    roomiest = sorted(range(len(devices)), key=lambda at: (-room[at], -rate[at], at))
    fastest = sorted(range(len(devices)), key=lambda at: (-rate[at], -room[at], at))
    chosen = dict.fromkeys(tuple(sorted(order[:n])) for order in (roomiest, fastest))
    if n_stages > 1:
        chosen = dict.fromkeys(order for places in chosen for order in _ordered(places, room, rate))
    return [tuple(devices[at] for at in places) for places in chosen]


def _ordered(places: tuple[int, ...], room: Sequence[int], rate: Sequence[int]) -> list[tuple[int, ...]]:
    kinds = [(room[at], rate[at]) for at in places]
    if len(set(kinds)) == 1:
        return [places]
    falling = tuple(sorted(places, key=lambda at: (-room[at], -rate[at], at)))
    rising = tuple(sorted(places, key=lambda at: (room[at], rate[at], at)))
    return [rising, falling] if places == rising else [falling, rising]
