"""Draft heads (multi-token prediction): one block that reads a token and the hidden state before it.

The `graph_mtp` of src/models/*.cpp, which a context of type MTP builds; its block lies behind the trunk's.
"""

from __future__ import annotations

from collections.abc import Callable

from autofit_llama.families.deepseek import latent_attention
from autofit_llama.families.mamba import nemotron_ffn
from autofit_llama.families.qwen import gated_output, gated_qkv, gated_shared_moe
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import AttentionInput, Graph, Layer
from autofit_llama.graph.ggml import HOST, Tensor

Attend = Callable[[Graph, AttentionInput, Layer, Tensor, Tensor, int], Tensor]


def _join(g: Graph, w: Layer, *, kind: str = "rms", own_table: bool = True) -> Tensor:
    """The embedding of the token and the hidden state, each normalised, side by side into one matrix."""
    tokens, hidden = g.input("i32", g.n_tokens), g.input("f32", g.h.n_embd, g.n_tokens)
    table = w["nextn.embed_tokens"] if own_table else None
    x = ggml.get_rows(table if table is not None else g.need("token_embd"), tokens)
    e = g.norm(x, w["nextn.enorm"], w.il, kind=kind)
    h = g.norm(hidden, w["nextn.hnorm"], w.il, kind=kind)
    return g.linear(w, "nextn.eh_proj", ggml.concat(e, h, 0))


def _head(g: Graph, w: Layer, x: Tensor, out_ids: Tensor | None, *, kind: str = "rms", scale: bool = False) -> None:
    """The head's norm, or the trunk's; the rows that are wanted; the head's matrix, or the trunk's."""
    norm = w["nextn.shared_head_norm"]
    cur = g.norm(x, norm if norm is not None else g.weight("output_norm"), -1, kind=kind)
    g.h_nextn = cur if g.h_nextn is None else g.h_nextn
    if out_ids is not None:
        cur = ggml.get_rows(cur, out_ids)
    if w["nextn.shared_head_head"] is not None:
        cur = g.linear(w, "nextn.shared_head_head", cur)
    else:
        cur = g.lm_head(cur)
    g.logits = g.expand(ggml.scale(cur) if scale else cur)


def _routed_and_shared(g: Graph, w: Layer, x: Tensor, il: int) -> Tensor:
    h = g.h
    routed = g.moe(
        w,
        x,
        il,
        gating=h.expert_gating_func,
        norm_weights=h.expert_weights_norm,
        weights_scale=h.expert_weights_scale,
    )
    shared = g.ffn(w, x, il, up="ffn_up_shexp", gate="ffn_gate_shexp", down="ffn_down_shexp")
    return ggml.add(routed, shared)


def _grouped_attention(
    g: Graph, inp: AttentionInput, w: Layer, x: Tensor, pos: Tensor, il: int, *, factors: bool = False
) -> Tensor:
    q, k, v = g.qkv(w, x, il)
    q = g.rms(q, w, "attn_q_norm", il) if w["attn_q_norm"] is not None else q
    k = g.rms(k, w, "attn_k_norm", il) if w["attn_k_norm"] is not None else k
    f = g.rope_factors(il) if factors else None
    return g.attn(inp, w, ggml.rope(q, pos, f), ggml.rope(k, pos, f), v, il)


def glm4_moe(g: Graph) -> None:
    """glm4-moe.cpp."""
    il = g.h.n_layer
    w = g.layer(il)
    residual = _join(g, w)
    cur = g.rms(residual, w, "attn_norm", il)
    cur = _grouped_attention(g, g.inp_attn_kv(), w, cur, g.inp_pos(), il)
    ffn_inp = ggml.add(cur, residual)
    cur = _routed_and_shared(g, w, g.rms(ffn_inp, w, "post_attention_norm", il), il)
    _head(g, w, ggml.add(cur, ffn_inp), g.inp_out_ids())


def hy_v3(g: Graph) -> None:
    """hy-v3.cpp."""
    il = g.h.n_layer
    w = g.layer(il)
    residual = _join(g, w)
    cur = g.rms(residual, w, "attn_norm", il)
    cur = _grouped_attention(g, g.inp_attn_kv(), w, cur, g.inp_pos(), il, factors=True)
    ffn_inp = ggml.add(cur, residual)
    cur = g.rms(ffn_inp, w, "ffn_norm", il)
    cur = g.ffn(w, cur, il) if w["ffn_gate_inp"] is None else _routed_and_shared(g, w, cur, il)
    _head(g, w, ggml.add(cur, ffn_inp), g.inp_out_ids())


