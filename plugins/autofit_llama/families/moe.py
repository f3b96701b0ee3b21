"""Decoders with routed experts in (almost) every block, and perhaps shared ones that see every token."""

from __future__ import annotations

from typing import Literal

from autofit_llama.engine.versions import Change
from autofit_llama.families.decoder import InputOf, Norm
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import AttentionInput, Graph, Layer, every
from autofit_llama.graph.draft_head import grouped_attention, head, join, routed_and_shared
from autofit_llama.graph.ggml import Tensor
from autofit_llama.model.architecture import ATTENTION_AND_JOIN, Architecture, DraftTensors, reads
from autofit_llama.model.caches import NEXTN_WITH_ALL, NO_CACHE, plain
from autofit_llama.model.hparams import GATING_SIGMOID, GATING_SOFTMAX
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata
from autofit_llama.model.rules import (
    SIGMOID,
    default,
    force,
    gating,
    mrope_by_sections,
    swa,
    swa_always,
    swa_given,
)

QkNorm = Literal["head", "all", "after"]


def windowed(g: Graph) -> AttentionInput:
    """Sliding windows if the file has them."""
    return g.inp_attn_kv() if g.h.swa_type == "none" else g.inp_attn_kv_iswa()


def moe_decoder(
    g: Graph,
    *,
    cache: InputOf = Graph.inp_attn_kv,
    kind: str = "rms",
    ffn_norm: str = "ffn_norm",
    qk_norm: QkNorm | None = None,
    factors: bool = False,
    rope_in_windows_only: bool = False,
    rope_by_layer: bool = False,
    gating: int = GATING_SOFTMAX,
    norm_weights: bool = True,
    scale_weights: bool = True,
    shared_first: bool = False,
    output_bias: bool = True,
    predicts: bool = False,
) -> None:
    """Attention, then experts. Blocks before the first expert block are dense.

    `qk_norm`: queries and keys are normalized per head (where the file has the norms), over all heads, or per
    head after the rotation (keys first). `rope_by_layer`: each layer rotates as many elements as it says itself, not as
    the first one. `shared_first`: the shared experts come before the routed ones.
    `predicts`: a block may predict further, from what the last norm makes of all rows.
    """
    h = g.h
    norm: Norm = g.rms if kind == "rms" else g.layer_norm
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = cache(g)
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        own = ggml.Rotation(h.n_rot(il)) if rope_by_layer else ggml.USUAL
        rope = None if rope_in_windows_only and not h.is_swa[il] else own
        cur = norm(x, w, "attn_norm", il)
        cur = _attention(g, inp, w, cur, pos, il, qk_norm, factors, rope=rope, output_bias=output_bias)
        if g.is_last(il) and not (predicts and g.keeps_rows()):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        cur = norm(ffn_inp, w, ffn_norm, il)
        cur = experts(
            g, w, cur, il, gating=gating, norm_weights=norm_weights, scale_weights=scale_weights,
            shared_first=shared_first,
        )  # fmt: skip
        x = ggml.add(cur, ffn_inp)
    if predicts:
        g.h_nextn = cur = g.final_norm(x)
        g.output(ggml.get_rows(cur, out_ids) if g.keeps_rows() else cur)
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
    rope: ggml.Rotation | None = ggml.USUAL,
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
    if rope is not None:
        q, k = ggml.rope(q, pos, f, rotation=rope), ggml.rope(k, pos, f, rotation=rope)
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
        g, qk_norm="head", factors=True, predicts=True,
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
        g, cache=Graph.inp_attn_kv_iswa, qk_norm="head", rope_in_windows_only=True, rope_by_layer=True,
        scale_weights=False, output_bias=False,
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
        routed = g.moe(w, cur, il, weights_scale=scale, probs_in=probs, select_by="sigmoid")
        chunk = g.moe(
            w, routed, il, n_expert=n_chunks, n_used=min(n_chunks, h.n_expert_used[il]),
            weights_scale=scale, probs_in=probs, suffix="chexps", select_by="sigmoid",
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
        cur = _attention(g, inp, w, g.rms(x, w, "attn_norm", il), pos, il, rope=ggml.USUAL if rope else None)
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


def glm4moe_draft(g: Graph) -> None:
    """glm4-moe.cpp."""
    il = g.h.n_layer
    w = g.layer(il)
    residual = join(g, w)
    cur = g.rms(residual, w, "attn_norm", il)
    cur = grouped_attention(g, g.inp_attn_kv(), w, cur, g.inp_pos(), il)
    ffn_inp = ggml.add(cur, residual)
    cur = routed_and_shared(g, w, g.rms(ffn_inp, w, "post_attention_norm", il), il)
    head(g, w, ggml.add(cur, ffn_inp), g.inp_out_ids())


def hy_v3_draft(g: Graph) -> None:
    """hy-v3.cpp."""
    il = g.h.n_layer
    w = g.layer(il)
    residual = join(g, w)
    cur = g.rms(residual, w, "attn_norm", il)
    cur = grouped_attention(g, g.inp_attn_kv(), w, cur, g.inp_pos(), il, factors=True)
    ffn_inp = ggml.add(cur, residual)
    cur = g.rms(ffn_inp, w, "ffn_norm", il)
    cur = g.ffn(w, cur, il) if w["ffn_gate_inp"] is None else routed_and_shared(g, w, cur, il)
    head(g, w, ggml.add(cur, ffn_inp), g.inp_out_ids())


def mimo2_draft(g: Graph) -> None:
    """mimo2.cpp."""
    h, n = g.h, g.n_tokens
    il = h.n_layer
    w = g.layer(il)
    residual = join(g, w)
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
    head(g, w, g.h_nextn, None)


def _load_grok(d: HParamsDraft, meta: Metadata) -> None:
    default(
        f_logit_scale=0.5773502691896257,
        f_embedding_scale=78.38367176906169,
        f_attn_out_scale=0.08838834764831845,
        f_attn_logit_softcapping=30.0,
        f_final_logit_softcapping=0.0,
    )(d, meta)


def _load_mimo2(d: HParamsDraft, meta: Metadata) -> None:
    d.swa_type = "standard"
    if d.f_attn_value_scale == 1.0:
        d.f_attn_value_scale = 0.0


def _load_smallthinker(d: HParamsDraft, meta: Metadata) -> None:
    if d.n_swa > 0:
        d.n_swa = 4096
        swa_always(4, first=True)(d, meta)
    else:
        d.n_no_rope_layer_step = d.n_layer


_MIMO2_APART = Change(
    without=10182,
    has=10189,
    source="src/llama-model.cpp:create_memory, without and with a filter for LLM_ARCH_MIMO2",
    name="no caches for blocks of MiMo 2 that predict further",
    larger=False,
)
_MIMO2_NORM_LEFT_OUT = Change(
    without=10068,
    has=10235,
    source="src/models/mimo2.cpp: LLM_TENSOR_LAYER_OUT_NORM, required and TENSOR_NOT_REQUIRED",
    name="draft heads of MiMo 2 without a norm of their own",
)
_HEADS_COUNTED_FIRST = Change(
    without=10739,
    has=10816,
    source="src/models/mimo2.cpp and src/llama-model.cpp:load_hparams, LLM_KV_NEXTN_PREDICT_LAYERS after and before the"
    " list of sliding blocks",
    name="draft heads of MiMo 2 counted before its list of sliding blocks is read",
)
_MIMO2_PATTERN = Change(
    without=10852,
    has=10985,
    source="src/models/mimo2.cpp: LLM_KV_ATTENTION_SLIDING_WINDOW_PATTERN by get_key_or_arr and get_arr",
    name="lists of sliding blocks of MiMo 2 with its draft heads",
)
_HY_V3_APART = Change(
    without=9946,
    has=10068,
    source="src/llama-model.cpp:create_memory, without and with a filter for LLM_ARCH_HY_V3",
    name="no caches for blocks of Hunyuan 3 that predict further",
    larger=False,
)

ARCHITECTURES = (
    Architecture(
        name="arctic",
        source="arctic.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="norm",
        output="tied",
        scales=(),
        graph=arctic,
    ),
    Architecture(
        name="bailingmoe",
        source="bailingmoe.cpp",
        hparams=reads("""
            f_norm_rms_eps n_layer_dense_lead? n_ff_exp n_expert_shared expert_weights_scale?
            expert_weights_norm?
            """),
        rope="norm",
        output="own",
        scales=(),
        graph=bailingmoe,
    ),
    Architecture(
        name="bailingmoe2",
        source="bailingmoe2.cpp",
        hparams=reads("""
            f_norm_rms_eps n_layer_dense_lead? n_ff_exp n_expert_shared expert_weights_scale?
            expert_weights_norm? n_ff_shexp? expert_gating_func
            """),
        rope="neox",
        output="own",
        scales=(),
        graph=bailingmoe2,
        memory=plain(until=NEXTN_WITH_ALL),
        draft_tensors=DraftTensors(loadable=False),
    ),
    Architecture(
        name="dbrx",
        source="dbrx.cpp",
        hparams=reads("f_norm_eps f_clamp_kqv"),
        rope="neox",
        output="own",
        scales=(),
        graph=dbrx,
    ),
    Architecture(
        name="deepseek",
        source="deepseek.cpp",
        hparams=reads("""
            f_norm_rms_eps n_layer_dense_lead? n_ff_exp n_expert_shared expert_weights_scale?
            """),
        rope="norm",
        output="tied",
        scales=(),
        graph=deepseek,
    ),
    Architecture(
        name="dots1",
        source="dots1.cpp",
        hparams=reads("""
            f_norm_rms_eps n_layer_dense_lead? n_ff_exp n_expert_shared expert_weights_scale?
            expert_weights_norm? expert_gating_func?
            """),
        rope="neox",
        output="own",
        scales=(),
        graph=dots1,
    ),
    Architecture(
        name="ernie4_5-moe",
        source="ernie4-5-moe.cpp",
        hparams=reads("""
            rope_sections? f_norm_rms_eps n_ff_exp n_ff_shexp? n_moe_layer_step n_layer_dense_lead?
            """),
        rope="norm",
        output="tied",
        scales=(),
        graph=ernie4_5_moe,
    ),
    Architecture(
        name="exaone-moe",
        source="exaone-moe.cpp",
        hparams=reads(
            """
            n_swa f_norm_rms_eps n_expert_shared? n_ff_exp n_ff_shexp? expert_gating_func expert_weights_scale?
            expert_weights_norm? n_layer_dense_lead?
            """,
            swa_always(4),
        ),
        rope="neox",
        output="own",
        scales=(),
        graph=exaone_moe,
        draft_tensors=DraftTensors(loadable=False),
    ),
    Architecture(
        name="glm4moe",
        source="glm4-moe.cpp",
        hparams=reads(
            """
            f_norm_rms_eps rope_sections? n_ff_exp n_expert_shared expert_weights_scale? expert_weights_norm?
            n_layer_dense_lead? expert_gating_func?
            """,
            gating(SIGMOID),
        ),
        rope=mrope_by_sections("neox"),
        output="tied",
        scales=(),
        graph=glm4moe,
        memory=plain(until=NEXTN_WITH_ALL),
        draft_graph=glm4moe_draft,
    ),
    Architecture(
        name="grok",
        source="grok.cpp",
        hparams=reads(
            """
            f_norm_rms_eps n_ff_exp? f_logit_scale? f_embedding_scale? f_attn_out_scale?
            f_attn_logit_softcapping? f_router_logit_softcapping? f_final_logit_softcapping? attn_temp_length?
            """,
            _load_grok,
            force(attn_soft_cap=True),
        ),
        rope="neox",
        output="tied",
        scales=(),
        graph=grok,
        flash_attention=False,
        tensor_split=None,
    ),
    Architecture(
        name="grovemoe",
        source="grovemoe.cpp",
        hparams=reads("n_ff_exp n_ff_chexp? expert_group_scale n_group_experts f_norm_rms_eps"),
        rope="neox",
        output="tied",
        scales=(),
        graph=grovemoe,
    ),
    Architecture(
        name="hunyuan-moe",
        source="hunyuan-moe.cpp",
        hparams=reads("f_norm_rms_eps n_ff_exp n_ff_shexp?"),
        rope="neox",
        output="tied",
        scales=(),
        graph=hunyuan_moe,
    ),
    Architecture(
        name="hy_v3",
        source="hy-v3.cpp",
        hparams=reads(
            """
            f_norm_rms_eps n_ff_exp n_ff_shexp? expert_gating_func? expert_weights_scale? expert_weights_norm?
            """,
            gating(SIGMOID),
        ),
        rope="neox",
        output="tied",
        scales=("ffn", "experts", "shared"),
        graph=hy_v3,
        memory=plain(since=_HY_V3_APART),
        draft_tensors=DraftTensors(skipped=ATTENTION_AND_JOIN | {"attn_q_norm", "attn_k_norm"}, once_always=True),
        draft_graph=hy_v3_draft,
    ),
    Architecture(
        name="llada-moe",
        source="llada-moe.cpp",
        hparams=reads("n_ff_exp? f_norm_rms_eps", force(causal_attn=False)),
        rope="neox",
        output="own",
        scales=(),
        graph=llada_moe,
        memory=NO_CACHE,
    ),
    Architecture(
        name="maple",
        source="maple.cpp",
        hparams=reads("f_norm_rms_eps n_swa n_ff_exp is_swa swiglu_clamp_exp", swa_given),
        rope="neox",
        output="own",
        scales=(),
        graph=maple,
        fused_clamp=True,
    ),
    Architecture(
        name="mellum",
        source="mellum.cpp",
        hparams=reads("f_norm_rms_eps n_ff_exp n_swa?", swa(4, lists=True)),
        rope="neox",
        output="own",
        scales=("experts",),
        graph=mellum,
    ),
    Architecture(
        name="mimo2",
        source="mimo2.cpp",
        hparams=reads("f_norm_rms_eps n_ff_exp n_swa is_swa f_attn_value_scale?", _load_mimo2),
        rope="neox",
        output="own",
        scales=(),
        graph=mimo2,
        memory=plain(until=NEXTN_WITH_ALL, since=_MIMO2_APART),
        once_in_heads={"layer_output_norm": _MIMO2_NORM_LEFT_OUT},
        pattern_of_trunk=(_HEADS_COUNTED_FIRST, _MIMO2_PATTERN),
        draft_graph=mimo2_draft,
    ),
    Architecture(
        name="minimax-m2",
        source="minimax-m2.cpp",
        hparams=reads("f_norm_rms_eps n_ff_exp expert_gating_func?"),
        rope="neox",
        output="own",
        scales=(),
        graph=minimax_m2,
        tensor_split=None,
    ),
    Architecture(
        name="olmoe",
        source="olmoe.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="neox",
        output="own",
        scales=(),
        graph=olmoe,
        tensor_split=None,
    ),
    Architecture(
        name="qwen2moe",
        source="qwen2moe.cpp",
        hparams=reads("n_ff_exp? n_ff_shexp? f_norm_rms_eps"),
        rope="neox",
        output="own",
        scales=(),
        graph=qwen2moe,
    ),
    Architecture(
        name="rnd1",
        source="rnd1.cpp",
        hparams=reads("n_ff_exp? f_norm_rms_eps", force(causal_attn=False)),
        rope="neox",
        output="tied",
        scales=(),
        graph=rnd1,
        memory=NO_CACHE,
    ),
    Architecture(
        name="smallthinker",
        source="smallthinker.cpp",
        hparams=reads("n_swa? n_ff_exp? f_norm_rms_eps expert_gating_func?", _load_smallthinker),
        rope="neox",
        output="tied",
        scales=(),
        graph=smallthinker,
    ),
)
