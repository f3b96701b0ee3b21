"""Decoders whose attention is gated: a sigmoid of another projection of the same input scales its result."""

from __future__ import annotations

from collections.abc import Callable

from autofit_llama.engine.versions import Change
from autofit_llama.families.decoder import LayerAgain
from autofit_llama.families.moe import experts, windowed
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import AttentionInput, Graph, Layer, every
from autofit_llama.graph.draft_head import head, join, routed_and_shared
from autofit_llama.graph.ggml import Tensor
from autofit_llama.model.architecture import ATTENTION_AND_JOIN, Architecture, DraftTensors, TensorSplit, reads
from autofit_llama.model.caches import plain
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata
from autofit_llama.model.rules import (
    SIGMOID,
    default,
    gating,
    swa,
    swa_always,
    swa_given,
)


def muse_glimmer(g: Graph) -> None:
    """src/models/muse-glimmer.cpp: positions in the sliding-window layers only, norms after both halves."""
    h = g.h
    x = g.norm(g.inp_embd(), None, -1)
    pos = g.inp_pos()
    inp = g.inp_attn_kv_iswa()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        normed = g.rms(x, w, "attn_norm", il)
        q, k, v = g.qkv(w, normed, il)
        gate = g.linear(w, "attn_gate", normed, scale=False)
        q, k = g.rms(q, w, "attn_q_norm", il), g.rms(k, w, "attn_k_norm", il)
        if h.is_swa[il]:
            q, k = ggml.rope(q, pos), ggml.rope(k, pos)
        cur = g.attn(inp, w, q, k, v, il, out=None)
        cur = g.linear(w, "attn_output", ggml.mul(cur, ggml.sigmoid(gate)))
        cur = ggml.mul(ggml.rms_norm(cur), w.need("post_attention_norm"))
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        cur = g.ffn(w, g.rms(ffn_inp, w, "ffn_norm", il), il)
        x = ggml.add(ggml.mul(ggml.rms_norm(cur), w.need("post_ffw_norm")), ffn_inp)
    g.finish(x, scale=True, soft_cap=h.f_final_logit_softcapping != 0.0)


def spark2_5(g: Graph) -> None:
    """src/models/spark2-5.cpp: one gate per head."""
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv_iswa()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        normed = g.rms(x, w, "attn_norm", il)
        q, k, v = g.qkv(w, normed, il)
        own = ggml.Rotation(g.h.n_rot(il))
        cur = g.attn(inp, w, ggml.rope(q, pos, rotation=own), ggml.rope(k, pos, rotation=own), v, il, out=None)
        cur = _gated(g, w, cur, ggml.sigmoid(g.linear(w, "attn_gate", normed, scale=False)), il)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        x = ggml.add(g.ffn(w, g.rms(ffn_inp, w, "ffn_norm", il), il, act="gelu"), ffn_inp)
    g.finish(x)


def _gated(g: Graph, w: Layer, cur: Tensor, gate: Tensor, il: int) -> Tensor:
    """The attention's result times its gate, one per element or one per head, and the output matrix."""
    head, n_head, n = g.h.n_embd_head_v(il), g.h.n_head[il], cur.ne[1]
    if gate.ne[0] == n_head:
        cur = ggml.mul(ggml.reshape(cur, head, n_head, n), ggml.reshape(gate, 1, n_head, n))
        cur = ggml.reshape(cur, head * n_head, n)
    else:
        cur = ggml.mul(cur, gate)
    return g.linear(w, "attn_output", cur)


@every(lambda h: h.n_no_rope_layer_step)
def afmoe(g: Graph) -> None:
    """src/models/afmoe.cpp: norms before and after each half, every n-th block without positions, experts."""
    h = g.h
    x = ggml.scale(g.inp_embd())
    pos = g.inp_pos()
    inp = g.inp_attn_kv_iswa()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        normed = g.rms(x, w, "attn_norm", il)
        q, k, v = g.qkv(w, normed, il)
        q, k = g.rms(q, w, "attn_q_norm", il), g.rms(k, w, "attn_k_norm", il)
        if (il + 1) % h.n_no_rope_layer_step:
            q, k = ggml.rope(q, pos), ggml.rope(k, pos)
        cur = g.attn(inp, w, q, k, v, il, out=None)
        gate = ggml.sigmoid(g.linear(w, "attn_gate", normed, scale=False))
        cur = g.linear(w, "attn_output", ggml.mul(cur, gate))
        cur = g.rms(cur, w, "post_attention_norm", il)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        cur = g.rms(ffn_inp, w, "ffn_norm", il)
        cur = experts(g, w, cur, il, gating=h.expert_gating_func, norm_weights=h.expert_weights_norm)
        x = ggml.add(g.rms(cur, w, "post_ffw_norm", il), ffn_inp)
    g.finish(x)


def laguna(g: Graph) -> None:
    """src/models/laguna.cpp: a softplus gate per element or per head, experts."""
    h = g.h
    _gated_experts(g, inp=windowed(g), act="softplus", n_rot=lambda il: h.n_rot(il if h.is_swa[il] else 0))