def deepseek2(g: Graph) -> None:
    """deepseek2.cpp, deepseek32.cpp, glm-dsa.cpp: latent attention without an indexer."""
    il = g.h.n_layer
    w = g.layer(il)
    residual = _join(g, w)
    cur = g.rms(residual, w, "attn_norm", il)
    cur = latent_attention(g, g.inp_attn_k(), w, cur, g.inp_pos(), None, il)
    ffn_inp = ggml.add(cur, residual)
    cur = _routed_and_shared(g, w, g.rms(ffn_inp, w, "ffn_norm", il), il)
    _head(g, w, ggml.add(cur, ffn_inp), g.inp_out_ids())


def cohere2_moe(g: Graph) -> None:
    """cohere2moe.cpp: attention and experts side by side."""
    h = g.h
    il, kind = h.n_layer, "rms" if h.f_norm_rms_eps != 0.0 else "layer"
    w = g.layer(il)
    x = _join(g, w, kind=kind)
    ffn_inp = g.norm(x, w["attn_norm"], il, kind=kind)
    attn_out = _grouped_attention(g, g.inp_attn_kv_iswa(), w, ffn_inp, g.inp_pos(), il, factors=True)
    if w["ffn_up_shexp"] is not None:
        cur = ggml.scale(_routed_and_shared(g, w, ffn_inp, il))
    else:
        cur = g.moe(
            w,
            ffn_inp,
            il,
            gating=h.expert_gating_func,
            norm_weights=h.expert_weights_norm,
            weights_scale=h.expert_weights_scale,
        )
    cur = ggml.add(ggml.add(cur, x), attn_out)
    _head(g, w, cur, g.inp_out_ids(), kind=kind, scale=h.f_logit_scale != 0.0)


def qwen35(g: Graph) -> None:
    """qwen35.cpp, qwen35moe.cpp."""
    il = g.h.n_layer
    w = g.layer(il)
    residual = _join(g, w)
    cur = ggml.add(_gated_attention(g, w, g.rms(residual, w, "attn_norm", il), il), residual)
    x = g.rms(cur, w, "post_attention_norm", il)
    _head(g, w, ggml.add(gated_shared_moe(g, w, x, il), cur), g.inp_out_ids())


def qwen3next(g: Graph) -> None:
    """qwen3next.cpp: rows are selected before the feed-forward."""
    il = g.h.n_layer
    w = g.layer(il)
    residual = _join(g, w)
    cur = _gated_attention(g, w, g.rms(residual, w, "attn_norm", il), il)
    cur, residual = g.select_outputs(g.inp_out_ids(), cur, residual)
    cur = ggml.add(cur, residual)
    x = g.rms(cur, w, "post_attention_norm", il)
    _head(g, w, ggml.add(gated_shared_moe(g, w, x, il), cur), None)


def _gated_attention(g: Graph, w: Layer, x: Tensor, il: int) -> Tensor:
    pos = g.inp_pos()
    q, k, v, gate = gated_qkv(g, w, x, il)
    cur = g.attn(g.inp_attn_kv(), w, ggml.rope(q, pos), ggml.rope(k, pos), v, il, out=None)
    return gated_output(g, w, cur, gate)


def nemotron_h_moe(g: Graph) -> None:
    """nemotron-h-moe.cpp: attention without positions, then experts on the wanted rows alone."""
    il = g.h.n_layer
    w = g.layer(il)
    residual = _join(g, w)
    q, k, v = g.qkv(w, g.rms(residual, w, "attn_norm", il), il)
    cur = ggml.add(g.attn(g.inp_attn_kv(), w, q, k, v, il), residual)
    residual = ggml.get_rows(cur, g.inp_out_ids())
    cur = nemotron_ffn(g, w, g.rms(residual, w, "post_attention_norm", il), il)
    _head(g, w, ggml.add(cur, residual), None, kind="layer")


def mimo2(g: Graph) -> None:
    """mimo2.cpp."""
    h, n = g.h, g.n_tokens
    il = h.n_layer
    w = g.layer(il)
    residual = _join(g, w)
    qkv = g.linear(w, "attn_qkv", g.rms(residual, w, "attn_norm", il))
    row_k, row_v = (4 * h.n_embd_head_k(0), 4 * h.n_embd_head_v(0))
    n_head, n_kv = h.n_head[il], h.n_head_kv[il]
    q = ggml.view(qkv, (h.n_embd_head_k(0), n_head, n), (row_k, qkv.nb[1]))
    k = ggml.view(qkv, (h.n_embd_head_k(0), n_kv, n), (row_k, qkv.nb[1]), row_k * n_head)
    v = ggml.view(qkv, (h.n_embd_head_v(0), n_kv, n), (row_v, qkv.nb[1]), row_k * (n_head + n_kv))
    pos = g.inp_pos()
    cur = g.attn(
        g.inp_attn_kv_iswa(),
        w,
        ggml.rope(q, pos),
        ggml.rope(k, pos),
        v,
        il,
        bias=False,
        sinks=w["attn_sinks"],
    )
    cur = ggml.scale(cur) if h.f_attn_value_scale != 0.0 else cur
    ffn_inp = ggml.add(cur, residual)
    cur = ggml.add(g.ffn(w, g.rms(ffn_inp, w, "ffn_norm", il), il), ffn_inp)
    g.h_nextn = ggml.get_rows(cur, g.inp_out_ids())
    _head(g, w, g.h_nextn, None)


