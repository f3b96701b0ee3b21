"""T5: an encoder, and a decoder that also attends to what the encoder gave; positions as biases by distance."""

from __future__ import annotations

from autofit.errors import EngineRefusalError

from autofit_llama.graph import ggml
from autofit_llama.graph.builder import AttentionInput, CacheInput, Graph, Layer
from autofit_llama.graph.ggml import Tensor
from autofit_llama.model.architecture import Architecture, reads
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata
from autofit_llama.model.rules import (
    default,
)


def t5(g: Graph) -> None:
    """src/models/t5.cpp, the decoder: it is what the engine reserves for. Its blocks are not counted with the
    encoder's.
    """
    h, n = g.h, g.n_tokens
    if g.n_seqs > 1 and not g.context.kv_unified:
        raise EngineRefusalError(
            "llama.cpp aborts: t5's position biases do not support one KV cache per sequence", hint="use -kvu or -np 1"
        )
    x = g.inp_embd()
    n_enc = h.n_ctx_train
    encoded = g.input("f32", h.n_embd_inp, n_enc)
    buckets = g.input("i32", g.context.n_ctx_seq, n)
    inp = g.inp_attn_kv()
    cross = AttentionInput("no_cache", CacheInput(g.input("f16" if g.flash_attn else "f32", n_enc, n)))
    out_ids = g.inp_out_ids()
    for il in range(h.dec_n_layer):
        w = Layer(g, il, "dec.blk")
        head, n_head, n_kv = h.n_embd_head_v(il), h.n_head[0], h.n_head_kv[0]
        q, k, v = g.qkv(w, g.rms(x, w, "attn_norm", il), il)
        bias = _position_bias(buckets, _relative_bias(g, w, "dec.blk"))
        cur = g.attn(inp, w, q, k, v, il, out="attn_o", kq_b=bias)
        cross_inp = ggml.add(cur, x)
        cur = g.rms(cross_inp, w, "cross_attn_norm", il)
        q = ggml.reshape(g.linear(w, "cross_attn_q", cur), head, n_head, n)
        k = ggml.reshape(g.linear(w, "cross_attn_k", encoded), head, n_kv, n_enc)
        v = ggml.reshape(g.linear(w, "cross_attn_v", encoded), head, n_kv, n_enc)
        cur = g.attn(cross, w, q, k, v, il, out="cross_attn_o", bias=False)
        if il == h.dec_n_layer - 1:
            cur, cross_inp = g.select_outputs(out_ids, cur, cross_inp)
        x = _feed_forward(g, w, ggml.add(cur, cross_inp), il)
    g.output(g.final_norm(x, "dec.output_norm"))


def t5encoder(g: Graph) -> None:
    """src/models/t5encoder.cpp: the encoder of t5.cpp alone."""
    h, n = g.h, g.n_tokens
    x = g.inp_embd()
    buckets = g.input("i32", n, n)
    inp = g.inp_attn_no_cache()
    out_ids = g.inp_out_ids()
    for il in range(h.n_layer):
        w = Layer(g, il, "enc.blk")
        head, n_head, n_kv = h.n_embd_head_v(il), h.n_head[0], h.n_head_kv[0]
        cur = g.rms(x, w, "attn_norm", il)
        q, k, v = (g.linear(w, name, cur) for name in ("attn_q", "attn_k", "attn_v"))
        q, k, v = (ggml.reshape(t, head, m, n) for t, m in ((q, n_head), (k, n_kv), (v, n_kv)))
        bias = _position_bias(buckets, _relative_bias(g, w, "enc.blk"))
        cur = g.attn(inp, w, q, k, v, il, out="attn_o", bias=False, kq_b=bias)
        if il == h.n_layer - 1:
            cur, x = g.select_outputs(out_ids, cur, x)
        x = _feed_forward(g, w, ggml.add(cur, x), il)
    g.embd = g.expand(g.final_norm(x, "enc.output_norm"))


def _relative_bias(g: Graph, w: Layer, prefix: str) -> Tensor:
    """The block's own table of biases, or the first block's."""
    t = w["attn_rel_b"]
    return t if t is not None else Layer(g, 0, prefix).need("attn_rel_b")


def _position_bias(buckets: Tensor, table: Tensor) -> Tensor:
    """build_pos_bias: [keys, queries, heads]."""
    flat = ggml.reshape(buckets, buckets.ne[0] * buckets.ne[1])
    bias = ggml.get_rows(table, flat)
    bias = ggml.reshape(bias, bias.ne[0], buckets.ne[0], buckets.ne[1])
    return ggml.cont(ggml.permute(bias, 2, 0, 1, 3))


def _feed_forward(g: Graph, w: Layer, x: Tensor, il: int) -> Tensor:
    """T5 has no gate and ReLU, flan-T5 a gate and GELU."""
    gated = w["ffn_gate"] is not None
    cur = g.ffn(w, g.rms(x, w, "ffn_norm", il), il, act="gelu" if gated else "relu", parallel=gated)
    return ggml.add(cur, x)


def _load_t5(d: HParamsDraft, meta: Metadata) -> None:
    default(dec_n_layer=d.n_layer)(d, meta)


ARCHITECTURES = (
    Architecture(
        name="t5",
        source="t5.cpp",
        hparams=reads("f_norm_rms_eps n_rel_attn_bkts dec_n_layer?", _load_t5),
        rope="none",
        output="tied",
        scales=(),
        graph=t5,
        has_encoder=True,
        tensor_split=None,
    ),
    Architecture(
        name="t5encoder",
        source="t5encoder.cpp",
        hparams=reads("f_norm_rms_eps n_rel_attn_bkts"),
        rope="none",
        output="tied",
        scales=(),
        graph=t5encoder,
        has_encoder=True,
    ),
)
