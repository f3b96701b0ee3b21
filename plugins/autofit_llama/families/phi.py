"""The Phi family."""

from __future__ import annotations

from autofit_llama.graph import ggml
from autofit_llama.graph.builder import Graph
from autofit_llama.model.architecture import Architecture, reads
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata


def phi3(g: Graph) -> None:
    """src/models/phi3.cpp, also phimoe."""
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv() if g.h.swa_type == "none" else g.inp_attn_kv_iswa()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        residual = x
        factors = g.rope_factors(il)
        cur = g.norm(x, w["attn_norm"], il, bias=w["attn_norm.bias"])
        q, k, v = g.qkv(w, cur, il)
        q, k = ggml.rope(q, pos, factors), ggml.rope(k, pos, factors)
        cur = g.attn(inp, w, ggml.scale(q), k, v, il)
        if g.is_last(il):
            cur, residual = g.select_outputs(out_ids, cur, residual)
        residual = ggml.add(cur, residual)
        cur = g.norm(residual, w["ffn_norm"], il, bias=w["ffn_norm.bias"])
        if w["ffn_gate_inp"] is None:
            cur = g.ffn(w, cur, il, act="swiglu", gate=None)
        else:
            cur = g.moe(w, cur, il, weights_scale=g.h.expert_weights_scale)
        x = ggml.add(residual, cur)
    g.finish(x)


def _load_phi3(d: HParamsDraft, meta: Metadata) -> None:
    d.n_swa = 0  # the engine has sliding windows of this family switched off


ARCHITECTURES = (
    Architecture(
        name="phi3",
        source="phi3.cpp",
        hparams=reads("f_norm_rms_eps n_swa?", _load_phi3),
        rope="neox",
        output="tied",
        scales=(),
        graph=phi3,
    ),
    Architecture(
        name="phimoe",
        source="phimoe.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="neox",
        output="own",
        scales=(),
        graph=phi3,
    ),
)
