"""The hyperparameters of a model as llama.cpp resolves them, one value for every engine rule that follows.

Field names are the engine's own (src/llama-hparams.h, without `_arr` and `_impl`), so that a graph template
can be read beside its src/models/*.cpp. What each architecture reads, and what it adds, is in its record
(families/*.py).
"""

from __future__ import annotations

from typing import Literal

from autofit.domain.values import dataclass

RopeType = Literal["none", "norm", "neox", "mrope", "imrope"]
SwaType = Literal["none", "standard", "chunked", "symmetric"]

GATING_NONE, GATING_SOFTMAX, GATING_SIGMOID, GATING_SOFTMAX_WEIGHT, GATING_SQRT_SOFTPLUS = 0, 1, 2, 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class HParams:
    """llama_hparams after load_hparams (src/llama-model.cpp) and the architecture's load_arch_hparams.

    Tuples have one entry per block, `n_layer_all` of them (nextn blocks included), if not said otherwise.
    `known` is false for an architecture that has no record: its figures come from generic keys. What only decides
    whether the engine refuses a file is checked while it is read, and not kept.
    """

    arch: str
    known: bool
    n_vocab: int
    n_ctx_train: int
    n_ctx_orig_yarn: int  #: the context before rope scaling; long and short rope factors are told apart by it
    n_embd: int
    n_embd_inp: int  #: main and auxiliary input embeddings (deepstack)
    n_layer_all: int
    n_layer_nextn: int
    n_layer_kv_from_start: int  #: -1: every layer has its own cache
    router_layer: int  #: graniteswitch; -1: none
    causal_attn: bool
    pooling_type: int
    pooling_type_cls: int
    rope_type: RopeType
    rope_pattern: tuple[bool, ...]
    rope_finetuned: bool  #: as the file says, or as the architecture takes a file that does not
    n_rot_full: int
    n_rot_swa: int
    rope_sections: tuple[int, ...]  #: dimensions of each position, where a token has several

    # attention
    n_head: tuple[int, ...]
    n_head_kv: tuple[int, ...]
    n_embd_head_k_full: int
    n_embd_head_v_full: int
    n_embd_head_k_swa: int
    n_embd_head_v_swa: int
    n_embd_head_k_mla_impl: int  #: 0: no MLA
    n_embd_head_v_mla_impl: int
    n_lora_kv: int
    swa_type: SwaType
    n_swa: int
    is_swa: tuple[bool, ...]
    is_swa_by_period: tuple[bool, ...]  #: as builds before `rules.PATTERN_LISTS` take a list of layers; else empty
    is_recr: tuple[bool, ...]
    n_no_rope_layer_step: int
    n_attn_temp_floor_scale: int
    f_attn_temp_scale: float
    f_attn_value_scale: float
    f_clamp_kqv: float
    f_max_alibi_bias: float
    use_alibi: bool
    attn_soft_cap: bool
    use_kq_norm: bool
    use_par_res: bool
    swin_norm: bool

    # indexer and compressed attention
    indexer_n_head: int
    indexer_head_size: int
    indexer_top_k: int
    indexer_kpool: int
    indexer_kpool_select_tail: bool
    indexer_block_size: int
    is_indexer_full: tuple[bool, ...]
    dsv4_o_group_count: int
    dsv4_o_lora_rank: int
    dsv4_hc_mult: int
    dsv4_hc_sinkhorn_iters: int
    dsv4_compress_ratios: tuple[int, ...]

    # feed-forward and experts
    n_ff: tuple[int, ...]
    n_ff_exp: tuple[int, ...]
    n_ff_shexp: int
    n_expert: int
    n_expert_used: tuple[int, ...]
    n_expert_groups: int
    n_group_used: int
    n_group_experts: int
    n_layer_dense_lead: int
    moe_every_n_layers: int
    expert_gating_func: int
    expert_weights_norm: bool
    expert_weights_scale: float
    swiglu_clamp_exp: tuple[float, ...]
    swiglu_clamp_shexp: tuple[float, ...]
    hidden_act: str  #: empty: the architecture's own
    situ_beta: float
    situ_linear_beta: float

    # recurrent state
    ssm_d_conv: int
    ssm_d_inner: int
    ssm_d_state: int
    ssm_dt_rank: int
    ssm_n_group: int
    ssm_dt_b_c_rms: bool
    n_embd_head_la: int
    n_embd_head_kda: int
    kda_gate_lower_bound: float
    attn_res_block_size: int
    n_shortconv_l_cache: int
    wkv_head_size: int
    token_shift_count: int
    rescale_every_n_layers: int

    # per-layer embeddings, altup, deepstack
    n_value_expert: int
    n_value_expert_used: int
    n_layer_routing: int
    n_layer_joint: int
    n_head_decision: int
    n_norm_groups: int
    n_embd_per_layer: int
    is_ple: tuple[bool, ...]
    ple_ngram_size: int
    ple_conv_kernel: int
    ple_n_heads: int
    ple_head_dim: int
    n_altup: int
    i_altup_act: int
    n_embd_altup: int
    n_deepstack_layers: int
    deepstack_mapping: tuple[int, ...]  #: -1: none

    # norms and scales; graphs ask only whether they are zero
    f_norm_eps: float
    f_norm_rms_eps: float
    f_final_logit_softcapping: float
    f_logit_scale: float
    f_residual_scale: float
    f_embedding_scale: float

    # single families
    dec_n_layer: int  #: t5
    n_loops: int  #: nanbeige: passes over the same blocks, each with its own cache
    skip_loop_final_norm: bool
    n_hrm_layers_per_stack: int
    n_hrm_h_cycles: int
    n_hrm_l_cycles: int
    max_lora_rank: int
    posnet_n_layer: int
    convnext_n_layer: int

    @property
    def n_layer(self) -> int:
        """Blocks without the nextn (MTP) ones."""
        return self.n_layer_all - self.n_layer_nextn

    @property
    def is_mla(self) -> bool:
        return self.n_embd_head_k_mla_impl != 0 and self.n_embd_head_v_mla_impl != 0

    @property
    def n_embd_head_k_mla(self) -> int:
        return self.n_embd_head_k_mla_impl if self.is_mla else self.n_embd_head_k(0)

    @property
    def n_embd_head_v_mla(self) -> int:
        return self.n_embd_head_v_mla_impl if self.is_mla else self.n_embd_head_v(0)

    @property
    def n_pos_per_embd(self) -> int:
        return 4 if self.rope_type in ("mrope", "imrope") else 1

    @property
    def n_embd_r(self) -> int:
        """Elements of one row of convolution or shift state (llama-hparams.cpp:n_embd_r)."""
        if self.wkv_head_size:
            return self.token_shift_count * self.n_embd
        if self.n_shortconv_l_cache:
            return self.n_embd * (self.n_shortconv_l_cache - 1)
        if self.n_embd_head_kda:
            return 3 * (self.ssm_d_conv - 1 if self.ssm_d_conv else 3) * self.n_head[0] * self.n_embd_head_kda
        width = self.ssm_d_inner + 2 * self.ssm_n_group * self.ssm_d_state
        return max(self.ssm_d_conv - 1, 0) * width

    @property
    def n_embd_s(self) -> int:
        """Elements of one row of recurrent state (llama-hparams.cpp:n_embd_s)."""
        if self.wkv_head_size:
            return self.n_embd * self.wkv_head_size
        if self.n_embd_head_kda:
            return self.n_embd_head_kda**2 * self.n_head[0]
        if self.n_embd_head_la:
            return self.n_embd_head_la**2 * self.n_head[0]
        return self.ssm_d_state * self.ssm_d_inner

    @property
    def ple_conv_state(self) -> int:
        """Elements of one row of n-gram convolution history (llama-hparams.cpp:ple_conv_state)."""
        if self.ple_n_heads == 0 or self.ple_conv_kernel == 0:
            return 0
        return (self.ple_conv_kernel - 1) * self.ple_ngram_size * self.dsv4_hc_mult * self.n_embd

    def n_embd_head_k(self, il: int) -> int:
        return self.n_embd_head_k_swa if self.is_swa[il] else self.n_embd_head_k_full

    def n_embd_head_v(self, il: int) -> int:
        return self.n_embd_head_v_swa if self.is_swa[il] else self.n_embd_head_v_full

    def n_rot(self, il: int) -> int:
        return self.n_rot_swa if self.is_swa[il] else self.n_rot_full

    def n_embd_k_gqa(self, il: int) -> int:
        return self.n_embd_head_k(il) * self.n_head_kv[il]

    def n_embd_v_gqa(self, il: int) -> int:
        return self.n_embd_head_v(il) * self.n_head_kv[il]

    def n_embd_v_gqa_max(self) -> int:
        return max(self.n_embd_v_gqa(il) for il in range(self.n_layer_all))

    def n_gqa(self, il: int) -> int:
        return self.n_head[il] // self.n_head_kv[il] if self.n_head_kv[il] else 0

    def has_kv(self, il: int) -> bool:
        """False for a layer that attends to another layer's cache (gemma3n, gemma4)."""
        return self.n_layer_kv_from_start < 0 or il < self.n_layer_kv_from_start

    def has_rope(self, il: int) -> bool:
        return il != self.router_layer and self.rope_pattern[il]
