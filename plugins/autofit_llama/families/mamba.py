"""Mamba and the hybrids that mix it with attention."""

from __future__ import annotations

from autofit_llama.engine.versions import Change
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import Graph, Layer, RecurrentInput
from autofit_llama.graph.draft_head import head, join
from autofit_llama.graph.ggml import Tensor
from autofit_llama.graph.recurrent import mamba as mamba1_layer
from autofit_llama.graph.recurrent import mamba2 as mamba2_layer
from autofit_llama.model.architecture import Architecture, reads
from autofit_llama.model.caches import (
    RECURRENT,
    hybrid,
)
from autofit_llama.model.hparams import GATING_SIGMOID, HParams
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata
from autofit_llama.model.rules import (
    recurrent_without_kv_heads,
    switch_rope,
)


def mamba(g: Graph) -> None:
    """src/models/mamba.cpp, mamba2.cpp."""
    block = mamba2_layer if g.h.arch == "mamba2" else mamba1_layer
    x = g.inp_embd()
    rs = g.inp_rs()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        cur = g.rms(x, w, "attn_norm", il)
        cur = block(g, rs, w, cur, il)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        x = ggml.add(cur, x)
    g.finish(x)


def falcon_h1(g: Graph) -> None:
    """src/models/falcon-h1.cpp: attention and Mamba-2 on the same input, added."""
    x = g.inp_embd()
    pos = g.inp_pos()
    rs, inp = g.inp_rs(), g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        cur = g.rms(x, w, "attn_norm", il)
        q, k, v = g.qkv(w, cur, il)
        attn_out = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il, bias=False)
        cur = g.rms(x, w, "attn_norm", il)
        ssm_out = mamba2_layer(g, rs, w, cur, il)
        cur = ggml.add(attn_out, ssm_out)
        residual = ggml.add(cur, x)
        if g.is_last(il):
            cur, residual = g.select_outputs(out_ids, cur, residual)
        cur = g.rms(residual, w, "ffn_norm", il)
        x = ggml.add(g.ffn(w, cur, il), residual)
    g.finish(x)


def jamba(g: Graph) -> None:
    """src/models/jamba.cpp: Mamba or attention without positions, dense or with experts."""
    h = g.h
    x = g.inp_embd()
    rs, inp = g.inp_rs(), g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        cur = g.rms(x, w, "attn_norm", il)
        if h.n_head_kv[il] == 0:
            cur = mamba1_layer(g, rs, w, cur, il)
        else:
            q, k, v = g.qkv(w, cur, il)
            cur = g.attn(inp, w, q, k, v, il, bias=False)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(x, cur)
        cur = g.rms(ffn_inp, w, "ffn_norm", il)
        if w["ffn_gate_inp"] is None:
            cur = g.ffn(w, cur, il, bias=False)
        else:
            cur = g.moe(w, cur, il, biased=False, norm_weights=False, weights_scale=h.expert_weights_scale)
        x = ggml.add(ffn_inp, cur)
    g.finish(x)


def granite_hybrid(g: Graph) -> None:
    """src/models/granite-hybrid.cpp: Mamba-2 or attention, a scaled residual stream, a shared expert."""
    h = g.h
    x = g.inp_embd()
    rs, inp = g.inp_rs(), g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    pos = g.inp_pos() if h.has_rope(0) else None
    for il in g.layers():
        w = g.layer(il)
        residual = x
        cur = g.rms(x, w, "attn_norm", il)
        if h.is_recr[il]:
            cur = mamba2_layer(g, rs, w, cur, il)
        else:
            q, k, v = g.qkv(w, cur, il)
            if pos is not None and h.has_rope(il):
                factors = g.rope_factors(il)
                q, k = ggml.rope(q, pos, factors), ggml.rope(k, pos, factors)
            cur = g.attn(inp, w, q, k, v, il)
        if g.is_last(il):
            cur, residual = g.select_outputs(out_ids, cur, residual)
        if h.f_residual_scale:
            cur = ggml.scale(cur)
        ffn_inp = ggml.add(cur, residual)
        cur = g.rms(ffn_inp, w, "ffn_norm", il)
        if w["ffn_gate_inp"] is None:
            cur = g.ffn(w, cur, il)
        else:
            routed = g.moe(w, cur, il, biased=False, weights_scale=h.expert_weights_scale)
            if h.n_ff_shexp > 0:
                shared = g.ffn(
                    w, cur, il, bias=False,
                    up="ffn_up_shexp", gate="ffn_gate_shexp", down="ffn_down_shexp",
                )  # fmt: skip
                routed = ggml.add(routed, shared)
            cur = routed
        if h.f_residual_scale:
            cur = ggml.scale(cur)
        x = ggml.add(cur, ffn_inp)
    g.finish(x, scale=bool(h.f_logit_scale))


