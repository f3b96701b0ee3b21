"""Kimi delta attention: a gated delta net with one decay per channel, in turn with latent attention."""

from __future__ import annotations

from math import inf

from autofit_llama.engine.versions import Change
from autofit_llama.families.deepseek import absorbed_qkv, dense_or_shared_moe
from autofit_llama.families.qwen import l2_norm
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import AttentionInput, Graph, Layer, RecurrentInput, every
from autofit_llama.graph.ggml import Tensor
from autofit_llama.graph.recurrent import delta_net, snapshots
from autofit_llama.model.architecture import Architecture, reads
from autofit_llama.model.caches import (
    hybrid,
)
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata
from autofit_llama.model.rules import (
    default,
    mrope_by_sections,
    recurrent_without_kv_heads,
)

NORM_FIRST = Change(
    without=8179,
    has=8390,
    source="src/models/kimi-linear.cpp, attn_norm before the projections that need it, and before all",
    name="norms of Kimi Linear before all that reads them",
    larger=False,
)
DECAYS_ON_DEVICES = Change(
    without=10739,
    has=10752,
    source="src/models/kimi-linear.cpp, kimi-k3.cpp, bailingmoe3.cpp: LLM_TENSOR_SSM_A and LLM_TENSOR_SSM_A_NOSCAN",
    name="decays of delta attention on devices",
    larger=False,
)


def kimi_linear(g: Graph) -> None:
    """src/models/kimi-linear.cpp: attention without positions."""
    h = g.h
    x = g.inp_embd()
    rs = g.inp_rs()
    inp = g.inp_attn_k() if h.is_mla else g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        residual = x
        cur = g.rms(x, w, "attn_norm", il)
        if g.follows(NORM_FIRST):
            g.expand(cur)
        if h.is_recr[il]:
            cur = delta_attention(g, rs, w, cur, il)
        else:
            q = ggml.mul_mat(w.need("attn_q"), cur)
            cur = g.linear(w, "attn_output", _latent_attention(g, inp, w, q, cur, None, il))
        if g.is_last(il):
            cur, residual = g.select_outputs(out_ids, cur, residual)
        ffn_inp = ggml.add(cur, residual)
        cur = g.rms(ffn_inp, w, "ffn_norm", il)
        x = ggml.add(dense_or_shared_moe(g, w, cur, il), ffn_inp)
    g.finish(x)


def bailingmoe3(g: Graph) -> None:
    """src/models/bailingmoe3.cpp: every head of the latent attention has a gate."""
    h, n = g.h, g.n_tokens
    x = g.inp_embd()
    rs, inp = g.inp_rs(), g.inp_attn_k()
    pos = g.inp_pos()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        residual = x
        cur = g.rms(x, w, "attn_norm", il)
        if h.is_recr[il]:
            cur = delta_attention(g, rs, w, cur, il)
        else:
            attn = _latent_attention(g, inp, w, latent_queries(g, w, cur, il), cur, pos, il)
            head, n_head = w.need("attn_v_b").ne[1:3]
            gate = ggml.mul_mat(w.need("attn_gate"), cur)
            gate = ggml.sigmoid(ggml.reshape(gate, 1, n_head, n))
            attn = ggml.mul(ggml.reshape(attn, head, n_head, n), gate)
            cur = ggml.mul_mat(w.need("attn_output"), ggml.cont(attn, head * n_head, n))
        if g.narrows(il):
            cur, residual = g.select_outputs(out_ids, cur, residual)
        ffn_inp = ggml.add(cur, residual)
        cur = g.rms(ffn_inp, w, "ffn_norm", il)
        x = ggml.add(dense_or_shared_moe(g, w, cur, il), ffn_inp)
    cur = g.final_norm(x)
    g.h_nextn = cur
    g.output(ggml.get_rows(cur, out_ids) if g.keeps_rows() else cur)


