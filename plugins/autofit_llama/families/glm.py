"""GLM's fifth generation."""

from __future__ import annotations

from autofit.domain.units import round_up
from autofit.domain.values import dataclass

from autofit_llama.engine.versions import Change
from autofit_llama.families.deepseek import dense_or_shared_moe
from autofit_llama.families.kimi import delta_attention
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import AttentionInput, Graph, Layer
from autofit_llama.graph.ggml import Tensor
from autofit_llama.graph.hyper import mean, narrow, selected_streams, streams, widen
from autofit_llama.graph.sparse import index_cache, store_index_keys
from autofit_llama.model.aborts import aborts
from autofit_llama.model.architecture import Architecture, reads
from autofit_llama.model.caches import (
    Cache,
    Filter,
    Memory,
    attention,
    indexer,
    recurrent,
)
from autofit_llama.model.context import Context
from autofit_llama.model.hparams import HParams
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata
from autofit_llama.model.rules import (
    SIGMOID,
    clamp_shared_as_routed,
    gating,
    recurrent_without_kv_heads_all,
)

POOL_PADDING = 64  #: src/llama-memory-hybrid-idx.cpp:kpool_pad
_GATHER_MAX_TOKENS = 16


WHOLE_ROWS = Change(
    without=11349,
    has=11368,
    source="src/models/glm5-next.cpp:build_kpool_select, masks from a seed and from whole rows",
    name="masks of selected cells made from whole rows",
    larger=False,
)
FIXED_GATHER = Change(
    without=11401,
    has=11434,
    source="src/models/glm5-next.cpp:build_inp_kpool, by the tokens of a micro-batch and by the context's numbers",
    name="selected cells gathered by the context's numbers",
    larger=False,
)


@dataclass(slots=True)
class _Pools:
    """Inputs of an indexer that scores pools of consecutive tokens (build_inp_kpool).

    `gather`: few tokens gather what they select; more of them mask everything else.
    """

    k_idxs: Tensor
    cells: Tensor
    members: Tensor
    mask: Tensor
    tail: Tensor
    live: Tensor
    new_members: Tensor
    new_cells: Tensor
    gather: bool


def glm5_next(g: Graph) -> None:
    """src/models/glm5-next.cpp: hyper-connections around Kimi's delta attention, or around latent attention to
    pools of tokens that an indexer selects.
    """
    h = g.h
    attending = next((il for il in range(h.n_layer) if not h.is_recr[il]), None)
    if attending is not None and not h.is_indexer_full[attending]:
        raise aborts(h, "GGML_ASSERT(*prev_sel != nullptr)", keys=["is_indexer_full"])
    x = g.inp_embd()
    rs, inp = g.inp_rs(), g.inp_attn_k()
    pools = _inp_pools(g)
    out_ids = g.inp_out_ids()
    x = streams(g, x)
    selection: Tensor | None = None
    for il in g.layers():
        w = g.layer(il)
        cur, post, comb = narrow(g, w, x, "hc_attn", il)
        cur = g.expand(g.rms(cur, w, "attn_norm", il))
        if h.is_recr[il]:
            cur = delta_attention(g, rs, w, cur, il)
        else:
            cur, selection = _attention(g, inp, pools, w, cur, selection, il)
        x = widen(g, cur, x, post, comb, il)
        cur, post, comb = narrow(g, w, x, "hc_ffn", il)
        cur = dense_or_shared_moe(g, w, g.rms(cur, w, "ffn_norm", il), il)
        x = widen(g, cur, x, post, comb, il)
    cur = g.final_norm(mean(selected_streams(g, x, out_ids)))
    g.h_nextn = cur
    g.output(cur)