EVERY_ROW = Change(
    without=9493,
    has=9496,
    source="src/models/step35.cpp, rows without logits left out in the last block, and after the last norm",
    name="hidden states of all tokens of Step 3.5",
)


def step35(g: Graph) -> None:
    """src/models/step35.cpp: a gate per head, experts; all rows go through to the end."""
    _gated_experts(g, inp=g.inp_attn_kv_iswa(), act="sigmoid", n_rot=g.h.n_rot, factors=True, every_row=EVERY_ROW)


def _gated_experts(
    g: Graph,
    *,
    inp: AttentionInput,
    act: str,
    n_rot: Callable[[int], int],
    factors: bool = False,
    every_row: Change | None = None,
) -> None:
    """`n_rot`: how many elements a layer rotates. `every_row`: since when all rows go through, where a block may
    predict further."""
    h = g.h
    x = g.inp_embd()
    pos = g.inp_pos()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        normed = g.rms(x, w, "attn_norm", il)
        q, k, v = g.qkv(w, normed, il)
        q = g.rms(q, w, "attn_q_norm", il) if w["attn_q_norm"] is not None else q
        k = g.rms(k, w, "attn_k_norm", il) if w["attn_k_norm"] is not None else k
        f = g.rope_factors(il) if factors and not h.is_swa[il] else None
        own = ggml.Rotation(n_rot(il))
        q, k = ggml.rope(q, pos, f, rotation=own), ggml.rope(k, pos, f, rotation=own)
        cur = g.attn(inp, w, q, k, v, il, out=None)
        if w["attn_gate"] is None:
            cur = g.linear(w, "attn_output", cur)
        else:
            cur = _gated(g, w, cur, ggml.unary(g.linear(w, "attn_gate", normed, scale=False), act), il)
        if g.is_last(il) and not (every_row and g.keeps_rows(every_row)):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        cur = g.rms(ffn_inp, w, "ffn_norm", il)
        cur = experts(g, w, cur, il, gating=h.expert_gating_func, norm_weights=h.expert_weights_norm)
        x = ggml.add(cur, ffn_inp)
    if every_row and g.follows(every_row):
        g.h_nextn = x
        x = ggml.get_rows(x, out_ids) if g.keeps_rows(every_row) else x
    g.finish(x)


def hrm_text(g: Graph) -> None:
    """src/models/hrm-text.cpp: two stacks of blocks, run in turn; a slow cycle holds several fast ones."""
    h = g.h
    per_stack = h.n_hrm_layers_per_stack
    slow = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    fast = g.need("hrm.z_l_init", 0)
    slot = 0
    for _ in range(h.n_hrm_h_cycles):
        for _ in range(h.n_hrm_l_cycles):
            fast = _hrm_stack(g, inp, pos, ggml.add(slow, fast), slot, 0)
            slot += per_stack
        slow = _hrm_stack(g, inp, pos, ggml.add(slow, fast), slot, per_stack)
        slot += per_stack
    g.output(ggml.get_rows(slow, out_ids))


def _hrm_stack(g: Graph, inp: AttentionInput, pos: Tensor, x: Tensor, first: int, block: int) -> Tensor:
    """One pass through a stack: cells of the cache slots from `first`, weights of the blocks from `block`."""
    for i in range(g.h.n_hrm_layers_per_stack):
        il = first + i
        w = LayerAgain(g, block + i, il)
        normed = g.norm(x, None, il)
        gate = g.linear(w, "attn_gate", normed, scale=False)
        q, k, v = g.qkv(w, normed, il)
        cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il, out=None)
        cur = g.linear(w, "attn_output", ggml.mul(cur, ggml.sigmoid(gate)))
        ffn_inp = ggml.add(cur, x)
        x = ggml.add(g.ffn(w, g.norm(ffn_inp, None, il), il), ffn_inp)
    return g.norm(x, None, first)


