"""The Gemma family: norms on both sides of attention and feed-forward, sliding windows."""

from __future__ import annotations

from autofit_llama.families.decoder import Cache
from autofit_llama.families.moe import windowed
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import Graph
from autofit_llama.graph.ggml import Tensor


def gemma2(g: Graph) -> None:
    """src/models/gemma2.cpp."""
    g.finish(_sandwich(g, qk_norm=False), soft_cap=True)


def gemma3(g: Graph) -> None:
    """src/models/gemma3.cpp."""
    g.finish(_sandwich(g), soft_cap=g.h.f_final_logit_softcapping != 0.0)


def gemma_embedding(g: Graph) -> None:
    """src/models/gemma-embedding.cpp: an encoder."""
    g.embd = g.expand(g.final_norm(_sandwich(g, cache=Graph.inp_attn_no_cache)))


def _sandwich(g: Graph, *, cache: Cache = windowed, qk_norm: bool = True) -> Tensor:
    x = ggml.scale(g.inp_embd())
    pos = g.inp_pos()
    inp = cache(g)
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        cur = g.rms(x, w, "attn_norm", il)
        q, k, v = g.qkv(w, cur, il)
        if qk_norm:
            q = g.rms(q, w, "attn_q_norm", il)
            k = g.rms(k, w, "attn_k_norm", il)
        q, k = ggml.scale(ggml.rope(q, pos)), ggml.rope(k, pos)
        cur = g.attn(inp, w, q, k, v, il)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        cur = g.rms(cur, w, "post_attention_norm", il)
        attn_out = ggml.add(cur, x)
        cur = g.rms(attn_out, w, "ffn_norm", il)
        cur = g.ffn(w, cur, il, act="gelu")
        cur = g.rms(cur, w, "post_ffw_norm", -1)
        x = ggml.add(cur, attn_out)
    return x
