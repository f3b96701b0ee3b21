"""Which caches a llama.cpp context makes, and what each layer's share of them takes.

llama_model::create_memory (src/llama-model.cpp) chooses the kind, src/llama-kv-cache*.cpp and
src/llama-memory-*.cpp lay it out. A cache is one tensor, or a pair, per layer; each tensor is on the device
of its layer, or on the host without KV offload.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from autofit.domain.units import round_up
from autofit.domain.values import dataclass

from autofit_llama.model.context import CELL_PADDING, Context, cache_row_bytes
from autofit_llama.model.hparams import HParams

#: create_memory returns nothing for these
_NO_CACHE = frozenset(
    (
        "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert",
        "wavtokenizer-dec", "modern-bert", "gemma-embedding", "dream", "llada", "llada-moe", "rnd1",
    )
)  # fmt: skip
_RECURRENT = frozenset(("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"))  #: llm_arch_is_recurrent
#: llm_arch_is_hybrid, without those that have a memory of their own
_HYBRID = frozenset(
    (
        "jamba", "falcon-h1", "plamo2", "granitehybrid", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe",
        "qwen3next", "kimi-linear", "bailingmoe3", "kimi-k3", "qwen35", "qwen35moe", "qwen4exp", "minimax-01",
    )
)  # fmt: skip
#: draft heads of hybrid models that attend through a plain cache
_PLAIN_MTP = frozenset(("qwen3next", "qwen35", "qwen35moe", "bailingmoe3", "nemotron_h_moe"))
_INTERVAL = frozenset(("qwen3next", "qwen35", "qwen35moe", "qwen4exp", "minimax-01"))
_CSA_RATIO, _HCA_RATIO = 4, 128  #: src/llama-kv-cache-dsv4.cpp

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


def caches(hp: HParams, ctx: Context) -> tuple[Cache, ...]:
    """Every cache of the context, empty ones too (an empty one still costs a mask in the graph).

    Raises:
        EngineRefusalError: a row is not whole blocks of the cache's type.
    """
    if hp.arch in _NO_CACHE:
        return ()
    special = _OWN_MEMORY.get(hp.arch)
    if special is not None:
        return special(hp, ctx)
    if hp.arch in _RECURRENT:
        return (_recurrent(hp, ctx, range(hp.n_layer)),)
    if hp.arch in _HYBRID and not (ctx.mtp and hp.arch in _PLAIN_MTP):
        return _hybrid(hp, ctx)
    if hp.arch == "gemma4-assistant":  # every layer reads a cache of the model that it drafts for
        return _attention(hp, ctx, lambda il: False)
    return _attention(hp, ctx, _trunk_or_draft(hp, ctx))


def cache_bytes(
    tensors: Iterable[CacheTensor], home: Callable[[int], int], size: Callable[[CacheTensor, int], int]
) -> dict[int, int]:
    """Bytes per home: `home` gives a layer's place, `size` what a tensor takes there."""
    total: dict[int, int] = {}
    for tensor in tensors:
        at = home(tensor.il)
        total[at] = total.get(at, 0) + size(tensor, at)
    return total


def _trunk_or_draft(hp: HParams, ctx: Context) -> Filter:
    """The trunk in the main context, the nextn blocks in the draft's; all where there is but one kind."""
    n_layer = hp.n_layer
    if ctx.mtp and hp.arch in _PLAIN_MTP:
        return lambda il: il >= n_layer
    if hp.n_layer_nextn == 0 or n_layer == 0 or hp.router_layer >= 0:
        return lambda il: True
    return (lambda il: il >= n_layer) if ctx.mtp else (lambda il: il < n_layer)


def _attention(hp: HParams, ctx: Context, wanted: Filter) -> tuple[Cache, ...]:
    """One cache, or with sliding layers two (src/llama-kv-cache.cpp, src/llama-kv-cache-iswa.cpp)."""
    if hp.swa_type == "none":
        return (_kv(hp, ctx, "base", wanted, ctx.n_ctx_seq, ctx.n_streams),)
    return _sliding(hp, ctx, wanted, ctx.n_streams, unified=ctx.kv_unified)


