"""Hunyuan's fourth generation."""

from __future__ import annotations

from autofit_llama.families.deepseek import absorbed_qkv, dense_or_shared_moe
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import Graph, Layer
from autofit_llama.graph.ggml import Tensor
from autofit_llama.graph.sparse import attn_selected, inp_attn_k_dsa, lightning_top_k
from autofit_llama.model.architecture import Architecture, reads
from autofit_llama.model.caches import (
    Cache,
    Memory,
    indexer,
    kv,
)
from autofit_llama.model.context import Context
from autofit_llama.model.hparams import HParams
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata


def hy_v4(g: Graph) -> None:
    """src/models/hy-v4.cpp: parallel residual streams, latent attention behind a gate, with or without an
    indexer whose selection the blocks that follow share.
    """
    h, n = g.h, g.n_tokens
    x = g.inp_embd()
    pos = g.inp_pos()
    indexed = inp_attn_k_dsa(g, rotated=False) if h.indexer_top_k > 0 else None
    dense = g.inp_attn_k() if indexed is None else None
    out_ids = g.inp_out_ids()
    top_k: Tensor | None = None
    x = ggml.repeat_4d(ggml.reshape(x, h.n_embd, 1, n), h.n_embd, h.dsv4_hc_mult, n, 1)
    for il in g.layers():
        w = g.layer(il)
        cur, post = _narrow(g, w, x, "hc_attn")
        cur = g.rms(cur, w, "attn_norm", il)
        q_latent = g.rms(ggml.mul_mat(w.need("attn_q_a"), cur), w, "attn_q_a_norm", il)
        if indexed is not None and h.is_indexer_full[il]:
            top_k = lightning_top_k(g, indexed, w, cur, q_latent, pos, il, rotates_end=True)
        q, k, latent = absorbed_qkv(g, w, ggml.mul_mat(w.need("attn_q_b"), q_latent), cur, pos, il)
        sinks, v_b = w["attn_sinks"], w.need("attn_v_b")
        if indexed is not None and top_k is not None:
            attn = attn_selected(g, indexed, q, k, latent, top_k, il, sinks=sinks, v_mla=v_b)
        else:
            assert dense is not None
            attn = g.attn(dense, w, q, k, latent, il, out=None, sinks=sinks, v_mla=v_b)
        gate = ggml.sigmoid(ggml.mul_mat(w.need("attn_gate"), cur))
        x = _widen(g.linear(w, "attn_output", ggml.mul(attn, gate), scale=False), x, post)
        cur, post = _narrow(g, w, x, "hc_ffn")
        cur = dense_or_shared_moe(g, w, g.rms(cur, w, "ffn_norm", il), il)
        x = _widen(cur, x, post)
    x = ggml.get_rows(ggml.reshape(x, h.n_embd * h.dsv4_hc_mult, n), out_ids)
    x = ggml.reshape(x, h.n_embd, h.dsv4_hc_mult, g.n_outputs)
    weights = ggml.mul_mat(g.need("output_hc_fn"), ggml.rms_norm(_flat(x)))
    weights = ggml.add(ggml.mul(weights, g.need("output_hc_scale")), g.need("output_hc_base"))
    g.finish(_reduce(x, ggml.scale(ggml.sigmoid(weights))))


def _flat(x: Tensor) -> Tensor:
    return ggml.reshape(x, x.ne[0] * x.ne[1], x.ne[2])


def _narrow(g: Graph, w: Layer, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """build_hc_pre: the streams, weighed into one, and the weights with which its result goes back to them."""
    streams, n = x.ne[1], x.ne[2]
    mixes = ggml.mul_mat(w.need(name + "_fn"), ggml.rms_norm(_flat(x)))
    scale, base = w.need(name + "_scale"), w.need(name + "_base")

    def gate(part: int) -> Tensor:
        y = ggml.view(mixes, (streams, n), (mixes.nb[1],), part * streams * mixes.nb[0])
        y = ggml.mul(y, ggml.view(scale, (1,), (), part * scale.nb[0]))
        return ggml.sigmoid(ggml.add(y, ggml.view(base, (streams,), (), part * streams * base.nb[0])))

    return _reduce(x, ggml.scale(gate(0))), ggml.scale(ggml.scale(gate(1)))


def _reduce(x: Tensor, weights: Tensor) -> Tensor:
    n = x.ne[2]
    wide = ggml.cast(x, "f32")
    total: Tensor | None = None
    for i in range(x.ne[1]):
        part = ggml.mul(
            ggml.view(wide, (x.ne[0], n), (wide.nb[2],), i * wide.nb[1]),
            ggml.view(weights, (1, n), (weights.nb[1],), i * weights.nb[0]),
        )
        total = part if total is None else ggml.add(total, part)
    assert total is not None
    return ggml.cast(total, x.type)


def _widen(x: Tensor, residual: Tensor, post: Tensor) -> Tensor:
    """build_hc_post: back to every stream."""
    n = x.ne[1]
    x, post, wide = ggml.cast(x, "f32"), ggml.cast(post, "f32"), ggml.cast(residual, "f32")
    out: Tensor | None = None
    for i in range(residual.ne[1]):
        stream = ggml.view(wide, (x.ne[0], n), (wide.nb[2],), i * wide.nb[1])
        weight = ggml.view(post, (1, n), (post.nb[1],), i * post.nb[0])
        stream = ggml.reshape(ggml.add(stream, ggml.mul(x, weight)), x.ne[0], 1, n)
        out = stream if out is None else ggml.concat(out, stream, 1)
    assert out is not None
    return ggml.cast(out, residual.type)


def _load_hy_v4(d: HParamsDraft, meta: Metadata) -> None:
    if d.indexer_top_k > 0:
        if d.indexer_n_head == 0 or d.indexer_head_size <= d.n_rot_full:
            meta.refuse("attention.indexer.key_length", "or head count is too small")
        if not d.is_indexer_full[0]:
            meta.refuse("attention.indexer.types", "leaves layer 0 without an indexer")
    if not (d.n_embd_head_k_mla_impl and d.n_embd_head_v_mla_impl):
        meta.refuse("attention.key_length_mla", "is 0")


def _caches(hp: HParams, ctx: Context) -> tuple[Cache, ...]:
    base = kv(hp, ctx, "base", lambda il: True, ctx.n_ctx_seq, ctx.n_streams)
    if hp.indexer_top_k == 0:
        return (base,)
    return base, indexer(hp, ctx, lambda il: hp.is_indexer_full[il])


ARCHITECTURES = (
    Architecture(
        name="hy_v4",
        source="hy-v4.cpp",
        hparams=reads(
            """
            f_norm_rms_eps n_layer_dense_lead? n_lora_q n_lora_kv n_embd_head_k_mla_impl n_embd_head_v_mla_impl
            n_ff_exp n_expert_shared expert_weights_scale? expert_weights_norm? expert_gating_func?
            swiglu_clamp_exp? dsv4_hc_mult dsv4_hc_eps hc_magnitude indexer_n_head? indexer_head_size?
            indexer_top_k? is_indexer_full?
            """,
            _load_hy_v4,
        ),
        rope="norm",
        output="own",
        scales=(),
        graph=hy_v4,
        memory=Memory(caches=_caches),
        tensor_split=None,
        fused_clamp=True,
    ),
)
