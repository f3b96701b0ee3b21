"""K2 Horizon: values of several experts, norms by group, a gate on what attention makes."""

from __future__ import annotations

from autofit_llama.graph import ggml
from autofit_llama.graph.builder import Graph, Layer
from autofit_llama.graph.ggml import Tensor
from autofit_llama.model.aborts import aborts
from autofit_llama.model.architecture import Architecture, reads
from autofit_llama.model.hparams import GATING_SIGMOID, GATING_SOFTMAX
from autofit_llama.model.metadata_reader import MAX_EXPERTS, HParamsDraft, Metadata
from autofit_llama.model.rules import gating


def k2_horizon(g: Graph) -> None:
    """src/models/k2-horizon.cpp."""
    h, n = g.h, g.n_tokens
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        head, n_head, n_kv = h.n_embd_head_v(0), h.n_head[il], h.n_head_kv[il]
        normed = _group_norm(g, x, w["attn_norm"])
        q, k = g.linear(w, "attn_q", normed), g.linear(w, "attn_k", normed)
        v = g.linear(w, "attn_v", normed) if w["attn_v_exps"] is None else _routed_values(g, w, normed, il)
        q, k, v = (ggml.reshape(t, head, m, n) for t, m in ((q, n_head), (k, n_kv), (v, n_kv)))
        q = g.rms(q, w, "attn_q_norm", il) if w["attn_q_norm"] is not None else q
        k = g.rms(k, w, "attn_k_norm", il) if w["attn_k_norm"] is not None else k
        gated = w["attn_gate"] is not None
        cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il, out=None if gated else "attn_output")
        if gated:
            gate = ggml.softplus(ggml.scale(g.linear(w, "attn_gate", normed)))
            cur = g.linear(w, "attn_output", ggml.mul(cur, ggml.scale(gate)), bias=True)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        cur = _group_norm(g, ffn_inp, w["ffn_norm"])
        x = ggml.add(_feed_forward(g, w, cur, il), ffn_inp)
    g.output(_group_norm(g, x, g.weight("output_norm")))


def _group_norm(g: Graph, x: Tensor, weight: Tensor | None) -> Tensor:
    """k2_horizon_group_rms_norm: slices of a row, each normalized by itself."""
    n_embd, groups = x.ne[0], max(g.h.n_norm_groups, 1)
    if n_embd % groups:
        raise aborts(g.h, "GGML_ASSERT(n_groups > 0 && cur->ne[0] % n_groups == 0)", keys=["n_embd", "n_norm_groups"])
    y = ggml.reshape(ggml.rms_norm(ggml.reshape(x, n_embd // groups, groups, x.ne[1])), n_embd, x.ne[1])
    return ggml.mul(y, weight) if weight is not None else y


def _routed_values(g: Graph, w: Layer, x: Tensor, il: int) -> Tensor:
    """build_routed_value: the values of a few experts, weighed and summed up."""
    h, n = g.h, g.n_tokens
    n_used = h.n_value_expert_used
    logits = g.linear(w, "attn_v_gate", x)
    if h.expert_gating_func not in (GATING_SOFTMAX, GATING_SIGMOID):
        raise aborts(h, "build_routed_value, which knows no such function", keys=["expert_gating_func"])
    probs = ggml.soft_max(logits) if h.expert_gating_func == GATING_SOFTMAX else ggml.sigmoid(logits)
    bias = w["attn_v_gate.bias"]
    selected = ggml.argsort_top_k(ggml.add(probs, bias) if bias is not None else probs, n_used)
    weights = ggml.get_rows(ggml.reshape(probs, 1, h.n_value_expert, n), selected)
    if h.expert_weights_norm:
        weights = ggml.reshape(weights, n_used, n)
        weights = ggml.reshape(ggml.div(weights, g.clamp(ggml.sum_rows(weights))), 1, n_used, n)
    weights = ggml.scale(weights) if h.expert_weights_scale not in (0.0, 1.0) else weights
    values = g.linear_id(w, "attn_v_exps", ggml.reshape(x, x.ne[0], 1, n), selected)
    values = ggml.mul(ggml.silu(values), weights)
    width = h.n_embd_v_gqa(il)
    parts = [
        g.expand(ggml.view(values, (width, 1, n), (values.nb[1], values.nb[2]), i * values.nb[1]))
        for i in range(n_used)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = g.expand(ggml.add(total, part))
    return ggml.cont(total) if n_used == 1 else total


def _feed_forward(g: Graph, w: Layer, x: Tensor, il: int) -> Tensor:
    h = g.h
    if w["ffn_gate_inp"] is None:
        return g.ffn(w, x, il)
    routed = g.moe(
        w, x, il, gating=h.expert_gating_func, norm_weights=h.expert_weights_norm, weights_scale=h.expert_weights_scale
    )
    if w["ffn_gate_shexp"] is None:
        return routed
    return ggml.add(routed, g.ffn(w, x, il, up="ffn_up_shexp", gate="ffn_gate_shexp", down="ffn_down_shexp"))


def _load(d: HParamsDraft, meta: Metadata) -> None:
    gating(GATING_SIGMOID)(d, meta)
    n, used = d.n_value_expert, d.n_value_expert_used
    if n > MAX_EXPERTS or used > n or (n > 0) != (used > 0):
        meta.refuse("attention.value_expert_used_count", f"is {used} of {n} experts")


ARCHITECTURES = (
    Architecture(
        name="k2-horizon",
        source="k2-horizon.cpp",
        hparams=reads(
            """
            f_norm_rms_eps n_norm_groups? n_ff_exp? n_layer_dense_lead? n_expert_shared? n_ff_shexp?
            expert_weights_scale? expert_weights_norm? expert_gating_func? n_value_expert? n_value_expert_used?
            """,
            _load,
        ),
        rope="neox",
        output="tied",
        scales=(),
        graph=k2_horizon,
    ),
)