def plamo2(g: Graph) -> None:
    """src/models/plamo2.cpp: a Mamba of its own or attention, a norm before and after each part."""
    h, n = g.h, g.n_tokens
    x = g.inp_embd()
    pos = g.inp_pos()
    rs, inp = g.inp_rs(), g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        residual = x
        cur = g.rms(x, w, "attn_norm", il)
        if h.is_recr[il]:
            cur = _plamo2_mamba(g, rs, w, cur, il)
        else:
            qkv = g.linear(w, "attn_qkv", cur, scale=False)
            key, value = h.n_embd_head_k(0), h.n_embd_head_v(0)
            n_head, n_kv, size = h.n_head[il], h.n_head_kv[il], qkv.nb[0]
            q = ggml.view(qkv, (key, n_head, n), (key * size, qkv.nb[1]))
            k = ggml.view(qkv, (key, n_kv, n), (key * size, qkv.nb[1]), key * n_head * size)
            v = ggml.view(qkv, (value, n_kv, n), (value * size, qkv.nb[1]), key * (n_head + n_kv) * size)
            q = ggml.rope(g.rms(q, w, "attn_q_norm", il), pos)
            k = ggml.rope(g.rms(k, w, "attn_k_norm", il), pos)
            cur = g.attn(inp, w, q, k, v, il, bias=False)
        if g.is_last(il):
            cur, residual = g.select_outputs(out_ids, cur, residual)
        residual = ggml.add(g.rms(cur, w, "post_attention_norm", il), residual)
        cur = g.rms(residual, w, "ffn_norm", il)
        cur = g.ffn(w, cur, il, act="swiglu", gate=None, parallel=False, bias=False)
        x = ggml.add(g.rms(cur, w, "post_ffw_norm", il), residual)
    g.finish(x)