@every(lambda h: h.attn_res_block_size)
def kimi_k3(g: Graph) -> None:
    """src/models/kimi-k3.cpp: every few blocks the residual stream is banked, and what follows attends to all
    that is banked; experts work on a narrower stream.
    """
    h = g.h
    step = h.attn_res_block_size
    bank: Tensor | None = None
    x = g.inp_embd()
    rs = g.inp_rs()
    inp = g.inp_attn_k() if h.is_mla else g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        cur = _mix(bank, x, w["attn_res_score"])
        banked = step > 0 and il % step == 0
        if banked:
            new = ggml.reshape(x, h.n_embd, 1, g.n_tokens)
            bank = new if bank is None else ggml.concat(bank, new, 1)
        cur = g.expand(g.rms(cur, w, "attn_norm", il))
        if h.is_recr[il]:
            cur = delta_attention(g, rs, w, cur, il)
        else:
            attn = _latent_attention(g, inp, w, latent_queries(g, w, cur, il), cur, None, il)
            gate = w["attn_gate"]
            if gate is not None:
                attn = ggml.mul(attn, ggml.sigmoid(ggml.mul_mat(gate, cur)))
            cur = ggml.mul_mat(w.need("attn_output"), attn)
        x = cur if banked else ggml.add(x, cur)
        cur = g.rms(_mix(bank, x, w["ffn_res_score"]), w, "ffn_norm", il)
        cur = _situ_ffn(g, w, cur, "") if il < h.n_layer_dense_lead else _latent_moe(g, w, cur, il)
        x = ggml.add(x, cur)
    x = _mix(bank, x, g.weight("output_res_score"))
    g.finish(ggml.get_rows(x, out_ids))


def _mix(bank: Tensor | None, x: Tensor, score: Tensor | None) -> Tensor:
    """The residual stream and what is banked, [n_embd, banked, tokens], weighed by their scores."""
    if bank is None or score is None:
        return x
    n_banked, n = bank.ne[1], x.ne[1]
    banked = ggml.sum_rows(ggml.mul(ggml.rms_norm(bank), score))
    current = ggml.sum_rows(ggml.mul(ggml.rms_norm(x), score))
    probs = ggml.soft_max(ggml.concat(ggml.reshape(banked, n_banked, n), current, 0))
    of_bank = ggml.cont(ggml.view(probs, (n_banked, n), (probs.nb[1],)))
    of_x = ggml.cont(ggml.view(probs, (1, n), (probs.nb[1],), probs.nb[0] * n_banked))
    return ggml.add(ggml.dsv4_hc_pre(bank, of_bank), ggml.mul(x, of_x))


def _situ_ffn(g: Graph, w: Layer, x: Tensor, suffix: str) -> Tensor:
    gate = ggml.mul_mat(w.need("ffn_gate" + suffix), x)
    up = ggml.mul_mat(w.need("ffn_up" + suffix), x)
    a = ggml.mul(ggml.scale(ggml.tanh(ggml.scale(gate))), ggml.sigmoid(gate))
    if g.h.situ_linear_beta > 0.0:
        up = ggml.scale(ggml.tanh(ggml.scale(up)))
    return ggml.mul_mat(w.need("ffn_down" + suffix), ggml.mul(a, up))


def _latent_moe(g: Graph, w: Layer, x: Tensor, il: int) -> Tensor:
    h = g.h
    down, up = w["ffn_routed_down"], w["ffn_routed_up"]
    routed = x if down is None else ggml.mul_mat(down, x)
    routed = g.moe(
        w, routed, il, act="situ", norm_weights=h.expert_weights_norm, weights_scale=h.expert_weights_scale,
        gating=h.expert_gating_func, probs_in=ggml.mul_mat(w.need("ffn_gate_inp"), x),
    )  # fmt: skip
    if w["ffn_routed_norm"] is not None:
        routed = g.rms(routed, w, "ffn_routed_norm", il)
    if up is not None:
        routed = ggml.mul_mat(up, routed)
    return routed if w["ffn_gate_shexp"] is None else ggml.add(routed, _situ_ffn(g, w, x, "_shexp"))


def latent_queries(g: Graph, w: Layer, x: Tensor, il: int) -> Tensor:
    """Queries out of one matrix or two with a norm between."""
    if w["attn_q_a"] is None:
        return ggml.mul_mat(w.need("attn_q"), x)
    q = g.rms(ggml.mul_mat(w.need("attn_q_a"), x), w, "attn_q_a_norm", il)
    return ggml.mul_mat(w.need("attn_q_b"), q)


