"""gpt-oss."""

from __future__ import annotations

from autofit_llama.engine.versions import Change
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import Graph
from autofit_llama.model.architecture import Architecture, reads
from autofit_llama.model.hparams import GATING_SOFTMAX_WEIGHT
from autofit_llama.model.rules import (
    swa_always,
)

EVERY_ROW = Change(
    without=10156,
    has=10159,
    source="src/models/openai-moe.cpp, rows without logits left out in the last block, and after the last norm",
    name="hidden states of all tokens of gpt-oss",
)


def gpt_oss(g: Graph) -> None:
    """src/models/openai-moe.cpp: attention sinks, biased experts; the hidden state of every token is an
    output.
    """
    h = g.h
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv_iswa()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        cur = g.rms(x, w, "attn_norm", il)
        q, k, v = g.qkv(w, cur, il, head=h.n_rot(0))
        cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il, sinks=w["attn_sinks"])
        if g.narrows(il, EVERY_ROW):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        cur = g.rms(ffn_inp, w, "post_attention_norm", il)
        cur = g.moe(
            w, cur, il, act="swiglu_oai", norm_weights=False, weights_scale=h.expert_weights_scale,
            gating=GATING_SOFTMAX_WEIGHT,
        )  # fmt: skip
        x = ggml.add(cur, ffn_inp)
    if g.follows(EVERY_ROW):
        g.h_nextn = x
        x = ggml.get_rows(x, out_ids) if g.keeps_rows(EVERY_ROW) else x
    g.finish(x)


ARCHITECTURES = (
    Architecture(
        name="gpt-oss",
        source="openai-moe.cpp",
        hparams=reads("f_norm_rms_eps n_ff_exp n_swa", swa_always(2)),
        rope="neox",
        output="own",
        scales=(),
        graph=gpt_oss,
    ),
)