def step35_draft(g: Graph) -> None:
    """step35.cpp: one gate per head."""
    h, n = g.h, g.n_tokens
    il = h.n_layer
    w = g.layer(il)
    head_k, head_v, n_head, n_kv = h.n_embd_head_k(0), h.n_embd_head_v(0), h.n_head[il], h.n_head_kv[il]
    residual = join(g, w)
    x = g.rms(residual, w, "attn_norm", il)
    q, k, v = g.qkv(w, x, il, head=head_k, head_v=head_v, reshape=False)
    q, k, v = ggml.reshape(q, head_k, n_head, n), ggml.reshape(k, head_k, n_kv, n), ggml.reshape(v, head_v, n_kv, n)
    q = g.rms(q, w, "attn_q_norm", il) if w["attn_q_norm"] is not None else q
    k = g.rms(k, w, "attn_k_norm", il) if w["attn_k_norm"] is not None else k
    pos, factors = g.inp_pos(), None if h.is_swa[il] else g.rope_factors(il)
    own = ggml.Rotation(h.n_rot(il))
    q, k = ggml.rope(q, pos, factors, rotation=own), ggml.rope(k, pos, factors, rotation=own)
    cur = g.attn(g.inp_attn_kv_iswa(), w, q, k, v, il, out=None)
    if w["attn_gate"] is not None:
        gate = ggml.sigmoid(g.linear(w, "attn_gate", x, scale=False))
        cur = ggml.mul(ggml.reshape(cur, head_v, n_head, n), ggml.reshape(gate, 1, n_head, n))
        cur = ggml.reshape(cur, head_v * n_head, n)
    ffn_inp = ggml.add(g.linear(w, "attn_output", cur), residual)
    cur = g.rms(ffn_inp, w, "ffn_norm", il)
    cur = g.ffn(w, cur, il) if w["ffn_gate_inp"] is None else routed_and_shared(g, w, cur, il)
    g.h_nextn = ggml.get_rows(ggml.add(cur, ffn_inp), g.inp_out_ids())
    head(g, w, g.h_nextn, None)


def _load_hrm_text(d: HParamsDraft, meta: Metadata) -> None:
    n_slots = d.n_hrm_layers_per_stack * d.n_hrm_h_cycles * (d.n_hrm_l_cycles + 1)
    if n_slots != d.n_layer or not (d.n_hrm_layers_per_stack and d.n_hrm_h_cycles and d.n_hrm_l_cycles):
        meta.refuse("hrm.layers_per_stack", f"and cycles make {n_slots} blocks, the file has {d.n_layer}")


def _load_laguna(d: HParamsDraft, meta: Metadata) -> None:
    default(n_expert_shared=1)(d, meta)
    d.n_ff_shexp = d.n_ff_shexp or d.n_ff_exp[0] * d.n_expert_shared
    gating(SIGMOID)(d, meta)
    swa(4, first=True)(d, meta)


def _load_step35(d: HParamsDraft, meta: Metadata) -> None:
    d.swa_type = "standard"
    d.n_rot_full //= 2  # full-attention layers rotate half of the dimensions
    gating(SIGMOID)(d, meta)


_STEP35_APART = Change(
    without=9496,
    has=9518,
    source="src/llama-model.cpp:create_memory, without and with a filter for LLM_ARCH_STEP35",
    name="no caches for blocks of Step 3.5 that predict further",
    larger=False,
)

ARCHITECTURES = (
    Architecture(
        name="afmoe",
        source="afmoe.cpp",
        hparams=reads(
            """
            f_norm_rms_eps n_layer_dense_lead? n_ff_exp n_expert_shared expert_weights_scale?
            expert_weights_norm? expert_gating_func? n_swa?
            """,
            swa(4),
            gating(SIGMOID),
        ),
        rope="neox",
        output="tied",
        scales=(),
        graph=afmoe,
    ),
    Architecture(
        name="hrm_text",
        source="hrm-text.cpp",
        hparams=reads(
            """
            f_norm_rms_eps f_embedding_scale? n_hrm_layers_per_stack n_hrm_h_cycles n_hrm_l_cycles
            """,
            _load_hrm_text,
        ),
        rope="neox",
        output="tied",
        scales=(),
        graph=hrm_text,
        tensor_split=TensorSplit(whole=True),
    ),
    Architecture(
        name="laguna",
        source="laguna.cpp",
        hparams=reads(
            """
            f_norm_rms_eps n_layer_dense_lead n_ff_exp expert_gating_func? expert_weights_scale?
            expert_weights_norm? n_expert_shared? n_ff_shexp? n_swa?
            """,
            _load_laguna,
        ),
        rope="neox",
        output="tied",
        scales=(),
        graph=laguna,
    ),
    Architecture(
        name="muse-glimmer",
        source="muse-glimmer.cpp",
        hparams=reads("f_norm_rms_eps n_swa f_final_logit_softcapping? f_logit_scale", swa_always(4, lists=True)),
        rope="norm",
        output="own",
        scales=(),
        graph=muse_glimmer,
    ),
    Architecture(
        name="spark2_5",
        source="spark2-5.cpp",
        hparams=reads("f_norm_rms_eps n_swa is_swa", swa_given),
        rope="neox",
        output="tied",
        scales=(),
        graph=spark2_5,
    ),
    Architecture(
        name="step35",
        source="step35.cpp",
        hparams=reads(
            """
            f_norm_rms_eps n_ff_exp n_ff_shexp? expert_gating_func? expert_weights_scale? expert_weights_norm?
            n_swa is_swa swiglu_clamp_exp? swiglu_clamp_shexp?
            """,
            _load_step35,
        ),
        rope="neox",
        output="own",
        scales=(),
        graph=step35,
        memory=plain(since=_STEP35_APART),
        rope_factors=lambda hp: range(hp.n_layer_all),
        draft_tensors=DraftTensors(skipped=ATTENTION_AND_JOIN, once_always=True),
        draft_graph=step35_draft,
    ),
)
