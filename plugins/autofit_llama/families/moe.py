"""Decoders with routed experts in (almost) every block, and perhaps shared ones that see every token."""

from __future__ import annotations

from typing import Literal

from autofit_llama.families.decoder import Cache, Norm
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import AttentionInput, Graph, Layer, every
from autofit_llama.graph.ggml import Tensor
from autofit_llama.model.hparams import GATING_SIGMOID, GATING_SOFTMAX

QkNorm = Literal["head", "all", "after"]


def windowed(g: Graph) -> AttentionInput:
    """Sliding windows if the file has them."""
    return g.inp_attn_kv() if g.h.swa_type == "none" else g.inp_attn_kv_iswa()


def moe_decoder(
    g: Graph,
    *,
    cache: Cache = Graph.inp_attn_kv,
    kind: str = "rms",
    ffn_norm: str = "ffn_norm",
    qk_norm: QkNorm | None = None,
    factors: bool = False,
    rope_in_windows_only: bool = False,
    gating: int = GATING_SOFTMAX,
    norm_weights: bool = True,
    scale_weights: bool = True,
    shared_first: bool = False,
    output_bias: bool = True,
    all_rows: bool = False,
) -> None:
    """Attention, then experts. Blocks before the first expert block are dense.

    `qk_norm`: queries and keys are normalised per head (where the file has the norms), over all heads, or per
    head after the rotation (keys first). `shared_first`: the shared experts come before the routed ones.
    `all_rows`: those without logits are left out after the last norm only, for a block that predicts further.
    """
    h = g.h
    norm: Norm = g.rms if kind == "rms" else g.layer_norm
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = cache(g)
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        rope = h.is_swa[il] or not rope_in_windows_only
        cur = norm(x, w, "attn_norm", il)
        cur = _attention(g, inp, w, cur, pos, il, qk_norm, factors, rope=rope, output_bias=output_bias)
        if g.is_last(il) and not all_rows:
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        cur = norm(ffn_inp, w, ffn_norm, il)
        cur = experts(
            g, w, cur, il, gating=gating, norm_weights=norm_weights, scale_weights=scale_weights,
            shared_first=shared_first,
        )  # fmt: skip
        x = ggml.add(cur, ffn_inp)
    if all_rows:
        g.h_nextn = g.final_norm(x)
        g.output(ggml.get_rows(g.h_nextn, out_ids))
    else:
        g.finish(x, kind=kind)


def experts(
    g: Graph,
    w: Layer,
    x: Tensor,
    il: int,
    *,
    gating: int,
    norm_weights: bool,
    scale_weights: bool = True,
    shared_first: bool = False,
) -> Tensor:
    """What the block has: a dense feed-forward, or routed experts and perhaps shared ones."""
    if w["ffn_gate_inp"] is None:
        return g.ffn(w, x, il)
    shared = _shared(g, w, x, il) if shared_first else None
    scale = g.h.expert_weights_scale if scale_weights else 0.0
    routed = g.moe(w, x, il, gating=gating, norm_weights=norm_weights, weights_scale=scale)
    shared = _shared(g, w, x, il) if not shared_first else shared
    return routed if shared is None else ggml.add(routed, shared)


