"""The Gemma family: norms on both sides of attention and feed-forward, sliding windows."""

from __future__ import annotations

from autofit_llama.families.decoder import InputOf
from autofit_llama.families.moe import windowed
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import Graph
from autofit_llama.graph.ggml import Tensor
from autofit_llama.model.architecture import Architecture, reads
from autofit_llama.model.caches import NO_CACHE
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata
from autofit_llama.model.rules import (
    default,
    swa,
    swa_always,
)


def gemma2(g: Graph) -> None:
    """src/models/gemma2.cpp."""
    g.finish(_sandwich(g, qk_norm=False), soft_cap=True)


def gemma3(g: Graph) -> None:
    """src/models/gemma3.cpp."""
    g.finish(_sandwich(g), soft_cap=g.h.f_final_logit_softcapping != 0.0)


def gemma_embedding(g: Graph) -> None:
    """src/models/gemma-embedding.cpp: an encoder."""
    g.embd = g.expand(g.final_norm(_sandwich(g, cache=Graph.inp_attn_no_cache)))


def _sandwich(g: Graph, *, cache: InputOf = windowed, qk_norm: bool = True) -> Tensor:
    x = g.inp_embd(scaled=True) if qk_norm else ggml.scale(g.inp_embd())
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


def _load_gemma_embedding(d: HParamsDraft, meta: Metadata) -> None:
    swa_always(6, kind="symmetric")(d, meta)
    d.causal_attn = False
    d.f_attention_scale = d.n_embd_head_k_full**-0.5 if d.n_embd_head_k_full else 1.0
    if d.dense_2_feat_in not in (0, d.n_embd):
        meta.refuse("dense_2_feat_in", "is not the embedding length")
    if d.dense_3_feat_out not in (0, d.n_embd):
        meta.refuse("dense_3_feat_out", "is not the embedding length")


def _load_gemma2(d: HParamsDraft, meta: Metadata) -> None:
    default(n_swa=4096)(d, meta)
    swa_always(2)(d, meta)
    d.attn_soft_cap = True


ARCHITECTURES = (
    Architecture(
        name="gemma-embedding",
        source="gemma-embedding.cpp",
        hparams=reads(
            """
            n_swa f_norm_rms_eps dense_2_feat_in? dense_2_feat_out? dense_3_feat_in? dense_3_feat_out?
            """,
            _load_gemma_embedding,
        ),
        rope="neox",
        output="tied",
        scales=(),
        graph=gemma_embedding,
        memory=NO_CACHE,
    ),
    Architecture(
        name="gemma2",
        source="gemma2.cpp",
        hparams=reads("n_swa? f_norm_rms_eps f_attn_logit_softcapping? f_final_logit_softcapping?", _load_gemma2),
        rope="neox",
        output="tied",
        scales=(),
        graph=gemma2,
    ),
    Architecture(
        name="gemma3",
        source="gemma3.cpp",
        hparams=reads(
            "n_swa? f_norm_rms_eps f_final_logit_softcapping?", default(f_final_logit_softcapping=0.0), swa(6)
        ),
        rope="neox",
        output="tied",
        scales=(),
        graph=gemma3,
    ),
)
