"""MiniMax: lightning attention, and attention to selected blocks of cells."""

from __future__ import annotations

from autofit.domain.units import round_up
from autofit.domain.values import dataclass

from autofit_llama.graph import ggml
from autofit_llama.graph.builder import AttentionInput, Graph, Layer, RecurrentInput, hadamard
from autofit_llama.graph.ggml import Tensor
from autofit_llama.graph.sparse import store_index_keys
from autofit_llama.model.architecture import Architecture, reads
from autofit_llama.model.caches import (
    Cache,
    Memory,
    attending_in_trunk,
    hybrid,
    indexer,
    kv,
)
from autofit_llama.model.context import Context
from autofit_llama.model.hparams import HParams
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata
from autofit_llama.model.rules import (
    recurrent_interval,
)

_MAPPED_CELLS = 256  #: positions of an empty cache (llama-kv-cache-msa.cpp:get_n_pos)


def minimax_01(g: Graph) -> None:
    """src/models/minimax-01.cpp: the residual stream is what the norms give."""
    h = g.h
    n_t, n_head = g.n_tokens // g.n_seqs, h.n_head[0]
    x = g.inp_embd()
    rs, inp = g.inp_rs(), g.inp_attn_kv()
    pos = g.inp_pos()
    out_ids = g.inp_out_ids()
    slopes = g.input("f32", n_head)
    decays = (
        g.input("f32", 1, n_head, n_t, g.n_seqs),
        g.input("f32", 1, n_head, n_t, g.n_seqs),
        g.input("f32", n_t, n_t, n_head, g.n_seqs),
    )
    for il in g.layers():
        w = g.layer(il)
        residual = cur = g.rms(x, w, "attn_norm", il)
        if h.is_recr[il]:
            cur = _lightning_attention(g, rs, w, cur, slopes, decays, il)
        else:
            q, k, v = g.qkv(w, cur, il)
            cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il, bias=False)
        if g.is_last(il):
            cur, residual = g.select_outputs(out_ids, cur, residual)
        ffn_inp = ggml.add(cur, ggml.scale(residual))
        residual = cur = g.rms(ffn_inp, w, "ffn_norm", il)
        cur = g.moe(w, cur, il, biased=False, weights_scale=h.expert_weights_scale)
        x = ggml.add(cur, ggml.scale(residual))
    g.finish(x)


def _lightning_attention(
    g: Graph,
    rs: RecurrentInput,
    w: Layer,
    x: Tensor,
    slopes: Tensor,
    decays: tuple[Tensor, Tensor, Tensor],
    il: int,
) -> Tensor:
    """Linear attention: within the batch, a square of decays; before it, a state per head."""
    h, n_seqs = g.h, g.n_seqs
    n_t, n_head, head = g.n_tokens // n_seqs, h.n_head[0], h.n_embd_head_v(0)
    g.expand(g.rs(rs, g.state("r", il, h.n_embd_r), h.n_embd_r))
    slope = ggml.scale(slopes)
    x = ggml.reshape(x, x.ne[0], n_t, 1, n_seqs)
    qkv = ggml.reshape(ggml.silu(g.linear(w, "attn_qkv", x, scale=False)), 3 * head, n_head, n_t, n_seqs)
    q, k, v = (ggml.view(qkv, (head, n_head, n_t, n_seqs), qkv.nb[1:], 4 * i * head) for i in range(3))
    cache = g.state("s", il, h.n_embd_s)
    old = ggml.reshape(g.rs(rs, cache, h.n_embd_s), head, head, n_head, n_seqs)

    q_decay, k_decay, square = (ggml.exp(ggml.scale(t)) for t in decays)
    before = ggml.mul_mat(old, ggml.permute(ggml.mul(q, q_decay), 0, 2, 1, 3))
    qk = ggml.mul(ggml.mul_mat(ggml.permute(k, 0, 2, 1, 3), ggml.permute(q, 0, 2, 1, 3)), square)
    v_t = ggml.cont(ggml.permute(v, 1, 2, 0, 3))
    y = g.expand(ggml.add(before, ggml.mul_mat(v_t, qk)))

    block_decay = ggml.reshape(ggml.exp(ggml.scale(slope)), 1, 1, n_head)
    k_t = ggml.cont(ggml.permute(ggml.mul(k, k_decay), 1, 2, 0, 3))
    new = ggml.add(ggml.mul(old, block_decay), ggml.mul_mat(k_t, v_t))
    g.expand(ggml.cpy(new, ggml.view(cache, (h.n_embd_s * n_seqs,))))

    y = ggml.cont(ggml.permute(y, 0, 2, 1, 3))
    y = ggml.reshape(y, y.ne[0] * y.ne[1], y.ne[2], 1, y.ne[3])
    y = g.rms(y, w, "attn_norm_2", il)
    y = ggml.mul(ggml.sigmoid(g.linear(w, "attn_gate", x, scale=False)), y)
    y = g.linear(w, "attn_output", y, scale=False)
    return ggml.reshape(y, y.ne[0], n_t * n_seqs)


