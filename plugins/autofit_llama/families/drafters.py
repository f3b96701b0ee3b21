"""Models that only draft for another one (eagle3.cpp, dflash.cpp). Their graphs are not replayed."""

from __future__ import annotations

from autofit_llama.model.architecture import Architecture, TensorSplit, reads
from autofit_llama.model.caches import (
    Cache,
    Memory,
    attention,
    sliding,
    trunk_or_draft,
)
from autofit_llama.model.context import Context
from autofit_llama.model.hparams import HParams, RopeType
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata, read
from autofit_llama.model.rules import (
    clamp_shared_as_routed,
    default,
    require_sqrt_softplus,
    targets,
)

#: what a drafter with the backbone of DeepSeek V4 reads as well
_DEEPSEEK4_READS = """
    n_lora_q n_swa n_ff_exp n_expert_shared expert_weights_scale expert_weights_norm expert_gating_func
    swiglu_clamp_exp swiglu_clamp_shexp? dsv4_o_group_count dsv4_o_lora_rank dsv4_hc_sinkhorn_iters
    dsv4_hc_eps dsv4_compress_ratios?
"""


def _load_dflash(d: HParamsDraft, meta: Metadata) -> None:
    if d.hidden_act not in ("", "silu", "gelu", "gelu_pytorch_tanh"):
        meta.refuse("hidden_activation", f"is {d.hidden_act!r:.40}, which the engine does not support")
    targets(d, meta)
    d.n_embd_inp_enc = d.n_target_layers * d.n_embd
    if d.dsv4_hc_mult > 0:  # a DeepSeek-V4 backbone
        read(d, meta, _DEEPSEEK4_READS)
        clamp_shared_as_routed(d, meta)
        require_sqrt_softplus(d, meta)
        if d.n_swa == 0 or d.dsv4_o_group_count == 0 or any(d.dsv4_compress_ratios):
            meta.refuse("attention.sliding_window", "or output groups or compression ratios are not a drafter's")
        d.swa_type, d.is_swa = "standard", [True] * d.n_layer_all
    elif d.n_swa > 0:
        d.swa_type = "standard"
        read(d, meta, "is_swa")


def _load_eagle3(d: HParamsDraft, meta: Metadata) -> None:
    targets(d, meta)
    if d.n_target_layers != 3:
        meta.refuse("target_layers", f"has {d.n_target_layers} entries, the engine expects 3")
    d.n_embd_inp_enc = d.n_target_layers * d.n_embd_tgt


def _dflash_caches(hp: HParams, ctx: Context) -> tuple[Cache, ...]:
    if hp.dsv4_hc_mult > 0:
        return sliding(hp, ctx, lambda il: True, ctx.n_streams, unified=ctx.kv_unified)
    return attention(hp, ctx, trunk_or_draft(hp, ctx))


def _rope(d: HParamsDraft) -> RopeType:
    if any(d.rope_sections):
        return "mrope"
    return "norm" if d.dsv4_hc_mult > 0 else "neox"


ARCHITECTURES = (
    Architecture(
        name="dflash",
        source="dflash.cpp",
        hparams=reads(
            """
            f_embedding_scale? f_attention_scale? f_attn_value_scale? hidden_act? f_norm_rms_eps f_logit_scale?
            f_final_logit_softcapping? rope_sections? dflash_block_size? dflash_conv_kernel_size?
            dflash_conv_group_size? dflash_selector_rank? dflash_selector_top_k? dsv4_hc_mult? n_swa?
            """,
            default(f_final_logit_softcapping=0.0),
            _load_dflash,
        ),
        rope=_rope,
        output="tied",
        scales=("ffn",),
        graph=None,
        mixes_inputs=False,
        memory=Memory(caches=_dflash_caches),
        has_encoder=True,
        stands_alone="with its own ends",
        tensor_split=TensorSplit(grouped_output=True),
        fused_clamp=True,
    ),
    Architecture(
        name="eagle3",
        source="eagle3.cpp",
        hparams=reads("f_norm_rms_eps n_embd_tgt norm_before_residual? norm_before_fc?", _load_eagle3),
        rope="norm",
        output="own",
        scales=(),
        graph=None,
        mixes_inputs=False,
        has_encoder=True,
        stands_alone="with its own ends",
    ),
)
