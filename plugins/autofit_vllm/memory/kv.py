"""The KV cache as vLLM plans it: groups of layers, bytes per block, blocks, and how long a request may be.

The functions follow v1/core/kv_cache_planning.py, for layouts that keep layers apart and for those that pack the
layers of a block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from autofit.domain.units import GIB
from autofit.domain.values import dataclass, replace
from autofit.errors import EngineRefusalError, UsageError

from autofit_vllm.config.engine import EngineConfig
from autofit_vllm.engine.versions import DEFAULT, Change, Engine
from autofit_vllm.memory.kv_layers import KvLayout, lay_out
from autofit_vllm.memory.kv_pages import Kind, LayerCache, stage_of, uniform
from autofit_vllm.modules.model import VllmModel
from autofit_vllm.modules.sharding import round_up

NULL_BLOCK = Change(
    since="0.29.0",
    source="v1/core/kv_cache_planning.py:_check_enough_kv_cache_memory",
    before="0.28.0, v1/core/kv_cache_utils.py: a request may need every block",
)
CHECKED_BY_BLOCKS = Change(
    since="0.14.0",
    source="v1/core/kv_cache_planning.py:_max_memory_usage_bytes_from_groups",
    before="0.13.0: check_enough_kv_cache_memory adds layer by layer, before layers are grouped, padded or promoted",
)
PACKED_BLOCKS = Change(
    since="0.24.0",
    source="v1/core/kv_cache_planning.py:_get_kv_cache_bytes_per_block",
    before="0.23.0: _get_kv_cache_config_deepseek_v4 reserves as many layers of each page size as any group has of one",
)
CHECKED_OVERRIDE = Change(
    since="0.20.1",
    source="v1/core/kv_cache_planning.py:get_kv_cache_configs",
    before="0.20.0: may_override_num_blocks comes after the check, which is of the memory there is",
)
CONCURRENT_TOKENS = Change(
    since="0.20.1",
    source="v1/core/kv_cache_utils.py:get_kv_cache_capacity",
    before="0.20.0: _report_kv_cache_config divides blocks by groups, and counts the smallest block size",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Layers that share a block table. `layers` may hold pages of different sizes only if it is the only
    group, or if blocks are packed."""

    layers: tuple[LayerCache, ...]
    kinds: tuple[LayerCache, ...]  #: one layer of each type

    @classmethod
    def of(cls, layers: Sequence[LayerCache]) -> Group:
        return cls(layers=tuple(layers), kinds=tuple({layer.type: layer for layer in layers}.values()))

    @property
    def first(self) -> LayerCache:
        return self.layers[0]

    def pages(self, max_len: int, *, in_flight_tokens: int, dcp: int) -> int:
        return max(layer.pages(max_len, in_flight_tokens=in_flight_tokens, dcp=dcp) for layer in self.kinds)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvPlan:
    """The cache of one model under one configuration; nothing here depends on how much memory there is."""

    layout: KvLayout
    groups: tuple[Group, ...]
    bytes_per_block: tuple[int, ...]  #: per pipeline stage
    max_len: int  #: the length that was asked for, or derived
    in_flight_tokens: int
    dcp: int
    bounds: tuple[int, ...]  #: the stages' first layers, and the end
    engine: Engine = DEFAULT

    @property
    def n_null_blocks(self) -> int:
        """Blocks that no request may count on."""
        return 1 if self.engine.has(NULL_BLOCK) else 0

    def blocks_per_request(self, max_len: int) -> int:
        """Blocks that one request of `max_len` tokens takes, over all groups."""
        return sum(g.pages(max_len, in_flight_tokens=self.in_flight_tokens, dcp=self.dcp) for g in self.groups)

    def request_bytes(self, max_len: int, stage: int = 0) -> int:
        return self.blocks_per_request(max_len) * self.bytes_per_block[stage]

    def moved_bytes(self, n_tokens: int, stage: int = 0) -> int:
        """What another instance reads of one rank's cache for a prompt: pages of the layers, not blocks of the pool."""
        here = (layer for layer in self.layout.layers if stage_of(layer, self.bounds) == stage)
        return sum(layer.moved_pages(n_tokens, dcp=self.dcp) * layer.own_bytes for layer in here)

    def checked_bytes(self, max_len: int, stage: int = 0) -> int:
        """What a request of `max_len` must find free for the engine to start."""
        if self.engine.has(CHECKED_BY_BLOCKS):
            return self.request_bytes(max_len, stage)
        here = [layer for layer in self.layout.layers if stage_of(layer, self.bounds) == stage]
        pages = (layer.pages(max_len, in_flight_tokens=self.in_flight_tokens, dcp=self.dcp) for layer in here)
        return sum(n * layer.page_bytes for n, layer in zip(pages, here, strict=True))

    def needed_bytes(self, max_len: int, stage: int = 0) -> int:
        """Memory of a stage with which a request of `max_len` starts: its blocks, and the null block."""
        return (self.blocks_per_request(max_len) + self.n_null_blocks) * self.bytes_per_block[stage]

    def longest(self, available_bytes: Sequence[int], limit: int | None = None) -> int:
        """The longest request that fits every stage, 0 if none: the same search as vLLM's
        (_estimate_max_model_len_from_groups)."""
        limit = self.max_len if limit is None else limit
        usable = [
            have // per_block
            for have, per_block in zip(available_bytes, self.bytes_per_block, strict=True)
            if per_block
        ]
        if not usable:
            return limit
        most = min(usable) - self.n_null_blocks
        low, high, best = 1, limit, 0
        while low <= high:
            middle = (low + high) // 2
            if self._fits(middle, most, available_bytes):
                best, low = middle, middle + 1
            else:
                high = middle - 1
        return best

    def _fits(self, max_len: int, n_blocks: int, available_bytes: Sequence[int]) -> bool:
        if self.engine.has(CHECKED_BY_BLOCKS):
            return self.blocks_per_request(max_len) <= n_blocks
        return all(self.checked_bytes(max_len, stage) <= have for stage, have in enumerate(available_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCapacity:
    """What a given memory holds, in the figures that vLLM logs."""

    n_blocks: int
    max_model_len: int
    n_tokens: int
    max_concurrency: float


def plan_kv(model: VllmModel, config: EngineConfig) -> KvPlan:
    """Lay out, group and size the cache.

    Raises:
        EngineRefusalError: vLLM cannot lay this cache out.
    """
    layout = lay_out(model, config)
    groups = group_layers(layout.layers, hybrid_manager=config.hybrid_manager, packed=layout.packed)
    bounds = stage_bounds(model.n_layers, config.parallel.pp, config.parallel.layer_partition)
    return KvPlan(
        layout=layout,
        groups=groups,
        bytes_per_block=tuple(
            _stage_block_bytes(groups, stage, bounds, packed=layout.packed, dense=config.engine.has(PACKED_BLOCKS))
            for stage in range(config.parallel.pp)
        ),
        max_len=config.max_model_len,
        in_flight_tokens=config.max_in_flight_tokens,
        dcp=config.parallel.dcp,
        bounds=bounds,
        engine=config.engine,
    )


def fit(plan: KvPlan, config: EngineConfig, available_bytes: Sequence[int]) -> KvCapacity:
    """Blocks, length and concurrency for `available_bytes` per pipeline stage (get_kv_cache_configs).

    Raises:
        EngineRefusalError: not even one request of the wanted length fits.
    """
    if not plan.groups:
        return KvCapacity(n_blocks=1, max_model_len=plan.max_len, n_tokens=0, max_concurrency=0.0)
    override = config.num_gpu_blocks_override
    if override is not None and plan.engine.has(CHECKED_OVERRIDE):
        available_bytes = [override * per_block for per_block in plan.bytes_per_block]
    max_len = plan.max_len
    if config.auto_length:
        max_len = plan.longest(available_bytes)
        if max_len <= 0:
            raise EngineRefusalError(
                "Cannot auto-fit max_model_len: not enough GPU memory available to serve even a single token.",
                hint="give the cache more memory: a higher --gpu-memory-utilization, or more GPUs",
            )
    for stage, have in enumerate(available_bytes):
        _check_enough(plan, stage, have - plan.n_null_blocks * plan.bytes_per_block[stage], max_len)
    if not any(plan.bytes_per_block):
        raise EngineRefusalError("the layers of this configuration have a cache of 0 bytes")
    n_blocks = min(
        have // per_block for have, per_block in zip(available_bytes, plan.bytes_per_block, strict=True) if per_block
    )
    return capacity(plan, n_blocks if override is None else override, max_len)


def capacity(plan: KvPlan, n_blocks: int, max_len: int) -> KvCapacity:
    """The figures of the log (kv_cache_utils.py:get_kv_cache_capacity)."""
    concurrency = n_blocks / plan.blocks_per_request(max_len)
    return KvCapacity(
        n_blocks=n_blocks,
        max_model_len=max_len,
        n_tokens=_logged_tokens(plan, n_blocks, concurrency, max_len),
        max_concurrency=concurrency,
    )


def _logged_tokens(plan: KvPlan, n_blocks: int, concurrency: float, max_len: int) -> int:
    """`GPU KV cache size` of the log."""
    if plan.engine.has(CONCURRENT_TOKENS):
        return int(concurrency * max_len)
    smallest = min(layer.block_tokens for group in plan.groups for layer in group.kinds)
    return n_blocks // len(plan.groups) * smallest * plan.dcp


def _check_enough(plan: KvPlan, stage: int, usable_bytes: int, max_len: int) -> None:
    """One request of the full length must fit beside the null block (_check_enough_kv_cache_memory)."""
    if not plan.bytes_per_block[stage]:
        return
    if usable_bytes <= 0:
        raise EngineRefusalError(
            "No available memory for the cache blocks.",
            hint="increase --gpu-memory-utilization, or use more GPUs",
        )
    needed = plan.checked_bytes(max_len, stage)
    if needed <= usable_bytes:
        return
    null = plan.n_null_blocks
    have = [
        usable_bytes + null * per_block if at == stage else 1 << 62 for at, per_block in enumerate(plan.bytes_per_block)
    ]
    estimate = plan.longest(have, max_len)
    advice = f" Based on the available memory, the estimated maximum model length is {estimate}." if estimate else ""
    raise EngineRefusalError(
        f"To serve at least one request with the model's max seq len ({max_len}), ({_gib(needed)} GiB "
        "KV cache is needed, "
        f"which is larger than the available KV cache memory ({_gib(usable_bytes)} GiB).{advice}",
        hint=f"use --max-model-len {estimate}, or auto"
        if estimate
        else "increase --gpu-memory-utilization, or use more GPUs",
    )


def _gib(n_bytes: int) -> str:
    return f"{round(n_bytes / GIB, 2)}"


# -- Groups ----------------------------------------------------------------------------------------


def group_layers(
    layers: Sequence[LayerCache], *, hybrid_manager: bool = True, packed: bool = False
) -> tuple[Group, ...]:
    """Layers by block table (kv_cache_planning.py:get_kv_cache_groups).

    Raises:
        EngineRefusalError: pages that cannot be made equal.
    """
    if not layers:
        return ()
    if not hybrid_manager:
        layers = promote(layers)
    if len({layer.type for layer in layers}) == 1 or uniform(layers):
        return (Group.of(layers),)
    if packed and len({layer.page_bytes for layer in layers}) > 1:
        return tuple(Group.of(part) for part in _pack(layers))
    try:
        equal = equal_pages(layers)
    except EngineRefusalError:
        promoted = _promoted_latent(layers)
        if promoted is None:
            raise
        return (Group.of(promoted),)
    return tuple(Group.of(part) for part in _split(equal))


def promote(layers: Sequence[LayerCache]) -> list[LayerCache]:
    """Without the hybrid manager, layers with a window keep everything (_promote_local_kv_cache_specs).

    Raises:
        EngineRefusalError: recurrent layers among them, which cannot.
    """
    layers = list(layers)
    if len({layer.type for layer in layers}) == 1 or uniform(layers):
        return layers
    full = [layer for layer in layers if layer.kind in ("full", "latent")]
    sizes = {layer.block_tokens for layer in full}
    block = sizes.pop() if len(sizes) == 1 else None
    if full:
        layers = [_promoted(layer, block) for layer in layers]
    if len({layer.type for layer in layers}) > 1 and not uniform(layers):
        raise EngineRefusalError(
            "Failed to promote local KV cache specs to one unified type.",
            hint="leave out --disable-hybrid-kv-cache-manager: this model needs it",
        )
    return layers


def _promoted(layer: LayerCache, block: int | None) -> LayerCache:
    if layer.kind not in ("sliding", "chunked", "sliding latent"):
        return layer
    tokens = block or layer.block_tokens
    padded = None if layer.padded_bytes is None else max(layer.padded_bytes, layer.token_bytes * tokens)
    kind: Kind = "latent" if layer.kind == "sliding latent" else "full"
    return replace(layer, kind=kind, block_tokens=tokens, window_tokens=None, extra_tokens=0, padded_bytes=padded)


def _promoted_latent(layers: Sequence[LayerCache]) -> list[LayerCache] | None:
    """Latent attention beside a sliding window of another page: all full
    (_try_get_full_allocation_fallback_groups)."""
    kinds = {layer.kind for layer in layers}
    if not {"latent", "sliding"} <= kinds or kinds & {"sliding latent", "chunked"}:
        return None
    try:
        promoted = promote(layers)
    except EngineRefusalError:
        return None
    return promoted if uniform(promoted) else None


def equal_pages(layers: Sequence[LayerCache]) -> list[LayerCache]:
    """Every page as large as the largest: by larger blocks where they divide, else by padding
    (unify_kv_cache_spec_page_size).

    Raises:
        EngineRefusalError: latent attention whose page does not divide the largest.
    """
    largest = max(layer.page_bytes for layer in layers)
    result = []
    for layer in layers:
        if layer.page_bytes == largest:
            result.append(layer)
        elif layer.kind == "state":
            result.append(replace(layer, padded_bytes=largest))
        elif largest % layer.page_bytes == 0:
            grown = replace(layer, block_tokens=layer.block_tokens * (largest // layer.page_bytes))
            result.append(grown if grown.page_bytes == largest else replace(layer, padded_bytes=largest))
        elif layer.kind in ("latent", "sliding latent"):
            raise EngineRefusalError(
                f"Layer {layer.name}: page size is not divisible by the maximum page size and cannot be padded."
            )
        else:
            result.append(replace(layer, padded_bytes=largest))
    return result


def _split(layers: Sequence[LayerCache]) -> list[tuple[LayerCache, ...]]:
    """Groups of equally many layers of one type (_get_kv_cache_groups_uniform_page_size)."""
    buckets: dict[tuple[object, ...], list[LayerCache]] = {}
    for layer in layers:
        buckets.setdefault(layer.type, []).append(layer)
    fewest = min(map(len, buckets.values()))
    most = max(map(len, buckets.values()))
    size = most if most < 1.5 * fewest else fewest
    groups = []
    for bucket in buckets.values():
        n_groups = -(-len(bucket) // size)
        groups += [tuple(bucket[at::n_groups]) for at in range(n_groups)]
    return groups


def _pack(layers: Sequence[LayerCache]) -> list[list[LayerCache]]:
    """Groups of layers of one kind whose pages may differ (_get_packed_kv_cache_groups).

    A kind with equally many layers of each page size repeats a pattern; such kinds are cut so that their groups hold
    about as many repeats. States are cut until their groups fit the block that the others need.
    """
    kinds: list[list[LayerCache]] = []
    for layer in layers:
        kind = next((kind for kind in kinds if uniform((kind[0], layer))), None)
        if kind is None:
            kinds.append([layer])
        else:
            kind.append(layer)
    pages = [_by_page(kind) for kind in kinds]
    repeats = [max(map(len, by_page.values())) for by_page in pages]
    balanced = [len(set(map(len, by_page.values()))) == 1 for by_page in pages]
    mixed = [n for n, even, by_page in zip(repeats, balanced, pages, strict=True) if even and len(by_page) > 1]
    per_group = None
    if mixed:
        per_group = _least_waste([n for n, even in zip(repeats, balanced, strict=True) if even], max(mixed))
    counts = [-(-n // per_group) if even and per_group else 1 for n, even in zip(repeats, balanced, strict=True)]
    states = [_is_state(kind[0], whole=per_group is None) for kind in kinds]
    block = max(
        sum(-(-len(found) // cut) * page for page, found in by_page.items())
        for by_page, cut in zip(
            pages,
            (len(kind) if state else n for kind, state, n in zip(kinds, states, counts, strict=True)),
            strict=True,
        )
    )
    groups: list[list[LayerCache]] = []
    for kind, by_page, n, state in zip(kinds, pages, counts, states, strict=True):
        if state:
            n = max(n, -(-len(kind) // max(1, block // kind[0].page_bytes)))
        if n == 1:
            groups.append(kind)
            continue
        pattern = list(zip(*by_page.values(), strict=False))
        groups += [[layer for repeat in pattern[at::n] for layer in repeat] for at in range(n)]
    return groups


def _by_page(layers: Sequence[LayerCache]) -> dict[int, list[LayerCache]]:
    found: dict[int, list[LayerCache]] = {}
    for layer in layers:
        found.setdefault(layer.page_bytes, []).append(layer)
    return found


def _is_state(layer: LayerCache, *, whole: bool) -> bool:
    """Whether a kind may be cut down to one layer a group."""
    return layer.kind in ("state", "ring") or (whole and layer.kind in ("sliding", "sliding latent"))


def _least_waste(counts: Sequence[int], least: int) -> int:
    """The size whose multiples all counts are closest below; of equals the largest (_approximate_gcd)."""
    sizes = range(least, max(counts) + 1)
    return min(sizes, key=lambda size: (sum(-count % size for count in counts), -size))


def stage_bounds(n_layers: int, pp: int, partition: Sequence[int] | None = None) -> tuple[int, ...]:
    """First layer of each pipeline stage, and the end (distributed/utils.py:get_pp_indices)."""
    sizes = list(partition) if partition else [n_layers // pp] * pp
    if not partition:
        for back in range(2, n_layers % pp + 2):
            sizes[-back] += 1
    bounds = [0]
    for size in sizes:
        bounds.append(bounds[-1] + size)
    return tuple(bounds)


def _stage_block_bytes(
    groups: Sequence[Group], stage: int, bounds: Sequence[int], *, packed: bool, dense: bool = True
) -> int:
    """Bytes that one block takes on a stage (_get_kv_cache_bytes_per_block); `dense`: its layers leave no gaps."""
    if packed:
        here = [[layer for layer in group.layers if stage_of(layer, bounds) == stage] for group in groups]
        if not dense and len(groups) > 1:
            whole = next((layers for layers in here if layers and layers[0].kind == "latent"), here[0])
            most = max(max((len(found) for found in _by_page(layers).values()), default=0) for layers in here)
            return most * sum(_by_page(whole))
        unit = math.lcm(*(layer.stride_unit for layers in here for layer in layers))
        return round_up(max(sum(layer.page_bytes for layer in layers) for layers in here), unit)
    return max(
        (sum(layer.stride_bytes for layer in group.layers if stage_of(layer, bounds) == stage) for group in groups),
        default=0,
    )


def stated_kv_bytes(stated: Any) -> int | tuple[int, ...] | None:
    """`available_kv_bytes`: one figure, or one per pipeline stage.

    Raises:
        UsageError
    """
    each = tuple(stated) if isinstance(stated, (list, tuple)) else (stated,)
    if stated is None:
        return None
    if not each or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in each):
        raise UsageError(
            f"available_kv_bytes is bytes, or a list of them with one per pipeline stage, not {stated!r:.60}"
        )
    return each if isinstance(stated, (list, tuple)) else each[0]
