"""Chameleon: text and image tokens in one vocabulary."""

from __future__ import annotations

from autofit_llama.graph import ggml
from autofit_llama.graph.builder import Graph
from autofit_llama.model.architecture import Architecture, reads

_N_IMAGE_TOKENS = 8192


def chameleon(g: Graph) -> None:
    """src/models/chameleon.cpp: norms before or (`swin_norm`) after each part; image tokens are overwritten."""
    h = g.h
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        residual = x
        cur = x if h.swin_norm else g.rms(x, w, "attn_norm", il)
        q, k, v = g.qkv(w, cur, il)
        if w["attn_q_norm"] is not None:
            q = g.layer_norm(q, w, "attn_q_norm", il)
        if w["attn_k_norm"] is not None:
            k = g.layer_norm(k, w, "attn_k_norm", il)
        cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il, bias=False)
        if g.is_last(il):
            cur, residual = g.select_outputs(out_ids, cur, residual)
        if h.swin_norm:
            cur = g.rms(cur, w, "attn_norm", il)
        ffn_inp = ggml.add(cur, residual)
        if not h.swin_norm:
            cur = g.rms(ffn_inp, w, "ffn_norm", il)
        cur = g.ffn(w, cur, il, bias=False)
        if h.swin_norm:
            cur = g.rms(cur, w, "ffn_norm", il)
        x = ggml.add(cur, ffn_inp)
    cur = g.final_norm(x)
    g.embd = cur
    image = ggml.clamp(ggml.new("f32", _N_IMAGE_TOKENS))
    g.logits = g.expand(ggml.set_(g.lm_head(cur), image))


ARCHITECTURES = (
    Architecture(
        name="chameleon",
        source="chameleon.cpp",
        hparams=reads("f_norm_rms_eps swin_norm?"),
        rope="norm",
        output="tied",
        scales=(),
        graph=chameleon,
    ),
)
