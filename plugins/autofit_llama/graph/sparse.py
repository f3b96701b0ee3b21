"""Attention to the cells that an indexer selects (src/llama-graph.cpp, src/llama-kv-cache-dsa.cpp)."""

from __future__ import annotations

from autofit.domain.values import dataclass

from autofit_llama.engine.versions import Change
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import AttentionInput, CacheInput, Graph, Layer
from autofit_llama.graph.ggml import Tensor
from autofit_llama.graph.model import rotation_side

WHOLE_INDEXER_ROPE = Change(
    without=10452,
    has=10453,
    source="src/models/deepseek32.cpp, indexer_q_pe rotated apart and indexer_q as a whole",
    name="an indexer's queries rotated without taking them apart",
)
FUSED_INDEXER = Change(
    without=9946,
    has=10068,
    source="src/models/deepseek32.cpp, indexer_kq and indexer_score of many operations, and ggml_lightning_indexer",
    name="the lightning indexer as one operation",
    larger=False,
)


@dataclass(slots=True)
class IndexedInput:
    """Inputs of a latent cache, of the indexer's keys beside it, and of sliding layers where there are any
    (llm_graph_input_attn_k_dsa, _k_dsa_iswa).
    """

    main: CacheInput
    index: CacheInput
    swa: AttentionInput | None = None


def inp_attn_k_dsa(g: Graph, *, rotated: bool, swa: bool = False) -> IndexedInput:
    """build_attn_inp_k_dsa, build_attn_inp_k_dsa_iswa: a fused indexer wants an f16 mask, any other f32.

    `rotated`: its queries and keys are, whatever the cache's type (llama-kv-cache.cpp).
    """
    main = g.inp_attn_k().full
    index = g.inp_attn_k().full
    index.mask = g.input("f16" if g.follows(FUSED_INDEXER) else "f32", *index.mask.ne)
    if rotated:
        side = rotation_side(g.h.indexer_head_size)
        index.k_rot = g.input("f32", side, side)
    window = None
    if swa:
        side_input = g.inp_attn_k_iswa().swa
        assert side_input is not None
        window = AttentionInput("k", side_input)
        side_input.k_rot = None
    return IndexedInput(main, index, window)


def index_cache(g: Graph, il: int, n_keys: int = 1) -> Tensor:
    """The indexer's cache: one head per cell, `n_keys` of its rows side by side."""
    c = g.context
    width = g.h.indexer_head_size * n_keys
    return g.extra_cache("index", il, c.type_k, width, c.n_ctx_seq, g.model.n_streams)


