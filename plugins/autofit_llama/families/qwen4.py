"""Qwen's experimental fourth generation: hyper-connections in place of norms around Qwen3.5's blocks."""

from __future__ import annotations

from autofit.domain.units import round_up
from autofit.domain.values import dataclass

from autofit_llama.engine.versions import Change
from autofit_llama.families.glm import POOL_PADDING, WHOLE_ROWS
from autofit_llama.families.qwen import gated_shared_moe, qwen35_linear
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import (
    ROWS_AS_ASKED,
    AttentionInput,
    Fused,
    Graph,
    Layer,
    RecurrentInput,
    hadamard,
)
from autofit_llama.graph.ggml import Tensor
from autofit_llama.graph.hyper import flat, selected_streams, streams
from autofit_llama.graph.recurrent import snapshots
from autofit_llama.graph.sparse import index_cache, store_index_keys, top_k_mask
from autofit_llama.model.aborts import aborts
from autofit_llama.model.architecture import Architecture, reads
from autofit_llama.model.caches import (
    Cache,
    Filter,
    attending_in_trunk,
    hybrid,
    indexer,
)
from autofit_llama.model.context import Context
from autofit_llama.model.hparams import HParams
from autofit_llama.model.metadata_reader import KEYS, HParamsDraft, Metadata, words
from autofit_llama.model.rules import (
    recurrent_interval,
)
from autofit_llama.model.validate import MAX_FIGURE

STREAMS_APART = Change(
    without=10852,
    has=10985,
    source="src/models/qwen4exp.cpp: norms of hyper-connections of one dimension, and with TENSOR_ALLOW_RESHAPE",
    name="files of Qwen 4 with norms by stream",
)
_MOST_POOLED = 64  #: tokens of a block (src/llama-memory-hybrid-idx.cpp:set_input_qsa)
_NORMS_BY_STREAM = ("output_hc_norm", "hc_attn_norm", "hc_ffn_norm", "ple_norm_key", "ple_norm_query", "ple_norm_conv")
POOLED_KEYS = Change(
    without=11311,
    has=11334,
    source="src/models/qwen4exp.cpp:llm_graph_input_qsa, and llm_graph_input_kpool after it",
    name="keys of an indexer that are kept pooled",
)
LIGHTNING_SCORES = Change(
    without=11368,
    has=11401,
    source="src/models/qwen4exp.cpp:build_qsa_top_k, scores by plain operations and by LIGHTNING_INDEXER",
    name="scores of pooled keys by one operation",
    larger=False,
)
N_GRAMS_FIRST = Change(
    without=11434,
    has=11549,
    source="src/models/qwen4exp.cpp, build_inp_ple after build_inp_embd, and before it",
    name="n-grams of Qwen 4 before the embeddings",
)


@dataclass(slots=True)
class _Blocks:
    """Inputs of an indexer that scores blocks of `ratio` tokens (llm_graph_input_qsa)."""

    k_idxs: Tensor
    block_of: Tensor
    members: Tensor
    pos: Tensor
    bias: Tensor


