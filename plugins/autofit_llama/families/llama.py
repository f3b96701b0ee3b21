"""llama and its closest kin: one attention cache, RMSNorm before attention and feed-forward."""

from __future__ import annotations

from autofit_llama.engine.versions import Change
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import Graph, every
from autofit_llama.model.architecture import Architecture, reads
from autofit_llama.model.hparams import GATING_SIGMOID, HParams
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata
from autofit_llama.model.rules import (
    deepstack,
    default,
    finetuned_unless_told,
    swa_always,
    swa_given,
    switch_rope,
)


def llama(g: Graph) -> None:
    """src/models/llama.cpp: dense and mixture of experts (mixtral)."""
    _decoder(g)


def mistral3(g: Graph) -> None:
    """src/models/mistral3.cpp: queries may be scaled by their position."""
    _decoder(g, attn_scale=g.h.f_attn_temp_scale != 0.0)


MOE_ALWAYS_ROTATES = Change(
    without=10502,
    has=10524,
    source="src/models/granite-moe.cpp, with rope_finetuned as a switch for RoPE, and without it",
    name="Granite MoE files without RoPE",
)


def granite(g: Graph) -> None:
    """src/models/granite.cpp, minicpm.cpp: scaled residuals and logits, perhaps a shared expert."""
    _decoder(g, residual_scale=g.h.f_residual_scale != 0.0, logit_scale=True)


def granite_moe(g: Graph) -> None:
    """src/models/granite-moe.cpp: the same."""
    rotates = g.h.rope_finetuned or g.follows(MOE_ALWAYS_ROTATES)
    _decoder(g, residual_scale=g.h.f_residual_scale != 0.0, logit_scale=True, rotates=rotates)


def granite_swa(g: Graph) -> None:
    """src/models/granite-swa.cpp: sliding windows and attention sinks; the shared expert's gate is in its up matrix."""
    _decoder(g, residual_scale=g.h.f_residual_scale != 0.0, logit_scale=True, sliding=True)


def llama_embed(g: Graph) -> None:
    """src/models/llama.cpp, graph<true>: attention over the batch, without a cache or logits."""
    _decoder(g, cached=False)


def _decoder(
    g: Graph,
    *,
    attn_scale: bool = False,
    residual_scale: bool = False,
    logit_scale: bool = False,
    sliding: bool = False,
    cached: bool = True,
    rotates: bool = True,
) -> None:
    h = g.h
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv_iswa() if sliding else g.inp_attn_kv() if cached else g.inp_attn_no_cache()
    temperature = g.inp_attn_scale() if attn_scale else None
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        residual = x
        cur = g.rms(x, w, "attn_norm", il)
        q, k, v = g.qkv(w, cur, il)
        if rotates and h.rope_pattern[il]:
            factors = g.rope_factors(il)
            q, k = ggml.rope(q, pos, factors), ggml.rope(k, pos, factors)
        if h.use_kq_norm:
            q, k = ggml.rms_norm(q), ggml.rms_norm(k)
        if temperature is not None:
            q = ggml.mul(q, temperature)
        cur = g.attn(inp, w, q, k, v, il, sinks=w["attn_sinks"] if sliding else None)
        if g.is_last(il):
            cur, residual = g.select_outputs(out_ids, cur, residual)
        if residual_scale:
            cur = ggml.scale(cur)
        ffn_inp = ggml.add(cur, residual)
        cur = g.rms(ffn_inp, w, "ffn_norm", il)
        if w["ffn_gate_inp"] is None:
            cur = g.ffn(w, cur, il)
        else:
            routed = g.moe(w, cur, il, weights_scale=h.expert_weights_scale)
            if logit_scale and h.n_ff_shexp > 0:
                act, gate = ("swiglu", None) if sliding else ("silu", "ffn_gate_shexp")
                shared = g.ffn(
                    w, cur, il, act=act, gate=gate, up="ffn_up_shexp", down="ffn_down_shexp",
                    parallel=not sliding,
                )  # fmt: skip
                routed = ggml.add(routed, shared)
            cur = routed
        if residual_scale:
            cur = ggml.scale(cur)
        x = ggml.add(cur, ffn_inp)
    if cached:
        g.finish(x, scale=logit_scale)
    else:
        g.embd = g.expand(g.final_norm(x))