def _inp_pools(g: Graph) -> _Pools:
    h, n, size = g.h, g.n_tokens, g.h.indexer_kpool
    cells = g.context.n_ctx_seq
    n_new = cells // size * g.context.n_seq_max
    n_pool = round_up(n_new + 1, POOL_PADDING)
    n_selected = size * min(n_pool, h.indexer_top_k // size)
    n_selected += size - 1 if h.indexer_kpool_select_tail else 0
    pools = _Pools(
        g.input("i64", n),
        g.input("i32", n_pool),
        g.input("i32", size, n_pool),
        g.input("f16", n_pool, n),
        g.input("i32", size - 1, n),
        g.input("f32", n_selected, 1, 1, n),
        g.input("i32", size, max(1, n_new)),
        g.input("i64", max(1, n_new)),
        _gathers(g, n_selected),
    )
    for t in (pools.cells, pools.members, pools.mask, pools.tail, pools.live):
        g.expand(t)
    return pools


def _gathers(g: Graph, n_selected: int) -> bool:
    h, context = g.h, g.context
    if g.follows(FIXED_GATHER):
        return context.n_ubatch <= _GATHER_MAX_TOKENS and context.n_ctx > h.indexer_top_k + h.indexer_kpool - 1
    return g.n_tokens <= _GATHER_MAX_TOKENS and context.n_ctx_seq > n_selected


def _attention(
    g: Graph, inp: AttentionInput, pools: _Pools, w: Layer, x: Tensor, selection: Tensor | None, il: int
) -> tuple[Tensor, Tensor]:
    """build_dsa_layer: latent attention without positions, to this block's selection or to the last one."""
    h, n, side = g.h, g.n_tokens, inp.full
    k_b, v_b = w.need("attn_k_b"), w.need("attn_v_b")
    nope, rank, n_head = k_b.ne[:3]
    q_latent = g.rms(ggml.mul_mat(w.need("attn_q_a"), x), w, "attn_q_a_norm", il)
    q = ggml.reshape(ggml.mul_mat(w.need("attn_q_b"), q_latent), nope, n_head, n)
    latent = g.rms(ggml.mul_mat(w.need("attn_kv_a_mqa"), x), w, "attn_kv_a_norm", il)
    latent = ggml.reshape(latent, rank, 1, n)
    q = ggml.permute(ggml.mul_mat(k_b, ggml.permute(q, 0, 2, 1, 3)), 0, 2, 1, 3)
    if selection is None or h.is_indexer_full[il]:
        selection = _select(g, side.mask, pools, w, x, q_latent, il)
    g.expand(q)
    g.expand(latent)
    assert side.k_idxs is not None
    g.store_k(latent, side.k_idxs, il)
    if pools.gather:
        g.expand(side.mask)
        cache = g.cache_k(il)
        rows = ggml.view(cache, (rank, cache.ne[1] * cache.ne[2]), (cache.nb[1],))
        keys = ggml.get_rows(rows, ggml.reshape(selection, selection.ne[0] * n))
        keys = ggml.reshape(keys, rank, selection.ne[0], 1, n)
        kq = ggml.soft_max(ggml.mul_mat(keys, ggml.permute(q, 0, 2, 3, 1)), pools.live, plain=False)
        kqv = ggml.mul_mat(v_b, ggml.mul_mat(ggml.cont(ggml.transpose(keys)), kq))
        out = ggml.reshape(ggml.cont(ggml.permute(kqv, 0, 2, 1, 3)), kqv.ne[0] * n_head, n)
    else:
        keys = g.get_k(il)
        values = ggml.view(keys, (rank, *keys.ne[1:]), keys.nb[1:])
        mask = ggml.reshape(selection, *side.mask.ne)
        out = g.mha(q, keys, values, il, mask=mask, v_mla=v_b, n_kv_max=pools.live.ne[0])
    return ggml.mul_mat(w.need("attn_output"), out), selection


def _select(g: Graph, mask: Tensor, pools: _Pools, w: Layer, x: Tensor, q_latent: Tensor, il: int) -> Tensor:
    """build_kpool_select: the cells of the best pools, or a mask that leaves only them."""
    h, n = g.h, g.n_tokens
    head, n_head, size = h.indexer_head_size, h.indexer_n_head, h.indexer_kpool
    n_pool, n_new = pools.cells.ne[0], pools.new_cells.ne[0]
    q = ggml.reshape(ggml.mul_mat(w.need("indexer.attn_q_b"), q_latent), head, n_head, n)
    k = g.layer_norm(ggml.mul_mat(w.need("indexer.attn_k"), x), w, "indexer.k_norm", il)
    gate = ggml.mul_mat(w.need("indexer_compressor_gate"), x)
    packed = ggml.concat(ggml.concat(k, gate, 0), ggml.fill(ggml.new("f32", head, n)), 0)
    store_index_keys(g, ggml.reshape(packed, 3 * head, 1, n), pools.k_idxs, il)
    cache = index_cache(g, il, 3)
    n_cells = cache.ne[1] * cache.ne[2]

    key_gate = ggml.view(cache, (2 * head, n_cells), (cache.nb[1],))
    rows = ggml.get_rows(key_gate, ggml.reshape(pools.new_members, size * n_new))
    rows = ggml.reshape(rows, 2 * head, size, n_new)
    keys = ggml.view(rows, (head, size, n_new), rows.nb[1:3])
    gates = ggml.view(rows, (head, size, n_new), rows.nb[1:3], head * rows.nb[0])
    gates = ggml.add(gates, w.need("indexer_compressor_ape"))
    gates = ggml.cont(ggml.permute(gates, 1, 0, 2, 3))
    weights = ggml.reshape(ggml.soft_max(ggml.reshape(gates, size, head * n_new)), size, head, n_new)
    keys = ggml.cont(ggml.permute(keys, 1, 0, 2, 3))
    pooled = ggml.reshape(ggml.sum_rows(ggml.mul(weights, keys)), head, n_new)
    pooled_rows = ggml.view(cache, (head, n_cells), (cache.nb[1],), ggml.row_size(cache.type, 2 * head))
    g.expand(ggml.set_rows(pooled_rows, pooled, pools.new_cells))
    pooled = ggml.reshape(ggml.get_rows(pooled_rows, pools.cells), head, 1, n_pool)

    weights = ggml.scale(ggml.mul_mat(w.need("indexer.proj"), x))
    scores = ggml.lightning_indexer(q, pooled, weights, pools.mask)
    n_top = min(n_pool, h.indexer_top_k // size)
    top = ggml.top_k(scores, n_top)
    best = ggml.get_rows(ggml.reshape(scores, 1, n_pool, n), top)
    order = ggml.argsort(ggml.reshape(best, n_top, n))
    top = ggml.get_rows(ggml.reshape(ggml.cast(top, "f32"), 1, n_top, n), order)
    top = ggml.cast(ggml.cont(ggml.reshape(top, n_top, n)), "i32")
    selected = ggml.get_rows(pools.members, ggml.reshape(top, n_top * n))
    selected = ggml.reshape(selected, size * n_top, n)
    if h.indexer_kpool_select_tail:
        selected = ggml.concat(selected, pools.tail, 0)
    return selected if pools.gather else _mask_of(g, mask, selected, pools.live)


def _mask_of(g: Graph, mask: Tensor, selected: Tensor, live: Tensor) -> Tensor:
    """The causal mask where only selected cells are left; what is not live goes to rows behind all cells."""
    n_kv, (n_selected, n) = mask.ne[0], selected.ne[:2]
    if g.follows(WHOLE_ROWS):
        g.expand(selected)
        closed = ggml.repeat_4d(ggml.fill(ggml.new(mask.type, n_kv + n_selected)), n_kv + n_selected, n, 1, 1)
        zeros = ggml.repeat_4d(ggml.fill(ggml.new(mask.type, n_selected)), n_selected, n, 1, 1)
    else:
        seed = ggml.cast(ggml.view(selected, (1,)), "f32")
        closed = ggml.fill(seed if mask.type == "f32" else ggml.cast(seed, mask.type))
        closed = ggml.repeat_4d(closed, 1, n_kv + n_selected, n, 1)
        zeros = ggml.repeat_4d(ggml.fill(seed), 1, n_selected, n, 1)
    closed = ggml.reshape(closed, 1, n_kv + n_selected, n)
    zeros = ggml.reshape(zeros, 1, n_selected, n)
    is_live = ggml.exp(ggml.reshape(live, n_selected, n))
    dump = ggml.arange(n_selected)
    ids = ggml.sub(ggml.cast(selected, "f32"), dump)
    ids = ggml.cast(ggml.add(ggml.mul(ids, is_live), dump), "i32")
    kept = ggml.set_rows(closed, zeros, ggml.reshape(ids, n_selected, n, 1))
    kept = ggml.view(kept, (n_kv, n), (kept.nb[2],))
    return ggml.add(kept, ggml.reshape(mask, n_kv, n))


def _load_glm5_next(d: HParamsDraft, meta: Metadata) -> None:
    d.n_embd_head_v_full = d.n_lora_kv
    recurrent_without_kv_heads_all(d, meta)
    gating(SIGMOID)(d, meta)
    clamp_shared_as_routed(d, meta)
    if d.indexer_kpool <= 1 or d.indexer_top_k % d.indexer_kpool:
        meta.refuse("attention.indexer.kpool", f"is {d.indexer_kpool}, which does not divide top_k")
    if "is_indexer_full" not in d.given:
        d.is_indexer_full = [True] * d.n_layer_all
    if d.dsv4_hc_mult != 4:
        meta.refuse("hyper_connection.count", f"is {d.dsv4_hc_mult}, the engine expects 4")


def _caches(hp: HParams, ctx: Context) -> tuple[Cache, ...]:
    n_layer = hp.n_layer
    if ctx.mtp:
        attends: Filter = lambda il: il >= n_layer  # noqa: E731
        indexed, states = attends, []
    else:
        attends = lambda il: il < n_layer and not hp.is_recr[il]  # noqa: E731
        indexed = lambda il: attends(il) and hp.is_indexer_full[il]  # noqa: E731
        states = [il for il in range(n_layer) if hp.is_recr[il]]
    index = indexer(hp, ctx, indexed, k_only=True, n_keys=3 if hp.indexer_kpool else 1)
    return (*attention(hp, ctx, attends), index, recurrent(hp, ctx, states))


ARCHITECTURES = (
    Architecture(
        name="glm5-next",
        source="glm5-next.cpp",
        hparams=reads(
            """
            f_norm_rms_eps f_norm_eps? n_lora_q n_lora_kv n_embd_head_k_mla_impl n_embd_head_v_mla_impl
            ssm_d_conv n_embd_head_kda kda_gate_lower_bound? n_ff_exp n_expert_shared expert_weights_scale?
            expert_weights_norm? n_layer_dense_lead? expert_gating_func? swiglu_clamp_exp? swiglu_clamp_shexp?
            indexer_n_head indexer_head_size indexer_top_k indexer_kpool indexer_kpool_select_tail?
            is_indexer_full? dsv4_hc_mult dsv4_hc_sinkhorn_iters dsv4_hc_eps
            """,
            _load_glm5_next,
        ),
        rope="none",
        output="own",
        scales=(),
        graph=glm5_next,
        memory=Memory(caches=_caches, rolls_back=True),
        ops={"indexer_compressor_ape": "ADD"},
        tensor_split=None,
        draft_graph="not replayed",
        fused_clamp=True,
    ),
)
