"""Liquid's LFM2: short convolutions and attention."""

from __future__ import annotations

from autofit_llama.engine.versions import Change
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import Graph, Layer, RecurrentInput
from autofit_llama.graph.ggml import Tensor
from autofit_llama.graph.recurrent import snapshots
from autofit_llama.model.aborts import aborts
from autofit_llama.model.architecture import Architecture, TensorSplit, reads
from autofit_llama.model.caches import (
    hybrid,
)
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata
from autofit_llama.model.rules import (
    recurrent_without_kv_heads,
)

WINDOWS = Change(
    without=8095,
    has=8121,
    source="src/llama-model.cpp:load_hparams, LLM_ARCH_LFM2 without and with LLM_KV_ATTENTION_SLIDING_WINDOW",
    name="sliding windows of LFM2",
    larger=False,
)


def lfm2(g: Graph) -> None:
    """src/models/lfm2.cpp, lfm2moe.cpp."""
    h = g.h
    x = g.inp_embd()
    rs = g.inp_rs()
    inp = g.inp_attn_kv_iswa(hybrid=True) if h.swa_type == "standard" else g.inp_attn_kv()
    pos = g.inp_pos()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        previous = x
        cur = g.rms(x, w, "attn_norm", il)
        if h.is_recr[il]:
            cur = _short_conv(g, rs, w, cur, il)
        else:
            q, k, v = g.qkv(w, cur, il)
            q, k = g.rms(q, w, "attn_q_norm", il), g.rms(k, w, "attn_k_norm", il)
            cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il, bias=False)
        if g.is_last(il):
            cur, previous = g.select_outputs(out_ids, cur, previous)
        cur = ggml.add(previous, cur)
        out = g.rms(cur, w, "ffn_norm", il)
        if il < h.n_layer_dense_lead:
            out = g.ffn(w, out, il)
        else:
            out = g.moe(w, out, il, gating=h.expert_gating_func, weights_scale=h.expert_weights_scale)
        x = ggml.add(cur, out)
    cur = g.final_norm(x, "token_embd_norm" if g.weight("output_norm") is None else "output_norm")
    if g.context.embeddings:
        g.embd = g.expand(cur)
    else:
        g.output(cur)


def _short_conv(g: Graph, rs: RecurrentInput, w: Layer, x: Tensor, il: int) -> Tensor:
    """A gated convolution over the last few tokens (build_shortconv_block)."""
    h, n_seqs = g.h, g.n_seqs
    n_t = g.n_tokens // n_seqs
    d_conv = h.n_shortconv_l_cache - 1
    if d_conv < 1:
        raise aborts(h, "GGML_ASSERT(hparams.n_shortconv_l_cache > 1)", keys=["n_shortconv_l_cache"])
    bcx = g.linear(w, "shortconv.in_proj", ggml.reshape(x, x.ne[0], n_t, n_seqs))
    size = bcx.ne[0] // 3
    b, c, x = (ggml.view(bcx, (size, *bcx.ne[1:3]), bcx.nb[1:3], i * size * bcx.nb[0]) for i in range(3))
    bx = ggml.transpose(ggml.mul(b, x))
    cache = g.state("r", il, h.n_embd_r)
    conv = ggml.reshape(g.rs(rs, cache, h.n_embd_r), d_conv, h.n_embd, n_seqs)
    if h.causal_attn:
        bx = ggml.concat(conv, bx, 0)
    else:
        pad = (h.n_shortconv_l_cache - 1) // 2
        left = ggml.view(conv, (pad, h.n_embd, n_seqs), conv.nb[1:3], (d_conv - pad) * conv.nb[0])
        bx = ggml.pad(ggml.concat(ggml.cont(left), bx, 0), pad)
    kept = snapshots(g) if h.causal_attn else 1
    for slot in range(min(n_t, kept)):
        last = ggml.view(bx, (d_conv, *bx.ne[1:3]), bx.nb[1:3], (bx.ne[0] - d_conv - slot) * bx.nb[0])
        offset = slot * g.model.state_rows * d_conv * h.n_embd * 4
        g.expand(ggml.cpy(last, ggml.view(cache, (d_conv * h.n_embd, n_seqs), (cache.nb[1],), offset)))
    y = ggml.mul(c, ggml.ssm_conv(bx, w.need("shortconv.conv")))
    y = g.linear(w, "shortconv.out_proj", y)
    return ggml.reshape(y, y.ne[0], n_t * n_seqs)


def _load_lfm2(d: HParamsDraft, meta: Metadata) -> None:
    recurrent_without_kv_heads(d, meta)
    d.n_layer_dense_lead = d.n_layer
    if d.n_swa > 0:
        d.swa_type = "standard"
        d.is_swa = [il < d.n_layer and not d.is_recr[il] for il in range(d.n_layer_all)]


ARCHITECTURES = (
    Architecture(
        name="lfm2",
        source="lfm2.cpp",
        hparams=reads("n_shortconv_l_cache f_norm_rms_eps n_swa?", _load_lfm2),
        windows_since=WINDOWS,
        rope="neox",
        output="tied",
        scales=(),
        graph=lfm2,
        memory=hybrid(rolls_back=True),
        output_norm="token_embd_norm",
        tensor_split=TensorSplit(whole_states=True),
    ),
    Architecture(
        name="lfm2moe",
        source="lfm2moe.cpp",
        hparams=reads(
            """
            n_shortconv_l_cache f_norm_rms_eps n_layer_dense_lead? n_ff_exp expert_gating_func
            """,
            recurrent_without_kv_heads,
        ),
        rope="neox",
        output="tied",
        scales=(),
        graph=lfm2,
        memory=hybrid(rolls_back=True),
        output_norm="token_embd_norm",
        tensor_split=TensorSplit(whole_states=True),
    ),
)