@every(lambda h: h.n_no_rope_layer_step)
def llama4(g: Graph) -> None:
    """src/models/llama4.cpp: chunked attention, every n-th layer without positions and full."""
    h = g.h
    x = g.inp_embd()
    pos = g.inp_pos()
    attn_scale = g.inp_attn_scale()
    inp = g.inp_attn_kv() if h.swa_type == "none" else g.inp_attn_kv_iswa()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        residual = x
        use_rope = h.n_no_rope_layer_step > 0 and (il + 1) % h.n_no_rope_layer_step != 0
        cur = g.rms(x, w, "attn_norm", il)
        factors = g.rope_factors(il)
        q, k, v = g.qkv(w, cur, il)
        if use_rope:
            q, k = ggml.rope(q, pos, factors), ggml.rope(k, pos, factors)
            if h.use_kq_norm:
                q, k = ggml.rms_norm(q), ggml.rms_norm(k)
        else:
            q = ggml.mul(q, attn_scale)
        cur = g.attn(inp, w, q, k, v, il)
        if g.is_last(il):
            cur, residual = g.select_outputs(out_ids, cur, residual)
        ffn_inp = ggml.add(cur, residual)
        cur = g.rms(ffn_inp, w, "ffn_norm", il)
        if w["ffn_gate_inp"] is None:
            cur = g.ffn(w, cur, il)
        else:
            routed = g.moe(
                w,
                cur,
                il,
                gating=GATING_SIGMOID,
                norm_weights=False,
                weights_scale=h.expert_weights_scale,
                select_by="logits",
                weigh_inputs=True,
            )
            shared = g.ffn(w, cur, il, up="ffn_up_shexp", gate="ffn_gate_shexp", down="ffn_down_shexp")
            cur = ggml.add(routed, shared)
        x = ggml.add(cur, ffn_inp)
    g.finish(x)


def _load_llama4(d: HParamsDraft, meta: Metadata) -> None:
    if "n_swa" in d.given and d.n_swa == 0:
        d.n_no_rope_layer_step = d.n_layer
    else:
        d.n_swa = d.n_attn_temp_floor_scale = 8192
        d.f_attn_temp_scale, d.f_attn_temp_offset = 0.1, 1.0
        swa_always(4, kind="chunked")(d, meta)
    d.use_kq_norm = d.n_expert != 128


def _load_minicpm(d: HParamsDraft, meta: Metadata) -> None:
    default(f_embedding_scale=12.0, f_residual_scale=1.4 / d.n_layer**0.5, f_logit_scale=256.0 / d.n_embd)(d, meta)
    d.rope_finetuned = True


def _load_mistral3(d: HParamsDraft, meta: Metadata) -> None:
    if d.f_attn_temp_scale:
        d.n_attn_temp_floor_scale = meta.number("rope.scaling.original_context_length", default=d.n_ctx_train)
        if d.n_attn_temp_floor_scale == 0:
            meta.refuse("rope.scaling.original_context_length", "is 0")


def _is_70b(hp: HParams) -> bool:
    return hp.n_layer == 80 and hp.n_expert != 8 and hp.n_head[0] != hp.n_head_kv[0]


ARCHITECTURES = (
    Architecture(
        name="granite",
        source="granite.cpp",
        hparams=reads(
            """
            f_norm_rms_eps f_logit_scale f_residual_scale? f_embedding_scale? f_attention_scale? n_ff_shexp?
            deepstack_mapping? rope_finetuned?
            """,
            deepstack,
            switch_rope,
        ),
        rope="norm",
        output="tied",
        scales=(),
        graph=granite,
    ),
    Architecture(
        name="granite_swa",
        source="granite-swa.cpp",
        hparams=reads(
            """
            f_norm_rms_eps f_logit_scale f_residual_scale? f_embedding_scale? f_attention_scale? n_ff_shexp?
            is_swa n_swa deepstack_mapping? rope_pattern?
            """,
            deepstack,
            swa_given,
        ),
        rope="norm",
        output="tied",
        scales=(),
        graph=granite_swa,
    ),
    Architecture(
        name="granitemoe",
        source="granite-moe.cpp",
        hparams=reads(
            """
            f_norm_rms_eps f_logit_scale f_residual_scale? f_embedding_scale? f_attention_scale? n_ff_shexp?
            rope_finetuned?
            """,
            finetuned_unless_told,
        ),
        rope="norm",
        output="tied",
        scales=(),
        graph=granite_moe,
    ),
    Architecture(
        name="llama",
        source="llama.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="norm",
        output="tied",
        scales=("ffn", "experts"),
        graph=llama,
        rotates_whole_heads=True,
        is_70b=_is_70b,
    ),
    Architecture(
        name="llama-embed",
        source="llama-embed.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="norm",
        output="tied",
        scales=("ffn", "experts"),
        graph=llama_embed,
        rotates_whole_heads=True,
        is_70b=_is_70b,
    ),
    Architecture(
        name="llama4",
        source="llama4.cpp",
        hparams=reads("f_norm_rms_eps n_ff_exp n_moe_layer_step n_swa?", _load_llama4),
        rope="norm",
        output="tied",
        scales=(),
        graph=llama4,
    ),
    Architecture(
        name="minicpm",
        source="minicpm.cpp",
        hparams=reads("f_norm_rms_eps f_embedding_scale? f_residual_scale? f_logit_scale?", _load_minicpm),
        rope="norm",
        output="tied",
        scales=(),
        graph=granite,
    ),
    Architecture(
        name="mistral3",
        source="mistral3.cpp",
        hparams=reads("f_norm_rms_eps f_attn_temp_scale?", _load_mistral3),
        rope="norm",
        output="tied",
        scales=("ffn", "experts"),
        graph=mistral3,
    ),
)
