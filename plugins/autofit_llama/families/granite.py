"""Granite with adapters that tokens switch on."""

from __future__ import annotations

from autofit_llama.graph import ggml
from autofit_llama.graph.builder import AttentionInput, Graph, Layer
from autofit_llama.graph.ggml import Tensor
from autofit_llama.model.architecture import Architecture, reads
from autofit_llama.model.metadata_reader import MAX_LAYERS, HParamsDraft, Metadata, fit
from autofit_llama.model.rules import (
    switch_rope,
)


def granite_switch(g: Graph) -> None:
    """src/models/granite-switch.cpp: a head of its own finds the last adapter token before each token."""
    h, n = g.h, g.n_tokens
    tokens = g.input("i32", n)
    key_in, value_in, query_in = (g.input("f32", n) for _ in range(3))
    x = ggml.get_rows(g.need("token_embd"), tokens)
    if h.f_embedding_scale != 0.0:
        x = ggml.scale(x)
    pos = g.inp_pos() if h.has_rope(0) else None
    inp = g.inp_attn_kv()

    def lane(t: Tensor) -> Tensor:
        return ggml.pad(ggml.reshape(t, 1, 1, n), h.n_embd_head_v(0) - 1)

    routed = g.attn(inp, None, lane(query_in), lane(key_in), lane(value_in), h.router_layer, out=None)
    slots = ggml.reshape(ggml.cont(ggml.view(routed, (1, n), (routed.nb[1],))), n)
    ids = ggml.cast(ggml.unary(ggml.clamp(slots), "round"), "i32")
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        residual = x
        cur = g.rms(x, w, "attn_norm", il)
        cur = _attention(g, inp, w, cur, pos, ids, il)
        if g.is_last(il):
            cur, residual = g.select_outputs(out_ids, cur, residual)
            ids = ggml.get_rows(ggml.reshape(ids, 1, ids.ne[0]), out_ids)
            ids = ggml.reshape(ids, g.n_outputs)
        if h.f_residual_scale:
            cur = ggml.scale(cur)
        ffn_inp = ggml.add(cur, residual)
        cur = g.rms(ffn_inp, w, "ffn_norm", il)
        gate, up = _linear(w, "ffn_gate", cur, ids), _linear(w, "ffn_up", cur, ids)
        cur = _linear(w, "ffn_down", ggml.mul(ggml.silu(gate), up), ids)
        if h.f_residual_scale:
            cur = ggml.scale(cur)
        x = ggml.add(cur, ffn_inp)
    g.finish(x, scale=True)


def _attention(g: Graph, inp: AttentionInput, w: Layer, x: Tensor, pos: Tensor | None, ids: Tensor, il: int) -> Tensor:
    h, n = g.h, g.n_tokens
    head = h.n_embd_head_v(0)
    qkv = ggml.mul_mat(w.need("attn_qkv"), x)
    parts, offset = [], 0
    for name, n_head in (("attn_q", h.n_head[il]), ("attn_k", h.n_head_kv[il]), ("attn_v", h.n_head_kv[il])):
        part = ggml.cont(ggml.view(qkv, (head * n_head, n), (qkv.nb[1],), 4 * offset))
        part = ggml.add(part, _delta(w, name, x, ids))
        parts.append(ggml.reshape(part, head, n_head, n))
        offset += head * n_head
    q, k, v = parts
    if pos is not None and h.has_rope(il):
        factors = g.rope_factors(il)
        q, k = ggml.rope(q, pos, factors), ggml.rope(k, pos, factors)
    return _linear(w, "attn_output", g.attn(inp, w, q, k, v, il, out=None), ids)


def _linear(w: Layer, name: str, x: Tensor, ids: Tensor) -> Tensor:
    """The matrix, and the adapter that the token has switched on."""
    return ggml.add(ggml.mul_mat(w.need(name), x), _delta(w, name, x, ids))


def _delta(w: Layer, name: str, x: Tensor, ids: Tensor) -> Tensor:
    n = x.ne[1]
    ids = ggml.reshape(ids, 1, n)
    a = ggml.mul_mat_id(w.need(name + ".lora_a"), ggml.reshape(x, x.ne[0], 1, n), ids)
    y = ggml.mul_mat_id(w.need(name + ".lora_b"), a, ids)
    return ggml.reshape(y, y.ne[0], n)


def _load_granite_switch(d: HParamsDraft, meta: Metadata) -> None:
    switch_rope(d, meta)
    for key, value in (("adapters.count", d.n_adapters), ("adapters.lora_rank", d.max_lora_rank)):
        if value > 4096:
            meta.refuse(key, f"is {value}, the engine takes at most 4096")
    for key in ("adapters.token_ids_activate", "adapters.token_ids_substitute"):
        if meta.count(key) != d.n_adapters:
            meta.refuse(key, f"does not have {d.n_adapters} entries")
    if d.n_layer >= MAX_LAYERS:
        meta.refuse("block_count", f"is {d.n_layer}, with the router's layer beyond {MAX_LAYERS}")
    # one more single-head layer holds the router's cache; it counts as a nextn layer
    d.router_layer = d.n_layer
    d.n_layer_all, d.n_layer_nextn = d.n_layer + 1, 1
    d.n_head, d.n_head_kv = [*d.n_head[: d.n_layer], 1], [*d.n_head_kv[: d.n_layer], 1]
    d.n_ff = [*d.n_ff[: d.n_layer], 0]
    d.rope_pattern = fit(d.rope_pattern[: d.n_layer], d.n_layer_all, d.rope_finetuned)


ARCHITECTURES = (
    Architecture(
        name="graniteswitch",
        source="granite-switch.cpp",
        hparams=reads(
            """
            f_norm_rms_eps f_logit_scale f_residual_scale? f_embedding_scale? f_attention_scale? n_ff_shexp?
            rope_finetuned? n_adapters max_lora_rank
            """,
            _load_granite_switch,
        ),
        rope="norm",
        output="tied",
        scales=(),
        graph=granite_switch,
        mixes_inputs=False,
    ),
)