def _attention(
    g: Graph,
    inp: AttentionInput,
    w: Layer,
    x: Tensor,
    pos: Tensor,
    il: int,
    qk_norm: QkNorm | None = None,
    factors: bool = False,
    *,
    rope: bool = True,
    output_bias: bool = True,
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
            q = g.rms(q, w, "attn_q_norm", il) if w["attn_q_norm"] is not None else q
            k = g.rms(k, w, "attn_k_norm", il) if w["attn_k_norm"] is not None else k
    if rope:
        q, k = ggml.rope(q, pos, f), ggml.rope(k, pos, f)
    if qk_norm == "after":
        k, q = g.rms(k, w, "attn_k_norm", il), g.rms(q, w, "attn_q_norm", il)
    return g.attn(inp, w, q, k, v, il, bias=output_bias)


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


def bailingmoe2(g: Graph) -> None:
    """src/models/bailingmoe2.cpp."""
    dots1(g)


def dbrx(g: Graph) -> None:
    """src/models/dbrx.cpp."""
    moe_decoder(g, kind="layer", ffn_norm="attn_output_norm", output_bias=False)


def ernie4_5_moe(g: Graph) -> None:
    """src/models/ernie4-5-moe.cpp."""
    moe_decoder(g, output_bias=False)


def exaone_moe(g: Graph) -> None:
    """src/models/exaone-moe.cpp: positions in the sliding-window layers only."""
    moe_decoder(
        g, cache=Graph.inp_attn_kv_iswa, qk_norm="head", factors=True, rope_in_windows_only=True,
        output_bias=False, gating=g.h.expert_gating_func, norm_weights=g.h.expert_weights_norm,
    )  # fmt: skip


def glm4moe(g: Graph) -> None:
    """src/models/glm4-moe.cpp."""
    moe_decoder(
        g, ffn_norm="post_attention_norm", qk_norm="head", output_bias=False,
        gating=g.h.expert_gating_func, norm_weights=g.h.expert_weights_norm,
    )  # fmt: skip


def hy_v3(g: Graph) -> None:
    """src/models/hy-v3.cpp."""
    moe_decoder(
        g, qk_norm="head", factors=True, all_rows=True,
        gating=g.h.expert_gating_func, norm_weights=g.h.expert_weights_norm,
    )  # fmt: skip


def llada_moe(g: Graph) -> None:
    """src/models/llada-moe.cpp: diffusion, without a cache."""
    moe_decoder(g, cache=Graph.inp_attn_no_cache, qk_norm="head", norm_weights=False, output_bias=False)


def rnd1(g: Graph) -> None:
    """src/models/rnd1.cpp: diffusion, without a cache."""
    moe_decoder(g, cache=Graph.inp_attn_no_cache, qk_norm="head")


def maple(g: Graph) -> None:
    """src/models/maple.cpp: positions in the sliding-window layers only."""
    moe_decoder(
        g, cache=Graph.inp_attn_kv_iswa, qk_norm="head", rope_in_windows_only=True, scale_weights=False,
        output_bias=False,
    )  # fmt: skip


def mellum(g: Graph) -> None:
    """src/models/mellum.cpp."""
    moe_decoder(g, cache=windowed, qk_norm="head")


def mimo2(g: Graph) -> None:
    """src/models/mimo2.cpp: sliding windows with attention sinks; the attention's result may be scaled."""
    h = g.h
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv_iswa()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        q, k, v = _plain_qkv(g, w, g.rms(x, w, "attn_norm", il), il)
        cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il, bias=False, sinks=w["attn_sinks"])
        if h.f_attn_value_scale != 0.0:
            cur = ggml.scale(cur)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        cur = g.rms(ffn_inp, w, "ffn_norm", il)
        x = ggml.add(experts(g, w, cur, il, gating=GATING_SIGMOID, norm_weights=True), ffn_inp)
    g.finish(x)


def _plain_qkv(g: Graph, w: Layer, x: Tensor, il: int) -> tuple[Tensor, ...]:
    """Queries, keys and values by their matrices alone, whatever else the file holds."""
    h, n = g.h, g.n_tokens
    head_k, head_v = h.n_embd_head_k(il), h.n_embd_head_v(il)
    sizes = ((head_k, h.n_head[il]), (head_k, h.n_head_kv[il]), (head_v, h.n_head_kv[il]))
    if w["attn_qkv"] is not None:
        y, offset, parts = ggml.mul_mat(w.need("attn_qkv"), x), 0, []
        for head, n_head in sizes:
            parts.append(ggml.view(y, (head, n_head, n), (4 * head, y.nb[1]), 4 * offset))
            offset += head * n_head
        return tuple(parts)
    names = ("attn_q", "attn_k", "attn_v")
    return tuple(
        ggml.reshape(ggml.mul_mat(w.need(name), x), head, n_head, n)
        for name, (head, n_head) in zip(names, sizes, strict=True)
    )