def store_index_keys(g: Graph, k: Tensor, ids: Tensor, il: int) -> Tensor:
    """Stores [head, 1, tokens]; gives the cache as [head, 1, cells, streams]."""
    cache = index_cache(g, il, k.ne[0] // g.h.indexer_head_size)
    g.store_k(k, ids, il, cache)
    row = ggml.row_size(cache.type, cache.ne[0])
    return ggml.view(cache, (cache.ne[0], 1, cache.ne[1], cache.ne[2]), (row, row, row * cache.ne[1]))


def _rotated(g: Graph, x: Tensor, pos: Tensor, *, at_end: bool) -> Tensor:
    if g.follows(WHOLE_INDEXER_ROPE):
        return g.rope_end(x, pos, g.h.n_rot(0)) if at_end else ggml.rope(x, pos)
    rotated = g.h.n_rot_full
    first = ggml.view(x, (rotated, *x.ne[1:3]), x.nb[1:3])
    rest = ggml.view(x, (x.ne[0] - rotated, *x.ne[1:3]), x.nb[1:3], 4 * rotated)
    return ggml.concat(ggml.rope(first, pos), rest, 0)


def lightning_top_k(
    g: Graph,
    inp: IndexedInput,
    w: Layer,
    x: Tensor,
    q_latent: Tensor,
    pos: Tensor,
    il: int,
    *,
    rotates_end: bool = False,
) -> Tensor:
    """The lightning indexer: which cells each token attends to, best first."""
    h, n = g.h, g.n_tokens
    head, n_head = h.indexer_head_size, h.indexer_n_head
    q = ggml.mul_mat(w.need("indexer.attn_q_b"), q_latent)
    q = _rotated(g, ggml.reshape(q, head, n_head, n), pos, at_end=rotates_end)
    k = g.layer_norm(ggml.mul_mat(w.need("indexer.attn_k"), x), w, "indexer.k_norm", il)
    k = _rotated(g, ggml.reshape(k, head, 1, n), pos, at_end=rotates_end)
    if inp.index.k_rot is not None:
        q, k = ggml.mul_mat(inp.index.k_rot, q), ggml.mul_mat(inp.index.k_rot, k)
    assert inp.index.k_idxs is not None
    keys = store_index_keys(g, k, inp.index.k_idxs, il)
    weights = ggml.mul_mat(w.need("indexer.proj"), x)
    streams = keys.ne[3]
    q = ggml.view(q, (head, n_head, n // streams, streams), (q.nb[1], q.nb[2], q.nb[3] // streams))
    weights = ggml.view(
        weights,
        (n_head, n // streams, 1, streams),
        (weights.nb[1], weights.nb[2] // streams, weights.nb[3] // streams),
    )
    if g.follows(FUSED_INDEXER):
        scores = ggml.lightning_indexer(q, keys, ggml.scale(weights), inp.index.mask)
    else:
        q, keys = ggml.permute(q, 0, 2, 1, 3), ggml.permute(keys, 0, 2, 1, 3)
        heads = ggml.relu(ggml.cont(ggml.permute(ggml.mul_mat(keys, q), 2, 1, 0, 3)))
        scores = ggml.sum_rows(ggml.mul(heads, ggml.scale(weights)))
        scores = ggml.add(ggml.cont(ggml.permute(scores, 2, 1, 0, 3)), inp.index.mask)
    return ggml.cont(ggml.top_k(scores, min(scores.ne[0], h.indexer_top_k)))


def top_k_mask(mask: Tensor, top_k: Tensor, zeros_type: str = "f32") -> Tensor:
    """The mask, with everything else masked out too."""
    cells = ggml.fill(mask)
    cells = ggml.view(cells, (1, cells.ne[0], cells.ne[1], cells.ne[3]), (cells.nb[0], cells.nb[1], cells.nb[2]))
    ids = ggml.view(
        top_k, (top_k.ne[0], top_k.ne[1], top_k.ne[3], 1), (top_k.nb[1], top_k.nb[2], top_k.ne[3] * top_k.nb[3])
    )
    zeros = ggml.fill(ggml.new(zeros_type, 1, *ids.ne[:3]))
    kept = ggml.set_rows(cells, zeros, ids)
    kept = ggml.view(kept, (kept.ne[1], kept.ne[2], 1, kept.ne[3]), (kept.nb[2], kept.nb[3], kept.nb[3]))
    return ggml.add(kept, mask)


def attn_selected(
    g: Graph,
    inp: IndexedInput,
    q: Tensor,
    k: Tensor,
    latent: Tensor,
    top_k: Tensor,
    il: int,
    *,
    v_mla: Tensor,
    sinks: Tensor | None = None,
) -> Tensor:
    """build_attn with top-k cells of a latent cache, without the output matrix."""
    for t in (q, latent, k):
        g.expand(t)
    assert inp.main.k_idxs is not None
    g.store_k(k, inp.main.k_idxs, il)
    mask = top_k_mask(inp.main.mask, top_k)
    keys = g.get_k(il)
    values = ggml.view(keys, (latent.ne[0], *keys.ne[1:]), keys.nb[1:])
    return g.mha(q, keys, values, il, mask=mask, sinks=sinks, v_mla=v_mla, n_kv_max=top_k.ne[0])