@dataclass(slots=True)
class _Pools:
    """Inputs of an indexer that keeps the keys of `size` tokens pooled beside each (llm_graph_input_kpool)."""

    size: int
    k_idxs: Tensor
    cells: Tensor
    members: Tensor
    mask: Tensor
    tail: Tensor
    new_members: Tensor
    new_cells: Tensor
    new_pos: Tensor

    @property
    def n_pool(self) -> int:
        return self.cells.ne[0]

    def n_top(self, top_k: int) -> int:
        return min(self.n_pool, top_k // self.size)

    def n_selected(self, top_k: int) -> int:
        return self.size * self.n_top(top_k) + self.size - 1


def qwen4exp(g: Graph) -> None:
    """src/models/qwen4exp.cpp."""
    h = g.h
    n_grams_first = h.ple_n_heads > 0 and g.follows(N_GRAMS_FIRST)
    n_grams = _inp_n_grams(g) if n_grams_first else None
    x = g.expand(g.inp_embd())
    rs, inp = g.inp_rs(), g.inp_attn_kv()
    pos = g.inp_pos()
    out_ids = g.inp_out_ids()
    if h.ple_n_heads > 0 and not n_grams_first:
        n_grams = _inp_n_grams(g)
    blocks: dict[int, _Blocks] = {}
    pools = _inp_pools(g) if g.follows(POOLED_KEYS) and _pool_size(h) else None
    x = streams(g, x)
    if g.follows(POOLED_KEYS):
        g.expand(x)
    for il in g.layers():
        w = g.layer(il)
        if n_grams is not None and h.is_ple[il]:
            x = _n_gram_memory(g, rs, w, n_grams, x, il)
        cur, normed = _narrow(g, w, x, "hc_attn", il)
        inject = g.linear(w, "hc_attn_inject", normed, scale=False)
        g.expand(cur)
        if h.is_recr[il]:
            cur = qwen35_linear(g, rs, w, cur, il, conv=_conv_state, output_gate="sigmoid")
        else:
            ratio = h.dsv4_compress_ratios[il] if h.indexer_head_size else 0
            if g.follows(POOLED_KEYS):
                cur = _attention(g, inp, w, cur, pos, pools if ratio else None, il)
            else:
                if ratio and ratio not in blocks:
                    blocks[ratio] = _inp_blocks(g, ratio)
                cur = _attention(g, inp, w, cur, pos, blocks.get(ratio), il)
        if g.is_last(il):
            cur, inject = g.select_outputs(out_ids, cur, inject)
            x = selected_streams(g, x, out_ids)
        x = _widen(g, cur, x, inject, il)
        cur, normed = _narrow(g, w, x, "hc_ffn", il)
        inject = g.linear(w, "hc_ffn_inject", normed, scale=False)
        cur = gated_shared_moe(g, w, cur, il)
        x = g.pin(_widen(g, cur, x, inject, il), il)
    if g.follows(ROWS_AS_ASKED):
        g.h_nextn = g.expand(flat(x))
    g.output(_narrow(g, None, x, "output_hc", -1)[0])


def _narrow(g: Graph, w: Layer | None, x: Tensor, name: str, il: int) -> tuple[Tensor, Tensor]:
    """build_hc_mix: the gated mean of the streams, and the streams normalized, [streams * n_embd, tokens]."""
    need = w.need if w is not None else g.need
    n_embd, n_streams, n = x.ne[:3]
    normed = ggml.reshape(ggml.mul(ggml.rms_norm(x), need(name + "_norm")), n_embd * n_streams, n)
    low = ggml.silu(ggml.scale(ggml.mul_mat(need(name + "_down"), normed)))
    gate = ggml.mul_mat(need(name + "_up"), low)
    if "hc_pre" in g.fused_hyper and il >= 0:
        y = ggml.dsv4_hc_pre(ggml.reshape(normed, n_embd, n_streams, n), ggml.reshape(gate, n_embd, n_streams, n))
        g.fused.append(Fused("hc_pre", y, il))
        return y, normed
    gated = ggml.reshape(ggml.mul(normed, ggml.sigmoid(gate)), n_embd, n_streams, n)
    views = [ggml.view(gated, (n_embd, n), (gated.nb[2],), i * gated.nb[1]) for i in range(n_streams)]
    total = ggml.cont(views[0])
    for t in views[1:]:
        total = ggml.add(total, t)
    return ggml.scale(total), normed


def _widen(g: Graph, x: Tensor, residual: Tensor, inject: Tensor, il: int) -> Tensor:
    """build_hc_combine: the result, weighed, added to every stream."""
    n_embd, n_streams, n = residual.ne[:3]
    weights = ggml.scale(ggml.sigmoid(ggml.scale(inject)))
    if "hc_post" in g.fused_hyper:
        y = ggml.dsv4_hc_post(x, residual, weights, None)
        g.fused.append(Fused("hc_post", y, il))
        return y
    weights = ggml.reshape(weights, 1, n_streams, n)
    wide = ggml.repeat_4d(ggml.reshape(x, n_embd, 1, n), n_embd, n_streams, n, 1)
    return ggml.add(residual, ggml.mul(wide, weights))


def _attention(
    g: Graph, inp: AttentionInput, w: Layer, x: Tensor, pos: Tensor, blocks: _Blocks | _Pools | None, il: int
) -> Tensor:
    """Gated attention, to the blocks that the indexer selects if there is one."""
    h, n = g.h, g.n_tokens
    head, n_head, n_kv = h.n_embd_head_v(il), h.n_head[il], h.n_head_kv[il]
    mask, most = inp.full.mask, h.indexer_top_k
    if isinstance(blocks, _Pools):
        mask, most = _pool_mask(g, blocks, mask, w, x, pos, il), blocks.n_selected(most)
    elif blocks is not None:
        top_k = _top_k(g, blocks, mask, w, x, pos, il)
        mask, most = top_k_mask(mask, top_k), top_k.ne[0]
    both = g.linear(w, "attn_q", x)
    strides = (8 * head, 8 * head * n_head)
    q = g.rms(ggml.view(both, (head, n_head, n), strides), w, "attn_q_norm", il)
    k = g.rms(ggml.reshape(g.linear(w, "attn_k", x), head, n_kv, n), w, "attn_k_norm", il)
    v = ggml.reshape(g.linear(w, "attn_v", x), head, n_kv, n)
    gate = ggml.cont(ggml.view(both, (head, n_head, n), strides, 4 * head), head * n_head, n)
    q, k = ggml.rope(q, pos), ggml.rope(k, pos)
    if blocks is None:
        cur = g.attn(inp, w, q, k, v, il, out=None)
    else:
        cur = _attn_selected(g, inp, q, k, v, mask, most, il)
    return g.linear(w, "attn_output", ggml.mul(cur, ggml.sigmoid(gate)))


def _attn_selected(
    g: Graph, inp: AttentionInput, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, n_kv_max: int, il: int
) -> Tensor:
    """build_attn_qsa."""
    side = inp.full
    if side.k_rot is not None:
        q, k = hadamard(q, side.k_rot), hadamard(k, side.k_rot)
    if side.v_rot is not None:
        v = hadamard(v, side.v_rot)
    for t in (q, v, k):
        g.expand(t)
    assert side.k_idxs is not None and side.v_idxs is not None
    g.store_k(k, side.k_idxs, il)
    g.store_v(v, side.v_idxs, il)
    cur = g.mha(q, g.get_k(il), g.get_v(il), il, mask=mask, n_kv_max=n_kv_max)
    return cur if side.v_rot is None else hadamard(cur, side.v_rot)


def _inp_blocks(g: Graph, ratio: int) -> _Blocks:
    cells, n_streams = g.context.n_ctx_seq, g.model.n_streams
    if ratio > _MOST_POOLED:
        what = f"blocks of {ratio} tokens: GGML_ASSERT(r <= {_MOST_POOLED})"
        raise aborts(g.h, what, keys=["dsv4_compress_ratios"])
    n_blocks = -(-cells // ratio)
    return _Blocks(
        g.input("i64", g.n_tokens),
        g.input("i32", cells, n_streams),
        g.input("i32", ratio * n_blocks, n_streams),
        g.input("i32", 4 * n_blocks * n_streams),
        g.input("f32", cells if g.h.use_alibi else n_blocks, g.n_tokens // n_streams, n_streams),
    )


def _top_k(g: Graph, inp: _Blocks, mask: Tensor, w: Layer, x: Tensor, pos: Tensor, il: int) -> Tensor:
    """build_qsa_top_k: the cells of the best blocks; a block's key is the mean of its tokens' keys."""
    h, n, n_streams = g.h, g.n_tokens, g.model.n_streams
    size, n_head, cells, n_t = h.indexer_head_size, h.indexer_n_head, g.context.n_ctx_seq, n // n_streams
    ratio = h.dsv4_compress_ratios[il]
    n_blocks = -(-cells // ratio)
    k = ggml.reshape(ggml.mul_mat(w.need("indexer.k_proj"), x), size, 1, n)
    keys = store_index_keys(g, k, inp.k_idxs, il)
    keys = ggml.view(keys, (size, cells, n_streams), keys.nb[2:4])
    members = ggml.reshape(ggml.get_rows(keys, inp.members), size, ratio, n_blocks, n_streams)
    parts = [
        ggml.cont(ggml.view(members, (size, n_blocks, n_streams), members.nb[2:4], i * members.nb[1]))
        for i in range(ratio)
    ]
    pooled = parts[0]
    for t in parts[1:]:
        pooled = ggml.add(pooled, t)
    pooled = ggml.reshape(ggml.scale(pooled), size, n_blocks * n_streams, 1)
    pooled = ggml.reshape(g.rms(pooled, w, "indexer.k_norm", il), size, 1, n_blocks * n_streams)
    pooled = ggml.reshape(ggml.rope(pooled, inp.pos), size, n_blocks, n_streams)
    q = ggml.reshape(ggml.mul_mat(w.need("indexer.q_proj"), x), size, n_head, n)
    q = ggml.rope(g.rms(q, w, "indexer.q_norm", il), pos)
    scores = ggml.mul_mat(pooled, ggml.reshape(q, size, n_head * n_t, n_streams))
    scores = ggml.relu(ggml.reshape(scores, n_blocks, n_head, n_t, n_streams))
    heads = [ggml.view(scores, (n_blocks, n_t, n_streams), scores.nb[2:4], i * scores.nb[1]) for i in range(n_head)]
    total = _total(heads)
    if not h.use_alibi:
        total = ggml.add(total, inp.bias)
    by_cell = ggml.get_rows(ggml.cont(ggml.permute(total, 1, 0, 2, 3)), inp.block_of)
    by_cell = ggml.cont(ggml.permute(by_cell, 1, 0, 2, 3))
    if h.use_alibi:
        by_cell = ggml.add(by_cell, inp.bias)
    else:
        wide = mask if mask.type == "f32" else ggml.cast(mask, "f32")
        by_cell = ggml.add(by_cell, ggml.reshape(wide, cells, n_t, n_streams))
    n_top = min(cells, h.indexer_top_k + ratio - 1)
    return ggml.reshape(ggml.cont(ggml.top_k(by_cell, n_top)), n_top, n_t, 1, n_streams)


def _pool_size(h: HParams) -> int:
    return max(h.dsv4_compress_ratios, default=0) if h.indexer_head_size else 0


def _inp_pools(g: Graph) -> _Pools:
    """build_inp_kpool."""
    n, size = g.n_tokens, _pool_size(g.h)
    n_new = g.context.n_ctx_seq // size * g.context.n_seq_max
    n_pool = round_up(n_new + 1, POOL_PADDING)
    n_new = max(1, n_new)
    pools = _Pools(
        size,
        g.input("i64", n),
        g.input("i32", n_pool),
        g.input("i32", size, n_pool),
        g.input("f16" if g.follows(LIGHTNING_SCORES) else "f32", n_pool, n),
        g.input("i32", size - 1, n),
        g.input("i32", size, n_new),
        g.input("i64", n_new),
        g.input("i32", 4 * n_new),
    )
    for t in (pools.cells, pools.members, pools.mask, pools.tail):
        g.expand(t)
    return pools


def _pool_mask(g: Graph, pools: _Pools, mask: Tensor, w: Layer, x: Tensor, pos: Tensor, il: int) -> Tensor:
    """build_qsa_sel: the causal mask where only the cells of the best pools and the last ones are left."""
    h, n, size, n_pool = g.h, g.n_tokens, pools.size, pools.n_pool
    head, n_head, n_new = h.indexer_head_size, h.indexer_n_head, pools.new_cells.ne[0]
    k = ggml.concat(ggml.mul_mat(w.need("indexer.k_proj"), x), ggml.fill(ggml.new("f32", head, n)), 0)
    store_index_keys(g, ggml.reshape(k, 2 * head, 1, n), pools.k_idxs, il)
    cache = index_cache(g, il, 2)
    n_cells = cache.ne[1] * cache.ne[2]
    rows = ggml.view(cache, (head, n_cells), (cache.nb[1],))
    rows = ggml.get_rows(rows, ggml.reshape(pools.new_members, size * n_new))
    rows = ggml.reshape(rows, head, size, n_new)
    parts = [ggml.view(rows, (head, n_new), (rows.nb[2],), i * rows.nb[1]) for i in range(size)]
    new = g.rms(ggml.scale(_total(parts)), w, "indexer.k_norm", il)
    new = ggml.reshape(ggml.rope(ggml.reshape(new, head, 1, n_new), pools.new_pos), head, n_new)
    kept = ggml.view(cache, (head, n_cells), (cache.nb[1],), ggml.row_size(cache.type, head))
    g.expand(ggml.set_rows(kept, new, pools.new_cells))
    pooled = ggml.reshape(ggml.get_rows(kept, pools.cells), head, 1, n_pool)

    q = ggml.reshape(ggml.mul_mat(w.need("indexer.q_proj"), x), head, n_head, n)
    q = ggml.rope(g.rms(q, w, "indexer.q_norm", il), pos)
    if g.follows(LIGHTNING_SCORES):
        scores = ggml.lightning_indexer(q, pooled, ggml.fill(ggml.new("f32", n_head, n)), pools.mask)
    else:
        kq = ggml.mul_mat(ggml.reshape(pooled, head, n_pool), ggml.reshape(q, head, n_head * n))
        kq = ggml.relu(ggml.reshape(kq, n_pool, n_head, n))
        heads = [ggml.view(kq, (n_pool, n), (kq.nb[2],), i * kq.nb[1]) for i in range(n_head)]
        scores = ggml.add(ggml.scale(_total(heads)), pools.mask)
    n_top = pools.n_top(h.indexer_top_k)
    top = ggml.top_k(scores, n_top)
    ids = ggml.get_rows(pools.members, ggml.reshape(top, n_top * n))
    ids = ggml.concat(ggml.reshape(ids, size * n_top, n), pools.tail, 0)
    n_ids, n_kv = ids.ne[0], mask.ne[0]
    if g.follows(WHOLE_ROWS):
        g.expand(ids)
        closed = ggml.repeat_4d(ggml.fill(ggml.new(mask.type, n_kv + n_ids)), n_kv + n_ids, n, 1, 1)
        closed = ggml.reshape(closed, 1, n_kv + n_ids, n)
        zeros = ggml.repeat_4d(ggml.fill(ggml.new(mask.type, n_ids)), n_ids, n, 1, 1)
        zeros = ggml.reshape(zeros, 1, n_ids, n)
        best = ggml.get_rows(ggml.reshape(scores, 1, n_pool, n), top)
        live = ggml.repeat_4d(ggml.clamp(ggml.scale(best)), size, n_top, n, 1)
        tail = ggml.clamp(ggml.scale(ggml.cast(pools.tail, "f32")))
        live = ggml.concat(ggml.reshape(live, size * n_top, n), tail, 0)
        dump = ggml.scale(ggml.cumsum(ggml.fill(live)))
        wide = ggml.sub(ggml.cast(ids, "f32"), dump)
        ids = ggml.cast(ggml.add(ggml.mul(wide, live), dump), "i32")
    else:
        seed = ggml.cast(ggml.view(ids, (1,)), "f32")
        closed = ggml.fill(seed if mask.type == "f32" else ggml.cast(seed, mask.type))
        closed = ggml.reshape(ggml.repeat_4d(closed, 1, n_kv + 1, n, 1), 1, n_kv + 1, n)
        zeros = ggml.reshape(ggml.repeat_4d(ggml.fill(seed), 1, n_ids, n, 1), 1, n_ids, n)
    left = ggml.set_rows(closed, zeros, ggml.reshape(ids, n_ids, n, 1))
    row = left.nb[2]
    left = ggml.view(left, mask.ne, (row, row * mask.ne[1], row * mask.ne[1] * mask.ne[2]))
    return ggml.reshape(ggml.add(left, mask), *mask.ne)


def _total(parts: list[Tensor]) -> Tensor:
    """The sum of views, the first of them copied."""
    total = ggml.cont(parts[0])
    for t in parts[1:]:
        total = ggml.add(total, t)
    return total


def _conv_state(g: Graph, rs: RecurrentInput, cache: Tensor, x: Tensor, kernel: int, channels: int) -> Tensor:
    """build_conv_state_at: the kept columns before those of this batch; its last ones are kept in turn."""
    n_seqs, kept = g.n_seqs, kernel - 1
    state = ggml.reshape(g.rs(rs, cache, kept * channels), kept, channels, n_seqs)
    y = ggml.concat(state, ggml.transpose(x), 0)
    for slot in range(snapshots(g)):
        first = max(0, y.ne[0] - kept - slot)
        last = ggml.cont(ggml.view(y, (kept, channels, n_seqs), y.nb[1:3], first * 4))
        offset = slot * g.model.state_rows * kept * channels * 4
        g.expand(ggml.cpy(last, ggml.view(cache, (kept * channels, n_seqs), (cache.nb[1],), offset)))
    return y


def _inp_n_grams(g: Graph) -> Tensor:
    """Rows of a table that hashes of the last tokens name."""
    h = g.h
    rows = g.input("i32", h.ple_n_heads * g.n_tokens)
    x = ggml.get_rows(g.need("per_layer_token_embd"), rows)
    return g.expand(ggml.reshape(x, h.ple_head_dim * h.ple_n_heads, g.n_tokens))


def _n_gram_memory(g: Graph, rs: RecurrentInput, w: Layer, table: Tensor, x: Tensor, il: int) -> Tensor:
    """build_ple: what the table holds for these tokens, gated per stream and convolved, joins the streams."""
    h, n, n_seqs = g.h, g.n_tokens, g.n_seqs
    n_embd, n_streams, n_t = h.n_embd, h.dsv4_hc_mult, n // n_seqs
    width = n_embd * n_streams

    def normed(t: Tensor, name: str) -> Tensor:
        return ggml.mul(ggml.rms_norm(ggml.reshape(t, n_embd, n_streams, n)), w.need(name))

    key = normed(ggml.mul_mat(w.need("ple_key"), table), "ple_norm_key")
    value = ggml.mul_mat(w.need("ple_value"), table)
    score = ggml.scale(ggml.sum_rows(ggml.mul(key, normed(x, "ple_norm_query"))))
    size = ggml.sqrt(ggml.clamp(ggml.unary(score, "abs")))
    gate = ggml.sigmoid(ggml.mul(ggml.unary(score, "sgn"), size))
    value = ggml.repeat_4d(ggml.reshape(value, n_embd, 1, n), n_embd, n_streams, n, 1)
    gated = ggml.mul(value, gate)
    y = ggml.reshape(normed(ggml.reshape(gated, width, n), "ple_norm_conv"), width, n)

    kernel, step = h.ple_conv_kernel, h.ple_ngram_size
    history = (kernel - 1) * step
    cache = g.state("ple", il, h.ple_conv_state)
    y = _conv_state(g, rs, cache, ggml.reshape(y, width, n_t, n_seqs), history + 1, width)
    weights = w.need("ple_conv1d")
    total: Tensor | None = None
    for i in range(kernel):
        first = history - (kernel - 1 - i) * step
        part = ggml.view(y, (n_t, width, n_seqs), y.nb[1:3], first * 4)
        part = ggml.cont(ggml.transpose(part))
        tap = ggml.cont(ggml.view(weights, (1, width), (weights.nb[1],), i * weights.nb[0]))
        tap = ggml.reshape(tap, width)
        part = ggml.mul(part, tap if tap.type == "f32" else ggml.cast(tap, "f32"))
        total = part if total is None else ggml.add(total, part)
    assert total is not None
    y = ggml.reshape(ggml.cont(ggml.silu(total)), n_embd, n_streams, n)
    return ggml.add(x, ggml.add(gated, y))


def _load_qwen4exp(d: HParamsDraft, meta: Metadata) -> None:
    for field in words("""
        ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank ssm_n_group hc_low_rank indexer_n_head
        indexer_head_size indexer_top_k
    """):
        if getattr(d, field) == 0:
            meta.refuse(KEYS[field][0], "is 0")
    if d.dsv4_hc_mult <= 1:
        meta.refuse("hyper_connection.count", f"is {d.dsv4_hc_mult}, the engine expects more than one")
    d.n_embd_out = d.dsv4_hc_mult * d.n_embd
    recurrent_interval(4)(d, meta)
    layers = meta.read("ple.layers", "ints", 0, 0) or []
    if layers:
        if len(layers) != 1 or not 0 <= layers[0] < d.n_layer_all or not d.is_recr[layers[0]]:
            meta.refuse("ple.layers", "is not one linear-attention layer")
        d.is_ple = [il == layers[0] for il in range(d.n_layer_all)]
        d.ple_ngram_size = meta.number("ple.ngram_size")
        d.ple_heads_per_ngram = meta.number("ple.heads_per_ngram")
        d.ple_conv_kernel = meta.number("ple.conv_kernel")
        d.n_embd_per_layer = d.ple_head_dim = meta.number("embedding_length_per_layer_input")
        d.ple_n_heads = (d.ple_ngram_size - 1) * d.ple_heads_per_ngram
        if not 2 <= d.ple_ngram_size <= 8 or not 0 < d.ple_n_heads <= 64:
            meta.refuse("ple.ngram_size", "or heads_per_ngram is out of range")
        if d.ple_conv_kernel == 0 or d.n_embd_per_layer == 0:
            meta.refuse("ple.conv_kernel", "or embedding_length_per_layer_input is 0")
        meta.wide("ple.layer_multipliers", d.ple_ngram_size)
        d.ple_head_offsets = meta.wide("ple.head_offsets", d.ple_n_heads)
        d.ple_head_vocab_sizes = meta.wide("ple.head_vocab_sizes", d.ple_n_heads)
        for offset, n_rows in zip(d.ple_head_offsets, d.ple_head_vocab_sizes, strict=True):
            if n_rows == 0 or offset + n_rows > MAX_FIGURE:
                meta.refuse("ple.head_vocab_sizes", f"holds {n_rows} after row {offset}")


def _indexed(hp: HParams, ctx: Context, wanted: Filter) -> tuple[Cache, ...]:
    if not hp.indexer_head_size:
        return ()
    n_keys = 2 if ctx.version.follows(POOLED_KEYS) and _pool_size(hp) else 1
    return (indexer(hp, ctx, wanted, k_only=True, n_keys=n_keys),)


ARCHITECTURES = (
    Architecture(
        name="qwen4exp",
        source="qwen4exp.cpp",
        once_n_dims=dict.fromkeys(_NORMS_BY_STREAM, (STREAMS_APART, 1)),
        hparams=reads(
            """
            n_ff_exp? n_ff_shexp? f_norm_rms_eps rope_sections ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank
            ssm_n_group dsv4_hc_mult hc_low_rank indexer_n_head indexer_head_size indexer_top_k
            dsv4_compress_ratios?
            """,
            _load_qwen4exp,
        ),
        rope="imrope",
        output="tied",
        scales=("experts", "shared"),
        graph=qwen4exp,
        memory=hybrid(rolls_back=True, attends=attending_in_trunk, indexed=_indexed),
        lazy_embeddings=True,
        tensor_split=None,
    ),
)