def arctic(g: Graph) -> None:
    """src/models/arctic.cpp: a dense feed-forward, then experts on the block's own input."""
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        cur = _attention(g, inp, w, g.rms(x, w, "attn_norm", il), pos, il, output_bias=False)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        dense = ggml.add(g.ffn(w, g.rms(ffn_inp, w, "ffn_norm", il), il), ffn_inp)
        cur = g.moe(w, g.rms(x, w, "ffn_norm_exps", il), il, weights_scale=g.h.expert_weights_scale)
        x = ggml.add(cur, dense)
    g.finish(x)


def grok(g: Graph) -> None:
    """src/models/grok.cpp: norms before and after each half; perhaps a feed-forward beside the experts."""
    h = g.h
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        cur = _attention(g, inp, w, g.rms(x, w, "attn_norm", il), pos, il)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(g.rms(cur, w, "attn_output_norm", il), x)
        normed = g.rms(ffn_inp, w, "ffn_norm", il)
        cur = g.moe(w, normed, il, act="gelu", weights_scale=h.expert_weights_scale)
        if w["ffn_up"] is not None:
            cur = ggml.scale(ggml.add(g.ffn(w, normed, il, act="gelu"), cur))
        post = "layer_output_norm" if w["layer_output_norm"] is not None else "post_ffw_norm"
        x = ggml.add(g.rms(cur, w, post, il), ffn_inp)
    g.finish(x, scale=True, soft_cap=h.f_final_logit_softcapping != 0.0)


def grovemoe(g: Graph) -> None:
    """src/models/grovemoe.cpp: every group of experts shares an adjugate one, chosen by the same scores."""
    h = g.h
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    n_chunks = h.n_expert // h.n_group_experts
    for il in g.layers():
        w = g.layer(il)
        cur = _attention(g, inp, w, g.rms(x, w, "attn_norm", il), pos, il, "head")
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        cur = g.rms(ffn_inp, w, "ffn_norm", il)
        probs, scale = g.linear(w, "ffn_gate_inp", cur), h.expert_weights_scale
        routed = g.moe(w, cur, il, weights_scale=scale, probs_in=probs)
        chunk = g.moe(
            w, routed, il, n_expert=n_chunks, n_used=min(n_chunks, h.n_expert_used[il]),
            weights_scale=scale, probs_in=probs, suffix="chexps",
        )  # fmt: skip
        x = ggml.add(ggml.add(routed, ggml.scale(chunk)), ffn_inp)
    g.finish(x)


@every(lambda h: h.n_no_rope_layer_step)
def smallthinker(g: Graph) -> None:
    """src/models/smallthinker.cpp: experts are chosen by the block's input; some blocks have no positions."""
    h = g.h
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = windowed(g)
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        probs = g.linear(w, "ffn_gate_inp", x)
        rope = h.n_no_rope_layer_step == h.n_layer or il % h.n_no_rope_layer_step != 0
        cur = _attention(g, inp, w, g.rms(x, w, "attn_norm", il), pos, il, rope=rope)
        if g.is_last(il):
            cur, x, probs = g.select_outputs(out_ids, cur, x, probs)
        ffn_inp = ggml.add(cur, x)
        cur = g.moe(
            w, g.rms(ffn_inp, w, "ffn_norm", il), il, act="relu", gating=h.expert_gating_func,
            weights_scale=h.expert_weights_scale, probs_in=probs,
        )  # fmt: skip
        x = ggml.add(cur, ffn_inp)
    g.finish(x)


def qwen2moe(g: Graph) -> None:
    """src/models/qwen2moe.cpp: the shared expert's gate is a sigmoid, written as silu(y) / y."""
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        cur = _attention(g, inp, w, g.rms(x, w, "attn_norm", il), pos, il)
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
