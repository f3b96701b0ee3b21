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
