"""Cohere's Command models: attention and feed-forward side by side, scaled logits."""

from __future__ import annotations

from autofit_llama.graph import ggml
from autofit_llama.graph.builder import Graph
from autofit_llama.graph.draft_head import grouped_attention, head, join, routed_and_shared
from autofit_llama.model.architecture import Architecture, DraftTensors, reads
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata
from autofit_llama.model.rules import (
    PATTERN_LISTS,
    SIGMOID,
    gating,
    swa_always,
)


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
        if g.narrows(il):
            attn_out, x, normed = g.select_outputs(out_ids, attn_out, x, normed)
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
    g.h_nextn = cur = g.final_norm(x, kind=kind)
    g.output(ggml.get_rows(cur, out_ids) if g.keeps_rows() else cur, scale=h.f_logit_scale != 0.0)


def cohere2moe_draft(g: Graph) -> None:
    """cohere2moe.cpp: attention and experts side by side."""
    h = g.h
    il, kind = h.n_layer, "rms" if h.f_norm_rms_eps != 0.0 else "layer"
    w = g.layer(il)
    x = join(g, w, kind=kind)
    ffn_inp = g.norm(x, w["attn_norm"], il, kind=kind)
    attn_out = grouped_attention(g, g.inp_attn_kv_iswa(), w, ffn_inp, g.inp_pos(), il, factors=True)
    if w["ffn_up_shexp"] is not None:
        cur = ggml.scale(routed_and_shared(g, w, ffn_inp, il))
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
    head(g, w, cur, g.inp_out_ids(), kind=kind, scale=h.f_logit_scale != 0.0)


def _load_cohere2moe(d: HParamsDraft, meta: Metadata) -> None:
    if not d.given & {"f_norm_eps", "f_norm_rms_eps"}:
        meta.refuse("attention.layer_norm_epsilon", "is missing")


ARCHITECTURES = (
    Architecture(
        name="cohere2",
        source="cohere2.cpp",
        hparams=reads("n_swa f_logit_scale f_norm_eps", swa_always(4)),
        rope="norm",
        output="tied",
        scales=("ffn",),
        graph=cohere2,
    ),
    Architecture(
        name="cohere2moe",
        source="cohere2moe.cpp",
        hparams=reads(
            """
            f_norm_eps? f_norm_rms_eps? n_swa f_logit_scale n_layer_dense_lead n_ff_exp n_ff_shexp?
            n_expert_shared? expert_weights_norm? expert_weights_scale? expert_gating_func?
            """,
            _load_cohere2moe,
            gating(SIGMOID),
            swa_always(4, first=True, lists=True),
        ),
        rope="norm",
        output="tied",
        scales=("ffn", "experts", "shared"),
        graph=cohere2moe,
        pattern_of_trunk=(None, PATTERN_LISTS),
        draft_tensors=DraftTensors(
            kept=frozenset(
                (
                    "nextn.embed_tokens",
                    "nextn.shared_head_head",
                    "nextn.shared_head_norm",
                )
            ),
            once_always=True,
        ),
        draft_graph=cohere2moe_draft,
    ),
)