def _latent_attention(
    g: Graph, inp: AttentionInput, w: Layer, q: Tensor, x: Tensor, pos: Tensor | None, il: int
) -> Tensor:
    """Attention with the key matrix absorbed, or with whole keys where the file has that matrix in one."""
    if w["attn_k_b"] is not None and w["attn_v_b"] is not None:
        q, k, latent = absorbed_qkv(g, w, q, x, pos, il)
        return g.attn(inp, w, q, k, latent, il, out=None, v_mla=w.need("attn_v_b"))
    h, n, n_head = g.h, g.n_tokens, g.h.n_head[il]
    head_v, rope, rank = h.n_embd_head_v_mla, h.n_rot(0), h.n_lora_kv
    nope = h.n_embd_head_k_mla - rope
    kv_pe = ggml.mul_mat(w.need("attn_kv_a_mqa"), x)
    row = kv_pe.nb[1]
    latent = g.rms(ggml.view(kv_pe, (rank, n), (row,)), w, "attn_kv_a_norm", il)
    k_pe = ggml.view(kv_pe, (rope, 1, n), (row, row), 4 * rank)
    kv = ggml.mul_mat(w.need("attn_kv_b"), latent)
    strides = (4 * (nope + head_v), 4 * (nope + head_v) * n_head)
    k_nope = ggml.view(kv, (nope, n_head, n), strides)
    v = ggml.cont(ggml.view(kv, (head_v, n_head, n), strides, 4 * nope))
    k = ggml.concat(ggml.repeat_4d(k_pe, rope, n_head, n, 1), k_nope, 0)
    return g.attn(inp, w, ggml.reshape(q, nope + rope, n_head, n), k, v, il, out=None)


def delta_attention(g: Graph, rs: RecurrentInput, w: Layer, x: Tensor, il: int) -> Tensor:
    """Convolved queries, keys and values, a decay per channel, the fused delta net and a gated norm."""
    h, n, n_seqs = g.h, g.n_tokens, g.n_seqs
    n_t, n_head, head = n // n_seqs, h.n_head[0], h.n_embd_head_kda
    width = head * n_head
    conv_cache, state_cache = g.state("r", il, h.n_embd_r), g.state("s", il, h.n_embd_s)
    conv = g.rs(rs, conv_cache, h.n_embd_r)
    if w["attn_qkv"] is not None:
        qkv = ggml.mul_mat(w.need("attn_qkv"), x)
        projected = [ggml.cont(ggml.view(qkv, (width, n), (qkv.nb[1],), 4 * i * width)) for i in range(3)]
        q, k, v = (_convolved(g, w, conv_cache, conv, y, i, n_head) for i, y in enumerate(projected))
    else:
        q, k, v = (
            _convolved(g, w, conv_cache, conv, ggml.mul_mat(w.need("attn_" + "qkv"[i]), x), i, n_head) for i in range(3)
        )
    gate = ggml.reshape(_decay(g, w, x, n_head), head, n_head, n_t, n_seqs)
    beta = ggml.mul_mat(w.need("ssm_beta"), x)
    beta = ggml.sigmoid(ggml.reshape(beta, 1, n_head, n_t, n_seqs))
    state = ggml.reshape(g.rs(rs, state_cache, h.n_embd_s), head, head, n_head, n_seqs)
    out = ggml.cont(delta_net(g, state_cache, l2_norm(g, q), l2_norm(g, k), v, gate, beta, state, il))

    if h.arch.startswith("kimi"):
        x = ggml.reshape(ggml.reshape(x, x.ne[0], n_t, n_seqs), x.ne[0], n)
    out_gate = w["ssm_g"]
    if out_gate is not None:
        y = ggml.mul_mat(out_gate, x)
    else:
        y = ggml.mul_mat(w.need("ssm_g_a"), x)
        g_b = w["ssm_g_b"]
        y = y if g_b is None else ggml.mul_mat(g_b, y)
    y = ggml.reshape(y, head, n_head, n)
    out = g.rms(ggml.reshape(out, head, n_head, n), w, "ssm_norm", il)
    out = ggml.cont(ggml.mul(out, ggml.sigmoid(y)), width, n)
    return ggml.mul_mat(w.need("attn_output"), out)


