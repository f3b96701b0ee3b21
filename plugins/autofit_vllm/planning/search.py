"""The decision: how to spread the model, and how much context, batch and cache then fit.

Every layout that the model divides over is tried. Within one, the length comes first, at vLLM's smallest default
batch; larger batches are taken as far as they do not shorten it, smaller ones as far as it takes to reach what was
wished. Then come an 8-bit cache, no CUDA graphs, and last experts or layers in RAM. What the user pinned is
never touched.

The cache is paged: `--parallel N` are N sequences at a time, not N full contexts. One full context is guaranteed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from autofit.domain.machine import HOST_POOL, Device, Machine
from autofit.domain.plan import Speed
from autofit.domain.request import Request
from autofit.domain.units import GIB
from autofit.domain.values import dataclass, field
from autofit.errors import EngineRefusalError
from autofit.speed import Roofline

from autofit_vllm.command.flags import AUTO_LENGTH
from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.config.engine import EngineConfig, Gpu
from autofit_vllm.config.resolve import resolve
from autofit_vllm.config.resolve.batch import batch_defaults
from autofit_vllm.config.resolve.dtype import supported_dtypes
from autofit_vllm.config.resolve.parallel import possible_tp
from autofit_vllm.memory.kv import KvPlan, plan_kv
from autofit_vllm.memory.offload import (
    Offload,
    given_offload,
    movable_bytes,
    offloadable,
    smallest_offload,
    smallest_prefetch,
)
from autofit_vllm.modules.model import LatentCache, PackedCache, Parallel, StageWeights, VllmModel
from autofit_vllm.planning.efficiencies import EFFICIENCIES
from autofit_vllm.planning.load import Load, blocks_for, load_of, mean_length, sequences_at
from autofit_vllm.planning.plan import Evaluation, Rank, check_dtype, evaluate, gpu_of, ranks_of, replace_settings
from autofit_vllm.planning.speed import speed_of
from autofit_vllm.quantization import NONE, Quantization

Weigh = Callable[[EngineConfig], tuple[StageWeights, ...]]

USEFUL_TOKENS = 32768  #: a context that is worth other things; more is taken where it is free
ENOUGH_TOKENS = 4096  #: below this a plan is taken only when nothing else fits
HELD_BACK = 0.45  #: of the estimated peak and graphs, when a length is chosen: what logs spread by
DEFAULT_TOKENS = 16384  #: trained contexts are worth an 8-bit cache up to this
STEP_TOKENS = (16384, 8192, 4096, 2048, 1024, 512)
FIRST_STEP, FIRST_SEQUENCES = 2048, 256  #: vLLM's defaults on cards below 70 GiB
SEQUENCES = (1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1)
FEW_SEQUENCES = 16  #: fewer are taken only when nothing else fits
KERNEL_HEADS = 64  #: that kernels of sparse latent attention fill a rank's heads up to (mla/flashmla_sparse.py)
LENGTH_STEP = 256  #: solved lengths are multiples of this
LOSSY_KV = "fp8"
MAX_PIPELINE = 8
PARTITION = "VLLM_PP_LAYER_PARTITION"
UNEVEN = 0.1  #: stages that differ by more get layers by what they hold
STAGE_BYTES = 2 * GIB  #: what a stage takes beside layers and cache, roughly
OFFLOAD_STEP_TOKENS, OFFLOAD_SEQUENCES = 2048, 16  #: the load that weights make room for


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Everything a search needs; `weigh` gives the weights of each stage under a configuration."""

    model: VllmModel
    settings: VllmSettings
    request: Request
    machine: Machine
    devices: tuple[Device, ...]
    weigh: Weigh
    visible: tuple[Device, ...] = ()  #: those that `--device-ids` counts, where a wish leaves some out
    quantization: Quantization = NONE
    vision: Mapping[str, object] | None = None

    def resolve(self, settings: VllmSettings, gpu: Gpu) -> EngineConfig:
        """The engine's configuration; a step that nobody chose holds a token of every sequence, or vLLM refuses
        (config/scheduler.py:verify_max_model_len)."""
        seqs = settings.max_num_seqs
        if seqs is not None and settings.max_num_batched_tokens is None:
            whole = settings.max_model_len or 0 if settings.enable_chunked_prefill is False else 0
            default, _ = batch_defaults(gpu)
            if seqs > max(default, whole):
                settings = dataclasses.replace(settings, max_num_batched_tokens=seqs)
        return resolve(
            settings, self.model, gpu, quantization=self.quantization, n_gpus=len(self.devices) // settings.nnodes
        )

    def slices_experts(self, tp: int) -> bool:
        """Whether tensor parallelism may cut through each expert, and its quantization's blocks stay whole."""
        block = getattr(getattr(self.quantization, "scheme", None), "block", None)
        size = block[0] if isinstance(block, tuple) and block else 1
        return self.model.moe_intermediate_size % (tp * size) == 0

    def pads_heads(self, tp: int) -> bool:
        """Whether kernels compute more heads than a rank has."""
        sparse = any(
            (isinstance(cache, LatentCache) and cache.sparse)
            or (isinstance(cache, PackedCache) and cache.backend.startswith("FLASHMLA_SPARSE"))
            for cache in self.model.caches
        )
        return sparse and (self.model.n_heads // tp) % KERNEL_HEADS != 0

    @cached_property
    def roofline(self) -> Roofline:
        return Roofline(self.machine, EFFICIENCIES)

    @property
    def target(self) -> int:
        """The length at which batch and layout are no longer sacrificed for more."""
        goal, _ = self.lengths
        wanted = self.request.context is not None or self.request.prefer == "context"
        return goal if wanted else min(goal, USEFUL_TOKENS)

    @property
    def n_parallel(self) -> int:
        return self.request.parallel or 1

    @property
    def worth(self) -> int:
        """The length below which graphs go, and weights leave the GPUs."""
        return max(self.lengths[1], min(self.target, ENOUGH_TOKENS))

    @property
    def wished(self) -> int:
        """The length with which a lossless cache is kept: what was asked for, or a moderate one."""
        goal, least = self.lengths
        asked = self.request.context or self.request.min_context
        return max(least, min(goal, asked or DEFAULT_TOKENS))

    @property
    def n_slots(self) -> int | None:
        """`--max-num-seqs` as it was wished; what a preset asks for throughput is the least."""
        least = self.request.prefer == "throughput" and self.request.origin("parallel") == "preset"
        return None if least else self.request.parallel

    @property
    def lengths(self) -> tuple[int, int]:
        """(the length to aim for, the least that will do), before memory is asked."""
        model, request, settings = self.model, self.request, self.settings
        longest = model.max_len_tokens or USEFUL_TOKENS
        usual = model.default_len_tokens or longest
        if settings.disable_sliding_window and model.sliding_window:
            longest = usual = min(longest, model.sliding_window)
        cap = request.max_context or longest
        least = request.min_context or 1
        if request.context:
            return request.context, request.context
        goal = longest if request.context == 0 else usual
        return max(1, min(goal, cap)), min(least, max(1, min(goal, cap)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to run the model, with the settings that were chosen for it."""

    evaluation: Evaluation
    values: Mapping[str, Any]  #: settings by name, in the order in which they are printed
    length: int  #: tokens of one sequence; 0 when nothing fits
    served: float = 0.0  #: part of the sequences wished that the cache holds at their average length, at most 1
    speed: Speed | None = None  #: of one sequence alone
    load: Load | None = None  #: as many sequences as are served at a time
    late: str | None = None  #: the wish for speed that is not met

    @property
    def fits(self) -> bool:
        return self.holds and self.late is None

    @property
    def holds(self) -> bool:
        """Whether it starts, however fast."""
        return self.length > 0 and self.evaluation.fits

    @property
    def total_speed(self) -> float:
        """Tokens per second of all sequences together."""
        if self.load is None:
            return 0.0
        return self.load.total_tokens_per_s or float(self.load.n_sequences)

    @property
    def parallel(self) -> Parallel:
        return self.evaluation.config.parallel


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Ranks, and the devices that take them."""

    values: Mapping[str, Any]
    devices: tuple[Device, ...]
    world_size: int
    env: Mapping[str, str] = field(default_factory=dict)  #: variables that say what no flag can


def solve(problem: Problem) -> tuple[Candidate, list[Candidate]]:
    """The best candidate, and the others worth knowing. The best may not fit: it is then the nearest.

    Raises:
        EngineRefusalError: vLLM would refuse what the user pinned, whatever is chosen beside it.
    """
    found, refusals = _search(problem, eager=False)
    worth = problem.worth

    def enough_fits() -> bool:
        return any(candidate.holds and candidate.length >= worth for candidate in found)

    if not enough_fits() and any(map(_graphs_decide, found)):
        eager, _ = _search(problem, eager=True)
        found += eager
    if not enough_fits():
        found += _offloaded(problem, found)
    if not found:
        raise refusals[0] if refusals else EngineRefusalError("no parallel sizes use these nodes and GPUs evenly")
    found = [_timed(candidate, problem) for candidate in found]
    best = max(found, key=lambda candidate: _score(candidate, problem))
    return _no_slower(problem, best), [candidate for candidate in found if candidate is not best]


def _no_slower(problem: Problem, best: Candidate) -> Candidate:
    """No more sequences than decode at the wished rate, where nobody said how many."""
    pinned = problem.n_slots is not None or problem.settings.pins("max_num_seqs")
    if problem.request.min_tps is None or pinned or not best.fits or best.load is None:
        return best
    config = best.evaluation.config
    seqs = max(1, best.load.n_sequences // config.parallel.dp)
    if seqs >= config.max_num_seqs:
        return best
    base = dataclasses.replace(_base_of(problem, best), offload=best.evaluation.offload)
    fewer = _timed(base.candidate(config.max_num_batched_tokens, seqs, limit=best.length), problem)
    return fewer if fewer.fits and fewer.length >= best.length else best


def _base_of(problem: Problem, candidate: Candidate) -> _Base:
    """What a candidate was made from, without its batch."""
    kept = (*_LAYOUT_VALUES, "kv_cache_dtype", "enforce_eager")
    values = {name: value for name, value in candidate.values.items() if name in kept}
    evaluation = candidate.evaluation
    partition = evaluation.settings.env.get(PARTITION)
    devices = tuple(rank.device for rank in evaluation.ranks)
    env = {} if partition is None or PARTITION in problem.settings.env else {PARTITION: partition}
    return _Base.of(problem, Layout(values=values, devices=devices, world_size=len(devices), env=env), values)


def _graphs_decide(candidate: Candidate) -> bool:
    """Whether dropping CUDA graphs would roughly cover the shortfall."""
    evaluation = candidate.evaluation
    graphs = max(budget.graphs.n_bytes for budget in evaluation.budgets)
    return evaluation.shortfall_bytes <= 2 * graphs + GIB // 2


def _search(problem: Problem, *, eager: bool) -> tuple[list[Candidate], list[EngineRefusalError]]:
    """A candidate per layout and cache type. Stages are added only until the wanted length fits."""
    found: list[Candidate] = []
    refusals: list[EngineRefusalError] = []
    if eager and problem.settings.pins("enforce_eager"):
        return found, refusals
    for kv_dtype in kv_dtypes(problem):
        values: dict[str, Any] = {} if kv_dtype is None else {"kv_cache_dtype": kv_dtype}
        if eager:
            values["enforce_eager"] = True
        cap = _cap(problem, kv_dtype, eager=eager)
        for family in layouts(problem):
            for layout in family:
                try:
                    candidate = best_of_layout(problem, layout, {**layout.values, **values}, cap=cap)
                except EngineRefusalError as refusal:
                    refusals.append(refusal)
                    continue
                found.append(candidate)
                if candidate.holds and candidate.length >= problem.target and layout is not family[-1]:
                    found += _on_all(problem, family[-1], values, cap)
                    break
    return found, refusals


def _cap(problem: Problem, kv_dtype: str | None, *, eager: bool) -> int | None:
    """The longest length for which a change that costs something is made: with more memory the length that is reached
    without it is never shorter."""
    if eager:
        return problem.worth
    chosen = kv_dtype == LOSSY_KV and problem.request.kv in (None, "auto")
    if chosen:
        return problem.wished if problem.request.kv is None else problem.target
    return None


def _on_all(problem: Problem, layout: Layout, values: Mapping[str, Any], cap: int | None) -> list[Candidate]:
    """The layout that takes every GPU, where fewer would do: what leaving some out means is known then."""
    if layout.world_size != len(problem.devices):
        return []
    try:
        return [best_of_layout(problem, layout, {**layout.values, **values}, cap=cap)]
    except EngineRefusalError:
        return []


# -- Layouts ---------------------------------------------------------------------------------------


def layouts(problem: Problem) -> Iterator[list[Layout]]:
    """Families of layouts: what the pins and the model's divisions allow, each by growing pipeline."""
    settings, model, n = problem.settings, problem.model, len(problem.devices)
    if n == 0:
        yield [Layout(values={}, devices=(), world_size=1)]
        return
    nodes = settings.nnodes
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
                        if (replicas or dp > 1) and _spans(tp * pp * dp, tp, nodes):
                            layout = _layout(problem, tp=tp, pp=pp, dp=dp, expert=expert, dcp=dcp)
                            family += [layout, *_uneven(problem, layout, tp=tp, pp=pp, dp=dp)]
                    yield family


def _spans(world_size: int, tp: int, nodes: int) -> bool:
    """Whether each node has an equal part of the ranks, and tensor parallel ones are within a node."""
    return nodes == 1 or (world_size % nodes == 0 and world_size // nodes % tp == 0)


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


def _layout(problem: Problem, *, tp: int, pp: int, dp: int, expert: bool, dcp: int) -> Layout:
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
    world = tp * pp * dp
    devices = problem.devices
    if not problem.settings.pins("device_ids") and world <= len(devices) and problem.settings.nnodes == 1:
        devices = _roomiest(devices, world)
        ids = [(problem.visible or problem.devices).index(device) for device in devices]
        if ids != list(range(world)):
            values["device_ids"] = ",".join(map(str, ids))
    return Layout(values=values, devices=devices, world_size=world)


def _uneven(problem: Problem, layout: Layout, *, tp: int, pp: int, dp: int) -> Iterator[Layout]:
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
    yield dataclasses.replace(layout, env={PARTITION: ",".join(map(str, counts))})


def _roomiest(devices: tuple[Device, ...], n: int) -> tuple[Device, ...]:
    """The devices with the most free memory, in their own order: shards are equal, so the least one
    governs."""
    order = sorted(range(len(devices)), key=lambda at: (-(devices[at].free_bytes or 0), at))
    return tuple(devices[at] for at in sorted(order[:n]))


def kv_dtypes(problem: Problem) -> list[str | None]:
    """Types of the cache to try, the lossless one first. `None` leaves it to vLLM and the checkpoint."""
    if problem.settings.pins("kv_cache_dtype"):
        return [None]
    wish = problem.request.kv
    if wish in (None, "auto"):
        return [None] if problem.request.prefer == "quality" else [None, LOSSY_KV]
    return [{"f16": "float16", "bf16": "bfloat16"}.get(wish or "", wish)]


# -- One layout ------------------------------------------------------------------------------------


def best_of_layout(problem: Problem, layout: Layout, values: Mapping[str, Any], *, cap: int | None = None) -> Candidate:
    """The largest steps and the most sequences with which the target length fits, else the longest length.

    Raises:
        EngineRefusalError
    """
    # with a longer context than is useful, sequences would be longer on average, and fewer at a time
    if problem.request.prefer == "throughput":
        cap = min(cap or problem.target, problem.target)
    return _best(problem, _Base.of(problem, layout, values), min(problem.target, cap or problem.target), cap=cap)


def _best(problem: Problem, base: _Base, target: int, *, cap: int | None = None) -> Candidate:
    """The longest length at the first batch, then the largest batch that keeps it; where the target is not reached, the
    first of the smaller ones that reaches it. `cap` bounds the length."""
    smaller, larger = _batches(problem, base)
    first = base.candidate(*smaller[0], limit=cap)
    if _reaches(first, target):
        for tokens, seqs in larger:
            candidate = base.candidate(tokens, seqs, limit=first.length)
            if candidate.holds and candidate.length >= first.length and candidate.served >= first.served:
                return candidate
        return first
    found = first
    limit = target if cap is None else min(target, cap)
    for tokens, seqs in smaller[1:]:
        if seqs < FEW_SEQUENCES and problem.n_slots is None and found.holds:
            break
        candidate = base.candidate(tokens, seqs, limit=limit)
        if _reaches(candidate, target):
            return candidate
        if _better(candidate, found):
            found = candidate
    return found


def _reaches(candidate: Candidate, target: int) -> bool:
    return candidate.holds and candidate.length >= target and candidate.served >= 1.0


def _better(one: Candidate, other: Candidate) -> bool:
    if one.holds != other.holds:
        return one.holds
    if not one.holds:
        return one.evaluation.shortfall_bytes < other.evaluation.shortfall_bytes
    return (one.length, one.served) > (other.length, other.served)


def _batches(problem: Problem, base: _Base) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Batches from vLLM's smallest default downwards, and those above it from the largest."""
    steps = list(_ladder(problem, base))
    tokens, seqs = max(FIRST_STEP, steps[-1][0]), max(FIRST_SEQUENCES, steps[-1][1])
    larger = [step for step in steps if step[0] > tokens or step[1] > seqs]
    return [step for step in steps if step not in larger], larger


def _ladder(problem: Problem, base: _Base) -> Iterator[tuple[int, int]]:
    """(tokens per step, sequences) from the device's defaults downwards; each step frees memory."""
    settings = problem.settings
    tokens0, seqs0 = batch_defaults(base.config.gpu, world_size=base.config.parallel.world_size)
    if problem.request.prefer == "throughput":
        tokens0, seqs0 = max(tokens0, 8192), max(seqs0, 512)
    wanted = problem.n_slots
    if settings.max_num_seqs is not None:
        all_seqs: Sequence[int] = (settings.max_num_seqs,)
    elif wanted is not None:
        all_seqs = (wanted,)
    else:
        all_seqs = [n for n in SEQUENCES if problem.n_parallel <= n <= seqs0] or [problem.n_parallel]
    if settings.max_num_batched_tokens is not None:
        all_tokens: Sequence[int] = (settings.max_num_batched_tokens,)
    else:
        all_tokens = [n for n in STEP_TOKENS if n <= max(tokens0, 512)]
    goal, _ = problem.lengths
    at_tokens, at_seqs = 0, 0
    while True:
        tokens, seqs = all_tokens[at_tokens], all_seqs[at_seqs]
        if settings.max_num_batched_tokens is None:
            tokens = max(tokens, seqs)
            if base.config.chunked_prefill is False:
                tokens = max(tokens, goal)
        # with fewer sequences than were wished it would be another plan: vLLM's own refusal says why
        yield tokens, seqs if wanted is not None else min(seqs, tokens)
        if at_tokens + 1 < len(all_tokens) and (at_tokens <= at_seqs or at_seqs + 1 == len(all_seqs)):
            at_tokens += 1
        elif at_seqs + 1 < len(all_seqs):
            at_seqs += 1
        else:
            return


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """What does not change while a layout's batch is chosen: weights, the cache's layout, the ranks."""

    problem: Problem
    layout: Layout
    values: Mapping[str, Any]
    settings: VllmSettings
    config: EngineConfig
    ranks: tuple[Rank, ...]
    weights: tuple[StageWeights, ...]
    kv: KvPlan
    offload: Offload | None

    @classmethod
    def of(cls, problem: Problem, layout: Layout, values: Mapping[str, Any]) -> _Base:
        devices = layout.devices
        settings = _with(problem, layout, values, max_model_len=problem.lengths[0])
        gpu = gpu_of(devices)
        config = problem.resolve(settings, gpu)
        used = devices[: layout.world_size]
        oldest = min(used, key=lambda device: device.compute_capability or (0, 0), default=None)
        if oldest is not None and not settings.pins("dtype") and config.dtype not in supported_dtypes(gpu_of([oldest])):
            values = {**values, "dtype": problem.resolve(settings, gpu_of([oldest])).dtype}
            settings = _with(problem, layout, values, max_model_len=problem.lengths[0])
            config = problem.resolve(settings, gpu)
        check_dtype(config.dtype, used)
        weights = problem.weigh(config)
        return cls(
            problem=problem,
            layout=layout,
            values=values,
            settings=settings,
            config=config,
            ranks=ranks_of(devices, config, problem.request.margin),
            weights=weights,
            kv=plan_kv(problem.model, config),
            offload=given_offload(settings, weights),
        )

    def candidate(self, tokens: int, seqs: int, *, limit: int | None = None) -> Candidate:
        """The longest length at this batch, up to a limit, with every setting written out."""
        goal, least = self.problem.lengths
        goal = max(least, min(goal, limit or goal))
        evaluation = self.evaluate(tokens, seqs, goal)
        length = self.longest(evaluation, goal)
        if evaluation.capacity is not None and not self.settings.pins("max_num_seqs"):
            seqs = self._capture_limit(evaluation, seqs)
        if length < max(least, 1):
            length = 0
        shown = length or max(least, min(goal, ENOUGH_TOKENS))
        evaluation = self.evaluate(tokens, seqs, shown, held_back=0.0 if length else HELD_BACK)
        served = min(1.0, sequences_at(evaluation, mean_length(shown, self.problem.request)) / self.problem.n_parallel)
        return Candidate(evaluation=evaluation, values=self._printed(evaluation), length=length, served=served)

    def longest(self, evaluation: Evaluation, goal: int) -> int:
        """Tokens of a full context, the other sequences at their average; of a full context alone where that was
        wished, or nothing useful would be left."""
        request, n = self.problem.request, self.problem.n_parallel
        if self.settings.pins("max_model_len"):
            wanted = evaluation.config.max_model_len
            if evaluation.config.auto_length:
                return evaluation.kv.longest(evaluation.available_bytes, wanted)
            return wanted if _holds(evaluation, wanted, n if request.fill == "full" else 1, wanted) else 0
        together = self._longest(evaluation, goal, n)
        least = max(self.problem.lengths[1], min(goal, ENOUGH_TOKENS))
        if n == 1 or request.fill == "full" or together >= least:
            return together
        return min(least, self._longest(evaluation, goal, 1))

    def _longest(self, evaluation: Evaluation, goal: int, n_sequences: int) -> int:
        def holds(length: int) -> bool:
            return _holds(evaluation, length, n_sequences, mean_length(length, self.problem.request))

        if holds(goal):
            return goal
        low, high, best = 1, goal, 0
        while low <= high:
            middle = (low + high) // 2
            if holds(middle):
                best, low = middle, middle + 1
            else:
                high = middle - 1
        return best // LENGTH_STEP * LENGTH_STEP or best

    def _capture_limit(self, evaluation: Evaluation, seqs: int) -> int:
        """Recurrent models capture full graphs only with a block per sequence."""
        assert evaluation.capacity is not None
        states = any(layer.kind == "state" for layer in evaluation.kv.layout.layers)
        return min(seqs, evaluation.capacity.n_blocks) if states else seqs

    def evaluate(self, tokens: int, seqs: int, length: int, *, held_back: float = HELD_BACK) -> Evaluation:
        settings = _with(
            self.problem,
            self.layout,
            self.values,
            max_model_len=length,
            max_num_batched_tokens=tokens,
            max_num_seqs=seqs,
        )
        config = self.problem.resolve(settings, self.config.gpu)
        kv = dataclasses.replace(self.kv, max_len=config.max_model_len, in_flight_tokens=config.max_in_flight_tokens)
        if not config.prefix_caching and self.problem.model.is_hybrid:
            kv = plan_kv(self.problem.model, config)  # states then span the whole length
        pinned = settings.gpu_memory_utilization if settings.pins("gpu_memory_utilization") else None
        return evaluate(
            settings=settings,
            config=config,
            model=self.problem.model,
            ranks=self.ranks,
            weights=self.weights,
            kv=kv,
            vision=self.problem.vision,
            utilization=pinned,
            offload=self.offload,
            held_back_fraction=held_back,
        )

    def _printed(self, evaluation: Evaluation) -> dict[str, Any]:
        """Settings in the order of the command line: layout, length, batch, memory, type."""
        config = evaluation.config
        values = dict(self.values)
        values.pop("dtype", None)
        kv_dtype = values.pop("kv_cache_dtype", None)
        eager = values.pop("enforce_eager", None)
        values["max_model_len"] = evaluation.capacity.max_model_len if evaluation.capacity else config.max_model_len
        values["max_num_seqs"] = config.max_num_seqs
        values["max_num_batched_tokens"] = config.max_num_batched_tokens
        if not config.gpu.cpu:
            values["gpu_memory_utilization"] = evaluation.utilization
        values["dtype"] = config.dtype
        if kv_dtype is not None:
            values["kv_cache_dtype"] = kv_dtype
        if eager:
            values["enforce_eager"] = True
        if self.offload is not None:
            values.update(self.offload.values)
        return values


def _with(problem: Problem, layout: Layout, values: Mapping[str, Any], **more: Any) -> VllmSettings:
    given = {name: value for name, value in {**values, **more}.items() if name != "device_ids"}
    settings = replace_settings(problem.settings, given)
    return dataclasses.replace(settings, env={**settings.env, **layout.env}) if layout.env else settings


def _holds(evaluation: Evaluation, length: int, n_sequences: int, mean_tokens: int) -> bool:
    """Whether one sequence of this length and the others at the average have blocks, beside the null block, on every
    stage."""
    kv = evaluation.kv
    needed = blocks_for(kv, length, n_sequences, mean_tokens)
    have = [
        available // per_block
        for available, per_block in zip(evaluation.available_bytes, kv.bytes_per_block, strict=True)
        if per_block
    ]
    if evaluation.config.num_gpu_blocks_override is not None:
        have = [evaluation.config.num_gpu_blocks_override]
    return not have or needed <= min(have)


# -- RAM -------------------------------------------------------------------------------------------


def _offloaded(problem: Problem, found: Sequence[Candidate]) -> list[Candidate]:
    """Candidates that keep experts, or layers, in RAM: the least with which a moderate load fits."""
    if any(problem.settings.pins(name) for name in ("cpu_offload_gb", "offload_group_size")):
        return []
    if any(device.pool == HOST_POOL for device in problem.devices):
        return []  # what leaves such a GPU stays in the memory that it uses
    available = problem.machine.host.available_bytes or 0
    params = ("experts",) if problem.model.is_moe else ()
    result = []
    for candidate in found:
        if candidate.values.get("enforce_eager"):
            continue
        base = _base_of(problem, candidate)
        for moved in _ways(problem, base, problem.worth, params):
            pinned = moved.host_bytes * candidate.parallel.tp * candidate.parallel.dp
            if not available or pinned + candidate.evaluation.host_bytes <= available:
                moved_base = dataclasses.replace(base, offload=moved)
                result.append(_best(problem, moved_base, problem.worth, cap=problem.worth))
    return result


def _ways(problem: Problem, base: _Base, length: int, params: tuple[str, ...]) -> Iterator[Offload]:
    """The least of each kind of offload with which a moderate load of this length fits."""
    sequences = max(OFFLOAD_SEQUENCES, problem.n_parallel)
    wanted = base.evaluate(max(OFFLOAD_STEP_TOKENS, sequences), sequences, length)
    mean = mean_length(length, problem.request)
    needed = blocks_for(wanted.kv, length, problem.n_parallel, mean)
    lacking = tuple(
        needed * per_block - have
        for per_block, have in zip(wanted.kv.bytes_per_block, wanted.available_bytes, strict=True)
    )
    if not offloadable(base.weights, params):
        return
    for way in (smallest_offload, smallest_prefetch):
        found = way(base.weights, lacking, params)
        if found is not None:
            yield found


_LAYOUT_VALUES = frozenset(
    {
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "data_parallel_size",
        "enable_expert_parallel",
        "decode_context_parallel_size",
        "device_ids",
    }
)


# -- Which is best ---------------------------------------------------------------------------------


def _timed(candidate: Candidate, problem: Problem) -> Candidate:
    """With the speed of one sequence alone, of as many as are served at a time, and whether that is fast enough."""
    if not candidate.holds:
        return candidate
    request = problem.request
    one = speed_of(candidate.evaluation, problem.roofline)
    mean = mean_length(candidate.length, request)
    load = load_of(candidate.evaluation, problem.roofline, mean, min_tps=request.min_tps)
    return dataclasses.replace(candidate, speed=one, load=load, late=_late(candidate, problem, one, load))


def _late(candidate: Candidate, problem: Problem, one: Speed | None, load: Load) -> str | None:
    """Which wish for speed is not met, and by how much."""
    request = problem.request
    together = min(problem.n_parallel, sequences_at(candidate.evaluation, load.mean_tokens))
    if request.min_tps is not None and one is not None:
        rate = one.decode_tokens_per_s
        if together > 1:
            many = speed_of(candidate.evaluation, problem.roofline, n_sequences=together, n_filled=load.mean_tokens)
            rate = many.decode_tokens_per_s if many else rate
        if rate < request.min_tps:
            each = f" each with {together} sequences" if together > 1 else ""
            return f"--min-tps {request.min_tps:g} is not reached: ~{rate:.3g} tokens/s{each}"
    if request.max_ttft is not None and one is not None and one.prefill_tokens_per_s:
        seconds = candidate.length / one.prefill_tokens_per_s
        if seconds > request.max_ttft:
            prompt = f"a prompt of {candidate.length} tokens"
            return f"--max-ttft {request.max_ttft:g} is not reached: ~{seconds:.3g} s until the first token of {prompt}"
    return None


def _score(candidate: Candidate, problem: Problem) -> tuple[float, ...]:
    """Larger is better. A plan that fits beats all that do not; a useful length comes before speed. What is compared
    never depends on the other candidates, so that more memory never makes the choice worse."""
    if not candidate.fits:
        lacking = 0.0 if candidate.holds else -float(candidate.evaluation.shortfall_bytes)
        return (0.0, float(candidate.holds), lacking, _rate(candidate))
    lossless = (
        0.0 if candidate.values.get("kv_cache_dtype") == LOSSY_KV and problem.request.kv in (None, "auto") else 1.0
    )
    eager = 0.0 if candidate.values.get("enforce_eager") else 1.0
    parallel = candidate.parallel
    stages = -float(parallel.pp)  # stages wait for each other: they add room, not speed
    # heads that are padded are computed and thrown away; the fewer ranks a replica has, the fewer copies of the cache
    whole = -float(problem.pads_heads(parallel.tp)) - (parallel.tp - 1 if parallel.dp > 1 else 0) / 1000
    fewer = -float(len(candidate.evaluation.ranks))
    length, useful = float(candidate.length), float(min(candidate.length, problem.target))
    prefer = problem.request.prefer
    # without a word on the cache's type, 8 bits are taken only where nothing else holds what was wished
    moved = candidate.evaluation.offload
    on_gpus = -float(sum(moved.moved)) if moved else 0.0
    wished = float(min(candidate.length, problem.wished))
    kept = (wished, candidate.served, on_gpus, lossless) if problem.request.kv is None else (wished, on_gpus)
    rate = _rate(candidate)
    if prefer == "context":
        return (1.0, *kept, length, candidate.served, lossless, eager, whole, stages, rate, fewer)
    if prefer == "throughput":
        return (1.0, *kept, useful, candidate.served, eager, candidate.total_speed, lossless, length, fewer)
    if prefer == "quality":
        return (1.0, lossless, useful, candidate.served, eager, whole, stages, rate, length, fewer)
    return (1.0, *kept, useful, candidate.served, eager, lossless, whole, stages, rate, length, fewer)


def _rate(candidate: Candidate) -> float:
    return candidate.speed.decode_tokens_per_s if candidate.speed else 0.0


# -- What it would take ----------------------------------------------------------------------------


def longest_plan(problem: Problem) -> Candidate | None:
    """The best plan of whatever length fits, with all weights on GPUs."""
    request = dataclasses.replace(problem.request, context=0, min_context=None, min_tps=None, max_ttft=None)
    free = dataclasses.replace(problem, request=request)
    if problem.settings.pins("max_model_len"):
        return None
    found = [_timed(candidate, free) for candidate in _search(free, eager=False)[0]]
    fitting = [candidate for candidate in found if candidate.fits and candidate.length >= ENOUGH_TOKENS]
    return max(fitting, key=lambda candidate: (candidate.length, _rate(candidate)), default=None)


def gpus_needed(problem: Problem, length: int, limit: int = 64) -> Parallel | None:
    """How many GPUs like the first would hold the sequences that are wished, of this length, and how they would
    share the model: tensor parallel within a node like this one, stages across nodes."""
    sequences = max(OFFLOAD_SEQUENCES, problem.n_parallel)
    if not problem.devices:
        return None
    device, per_node = problem.devices[0], len(problem.devices)
    heads = possible_tp(problem.model)
    least = _weights_bytes(problem) // max(1, device.total_bytes or 1)
    n_nodes = max(1, -(-least // per_node))
    while n_nodes * per_node <= limit:
        world = n_nodes * per_node
        n_nodes += max(1, n_nodes // 8)
        for tp in sorted((tp for tp in heads if world % tp == 0 and tp <= max(8, per_node)), reverse=True):
            pp = world // tp
            if pp > max(1, problem.model.n_layers) or (pp > 1 and not problem.model.supports_pipeline):
                continue
            many = dataclasses.replace(problem, devices=(device,) * world, settings=_unpinned(problem.settings))
            values = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}
            layout = Layout(values=values, devices=many.devices, world_size=world)
            try:
                base = _Base.of(many, layout, values)
                tokens = max(OFFLOAD_STEP_TOKENS, sequences, problem.settings.max_num_seqs or 0)
                candidate = base.candidate(tokens, sequences)
                if candidate.fits and candidate.length >= min(length, problem.lengths[0]):
                    return base.config.parallel
            except EngineRefusalError:
                continue
    return None


def _weights_bytes(problem: Problem) -> int:
    """Weights on one GPU, however large: no layout has less in all."""
    plain = _unpinned(problem.settings)
    try:
        (stage,) = problem.weigh(problem.resolve(plain, gpu_of(problem.devices[:1])))
    except EngineRefusalError:
        return 0
    return stage.parameter_bytes


def _unpinned(settings: VllmSettings) -> VllmSettings:
    given = {name: value for name, value in settings.given.items() if name not in _LAYOUT_VALUES}
    return dataclasses.replace(
        settings,
        given=given,
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        data_parallel_size=1,
        enable_expert_parallel=False,
        decode_context_parallel_size=1,
    )


def offloadable_bytes(candidate: Candidate) -> int:
    """Weights that RAM could take, on all ranks."""
    evaluation = candidate.evaluation
    params = ("experts",) if evaluation.model.is_moe else ()
    if not offloadable(evaluation.weights, params):
        return 0
    return sum(movable_bytes(evaluation.weights[rank.stage], params) for rank in evaluation.ranks)


__all__ = ["AUTO_LENGTH", "Candidate", "Problem", "gpus_needed", "layouts", "solve"]
