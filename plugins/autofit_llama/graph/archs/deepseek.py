"""DeepSeek's latent attention."""

from __future__ import annotations

from autofit_llama.graph import ggml
from autofit_llama.graph.builder import AttentionInput, Graph, Layer
from autofit_llama.graph.ggml import Tensor


def deepseek2(g: Graph) -> None:
    """src/models/deepseek2.cpp (V2, V3, Kimi-K2, GigaChat), deepseek2ocr, mistral4: with or without the absorbed
    key matrix.
    """
    h = g.h
    x = g.inp_embd()
    attn_scale = g.inp_attn_scale() if h.f_attn_temp_scale != 0.0 else None
    pos = g.inp_pos()
    inp = g.inp_attn_k() if h.is_mla else g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        residual = x
        cur = g.rms(x, w, "attn_norm", il)
        cur = latent_attention(g, inp, w, cur, pos, attn_scale, il)
        if g.is_last(il):
            cur, residual = g.select_outputs(out_ids, cur, residual)
        ffn_inp = ggml.add(cur, residual)
        cur = g.rms(ffn_inp, w, "ffn_norm", il)
        if il < h.n_layer_dense_lead:
            cur = g.ffn(w, cur, il)
        else:
            routed = g.moe(
                w, cur, il, norm_weights=h.expert_weights_norm, weights_scale=h.expert_weights_scale,
                gating=h.expert_gating_func,
            )  # fmt: skip
            shared = g.ffn(w, cur, il, up="ffn_up_shexp", gate="ffn_gate_shexp", down="ffn_down_shexp")
            cur = ggml.add(routed, shared)
        x = ggml.add(cur, ffn_inp)
    cur = g.final_norm(x)
    g.h_nextn = cur
    g.output(cur)


def latent_attention(
    g: Graph, inp: AttentionInput, w: Layer, x: Tensor, pos: Tensor, attn_scale: Tensor | None, il: int
) -> Tensor:
    """Multi-head latent attention: keys compressed to one latent row and a rotated part per token."""
    h, n = g.h, g.n_tokens
    head_k, head_v, n_head = h.n_embd_head_k_mla, h.n_embd_head_v_mla, h.n_head[il]
    rope, rank = h.n_rot(0), h.n_lora_kv
    nope = head_k - rope
    if w["attn_q"] is None:
        q = ggml.mul_mat(w.need("attn_q_a"), x)
        q = g.rms(q, w, "attn_q_a_norm", il)
        q = ggml.mul_mat(w.need("attn_q_b"), q)
    else:
        q = ggml.mul_mat(w.need("attn_q"), x)
    q = ggml.reshape(q, head_k, n_head, n)
    kv_pe = ggml.mul_mat(w.need("attn_kv_a_mqa"), x)
    row = ggml.row_size(kv_pe.type, rank + rope)
    latent = ggml.view(kv_pe, (rank, n), (row,))
    k_pe = ggml.view(kv_pe, (rope, 1, n), (row, row), ggml.row_size(kv_pe.type, rank))
    k_pe = ggml.rope(k_pe, pos)
    latent = g.rms(latent, w, "attn_kv_a_norm", il)
    if h.is_mla:
        q_nope = ggml.view(q, (nope, n_head, n), q.nb[1:3])
        q_pe = ggml.rope(ggml.view(q, (rope, n_head, n), q.nb[1:3], ggml.row_size(q.type, nope)), pos)
        absorbed = ggml.mul_mat(w.need("attn_k_b"), ggml.permute(q_nope, 0, 2, 1, 3))
        q = ggml.concat(ggml.permute(absorbed, 0, 2, 1, 3), q_pe, 0)
        latent = ggml.reshape(latent, rank, 1, n)
        k = ggml.concat(latent, k_pe, 0)
        if attn_scale is not None:
            q = ggml.mul(q, attn_scale)
        return g.attn(inp, w, q, k, latent, il, bias=False, v_mla=w.need("attn_v_b"))
    kv = ggml.mul_mat(w.need("attn_kv_b"), latent)
    head_row = ggml.row_size(kv.type, nope + head_v)
    k_nope = ggml.view(kv, (nope, n_head, n), (head_row, head_row * n_head))
    v = ggml.view(kv, (head_v, n_head, n), (head_row, head_row * n_head), ggml.row_size(kv.type, nope))
    v = ggml.cont(v)
    q = ggml.rope(q, pos)
    k = ggml.concat(k_nope, ggml.repeat_4d(k_pe, rope, n_head, n, 1), 0)
    if attn_scale is not None:
        q = ggml.mul(q, attn_scale)
    return g.attn(inp, w, q, k, v, il, bias=False)
