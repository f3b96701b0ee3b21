"""MiniMax: lightning attention, and attention to selected blocks of cells."""

from __future__ import annotations

from autofit_llama.graph import ggml
from autofit_llama.graph.builder import Graph, Layer, RecurrentInput
from autofit_llama.graph.ggml import Tensor


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
    qkv = ggml.reshape(ggml.silu(g.linear(w, "attn_qkv", x)), 3 * head, n_head, n_t, n_seqs)
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
    y = ggml.mul(ggml.sigmoid(g.linear(w, "attn_gate", x)), y)
    y = g.linear(w, "attn_output", y)
    return ggml.reshape(y, y.ne[0], n_t * n_seqs)