@dataclass(slots=True)
class _Selection:
    """Inputs of block-sparse attention: which position is in which cell, who sees whom, which blocks are
    forced. `mask` is the causal one in f32; a batch has `cell_block`, single tokens have `slot_f`.
    """

    k_idxs: Tensor
    bias: Tensor
    visible: Tensor
    slot: Tensor
    slot_f: Tensor | None
    cell_block: Tensor | None
    mask: Tensor | None


def minimax_m3(g: Graph) -> None:
    """src/models/minimax-m3.cpp: with flash attention and a stream per sequence, blocks of cells are selected
    for each group of heads; otherwise attention is dense.
    """
    h, context = g.h, g.context
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    sparse = g.flash_attn and (context.n_seq_max == 1 or not context.kv_unified)
    selection = _selection(g, inp) if sparse else None
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        residual = x
        cur = g.rms(x, w, "attn_norm", il)
        q, k, v = g.qkv(w, cur, il)
        q = ggml.rope(g.rms(q, w, "attn_q_norm", il), pos)
        k = ggml.rope(g.rms(k, w, "attn_k_norm", il), pos)
        if selection is None or il < h.n_layer_dense_lead:
            cur = g.attn(inp, w, q, k, v, il, bias=False)
        else:
            cur = _sparse_attention(g, inp, selection, w, cur, q, k, v, pos, il)
            cur = g.linear(w, "attn_output", cur)
        if g.is_last(il):
            cur, residual = g.select_outputs(out_ids, cur, residual)
        ffn_inp = ggml.add(cur, residual)
        cur = g.rms(ffn_inp, w, "ffn_norm", il)
        if il < h.n_layer_dense_lead:
            cur = g.ffn(w, cur, il, act="swiglu_oai", bias=False)
        else:
            routed = g.moe(
                w, cur, il, act="swiglu_oai", biased=False, norm_weights=h.expert_weights_norm,
                weights_scale=h.expert_weights_scale, gating=h.expert_gating_func,
            )  # fmt: skip
            shared = g.ffn(
                w, cur, il, act="swiglu_oai", bias=False,
                up="ffn_up_shexp", gate="ffn_gate_shexp", down="ffn_down_shexp",
            )  # fmt: skip
            cur = ggml.add(routed, shared)
        x = ggml.add(cur, ffn_inp)
    g.finish(x)


