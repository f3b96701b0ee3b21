"""Mamba and the hybrids that mix it with attention."""

from __future__ import annotations

from autofit_llama.graph import ggml
from autofit_llama.graph.builder import Graph, Layer
from autofit_llama.graph.ggml import Tensor
from autofit_llama.graph.recurrent import mamba as mamba1_layer
from autofit_llama.graph.recurrent import mamba2 as mamba2_layer
from autofit_llama.hparams import GATING_SIGMOID


def mamba(g: Graph) -> None:
    """src/models/mamba.cpp, mamba2.cpp."""
    block = mamba2_layer if g.h.arch == "mamba2" else mamba1_layer
    x = g.inp_embd()
    rs = g.inp_rs()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        cur = g.rms(x, w, "attn_norm", il)
        cur = block(g, rs, w, cur, il)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        x = ggml.add(cur, x)
    g.finish(x)


def falcon_h1(g: Graph) -> None:
    """src/models/falcon-h1.cpp: attention and Mamba-2 on the same input, added."""
    x = g.inp_embd()
    pos = g.inp_pos()
    rs, inp = g.inp_rs(), g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        cur = g.rms(x, w, "attn_norm", il)
        q, k, v = g.qkv(w, cur, il)
        attn_out = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il, bias=False)
        cur = g.rms(x, w, "attn_norm", il)
        ssm_out = mamba2_layer(g, rs, w, cur, il)
        cur = ggml.add(attn_out, ssm_out)
        residual = ggml.add(cur, x)
        if g.is_last(il):
            cur, residual = g.select_outputs(out_ids, cur, residual)
        cur = g.rms(residual, w, "ffn_norm", il)
        x = ggml.add(g.ffn(w, cur, il), residual)
    g.finish(x)


def nemotron_h(g: Graph) -> None:
    """src/models/nemotron-h.cpp, nemotron-h-moe.cpp: a block is Mamba-2, attention or feed-forward."""
    h = g.h
    x = g.inp_embd()
    rs, inp = g.inp_rs(), g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        cur = g.rms(x, w, "attn_norm", il)
        if h.is_recr[il]:
            cur = mamba2_layer(g, rs, w, cur, il)
        elif h.n_ff[il] == 0:
            q, k, v = g.qkv(w, cur, il)
            cur = g.attn(inp, w, q, k, v, il)
        else:
            cur = nemotron_ffn(g, w, cur, il)
        x = ggml.add(cur, x)
    cur = g.final_norm(x)
    g.h_nextn = cur
    g.output(ggml.get_rows(cur, out_ids))


def nemotron_ffn(g: Graph, w: Layer, x: Tensor, il: int) -> Tensor:
    h = g.h
    if w["ffn_gate_inp"] is None:
        return g.ffn(w, x, il, act="relu_sqr", gate=None)
    down, up = w["ffn_latent_down"], w["ffn_latent_up"]
    latent = x if down is None else ggml.mul_mat(down, x)
    logits = g.linear(w, "ffn_gate_inp", x)
    routed = g.moe(
        w, latent, il, act="relu_sqr", gating=GATING_SIGMOID, norm_weights=h.expert_weights_norm,
        weights_scale=h.expert_weights_scale, probs_in=logits,
    )  # fmt: skip
    if up is not None:
        routed = ggml.mul_mat(up, routed)
    shared = g.ffn(w, x, il, act="relu_sqr", up="ffn_up_shexp", gate=None, down="ffn_down_shexp")
    return ggml.add(routed, shared)