def _sliding(
    hp: HParams, ctx: Context, wanted: Filter, n_streams: int, *, unified: bool, k_only: bool | None = None
) -> tuple[Cache, ...]:
    n_window = ctx.window_cells(hp.n_swa, unified=unified)
    full = _kv(hp, ctx, "base", lambda il: wanted(il) and not hp.is_swa[il], ctx.n_ctx_seq, n_streams, k_only=k_only)
    window = _kv(hp, ctx, "swa", lambda il: wanted(il) and hp.is_swa[il], n_window, n_streams, k_only=k_only)
    return full, window


def _kv(
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
    k_only = hp.is_mla if k_only is None else k_only
    widest = max(map(value, range(hp.n_layer_all))) if ctx.v_transposed and not k_only else 0
    n_rows = n_cells * n_streams
    tensors = []
    for il in range(hp.n_layer_all):
        if hp.has_kv(il) and wanted(il):
            tensors.append(CacheTensor(name, "k", il, ctx.type_k, key(il), n_rows))
            if not k_only:
                tensors.append(CacheTensor(name, "v", il, ctx.type_v, widest or value(il), n_rows))
    return Cache(name=name, n_cells=n_cells, n_streams=n_streams, tensors=tuple(tensors))


def _indexer(hp: HParams, ctx: Context, wanted: Filter, *, k_only: bool | None = None, n_keys: int = 1) -> Cache:
    """The indexer's keys: one head per layer; V only where the model's own cache has one."""
    n_key = hp.indexer_head_size * n_keys
    return _kv(
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


def _recurrent(hp: HParams, ctx: Context, layers: Sequence[int] | range) -> Cache:
    """src/llama-memory-recurrent.cpp: convolution and state rows, one per sequence and rollback step."""
    n_rows = ctx.n_seq_max * (1 + ctx.n_rs_seq)
    tensors = []
    for il in layers:
        tensors.append(CacheTensor("recurrent", "r", il, "f32", hp.n_embd_r, n_rows))
        tensors.append(CacheTensor("recurrent", "s", il, "f32", hp.n_embd_s, n_rows))
        if hp.ple_conv_state and hp.is_ple[il]:
            tensors.append(CacheTensor("recurrent", "ple", il, "f32", hp.ple_conv_state, n_rows))
    return Cache(name="recurrent", n_cells=n_rows, n_streams=1, tensors=tuple(tensors))


def _hybrid(hp: HParams, ctx: Context) -> tuple[Cache, ...]:
    """src/llama-memory-hybrid*.cpp: attention layers and recurrent layers, each with its own cache."""
    n_layer = hp.n_layer

    def attends(il: int) -> bool:
        if hp.arch == "falcon-h1":
            return True
        if hp.arch in _INTERVAL:
            return il < n_layer and not hp.is_recr[il]
        return not hp.is_recr[il] and (not hp.arch.startswith("nemotron_h") or hp.n_ff[il] == 0)

    recurrent = [
        il for il in range(n_layer) if hp.is_recr[il] and (not hp.arch.startswith("nemotron_h") or hp.n_ff[il] == 0)
    ]
    indexed: tuple[Cache, ...] = ()
    if hp.arch == "qwen4exp" and hp.indexer_head_size:
        indexed = (_indexer(hp, ctx, attends, k_only=True, n_keys=3 if hp.indexer_kpool else 1),)
    return (*_attention(hp, ctx, attends), *indexed, _recurrent(hp, ctx, recurrent))


def _glm5_next(hp: HParams, ctx: Context) -> tuple[Cache, ...]:
    n_layer = hp.n_layer
    if ctx.mtp:
        attends: Filter = lambda il: il >= n_layer  # noqa: E731
        indexed, recurrent = attends, []
    else:
        attends = lambda il: il < n_layer and not hp.is_recr[il]  # noqa: E731
        indexed = lambda il: attends(il) and hp.is_indexer_full[il]  # noqa: E731
        recurrent = [il for il in range(n_layer) if hp.is_recr[il]]
    index = _indexer(hp, ctx, indexed, k_only=True, n_keys=3 if hp.indexer_kpool else 1)
    return (*_attention(hp, ctx, attends), index, _recurrent(hp, ctx, recurrent))


def _dsa(hp: HParams, ctx: Context) -> tuple[Cache, ...]:
    """deepseek32, glm-dsa: the MLA cache and the indexer's keys (src/llama-kv-cache-dsa.cpp)."""
    if ctx.mtp and hp.n_layer_nextn:
        return (_kv(hp, ctx, "base", lambda il: il >= hp.n_layer, ctx.n_ctx_seq, ctx.n_streams),)
    wanted = _trunk_or_draft(hp, ctx)
    full = hp.arch != "glm-dsa"
    index = _indexer(hp, ctx, lambda il: il < hp.n_layer and (full or hp.is_indexer_full[il]))
    return _kv(hp, ctx, "base", wanted, ctx.n_ctx_seq, ctx.n_streams), index


def _hy_v4(hp: HParams, ctx: Context) -> tuple[Cache, ...]:
    base = _kv(hp, ctx, "base", lambda il: True, ctx.n_ctx_seq, ctx.n_streams)
    if hp.indexer_top_k == 0:
        return (base,)
    return base, _indexer(hp, ctx, lambda il: hp.is_indexer_full[il])


def _dots3note(hp: HParams, ctx: Context) -> tuple[Cache, ...]:
    if ctx.mtp and hp.n_layer_nextn:
        return (_kv(hp, ctx, "base", lambda il: il >= hp.n_layer, ctx.n_ctx_seq, ctx.n_streams),)
    full, window = _sliding(hp, ctx, _trunk_or_draft(hp, ctx), ctx.n_streams, unified=ctx.kv_unified)
    return full, _indexer(hp, ctx, lambda il: il < hp.n_layer and hp.is_indexer_full[il]), window


def _minimax_m3(hp: HParams, ctx: Context) -> tuple[Cache, ...]:
    base = _kv(hp, ctx, "base", lambda il: True, ctx.n_ctx_seq, ctx.n_streams)
    return base, _indexer(hp, ctx, lambda il: il >= hp.n_layer_dense_lead)


def _deepseek4(hp: HParams, ctx: Context) -> tuple[Cache, ...]:
    """A raw window, compressed caches of two ratios, an indexer, and their compressors' states
    (src/llama-kv-cache-dsv4.cpp). Always one stream per sequence, also when the rest would be unified."""
    if ctx.mtp:
        return _sliding(hp, ctx, lambda il: il >= hp.n_layer, ctx.n_streams, unified=ctx.kv_unified)
    n_streams = ctx.n_seq_max
    ratios = hp.dsv4_compress_ratios

    def compressed(name: str, ratio: int, key: Callable[[int], int] | None = None) -> Cache:
        n_cells = round_up(max(1, -(-ctx.n_ctx_seq // ratio)), CELL_PADDING)
        return _kv(hp, ctx, name, lambda il: ratios[il] == ratio, n_cells, n_streams, key=key, k_only=True)

    def state(name: str, ratio: int, n_rows: int, n_elements: int) -> Cache:
        n_planes = n_streams * (1 + ctx.n_rs_seq)
        tensors = (
            CacheTensor(name, side, il, "f32", n_elements, n_rows * n_planes)
            for il in range(hp.n_layer)
            if ratios[il] == ratio
            for side in ("kv", "score")
        )
        return Cache(name=name, n_cells=n_rows, n_streams=n_planes, tensors=tuple(tensors))

    head = hp.n_embd_head_k(0)
    return (
        *_sliding(hp, ctx, lambda il: True, n_streams, unified=False, k_only=True),
        compressed("csa", _CSA_RATIO),
        compressed("hca", _HCA_RATIO),
        compressed("lid", _CSA_RATIO, key=lambda il: hp.indexer_head_size),
        state("csa_state", _CSA_RATIO, 2 * _CSA_RATIO, 2 * head),
        state("hca_state", _HCA_RATIO, _HCA_RATIO, head),
        state("lid_state", _CSA_RATIO, 2 * _CSA_RATIO, 2 * hp.indexer_head_size),
    )


def _dflash(hp: HParams, ctx: Context) -> tuple[Cache, ...]:
    if hp.dsv4_hc_mult > 0:
        return _sliding(hp, ctx, lambda il: True, ctx.n_streams, unified=ctx.kv_unified)
    if hp.arch == "gemma4-assistant":  # every layer reads a cache of the model that it drafts for
        return _attention(hp, ctx, lambda il: False)
    return _attention(hp, ctx, _trunk_or_draft(hp, ctx))


_OWN_MEMORY: dict[str, Callable[[HParams, Context], tuple[Cache, ...]]] = {
    "deepseek32": _dsa,
    "deepseek4": _deepseek4,
    "dflash": _dflash,
    "dots3note": _dots3note,
    "glm-dsa": _dsa,
    "glm5-next": _glm5_next,
    "hy_v4": _hy_v4,
    "minimax-m3": _minimax_m3,
}
