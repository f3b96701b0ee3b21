"""The caches of a llama.cpp context, and what each layer's share of them takes.

src/llama-kv-cache*.cpp and src/llama-memory-*.cpp lay them out. A cache is one tensor, or a pair, per layer; each
tensor is on the device of its layer, or on the host without KV offload. Which of them an architecture has is in its
record: one of the `Memory` values at the end, or one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from autofit.domain.values import NamedTuple, dataclass, replace

from autofit_llama.engine.versions import Change
from autofit_llama.model.aborts import aborts
from autofit_llama.model.context import Context, cache_row_bytes
from autofit_llama.model.hparams import HParams

Filter = Callable[[int], bool]


class CacheTensor(NamedTuple):
    """One tensor of a cache: `n_rows` rows of `n_elements` of a type, for layer `il`."""

    cache: str  #: base, swa, idx, csa, hca, lid, recurrent, state
    side: str  #: k, v, r, s, ple, kv, score
    il: int
    type: str
    n_elements: int
    n_rows: int

    @property
    def n_bytes(self) -> int:
        return cache_row_bytes(self.type, self.n_elements) * self.n_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """One cache of a context: `n_cells` cells in each of `n_streams` streams, for some layers."""

    name: str
    n_cells: int
    n_streams: int
    tensors: tuple[CacheTensor, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(tensor.il for tensor in self.tensors))


def cache_bytes(
    tensors: Iterable[CacheTensor], home: Callable[[int], int], size: Callable[[CacheTensor, int], int]
) -> dict[int, int]:
    """Bytes per home: `home` gives a layer's place, `size` what a tensor takes there."""
    total: dict[int, int] = {}
    for tensor in tensors:
        at = home(tensor.il)
        total[at] = total.get(at, 0) + size(tensor, at)
    return total


def attention(hp: HParams, ctx: Context, wanted: Filter) -> tuple[Cache, ...]:
    """One cache, or with sliding layers two (src/llama-kv-cache.cpp, src/llama-kv-cache-iswa.cpp)."""
    if hp.swa_type == "none":
        return (kv(hp, ctx, "base", wanted, ctx.n_ctx_seq, ctx.n_streams),)
    return sliding(hp, ctx, wanted, ctx.n_streams, unified=ctx.kv_unified)


def sliding(
    hp: HParams, ctx: Context, wanted: Filter, n_streams: int, *, unified: bool, k_only: bool | None = None
) -> tuple[Cache, ...]:
    n_window = ctx.window_cells(hp.n_swa, unified=unified)
    full = kv(hp, ctx, "base", lambda il: wanted(il) and not hp.is_swa[il], ctx.n_ctx_seq, n_streams, k_only=k_only)
    window = kv(hp, ctx, "swa", lambda il: wanted(il) and hp.is_swa[il], n_window, n_streams, k_only=k_only)
    return full, window


KEYS_ALONE = Change(
    without=7698,
    has=8095,
    source="src/llama-kv-cache.cpp, a V cache of every model, and none with MLA",
    name="latent attention without a V cache",
    larger=False,
)


def kv(
    hp: HParams,
    ctx: Context,
    name: str,
    wanted: Filter,
    n_cells: int,
    n_streams: int,
    *,
    key: Callable[[int], int] | None = None,
    value: Callable[[int], int] | None = None,
    k_only: bool | None = None,
) -> Cache:
    """src/llama-kv-cache.cpp: a K tensor per layer, and a V tensor unless the model is MLA.

    `key` and `value` give the row lengths where a cache works with changed hyperparameters.
    """
    key, value = key or hp.n_embd_k_gqa, value or hp.n_embd_v_gqa
    k_only = hp.is_mla and ctx.version.follows(KEYS_ALONE) if k_only is None else k_only
    widest = max(map(value, range(hp.n_layer_all))) if ctx.v_transposed and not k_only else 0
    n_rows = n_cells * n_streams
    tensors = []
    for il in range(hp.n_layer_all):
        if hp.has_kv(il) and wanted(il):
            tensors.append(CacheTensor(name, "k", il, ctx.type_k, key(il), n_rows))
            if not k_only:
                tensors.append(CacheTensor(name, "v", il, ctx.type_v, widest or value(il), n_rows))
    return Cache(name=name, n_cells=n_cells, n_streams=n_streams, tensors=tuple(tensors))


def indexer(hp: HParams, ctx: Context, wanted: Filter, *, k_only: bool | None = None, n_keys: int = 1) -> Cache:
    """The indexer's keys: one head per layer; V only where the model's own cache has one."""
    n_key = hp.indexer_head_size * n_keys
    return kv(
        hp,
        ctx,
        "idx",
        wanted,
        ctx.n_ctx_seq,
        ctx.n_streams,
        key=lambda il: hp.n_embd_head_k_swa if hp.is_swa[il] else n_key,
        value=hp.n_embd_head_v,
        k_only=k_only,
    )


