"""Cohere's Command models: attention and feed-forward side by side, scaled logits."""

from __future__ import annotations

from autofit_llama.graph import ggml
from autofit_llama.graph.builder import Graph


def cohere2(g: Graph) -> None:
    """src/models/cohere2.cpp: positions in the sliding-window layers only."""
    h = g.h
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv_iswa()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        ffn_inp = g.norm(x, w["attn_norm"], il, kind="layer")
        factors = g.rope_factors(il)
        q, k, v = g.qkv(w, ffn_inp, il)
        if h.is_swa[il]:
            q, k = ggml.rope(q, pos, factors), ggml.rope(k, pos, factors)
        attn_out = g.attn(inp, w, q, k, v, il)
        if g.is_last(il):
            attn_out, x, ffn_inp = g.select_outputs(out_ids, attn_out, x, ffn_inp)
        cur = g.ffn(w, ffn_inp, il)
        x = ggml.add(ggml.add(cur, x), attn_out)
    g.finish(x, kind="layer", scale=h.f_logit_scale != 0.0)


def cohere2moe(g: Graph) -> None:
    """src/models/cohere2moe.cpp: experts beside the attention; also the leading dense blocks have positions."""
    h = g.h
    kind = "layer" if h.f_norm_rms_eps == 0.0 else "rms"
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv_iswa()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        normed = g.norm(x, w["attn_norm"], il, kind=kind)
        q, k, v = g.qkv(w, normed, il)
        if h.is_swa[il] or il < h.n_layer_dense_lead:
            factors = g.rope_factors(il)
            q, k = ggml.rope(q, pos, factors), ggml.rope(k, pos, factors)
        attn_out = g.attn(inp, w, q, k, v, il)
        if w["ffn_gate_inp"] is None:
            cur = g.ffn(w, normed, il)
        else:
            cur = g.moe(
                w, normed, il, gating=h.expert_gating_func, norm_weights=h.expert_weights_norm,
                weights_scale=h.expert_weights_scale,
            )  # fmt: skip
            if w["ffn_up_shexp"] is not None:
                shared = g.ffn(w, normed, il, up="ffn_up_shexp", gate="ffn_gate_shexp", down="ffn_down_shexp")
                cur = ggml.scale(ggml.add(cur, shared))
        x = ggml.add(ggml.add(cur, x), attn_out)
    g.h_nextn = g.final_norm(x, kind=kind)
    g.output(ggml.get_rows(g.h_nextn, out_ids), scale=h.f_logit_scale != 0.0)