def _selection(g: Graph, inp: AttentionInput) -> _Selection:
    """ParsedModel for an empty cache, as the engine reserves: positions come with what is decoded."""
    mask, block = inp.full.mask, g.h.indexer_block_size
    n_pos = round_up(_MAPPED_CELLS, block)
    decode, streams = mask.ne[1] == 1, mask.ne[3]
    return _Selection(
        g.input("i64", g.n_tokens),
        g.input("f32", n_pos // block, g.n_tokens),
        g.input("f32", n_pos, g.n_tokens),
        g.input("i32", n_pos, streams),
        g.input("f32", n_pos, streams) if decode else None,
        None if decode else g.input("i32", mask.ne[0], streams),
        None if decode else ggml.cast(mask, "f32"),
    )


def _sparse_attention(
    g: Graph,
    inp: AttentionInput,
    s: _Selection,
    w: Layer,
    x: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    il: int,
) -> Tensor:
    h, n = g.h, g.n_tokens
    head, n_index = h.indexer_head_size, h.indexer_n_head
    index_q = ggml.reshape(g.linear(w, "indexer.q_proj", x), head, n_index, n)
    index_k = ggml.reshape(g.linear(w, "indexer.k_proj", x), head, 1, n)
    index_q = ggml.rope(g.rms(index_q, w, "indexer.q_norm", il), pos)
    index_k = ggml.rope(g.rms(index_k, w, "indexer.k_norm", il), pos)
    index_keys = store_index_keys(g, index_k, s.k_idxs, il)
    side = inp.full
    if side.k_rot is not None:
        q, k = hadamard(q, side.k_rot), hadamard(k, side.k_rot)
    if side.v_rot is not None:
        v = hadamard(v, side.v_rot)
    for t in (q, k, v):
        g.expand(t)
    assert side.k_idxs is not None and side.v_idxs is not None
    g.store_k(k, side.k_idxs, il)
    g.store_v(v, side.v_idxs, il)
    keys, values = g.get_k(il), g.get_v(il)
    if s.slot_f is not None:
        cur = _gathered(g, s, s.slot_f, index_q, index_keys, q, keys, values)
    else:
        parts = [_masked(g, s, index_q, index_keys, q, keys, values, i) for i in range(keys.ne[3])]
        cur = parts[0]
        for part in parts[1:]:
            cur = ggml.concat(cur, part, 1)
    return cur if side.v_rot is None else hadamard(cur, side.v_rot)


def _masked(
    g: Graph,
    s: _Selection,
    index_q: Tensor,
    index_keys: Tensor,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    stream: int,
) -> Tensor:
    """A batch of one stream: what is not selected is masked, with one mask per group of heads."""
    assert s.cell_block is not None and s.mask is not None
    h, bias, visible = g.h, s.bias, s.visible
    head, groups, block = h.indexer_head_size, h.indexer_n_head, h.indexer_block_size
    n_kv, n_t = s.mask.ne[:2]
    n_pos, n_block = visible.ne[0], bias.ne[0]
    first = stream * n_t
    index_q = ggml.view(index_q, (head, groups, n_t), index_q.nb[1:3], first * index_q.nb[2])
    cells = ggml.view(index_keys, (head, n_kv), (index_keys.nb[2],), stream * index_keys.nb[3])
    slot = ggml.view(s.slot, (n_pos,), (), stream * s.slot.nb[1])
    visible = ggml.view(visible, (n_pos, 1, n_t), (visible.nb[1],) * 2, first * visible.nb[1])
    cell_block = ggml.view(s.cell_block, (n_kv,), (), stream * s.cell_block.nb[1])
    causal = ggml.view(s.mask, (n_kv, n_t, 1), (s.mask.nb[1], s.mask.nb[3]), stream * s.mask.nb[3])
    bias = ggml.view(bias, (n_block, 1, n_t), (bias.nb[1],) * 2, first * bias.nb[1])
    q = ggml.view(q, (*q.ne[:2], n_t), q.nb[1:3], first * q.nb[2])
    k, v = (ggml.view(t, (*t.ne[:3], 1), t.nb[1:], stream * t.nb[3]) for t in (keys, values))

    scores = ggml.mul_mat(ggml.get_rows(cells, slot), ggml.reshape(index_q, head, groups * n_t))
    scores = ggml.add(ggml.reshape(scores, n_pos, groups, n_t), visible, inplace=True)
    scores = ggml.add(ggml.pool_2d(scores, block, 1), bias)
    n_top = min(h.indexer_top_k, n_block)
    top = ggml.top_k(scores, n_top)
    closed = ggml.repeat_4d(ggml.cast(ggml.scale(bias), "f16"), n_block, groups, n_t, 1)
    zeros = ggml.scale(ggml.cast(top, "f32"))
    blocks = ggml.set_rows(
        ggml.reshape(closed, 1, n_block, groups * n_t),
        ggml.reshape(zeros, 1, n_top, groups * n_t),
        ggml.reshape(top, n_top, groups * n_t),
    )
    blocks = ggml.cont(ggml.permute(ggml.reshape(blocks, n_block, groups, n_t), 0, 2, 1, 3))
    blocks = ggml.cont(ggml.transpose(ggml.reshape(blocks, n_block, n_t * groups)))
    mask = ggml.cont(ggml.transpose(ggml.get_rows(blocks, cell_block)))
    mask = ggml.add(ggml.reshape(mask, n_kv, n_t, groups), causal, inplace=True)
    mask = ggml.cast(ggml.reshape(mask, n_kv, n_t, 1, groups), "f16")
    return _grouped_attention(q, ggml.permute(k, 0, 3, 1, 2), ggml.permute(v, 0, 3, 1, 2), mask)


def _gathered(
    g: Graph,
    s: _Selection,
    slot_f: Tensor,
    index_q: Tensor,
    index_keys: Tensor,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """One token per stream: the selected cells are gathered."""
    h = g.h
    head, groups, block = h.indexer_head_size, h.indexer_n_head, h.indexer_block_size
    n_kv, streams, n_pos, n_block = keys.ne[2], keys.ne[3], s.visible.ne[0], s.bias.ne[0]
    cells = ggml.view(index_keys, (head, n_kv, streams), index_keys.nb[2:4])
    scores = ggml.mul_mat(
        ggml.reshape(ggml.get_rows(cells, s.slot), head, n_pos, 1, streams),
        ggml.reshape(index_q, head, groups, 1, streams),
    )
    scores = ggml.add(scores, ggml.reshape(s.visible, n_pos, 1, 1, streams), inplace=True)
    scores = ggml.add(ggml.pool_2d(scores, block, 1), ggml.reshape(s.bias, n_block, 1, 1, streams))
    n_top = min(h.indexer_top_k, n_block)
    starts = ggml.scale(ggml.cast(ggml.top_k(scores, n_top), "f32"))
    starts = ggml.repeat_4d(ggml.reshape(starts, 1, n_top, groups, streams), block, n_top, groups, streams)
    positions = ggml.add(starts, ggml.reshape(ggml.arange(block), block, 1, 1))
    positions = ggml.cast(ggml.reshape(positions, block * n_top * groups, streams), "i32")
    rows = ggml.get_rows(ggml.reshape(slot_f, 1, n_pos, streams), positions)
    rows = ggml.scale(ggml.reshape(rows, block, n_top, groups, streams))
    rows = ggml.add(rows, ggml.reshape(ggml.arange(keys.ne[1]), 1, 1, groups))
    rows = ggml.cast(ggml.reshape(rows, block * n_top * groups, streams), "i32")

    def gather(cache: Tensor) -> Tensor:
        cells = ggml.view(cache, (cache.ne[0], cache.ne[1] * n_kv, streams), (cache.nb[1], cache.nb[3]))
        t = ggml.reshape(ggml.get_rows(cells, rows), cache.ne[0], block * n_top, 1, groups * streams)
        wanted = "f16" if ggml.is_quantized(cache.type) else cache.type
        return t if t.type == wanted else ggml.cast(t, wanted)

    seen = ggml.get_rows(ggml.reshape(s.visible, 1, n_pos, streams), positions)
    mask = ggml.cast(ggml.reshape(seen, block * n_top, 1, 1, groups * streams), "f16")
    return _grouped_attention(q, gather(keys), gather(values), mask)


def _grouped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """build_attn_msa_fa: groups of heads, and streams, as sequences of one flash attention."""
    size, n_head, n_t = q.ne[:3]
    channels, rows = k.ne[3], mask.ne[1]
    q = ggml.reshape(q, size, n_head * n_t // (channels * rows), channels, rows)
    y = ggml.flash_attn_ext(ggml.permute(q, 0, 2, 3, 1), k, v, mask, None)
    y = ggml.permute(y, 0, 1, 3, 2)
    return ggml.reshape(y if ggml.is_contiguous(y) else ggml.cont(y), size * n_head, n_t)


def _load_minimax_01(d: HParamsDraft, meta: Metadata) -> None:
    d.n_embd_head_la = d.n_embd_head_k_full
    recurrent_interval(8)(d, meta)


def _load_minimax_m3(d: HParamsDraft, meta: Metadata) -> None:
    if d.indexer_block_size == 0:
        meta.refuse("attention.indexer.block_size", "is 0")


def _m3_caches(hp: HParams, ctx: Context) -> tuple[Cache, ...]:
    base = kv(hp, ctx, "base", lambda il: True, ctx.n_ctx_seq, ctx.n_streams)
    return base, indexer(hp, ctx, lambda il: il >= hp.n_layer_dense_lead)


ARCHITECTURES = (
    Architecture(
        name="minimax-01",
        source="minimax-01.cpp",
        hparams=reads("f_norm_rms_eps f_residual_scale", _load_minimax_01),
        rope="neox",
        output="tied",
        scales=(),
        graph=minimax_01,
        memory=hybrid(rolls_back=False, attends=attending_in_trunk),
        tensor_split=None,
        reserves_one_sequence=True,
    ),
    Architecture(
        name="minimax-m3",
        source="minimax-m3.cpp",
        hparams=reads(
            """
            f_norm_rms_eps n_layer_dense_lead? n_ff_exp n_expert_shared expert_weights_scale?
            expert_weights_norm? expert_gating_func indexer_n_head indexer_head_size indexer_top_k
            indexer_block_size indexer_local_blocks
            """,
            _load_minimax_m3,
        ),
        rope="neox",
        output="own",
        scales=(),
        graph=minimax_m3,
        memory=Memory(caches=_m3_caches),
        tensor_split=None,
    ),
)