def _plamo2_mamba(g: Graph, rs: RecurrentInput, w: Layer, x: Tensor, il: int) -> Tensor:
    """build_plamo2_mamba_layer: z and x alternate by head; norms on dt, B and C."""
    h, n_seqs = g.h, g.n_seqs
    n_t = g.n_tokens // n_seqs
    d_conv, d_inner, d_state, n_head = h.ssm_d_conv, h.ssm_d_inner, h.ssm_d_state, h.ssm_dt_rank
    head = d_inner // n_head
    conv_cache, state_cache = g.state("r", il, h.n_embd_r), g.state("s", il, h.n_embd_s)
    conv = ggml.reshape(g.rs(rs, conv_cache, h.n_embd_r), d_conv - 1, d_inner, n_seqs)
    zx = g.linear(w, "ssm_in", ggml.reshape(x, x.ne[0], n_t, n_seqs), scale=False)
    zx = ggml.cont(ggml.permute(zx, 0, 2, 1, 3), head * 2, n_head, n_t, n_seqs)
    size = zx.nb[0]
    x = ggml.view(zx, (head, n_head, n_t, n_seqs), zx.nb[1:], head * size)
    x = ggml.cont(x, d_inner, n_t, n_seqs)
    z = ggml.view(zx, (head, n_head, n_t, n_seqs), zx.nb[1:])
    conv_x = ggml.concat(conv, ggml.transpose(x), 0)
    last = ggml.view(conv_x, (d_conv - 1, d_inner, n_seqs), conv_x.nb[1:3], n_t * conv_x.nb[0])
    g.expand(ggml.cpy(last, ggml.view(conv_cache, ((d_conv - 1) * d_inner * n_seqs,))))
    x = ggml.silu(ggml.ssm_conv(conv_x, w.need("ssm_conv1d")))

    bcdt = g.linear(w, "ssm_x", x, scale=False)
    b = ggml.view(bcdt, (d_state, n_t, n_seqs), bcdt.nb[1:3])
    c = ggml.view(bcdt, (d_state, n_t, n_seqs), bcdt.nb[1:3], size * d_state)
    dt = ggml.view(bcdt, (max(64, h.n_embd // 16), n_t, n_seqs), bcdt.nb[1:3], size * 2 * d_state)
    b, c = g.rms(b, w, "ssm_b_norm", il), g.rms(c, w, "ssm_c_norm", il)
    dt = g.linear(w, "ssm_dt", g.rms(dt, w, "ssm_dt_norm", il), scale=False)
    dt = ggml.add(dt, w.need("ssm_dt.bias"))
    a = ggml.reshape(w.need("ssm_a"), 1, n_head)
    strides = (head * size, d_inner * size, d_inner * n_t * size)
    x = ggml.view(x, (head, n_head, n_t, n_seqs), strides)
    b, c = (ggml.view(t, (d_state, 1, n_t, n_seqs), (d_state * size, *t.nb[1:3])) for t in (b, c))

    def scan(states: Tensor, ids: Tensor) -> Tensor:
        ssm = ggml.reshape(states, d_state, head, n_head, states.ne[1])
        return ggml.ssm_scan(ssm, x, dt, a, b, c, ids)

    y_ssm = g.rs(rs, state_cache, h.n_embd_s, scan)
    n_state = d_inner * d_state * n_seqs
    g.expand(
        ggml.cpy(
            ggml.view(y_ssm, (n_state,), (), d_inner * n_t * n_seqs * size),
            ggml.view(state_cache, (n_state,)),
        )
    )
    y = ggml.view(y_ssm, (head, n_head, n_t, n_seqs), strides)
    y = ggml.add(y, ggml.mul(x, ggml.reshape(w.need("ssm_d"), 1, n_head)))
    y = ggml.glu(ggml.cont(z), y)
    y = ggml.view(y, (d_inner, n_t, n_seqs), y.nb[2:4])
    out = g.linear(w, "ssm_out", y, scale=False)
    return ggml.reshape(out, out.ne[0], n_t * n_seqs)


EVERY_ROW = Change(
    without=10338,
    has=10355,
    source="src/models/nemotron-h.cpp, rows without logits left out in the last block, and after the last norm",
    name="hidden states of all tokens of Nemotron-H",
)


def nemotron_h(g: Graph) -> None:
    """src/models/nemotron-h.cpp, nemotron-h-moe.cpp: a block is Mamba-2, attention or feed-forward."""
    h = g.h
    x = g.inp_embd()
    rs, inp = g.inp_rs(), g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        cur = g.rms(x, w, "attn_norm", il)
        if h.is_recr[il]:
            cur = mamba2_layer(g, rs, w, cur, il)
        elif h.n_ff[il] == 0:
            q, k, v = g.qkv(w, cur, il)
            cur = g.attn(inp, w, q, k, v, il)
        else:
            cur = nemotron_ffn(g, w, cur, il)
        if g.narrows(il, EVERY_ROW):
            cur, x = g.select_outputs(out_ids, cur, x)
        x = ggml.add(cur, x)
    cur = g.final_norm(x)
    if g.follows(EVERY_ROW):
        g.h_nextn = cur
        cur = ggml.get_rows(cur, out_ids) if g.keeps_rows(EVERY_ROW) else cur
    g.output(cur)


def nemotron_ffn(g: Graph, w: Layer, x: Tensor, il: int) -> Tensor:
    h = g.h
    if w["ffn_gate_inp"] is None:
        return g.ffn(w, x, il, act="relu_sqr", gate=None)
    down, up = w["ffn_latent_down"], w["ffn_latent_up"]
    latent = x if down is None else ggml.mul_mat(down, x)
    logits = g.linear(w, "ffn_gate_inp", x)
    routed = g.moe(
        w, latent, il, act="relu_sqr", gating=GATING_SIGMOID, norm_weights=h.expert_weights_norm,
        weights_scale=h.expert_weights_scale, probs_in=logits,
    )  # fmt: skip
    if up is not None:
        routed = ggml.mul_mat(up, routed)
    shared = g.ffn(w, x, il, act="relu_sqr", up="ffn_up_shexp", gate=None, down="ffn_down_shexp")
    return ggml.add(routed, shared)


def nemotron_h_draft(g: Graph) -> None:
    """nemotron-h-moe.cpp: attention without positions, then experts on the wanted rows alone."""
    il = g.h.n_layer
    w = g.layer(il)
    residual = join(g, w)
    q, k, v = g.qkv(w, g.rms(residual, w, "attn_norm", il), il)
    cur = ggml.add(g.attn(g.inp_attn_kv(), w, q, k, v, il), residual)
    residual = ggml.get_rows(cur, g.inp_out_ids())
    cur = nemotron_ffn(g, w, g.rms(residual, w, "post_attention_norm", il), il)
    head(g, w, ggml.add(cur, residual), None, kind="layer")


def _load_falcon_h1(d: HParamsDraft, meta: Metadata) -> None:
    d.is_recr = [True] * d.n_layer_all


def _load_nemotron_h(d: HParamsDraft, meta: Metadata) -> None:
    d.is_recr = [il < d.n_layer and d.n_head_kv[il] == 0 and d.n_ff[il] == 0 for il in range(d.n_layer_all)]
    if "f_norm_rms_eps" not in d.given:
        d.f_norm_rms_eps = d.f_norm_eps


def _attends(hp: HParams, il: int) -> bool:
    return not hp.is_recr[il] and hp.n_ff[il] == 0


def _recurs(hp: HParams, il: int) -> bool:
    return hp.is_recr[il] and hp.n_ff[il] == 0


ARCHITECTURES = (
    Architecture(
        name="falcon-h1",
        source="falcon-h1.cpp",
        hparams=reads("f_norm_rms_eps ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank ssm_n_group", _load_falcon_h1),
        rope="neox",
        output="tied",
        scales=(),
        graph=falcon_h1,
        memory=hybrid(rolls_back=False, attends=lambda hp, il: True),
        ops={"ssm_a": "SSM_SCAN"},
        tensor_split=None,
    ),
    Architecture(
        name="granitehybrid",
        source="granite-hybrid.cpp",
        hparams=reads(
            """
            f_norm_rms_eps f_logit_scale? f_residual_scale? f_embedding_scale? f_attention_scale? n_ff_shexp?
            ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank ssm_n_group rope_finetuned?
            """,
            switch_rope,
            recurrent_without_kv_heads,
        ),
        rope="norm",
        output="tied",
        scales=(),
        graph=granite_hybrid,
        memory=hybrid(rolls_back=False),
        ops={"ssm_a": "SSM_SCAN"},
        tensor_split=None,
    ),
    Architecture(
        name="jamba",
        source="jamba.cpp",
        hparams=reads("ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank f_norm_rms_eps", recurrent_without_kv_heads),
        rope="none",
        output="tied",
        scales=(),
        graph=jamba,
        memory=hybrid(rolls_back=False),
        ops={"ssm_a": "SSM_SCAN"},
        tensor_split=None,
    ),
    Architecture(
        name="mamba",
        source="mamba.cpp",
        hparams=reads("ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank ssm_dt_b_c_rms? f_norm_rms_eps"),
        rope="none",
        output="tied",
        scales=(),
        graph=mamba,
        memory=RECURRENT,
        ops={"ssm_a": "SSM_SCAN"},
        tensor_split=None,
    ),
    Architecture(
        name="mamba2",
        source="mamba2.cpp",
        hparams=reads("ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank ssm_n_group f_norm_rms_eps"),
        rope="none",
        output="tied",
        scales=(),
        graph=mamba,
        memory=RECURRENT,
        ops={"ssm_a": "SSM_SCAN"},
        tensor_split=None,
    ),
    Architecture(
        name="nemotron_h",
        source="nemotron-h.cpp",
        hparams=reads(
            """
            ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank ssm_n_group f_norm_eps f_norm_rms_eps? n_ff_exp?
            n_ff_shexp? n_expert_shared? expert_weights_norm? expert_weights_scale? moe_latent_size?
            """,
            _load_nemotron_h,
        ),
        rope="none",
        output="tied",
        scales=("ffn", "experts", "shared"),
        graph=nemotron_h,
        memory=hybrid(rolls_back=True, attends=_attends, recurs=_recurs),
        ops={"ssm_a": "SSM_SCAN"},
        tensor_split=None,
    ),
    Architecture(
        name="nemotron_h_moe",
        source="nemotron-h-moe.cpp",
        hparams=reads(
            """
            ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank ssm_n_group f_norm_eps f_norm_rms_eps? n_ff_exp?
            n_ff_shexp? n_expert_shared? expert_weights_norm? expert_weights_scale? moe_latent_size?
            """,
            _load_nemotron_h,
        ),
        rope="none",
        output="tied",
        scales=("ffn", "experts", "shared"),
        graph=nemotron_h,
        memory=hybrid(rolls_back=True, attends=_attends, recurs=_recurs, plain_draft=True),
        ops={"ssm_a": "SSM_SCAN"},
        tensor_split=None,
        draft_graph=nemotron_h_draft,
    ),
    Architecture(
        name="plamo2",
        source="plamo2.cpp",
        hparams=reads(
            """
            f_norm_rms_eps ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank ssm_n_group n_embd_head_k_full?
            n_embd_head_v_full?
            """,
            recurrent_without_kv_heads,
        ),
        rope="neox",
        output="tied",
        scales=(),
        graph=plamo2,
        memory=hybrid(rolls_back=False),
        ops={"ssm_a": "SSM_SCAN"},
        tensor_split=None,
    ),
)