def step35(g: Graph) -> None:
    """step35.cpp: one gate per head."""
    h, n = g.h, g.n_tokens
    il = h.n_layer
    w = g.layer(il)
    head_k, head_v, n_head, n_kv = h.n_embd_head_k(0), h.n_embd_head_v(0), h.n_head[il], h.n_head_kv[il]
    residual = _join(g, w)
    x = g.rms(residual, w, "attn_norm", il)
    q, k, v = g.qkv(w, x, il, head=head_k, head_v=head_v, reshape=False)
    q, k, v = ggml.reshape(q, head_k, n_head, n), ggml.reshape(k, head_k, n_kv, n), ggml.reshape(v, head_v, n_kv, n)
    q = g.rms(q, w, "attn_q_norm", il) if w["attn_q_norm"] is not None else q
    k = g.rms(k, w, "attn_k_norm", il) if w["attn_k_norm"] is not None else k
    pos, factors = g.inp_pos(), None if h.is_swa[il] else g.rope_factors(il)
    cur = g.attn(g.inp_attn_kv_iswa(), w, ggml.rope(q, pos, factors), ggml.rope(k, pos, factors), v, il, out=None)
    if w["attn_gate"] is not None:
        gate = ggml.sigmoid(g.linear(w, "attn_gate", x, scale=False))
        cur = ggml.mul(ggml.reshape(cur, head_v, n_head, n), ggml.reshape(gate, 1, n_head, n))
        cur = ggml.reshape(cur, head_v * n_head, n)
    ffn_inp = ggml.add(g.linear(w, "attn_output", cur), residual)
    cur = g.rms(ffn_inp, w, "ffn_norm", il)
    cur = g.ffn(w, cur, il) if w["ffn_gate_inp"] is None else _routed_and_shared(g, w, cur, il)
    g.h_nextn = ggml.get_rows(ggml.add(cur, ffn_inp), g.inp_out_ids())
    _head(g, w, g.h_nextn, None)


def gemma4_assistant(g: Graph) -> None:
    """gemma4-assistant.cpp: a model of its own that reads the target's embeddings and its last layers' caches.

    Both are taken to lie as its own would, and the caches to have the widths that its own heads need.
    """
    h, n = g.h, g.n_tokens
    g.cache_source = lambda il: h.is_swa.index(h.is_swa[il])
    tokens, hidden = g.input("i32", n), g.input("f32", h.n_embd_inp, n)
    table = ggml.new("f16", h.n_embd_inp, h.n_vocab)
    table.home, table.is_weight = HOST, True
    x = ggml.concat(ggml.scale(ggml.get_rows(table, tokens)), hidden, 0)
    x = ggml.mul_mat(g.need("nextn.pre_projection", 0), x)
    inp = g.inp_attn_kv_iswa()
    pos, out_ids = g.inp_pos(), g.inp_out_ids()
    for il in range(h.n_layer_nextn):
        w = g.layer(il)
        q = g.linear(w, "attn_q", g.rms(x, w, "attn_norm", il), scale=False)
        q = g.rms(ggml.reshape(q, h.n_embd_head_k(il), h.n_head[il], n), w, "attn_q_norm", il)
        q = ggml.rope(q, pos, None if h.is_swa[il] else g.weight("rope_freqs", il))
        cur = g.linear(w, "attn_output", g.attn(inp, w, q, None, None, il, out=None), scale=False)
        if il == h.n_layer_nextn - 1:
            cur, x = g.select_outputs(out_ids, cur, x)
        attn_out = ggml.add(g.rms(cur, w, "post_attention_norm", il), x)
        cur = g.ffn(w, g.rms(attn_out, w, "ffn_norm", il), il, act="gelu")
        x = ggml.add(g.rms(cur, w, "post_ffw_norm", -1), attn_out)
        x = ggml.mul(x, w.need("layer_output_scale"))
    cur = g.final_norm(x)
    g.logits = g.expand(ggml.mul_mat(g.output_weight(), cur))
    g.h_nextn = g.expand(ggml.mul_mat(g.need("nextn.post_projection"), cur))
