"""Encoders of the BERT family: no cache, LayerNorm after each sub-block."""

from __future__ import annotations

from autofit_llama.graph import ggml
from autofit_llama.graph.builder import Graph, every
from autofit_llama.hparams import GATING_SOFTMAX


@every(lambda h: h.moe_every_n_layers)
def bert(g: Graph) -> None:
    """src/models/bert.cpp; also jina-bert-v2, jina-bert-v3, nomic-bert, nomic-bert-moe."""
    h, arch = g.h, g.h.arch
    pos = g.inp_pos()
    x = g.inp_embd()
    types = g.weight("token_types")
    if types is not None:
        x = ggml.add(x, ggml.view(types, (h.n_embd,)))
    if arch == "bert":
        x = ggml.add(ggml.get_rows(g.need("position_embd"), pos), x)
    x = g.norm(x, g.weight("token_embd_norm"), 0, bias=g.weight("token_embd_norm.bias"), kind="layer")
    inp = g.inp_attn_no_cache()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        q, k, v = g.qkv(w, x, il)
        if w["attn_q_norm"] is not None:
            q = ggml.reshape(
                g.layer_norm(ggml.reshape(q, q.ne[0] * q.ne[1], g.n_tokens), w, "attn_q_norm", il), *q.ne[:3]
            )
        if w["attn_k_norm"] is not None:
            k = ggml.reshape(
                g.layer_norm(ggml.reshape(k, k.ne[0] * k.ne[1], g.n_tokens), w, "attn_k_norm", il), *k.ne[:3]
            )
        if arch in ("nomic-bert", "nomic-bert-moe", "jina-bert-v3"):
            q, k = ggml.rope(q, pos), ggml.rope(k, pos)
        cur = g.attn(inp, w, q, k, v, il)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        cur = g.layer_norm(ggml.add(cur, x), w, "attn_output_norm", il)
        if w["attn_norm_2"] is not None:
            cur = g.layer_norm(ggml.add(cur, x), w, "attn_norm_2", il)
        ffn_inp = cur
        if h.moe_every_n_layers > 0 and il % h.moe_every_n_layers == 1:
            cur = g.moe(
                w, cur, il, n_used=h.n_expert_used[0], act="gelu", norm_weights=False, gating=GATING_SOFTMAX,
                weights_scale=h.expert_weights_scale,
            )  # fmt: skip
        elif arch in ("bert", "nomic-bert-moe", "jina-bert-v3"):
            cur = g.ffn(w, cur, il, act="gelu", gate=None)
        elif arch == "jina-bert-v2":
            both = w["ffn_gate"] is None and w.need("ffn_up").ne[1] != h.n_ff[0]
            cur = g.ffn(w, cur, il, act="geglu" if both else "gelu")
        else:
            cur = g.ffn(w, cur, il)
        cur = ggml.add(cur, ffn_inp)
        x = g.layer_norm(cur, w, "layer_output_norm", il)
    g.embd = g.expand(x)
