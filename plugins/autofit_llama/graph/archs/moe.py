"""Decoders with routed experts in (almost) every block, and perhaps shared ones that see every token."""

from __future__ import annotations

from typing import Literal

from autofit_llama.graph import ggml
from autofit_llama.graph.builder import AttentionInput, Graph, Layer
from autofit_llama.graph.ggml import Tensor
from autofit_llama.hparams import GATING_SOFTMAX

QkNorm = Literal["head", "all", "after"]


def moe_decoder(
    g: Graph,
    *,
    qk_norm: QkNorm | None = None,
    factors: bool = False,
    gating: int = GATING_SOFTMAX,
    norm_weights: bool = True,
    shared_first: bool = False,
) -> None:
    """Attention, then experts. Blocks before the first expert block are dense.

    `qk_norm`: queries and keys are normalised per head, over all heads, or per head after the rotation (keys first).
    `shared_first`: the shared experts come before the routed ones.
    """
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        cur = _attention(g, inp, w, g.rms(x, w, "attn_norm", il), pos, il, qk_norm, factors)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        cur = g.rms(ffn_inp, w, "ffn_norm", il)
        if w["ffn_gate_inp"] is None:
            cur = g.ffn(w, cur, il)
        else:
            shared = _shared(g, w, cur, il) if shared_first else None
            routed = g.moe(w, cur, il, gating=gating, norm_weights=norm_weights, weights_scale=g.h.expert_weights_scale)
            shared = _shared(g, w, cur, il) if not shared_first else shared
            cur = routed if shared is None else ggml.add(routed, shared)
        x = ggml.add(cur, ffn_inp)
    g.finish(x)


def _attention(
    g: Graph, inp: AttentionInput, w: Layer, x: Tensor, pos: Tensor, il: int, qk_norm: QkNorm | None, factors: bool
) -> Tensor:
    h, n = g.h, g.n_tokens
    f = g.rope_factors(il) if factors else None
    if qk_norm == "all":
        head, n_head, n_kv = h.n_embd_head_v(il), h.n_head[il], h.n_head_kv[il]
        q, k, v = g.qkv(w, x, il, head=head, reshape=False)
        q, k = g.rms(q, w, "attn_q_norm", il), g.rms(k, w, "attn_k_norm", il)
        q, k, v = (ggml.reshape(t, head, m, n) for t, m in ((q, n_head), (k, n_kv), (v, n_kv)))
    else:
        q, k, v = g.qkv(w, x, il)
        if qk_norm == "head":
            q, k = g.rms(q, w, "attn_q_norm", il), g.rms(k, w, "attn_k_norm", il)
    q, k = ggml.rope(q, pos, f), ggml.rope(k, pos, f)
    if qk_norm == "after":
        k, q = g.rms(k, w, "attn_k_norm", il), g.rms(q, w, "attn_q_norm", il)
    return g.attn(inp, w, q, k, v, il)


def _shared(g: Graph, w: Layer, x: Tensor, il: int) -> Tensor | None:
    if w["ffn_up_shexp"] is None:
        return None
    return g.ffn(w, x, il, up="ffn_up_shexp", gate="ffn_gate_shexp", down="ffn_down_shexp")


def olmoe(g: Graph) -> None:
    """src/models/olmoe.cpp."""
    moe_decoder(g, qk_norm="all", norm_weights=False)


def minimax_m2(g: Graph) -> None:
    """src/models/minimax-m2.cpp."""
    moe_decoder(g, qk_norm="all", gating=g.h.expert_gating_func)


def bailingmoe(g: Graph) -> None:
    """src/models/bailingmoe.cpp."""
    moe_decoder(g, factors=True, norm_weights=g.h.expert_weights_norm)


def deepseek(g: Graph) -> None:
    """src/models/deepseek.cpp."""
    moe_decoder(g, factors=True, norm_weights=False)


def dots1(g: Graph) -> None:
    """src/models/dots1.cpp."""
    moe_decoder(g, qk_norm="head", gating=g.h.expert_gating_func, norm_weights=g.h.expert_weights_norm)


def hunyuan_moe(g: Graph) -> None:
    """src/models/hunyuan-moe.cpp."""
    moe_decoder(g, qk_norm="after", factors=True, shared_first=True)


def qwen2moe(g: Graph) -> None:
    """src/models/qwen2moe.cpp: the shared expert's gate is a sigmoid, written as silu(y) / y."""
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        cur = _attention(g, inp, w, g.rms(x, w, "attn_norm", il), pos, il, None, False)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        cur = g.rms(ffn_inp, w, "ffn_norm", il)
        routed = g.moe(w, cur, il, norm_weights=False, weights_scale=g.h.expert_weights_scale)
        y = g.linear(w, "ffn_gate_inp_shexp", cur)
        gate = ggml.div(ggml.silu(y), y)
        shared = g.ffn(w, cur, il, up="ffn_up_shexp", gate="ffn_gate_shexp", down="ffn_down_shexp")
        x = ggml.add(ggml.add(routed, ggml.mul(shared, gate)), ffn_inp)
    g.finish(x)