def recurrent(hp: HParams, ctx: Context, layers: Sequence[int] | range) -> Cache:
    """src/llama-memory-recurrent.cpp: convolution and state rows, one per sequence and rollback step."""
    n_rows = ctx.n_seq_max * (1 + ctx.n_rs_seq)
    tensors = []
    for il in layers:
        tensors.append(CacheTensor("recurrent", "r", il, "f32", hp.n_embd_r, n_rows))
        tensors.append(CacheTensor("recurrent", "s", il, "f32", hp.n_embd_s, n_rows))
        if hp.ple_conv_state and hp.is_ple[il]:
            tensors.append(CacheTensor("recurrent", "ple", il, "f32", hp.ple_conv_state, n_rows))
    return Cache(name="recurrent", n_cells=n_rows, n_streams=1, tensors=tuple(tensors))


LayerFilter = Callable[[HParams, int], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What llama_model::create_memory makes for an architecture (src/llama-model.cpp).

    `caches` lists every cache of a context, empty ones too: an empty one still costs a mask in the graph.
    `rolls_back`: llm_arch_supports_rs_rollback; without it there is one row of recurrent state per sequence.
    `is_recurrent`: llm_arch_is_recurrent, no layer attends.
    """

    caches: Callable[[HParams, Context], tuple[Cache, ...]]
    rolls_back: bool = False
    is_recurrent: bool = False
    is_hybrid: bool = False


NEXTN_APART = Change(
    without=10901,
    has=10909,
    source="src/llama-model.cpp:create_memory, filters for the architectures that it names, and for all",
    name="no caches for blocks that predict further",
    larger=False,
)
NEXTN_WITH_ALL = Change(
    without=9518,
    has=9528,
    source="src/models/glm4-moe.cpp, glm4.cpp, glm-dsa.cpp, bailingmoe2.cpp, mimo2.cpp: n_layer_kv_from_start, or none",
    name="caches for blocks that predict further",
)


def trunk_or_draft(hp: HParams, ctx: Context, *, until: Change | None = None, since: Change | None = None) -> Filter:
    """The trunk in the main context, the nextn blocks in the draft's; all where there is but one kind.

    Before `NEXTN_APART` only some architectures did without caches for nextn blocks: `until` one change, `since`
    another.
    """
    n_layer = hp.n_layer
    if hp.n_layer_nextn == 0 or n_layer == 0 or hp.router_layer >= 0:
        return lambda il: True
    version = ctx.version
    if not version.follows(NEXTN_APART) and not ctx.mtp:
        before = until is not None and not version.follows(until)
        if not before and (since is None or not version.follows(since)):
            return lambda il: True
    return (lambda il: il >= n_layer) if ctx.mtp else (lambda il: il < n_layer)


def attending(hp: HParams, il: int) -> bool:
    return not hp.is_recr[il]


def attending_in_trunk(hp: HParams, il: int) -> bool:
    return il < hp.n_layer and not hp.is_recr[il]


def recurring(hp: HParams, il: int) -> bool:
    return hp.is_recr[il]


CELLS_OF_A_STREAM = Change(
    without=7698,
    has=8095,
    source="src/llama-model.cpp:create_memory, attn_kv_size of hybrid models as n_ctx, and as n_ctx_seq",
    name="streams of hybrid models that share the context",
    larger=False,
)


def hybrid(
    *,
    rolls_back: bool,
    attends: LayerFilter = attending,
    recurs: LayerFilter = recurring,
    plain_draft: bool = False,
    indexed: Callable[[HParams, Context, Filter], tuple[Cache, ...]] | None = None,
) -> Memory:
    """Attention layers and recurrent layers, each with its own cache (src/llama-memory-hybrid*.cpp).

    `plain_draft`: the draft head attends through a plain cache. `indexed`: caches of an indexer.
    """

    def caches(hp: HParams, ctx: Context) -> tuple[Cache, ...]:
        if ctx.mtp and plain_draft:
            return attention(hp, ctx, lambda il: il >= hp.n_layer)
        wanted: Filter = lambda il: attends(hp, il)  # noqa: E731
        between = () if indexed is None else indexed(hp, ctx, wanted)
        states = recurrent(hp, ctx, [il for il in range(hp.n_layer) if recurs(hp, il)])
        if not ctx.version.follows(CELLS_OF_A_STREAM):
            ctx = replace(ctx, n_ctx_seq=ctx.n_ctx)
        return (*attention(hp, ctx, wanted), *between, states)

    return Memory(caches=caches, rolls_back=rolls_back, is_hybrid=True)


NO_CACHE = Memory(caches=lambda hp, ctx: ())


def plain(*, until: Change | None = None, since: Change | None = None) -> Memory:
    """One cache, or with sliding layers two; see `trunk_or_draft`."""

    def caches(hp: HParams, ctx: Context) -> tuple[Cache, ...]:
        if any(hp.is_swa) != (hp.swa_type != "none"):
            raise aborts(hp, "create_memory: GGML_ASSERT(hparams.is_swa_any())", keys=["n_swa", "is_swa"])
        return attention(hp, ctx, trunk_or_draft(hp, ctx, until=until, since=since))

    return Memory(caches=caches)


ATTENTION = plain()
RECURRENT = Memory(caches=lambda hp, ctx: (recurrent(hp, ctx, range(hp.n_layer)),), is_recurrent=True)