def _convolved(g: Graph, w: Layer, cache: Tensor, state: Tensor, x: Tensor, part: int, n_head: int) -> Tensor:
    """Queries, keys or values (`part` 0, 1, 2) through their short convolution, whose last columns are kept."""
    h, n_seqs, kept = g.h, g.n_seqs, snapshots(g)
    n_t, width, kernel = x.ne[1] // n_seqs, x.ne[0], h.ssm_d_conv
    strides = (4 * (kernel - 1), 4 * h.n_embd_r)
    shape, offset = (kernel - 1, width, n_seqs), 4 * part * (kernel - 1) * width
    x = ggml.transpose(ggml.reshape(x, width, n_t, n_seqs))
    y = ggml.concat(ggml.view(state, shape, strides, offset), x, 0)
    slots = kept if h.arch in ("kimi-k3", "glm5-next") else min(n_t, kept)
    for slot in range(slots):
        last = ggml.view(y, shape, y.nb[1:3], max(0, n_t - slot) * y.nb[0])
        to = 4 * slot * g.model.state_rows * h.n_embd_r + offset
        g.expand(ggml.cpy(last, ggml.view(cache, shape, strides, to)))
    weight = ggml.reshape(w.need("ssm_conv1d_" + "qkv"[part]), kernel, width)
    y = ggml.silu(ggml.reshape(ggml.ssm_conv(y, weight), width, n_t * n_seqs))
    return ggml.reshape(y, width // n_head, n_head, n_t, n_seqs)


def _decay(g: Graph, w: Layer, x: Tensor, n_head: int) -> Tensor:
    """The logarithm of the decay, [head, heads, tokens]: softplus, or a sigmoid between bounds."""
    h = g.h
    y = ggml.mul_mat(w.need("ssm_f_a"), x)
    f_b = w["ssm_f_b"]
    y = ggml.add(y if f_b is None else ggml.mul_mat(f_b, y), w.need("ssm_dt.bias"))
    a = ggml.reshape(w.need("ssm_a"), 1, n_head, 1)
    bounded = h.arch == "bailingmoe3" or (h.arch != "kimi-linear" and h.kda_gate_lower_bound > -inf)
    y = y if bounded else ggml.softplus(y)
    y = ggml.mul(ggml.reshape(y, y.ne[0] // n_head, n_head, y.ne[1]), a)
    if not bounded:
        return y
    if h.arch != "bailingmoe3":
        y = ggml.scale(y)
    return ggml.scale(ggml.sigmoid(y))


def _load_bailingmoe3(d: HParamsDraft, meta: Metadata) -> None:
    recurrent_without_kv_heads(d, meta)
    d.n_ff_shexp = d.n_ff_shexp or d.n_ff_exp[0] * max(1, d.n_expert_shared)
    if not d.kda_safe_gate:
        meta.refuse("kda.safe_gate", "is false, which the engine does not support")
    if not d.kda_gate_lower_bound < 0:
        meta.refuse("kda.gate_lower_bound", "is not negative")


def _load_kimi_k3(d: HParamsDraft, meta: Metadata) -> None:
    d.n_embd_head_v_full = d.n_lora_kv
    recurrent_without_kv_heads(d, meta)


ARCHITECTURES = (
    Architecture(
        name="bailingmoe3",
        source="bailingmoe3.cpp",
        hparams=reads(
            """
            f_norm_rms_eps n_embd_head_k_mla_impl n_embd_head_v_mla_impl n_lora_kv n_lora_q? ssm_d_conv
            n_embd_head_kda kda_safe_gate? kda_gate_lower_bound rope_sections? n_ff_exp n_expert_shared
            expert_weights_scale? expert_weights_norm? n_ff_shexp? n_layer_dense_lead expert_gating_func
            swiglu_clamp_exp? swiglu_clamp_shexp?
            """,
            default(kda_safe_gate=True),
            _load_bailingmoe3,
        ),
        rope=mrope_by_sections("norm"),
        output="tied",
        scales=(),
        graph=bailingmoe3,
        ops_before={"ssm_a": (DECAYS_ON_DEVICES, "SSM_SCAN")},
        memory=hybrid(rolls_back=True, plain_draft=True),
        tensor_split=None,
        draft_graph="not replayed",
    ),
    Architecture(
        name="kimi-k3",
        source="kimi-k3.cpp",
        hparams=reads(
            """
            f_norm_rms_eps n_embd_head_k_mla_impl n_embd_head_v_mla_impl n_lora_q? n_lora_kv ssm_d_conv
            n_embd_head_kda kda_gate_lower_bound? n_ff_exp n_expert_shared expert_weights_scale?
            expert_weights_norm? n_layer_dense_lead? expert_gating_func n_expert_latent? attn_res_block_size
            situ_beta situ_linear_beta
            """,
            _load_kimi_k3,
        ),
        rope="none",
        output="own",
        scales=(),
        graph=kimi_k3,
        ops_before={"ssm_a": (DECAYS_ON_DEVICES, "SSM_SCAN")},
        memory=hybrid(rolls_back=True),
        tensor_split=None,
    ),
    Architecture(
        name="kimi-linear",
        source="kimi-linear.cpp",
        hparams=reads(
            """
            f_norm_rms_eps n_embd_head_k_mla_impl n_embd_head_v_mla_impl n_lora_kv ssm_d_conv n_embd_head_kda
            n_ff_exp n_expert_shared n_layer_dense_lead? expert_weights_scale? expert_gating_func
            """,
            recurrent_without_kv_heads,
        ),
        rope="none",
        output="own",
        scales=(),
        graph=kimi_linear,
        memory=hybrid(rolls_back=False),
        ops_before={"ssm_a": (DECAYS_ON_DEVICES, "SSM_SCAN")},
        tensor_split=None,
        reserves_one_sequence=True,
    ),
)
