"""What each of llama.cpp's architectures reads from the file, and the rules it adds.

One row per load_arch_hparams of src/models/*.cpp: the fields that it reads (a missing one is refused, as the
engine does, unless marked) and rules for what is not a plain read. `resolve` runs load_hparams of
src/llama-model.cpp around them. Keys are those of src/llama-arch.cpp:LLM_KV_NAMES.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace as Draft
from typing import Any, Literal, NoReturn

from autofit.domain.model import ModelSpec, StringArray
from autofit.errors import CorruptModelError, UnsupportedModelError

MAX_LAYERS, MAX_EXPERTS = 512, 1024  #: src/llama-hparams.h
_U32 = 1 << 32

Kind = Literal["int", "float", "bool", "str", "layers", "trunk", "floats", "flags", "ints", "four"]
Rule = Callable[[Draft, "Metadata"], None]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# field -> key and kind. `layers`: a number or an array of n_layer_all, `trunk`: of n_layer, `floats` the same
# of float; `flags` and `ints`: an array of any length up to MAX_LAYERS; `four`: rope sections.
_KEYS: Mapping[str, tuple[str, Kind]] = {
    "n_swa": ("attention.sliding_window", "int"),
    "is_swa": ("attention.sliding_window_pattern", "flags"),
    "rope_pattern": ("attention.rope_pattern", "flags"),
    "n_lora_q": ("attention.q_lora_rank", "int"),
    "n_lora_kv": ("attention.kv_lora_rank", "int"),
    "n_lora_kv_swa": ("attention.kv_lora_rank_swa", "int"),
    "n_embd_head_k_full": ("attention.key_length", "int"),
    "n_embd_head_v_full": ("attention.value_length", "int"),
    "n_embd_head_k_swa": ("attention.key_length_swa", "int"),
    "n_embd_head_v_swa": ("attention.value_length_swa", "int"),
    "n_embd_head_k_mla_impl": ("attention.key_length_mla", "int"),
    "n_embd_head_v_mla_impl": ("attention.value_length_mla", "int"),
    "n_embd_head_k_mla_swa": ("attention.key_length_mla_swa", "int"),
    "n_embd_head_v_mla_swa": ("attention.value_length_mla_swa", "int"),
    "n_rot_full": ("rope.dimension_count", "int"),
    "n_rot_swa": ("rope.dimension_count_swa", "int"),
    "rope_sections": ("rope.dimension_sections", "four"),
    "rope_finetuned": ("rope.scaling.finetuned", "bool"),
    "n_kv_shared": ("attention.shared_kv_layers", "int"),
    "f_attention_scale": ("attention.scale", "float"),
    "f_attn_value_scale": ("attention.value_scale", "float"),
    "f_attn_out_scale": ("attention.output_scale", "float"),
    "f_attn_temp_scale": ("attention.temperature_scale", "float"),
    "n_attn_temp_floor_scale": ("attention.temperature_length", "int"),
    "attn_temp_length": ("attention.temperature_length", "int"),
    "f_attn_logit_softcapping": ("attn_logit_softcapping", "float"),
    "f_router_logit_softcapping": ("router_logit_softcapping", "float"),
    "f_final_logit_softcapping": ("final_logit_softcapping", "float"),
    "f_clamp_kqv": ("attention.clamp_kqv", "float"),
    "f_max_alibi_bias": ("attention.max_alibi_bias", "float"),
    "n_rel_attn_bkts": ("attention.relative_buckets_count", "int"),
    "use_par_res": ("use_parallel_residual", "bool"),
    "swin_norm": ("swin_norm", "bool"),
    "f_norm_eps": ("attention.layer_norm_epsilon", "float"),
    "f_norm_rms_eps": ("attention.layer_norm_rms_epsilon", "float"),
    "f_norm_group_eps": ("attention.group_norm_epsilon", "float"),
    "n_norm_groups": ("attention.group_norm_groups", "int"),
    "f_logit_scale": ("logit_scale", "float"),
    "f_residual_scale": ("residual_scale", "float"),
    "f_embedding_scale": ("embedding_scale", "float"),
    "indexer_n_head": ("attention.indexer.head_count", "int"),
    "indexer_head_size": ("attention.indexer.key_length", "int"),
    "indexer_top_k": ("attention.indexer.top_k", "int"),
    "indexer_kpool": ("attention.indexer.kpool", "int"),
    "indexer_kpool_select_tail": ("attention.indexer.kpool_select_tail", "bool"),
    "indexer_block_size": ("attention.indexer.block_size", "int"),
    "indexer_local_blocks": ("attention.indexer.local_blocks", "int"),
    "is_indexer_full": ("attention.indexer.types", "trunk"),
    "dsv4_o_group_count": ("attention.output_group_count", "int"),
    "dsv4_o_lora_rank": ("attention.output_lora_rank", "int"),
    "dsv4_compress_rope_base": ("attention.compress_rope_freq_base", "float"),
    "dsv4_compress_ratios": ("attention.compress_ratios", "ints"),
    "dsv4_hc_mult": ("hyper_connection.count", "int"),
    "dsv4_hc_sinkhorn_iters": ("hyper_connection.sinkhorn_iterations", "int"),
    "dsv4_hc_eps": ("hyper_connection.epsilon", "float"),
    "dsv4_hash_layer_count": ("hash_layer_count", "int"),
    "hc_low_rank": ("hyper_connection.low_rank", "int"),
    "hc_magnitude": ("hyper_connection.magnitude", "float"),
    "n_ff_exp": ("expert_feed_forward_length", "layers"),
    "n_ff_shexp": ("expert_shared_feed_forward_length", "int"),
    "n_ff_chexp": ("expert_chunk_feed_forward_length", "int"),
    "n_expert_shared": ("expert_shared_count", "int"),
    "n_expert_latent": ("expert_latent_length", "int"),
    "moe_latent_size": ("moe_latent_size", "int"),
    "n_group_experts": ("experts_per_group", "int"),
    "expert_group_scale": ("expert_group_scale", "float"),
    "expert_gating_func": ("expert_gating_func", "int"),
    "expert_weights_norm": ("expert_weights_norm", "bool"),
    "expert_weights_scale": ("expert_weights_scale", "float"),
    "n_layer_dense_lead": ("leading_dense_block_count", "int"),
    "n_moe_layer_step": ("interleave_moe_layer_step", "int"),
    "moe_every_n_layers": ("moe_every_n_layers", "int"),
    "swiglu_clamp_exp": ("swiglu_clamp_exp", "floats"),
    "swiglu_clamp_shexp": ("swiglu_clamp_shexp", "floats"),
    "hidden_act": ("hidden_activation", "str"),
    "situ_beta": ("activation.situ_beta", "float"),
    "situ_linear_beta": ("activation.situ_linear_beta", "float"),
    "ssm_d_conv": ("ssm.conv_kernel", "int"),
    "ssm_d_inner": ("ssm.inner_size", "int"),
    "ssm_d_state": ("ssm.state_size", "int"),
    "ssm_dt_rank": ("ssm.time_step_rank", "int"),
    "ssm_n_group": ("ssm.group_count", "int"),
    "ssm_dt_b_c_rms": ("ssm.dt_b_c_rms", "bool"),
    "n_embd_head_kda": ("kda.head_dim", "int"),
    "kda_safe_gate": ("kda.safe_gate", "bool"),
    "kda_gate_lower_bound": ("kda.gate_lower_bound", "float"),
    "attn_res_block_size": ("attn_res.block_size", "int"),
    "n_shortconv_l_cache": ("shortconv.l_cache", "int"),
    "wkv_head_size": ("wkv.head_size", "int"),
    "token_shift_count": ("token_shift_count", "int"),
    "time_mix_extra_dim": ("time_mix_extra_dim", "int"),
    "time_decay_extra_dim": ("time_decay_extra_dim", "int"),
    "rescale_every_n_layers": ("rescale_every_n_layers", "int"),
    "n_lora_decay": ("attention.decay_lora_rank", "int"),
    "n_lora_iclr": ("attention.iclr_lora_rank", "int"),
    "n_lora_value_res_mix": ("attention.value_residual_mix_lora_rank", "int"),
    "n_lora_gate": ("attention.gate_lora_rank", "int"),
    "n_embd_per_layer": ("embedding_length_per_layer_input", "int"),
    "n_deepstack_layers": ("n_deepstack_layers", "int"),
    "deepstack_mapping": ("deepstack_mapping", "ints"),
    "dec_n_layer": ("decoder_block_count", "int"),
    "n_loops": ("num_loops", "int"),
    "skip_loop_final_norm": ("skip_loop_final_norm", "bool"),
    "n_hrm_layers_per_stack": ("hrm.layers_per_stack", "int"),
    "n_hrm_h_cycles": ("hrm.h_cycles", "int"),
    "n_hrm_l_cycles": ("hrm.l_cycles", "int"),
    "n_adapters": ("adapters.count", "int"),
    "max_lora_rank": ("adapters.lora_rank", "int"),
    "dense_2_feat_in": ("dense_2_feat_in", "int"),
    "dense_2_feat_out": ("dense_2_feat_out", "int"),
    "dense_3_feat_in": ("dense_3_feat_in", "int"),
    "dense_3_feat_out": ("dense_3_feat_out", "int"),
    "n_embd_tgt": ("target_hidden_size", "int"),
    "norm_before_residual": ("norm_before_residual", "bool"),
    "norm_before_fc": ("norm_before_fc", "bool"),
    "dflash_block_size": ("block_size", "int"),
    "dflash_conv_kernel_size": ("conv_kernel_size", "int"),
    "dflash_conv_group_size": ("conv_group_size", "int"),
    "dflash_selector_rank": ("selector_rank", "int"),
    "dflash_selector_top_k": ("selector_top_k", "int"),
}

# The engine's own defaults where they are not zero (src/llama-hparams.h).
_DEFAULTS: Mapping[str, object] = {
    "n_layer_kv_from_start": -1,
    "router_layer": -1,
    "expert_group_scale": 0.05,
    "f_attn_logit_softcapping": 50.0,
    "f_router_logit_softcapping": 30.0,
    "f_final_logit_softcapping": 30.0,
    "token_shift_count": 2,
    "n_no_rope_layer_step": 4,
    "indexer_kpool_select_tail": True,
    "kda_gate_lower_bound": float("-inf"),
    "situ_beta": 1.0,
    "n_altup": 4,
    "laurel_rank": 64,
    "n_embd_altup": 256,
    "n_cls_out": 1,
    "n_loops": 1,
    "swa_type": "none",
    "hidden_act": "",
    "rope_sections": (0, 0, 0, 0),
}
_ZERO: Mapping[Kind, object] = {"int": 0, "float": 0.0, "bool": False, "str": ""}
_OTHER_ZEROS = _words("""
    n_embd_inp n_embd_inp_enc n_embd_out i_altup_act n_embd_head_la n_target_layers ple_n_heads ple_head_dim
    ple_ngram_size ple_heads_per_ngram ple_conv_kernel posnet_n_embd posnet_n_layer convnext_n_embd
    convnext_n_layer
""")


class Metadata:
    """The keys of one model, read as the engine's loader does: by exact type, refusing what is missing."""

    def __init__(self, model: ModelSpec) -> None:
        self._metadata = model.metadata
        self._path = model.files[0].path if model.files else model.name
        self.tensor_names = frozenset(tensor.name for tensor in model.tensors if ".nextn." in tensor.name)
        self.arch = model.architecture

    def refuse(self, key: str, cause: str) -> NoReturn:
        raise CorruptModelError(self._path, f"metadata key {self.arch}.{key}: {cause}")

    def get(self, key: str) -> object:
        return self._metadata.get(f"{self.arch}.{key}")

    def number(self, key: str, *, default: int | None = None) -> int:
        """A uint32. `default`: what a missing key means; without one it is refused."""
        value = self.get(key)
        if value is None:
            if default is None:
                self.refuse(key, "is missing")
            return default
        if type(value) is not int or not 0 <= value < _U32:
            self.refuse(key, f"is not an unsigned 32-bit number: {value!r:.40}")
        return value

    def read(self, key: str, kind: Kind, n_layer_all: int, n_layer: int) -> Any:
        """The value of `key`, `None` if it is missing; lists for per-layer kinds."""
        value = self.get(key)
        if value is None:
            return None
        match kind:
            case "int":
                return self.number(key)
            case "float" | "bool" | "str":
                expected = {"float": float, "bool": bool, "str": str}[kind]
                if type(value) is not expected:
                    self.refuse(key, f"is not a {kind}: {value!r:.40}")
                return value
            case "four":
                return (*self._per_layer(key, value, 4, int),)
            case "layers":
                return self._per_layer(key, value, n_layer_all, int)
            case "trunk":
                return self._per_layer(key, value, n_layer, int)
            case "floats":
                return self._per_layer(key, value, n_layer_all, float)
            case "flags" | "ints":
                return self._array(key, value, int) if isinstance(value, tuple) else None

    def _per_layer(self, key: str, value: object, n: int, element: type) -> list[Any]:
        # src/llama-model-loader.cpp:get_key_or_arr: one value for all, or exactly n of them; truth values are
        # numbers in an array, but not alone
        if not isinstance(value, tuple):
            if element is int and type(value) is bool:
                self.refuse(key, "is a truth value, not int")
            value = (value,) * n
        elif element is int:
            value = tuple(int(item) if type(item) is bool else item for item in value)
        if len(value) != n:
            self.refuse(key, f"has {len(value)} entries where the engine expects {n}")
        return self._array(key, value, element)

    def _array(self, key: str, value: Sequence[object], element: type) -> list[Any]:
        if len(value) > MAX_LAYERS:
            self.refuse(key, f"has {len(value)} entries, the engine takes at most {MAX_LAYERS}")
        for item in value:
            if not isinstance(item, element) or (element is int and not -(_U32 >> 1) <= int(item) < _U32):  # type: ignore[call-overload]
                self.refuse(key, f"holds {item!r:.40}, not {element.__name__}")
        return list(value)

    def count(self, key: str) -> int | None:
        """The length of an array, also of one that was skipped."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, (StringArray, tuple)):
            self.refuse(key, "is not an array")
        return value.count if isinstance(value, StringArray) else len(value)

    @property
    def n_vocab(self) -> int:
        """Tokens of the vocabulary (src/llama-vocab.cpp:load); `vocab_size` for a model without one."""
        tokens = self._metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, StringArray):
            return tokens.count
        if isinstance(tokens, tuple):
            return len(tokens)
        return self.number("vocab_size", default=0)


def _period(d: Draft, meta: Metadata, n_pattern: int, first: bool) -> None:
    """src/llama-model.cpp:load_swa_pattern: an array, a period, or the architecture's own period."""
    pattern = meta.get("attention.sliding_window_pattern")
    if isinstance(pattern, tuple):
        d.is_swa = _fit(meta.read("attention.sliding_window_pattern", "flags", 0, 0), d.n_layer_all)
        return
    n = meta.number("attention.sliding_window_pattern", default=n_pattern)
    d.is_swa = [
        il < d.n_layer and (n == 0 or (il % n != 0 if first else il % n < n - 1)) for il in range(d.n_layer_all)
    ]


def _fit(values: Sequence[Any], n: int, fill: Any = False) -> list[Any]:
    return [*values[:n], *[fill] * (n - len(values))]


def _swa(n_pattern: int, *, first: bool = False, kind: str = "standard") -> Rule:
    """Sliding layers in a period; without a window (optional key) there are none."""

    def rule(d: Draft, meta: Metadata) -> None:
        if d.n_swa > 0:
            d.swa_type = kind
            _period(d, meta, n_pattern, first)

    return rule


def _swa_always(n_pattern: int, *, first: bool = False, kind: str = "standard") -> Rule:
    def rule(d: Draft, meta: Metadata) -> None:
        d.swa_type = kind
        _period(d, meta, n_pattern, first)

    return rule


def _swa_given(d: Draft, meta: Metadata) -> None:
    d.swa_type = "standard"


def _default(**values: Any) -> Rule:
    """Set what no key of the file set."""

    def rule(d: Draft, meta: Metadata) -> None:
        for field, value in values.items():
            if field not in d.given:
                setattr(d, field, value)

    return rule


def _force(**values: Any) -> Rule:
    def rule(d: Draft, meta: Metadata) -> None:
        for field, value in values.items():
            setattr(d, field, value)

    return rule


def _gating(function: int) -> Rule:
    def rule(d: Draft, meta: Metadata) -> None:
        d.expert_gating_func = d.expert_gating_func or function

    return rule


_SOFTMAX, _SIGMOID, _SQRT_SOFTPLUS = 1, 2, 4


def _recurrent_without_kv_heads(d: Draft, meta: Metadata) -> None:
    d.is_recr = [il < d.n_layer and d.n_head_kv[il] == 0 for il in range(d.n_layer_all)]


def _recurrent_without_kv_heads_all(d: Draft, meta: Metadata) -> None:
    d.is_recr = [n == 0 for n in d.n_head_kv]


def _recurrent_interval(default: int) -> Rule:
    def rule(d: Draft, meta: Metadata) -> None:
        given = meta.read("attention.recurrent_layers", "layers", d.n_layer_all, d.n_layer)
        if given is not None:
            d.is_recr = given
            return
        interval = meta.number("full_attention_interval", default=default)
        if interval == 0:
            meta.refuse("full_attention_interval", "is 0")
        d.is_recr = [il < d.n_layer and (il + 1) % interval != 0 for il in range(d.n_layer_all)]

    return rule


def _clamp_shared_as_routed(d: Draft, meta: Metadata) -> None:
    if "swiglu_clamp_shexp" not in d.given:
        d.swiglu_clamp_shexp = d.swiglu_clamp_exp


def _switch_rope(d: Draft, meta: Metadata) -> None:
    # Granite uses rope_finetuned as a switch for rope
    d.rope_finetuned = d.rope_finetuned if "rope_finetuned" in d.given else True
    d.rope_pattern = [d.rope_finetuned] * d.n_layer_all


def _deepstack(d: Draft, meta: Metadata) -> None:
    used = {value for value in d.deepstack_mapping if value >= 0}
    d.n_deepstack_layers = len(used)
    if used and max(used) > len(used):
        meta.refuse("deepstack_mapping", f"index {max(used)} is beyond the {len(used)} embeddings")


def _targets(d: Draft, meta: Metadata) -> None:
    n = meta.count("target_layers")
    if n is None:
        meta.refuse("target_layers", "is missing")
    d.n_target_layers = n


def _baichuan(d: Draft, meta: Metadata) -> None:
    if d.n_layer == 40:  # 13B
        d.f_max_alibi_bias = 8.0


def _bailingmoe3(d: Draft, meta: Metadata) -> None:
    _recurrent_without_kv_heads(d, meta)
    d.n_ff_shexp = d.n_ff_shexp or d.n_ff_exp[0] * max(1, d.n_expert_shared)
    if not d.kda_safe_gate:
        meta.refuse("kda.safe_gate", "is false, which the engine does not support")
    if not d.kda_gate_lower_bound < 0:
        meta.refuse("kda.gate_lower_bound", "is not negative")


def _cohere2moe(d: Draft, meta: Metadata) -> None:
    if not d.given & {"f_norm_eps", "f_norm_rms_eps"}:
        meta.refuse("attention.layer_norm_epsilon", "is missing")


def _deepseek2(d: Draft, meta: Metadata) -> None:
    lite = d.n_layer in (26, 27) or (d.n_layer == 48 and d.n_vocab == 128256)
    d.n_lora_q = 0 if lite else meta.number("attention.q_lora_rank")
    glm_lite = d.n_layer in (47, 48) and d.n_vocab == 154880
    d.expert_gating_func = d.expert_gating_func or (_SIGMOID if glm_lite else _SOFTMAX)


def _deepseek4(d: Draft, meta: Metadata) -> None:
    if d.n_layer_nextn and f"blk.{d.n_layer}.nextn.eh_proj.weight" not in meta.tensor_names:
        d.n_layer_nextn, d.n_layer = 0, d.n_layer_all
    d.n_embd_out = d.dsv4_hc_mult * d.n_embd
    if len(d.dsv4_compress_ratios) < d.n_layer_all:
        meta.refuse("attention.compress_ratios", f"has fewer than {d.n_layer_all} entries")
    _require_sqrt_softplus(d, meta)
    d.swa_type, d.is_swa = "standard", [True] * d.n_layer_all


def _require_sqrt_softplus(d: Draft, meta: Metadata) -> None:
    if d.expert_gating_func != _SQRT_SOFTPLUS:
        meta.refuse("expert_gating_func", f"is {d.expert_gating_func}, the engine expects {_SQRT_SOFTPLUS}")


def _dflash(d: Draft, meta: Metadata) -> None:
    if d.hidden_act not in ("", "silu", "gelu", "gelu_pytorch_tanh"):
        meta.refuse("hidden_activation", f"is {d.hidden_act!r:.40}, which the engine does not support")
    _targets(d, meta)
    d.n_embd_inp_enc = d.n_target_layers * d.n_embd
    if d.dsv4_hc_mult > 0:  # a DeepSeek-V4 backbone
        _read(d, meta, _READS["dflash+deepseek4"])
        _clamp_shared_as_routed(d, meta)
        _require_sqrt_softplus(d, meta)
        if d.n_swa == 0 or d.dsv4_o_group_count == 0 or any(d.dsv4_compress_ratios):
            meta.refuse("attention.sliding_window", "or output groups or compression ratios are not a drafter's")
        d.swa_type, d.is_swa = "standard", [True] * d.n_layer_all
    elif d.n_swa > 0:
        d.swa_type = "standard"
        _read(d, meta, "is_swa")


def _eagle3(d: Draft, meta: Metadata) -> None:
    _targets(d, meta)
    if d.n_target_layers != 3:
        meta.refuse("target_layers", f"has {d.n_target_layers} entries, the engine expects 3")
    d.n_embd_inp_enc = d.n_target_layers * d.n_embd_tgt


def _exaone4(d: Draft, meta: Metadata) -> None:
    if d.n_layer == 64:
        _default(n_swa=4096)(d, meta)
        _swa_always(4)(d, meta)


def _falcon_h1(d: Draft, meta: Metadata) -> None:
    d.is_recr = [True] * d.n_layer_all


def _gemma2(d: Draft, meta: Metadata) -> None:
    _default(n_swa=4096)(d, meta)
    _swa_always(2)(d, meta)
    d.attn_soft_cap = True


def _gemma4(d: Draft, meta: Metadata) -> None:
    d.swa_type, d.f_attention_scale = "standard", 1.0
    d.n_layer_kv_from_start = d.n_layer_all - meta.number("attention.shared_kv_layers", default=0)


def _gemma4_assistant(d: Draft, meta: Metadata) -> None:
    d.swa_type, d.f_attention_scale = "standard", 1.0
    d.n_embd_inp = d.n_embd_out or d.n_embd


def _gemma_embedding(d: Draft, meta: Metadata) -> None:
    _swa_always(6, kind="symmetric")(d, meta)
    d.causal_attn = False
    d.f_attention_scale = d.n_embd_head_k_full**-0.5 if d.n_embd_head_k_full else 1.0
    if d.dense_2_feat_in not in (0, d.n_embd):
        meta.refuse("dense_2_feat_in", "is not the embedding length")
    if d.dense_3_feat_out not in (0, d.n_embd):
        meta.refuse("dense_3_feat_out", "is not the embedding length")


def _glm_dsa(d: Draft, meta: Metadata) -> None:
    _gating(_SIGMOID)(d, meta)
    if "is_indexer_full" not in d.given:
        # files of GLM 5 and 5.1 (all layers full) carry no types; 5.2 shares between three of four layers
        shared = d.n_ctx_train >= 1048576
        n_named = 2 + 4 * 19
        d.is_indexer_full = [not shared or (il < n_named and (il < 2 or il % 4 == 2)) for il in range(d.n_layer_all)]


def _glm5_next(d: Draft, meta: Metadata) -> None:
    d.n_embd_head_v_full = d.n_lora_kv
    _recurrent_without_kv_heads_all(d, meta)
    _gating(_SIGMOID)(d, meta)
    _clamp_shared_as_routed(d, meta)
    if d.indexer_kpool <= 1 or d.indexer_top_k % d.indexer_kpool:
        meta.refuse("attention.indexer.kpool", f"is {d.indexer_kpool}, which does not divide top_k")
    if "is_indexer_full" not in d.given:
        d.is_indexer_full = [True] * d.n_layer_all
    if d.dsv4_hc_mult != 4:
        meta.refuse("hyper_connection.count", f"is {d.dsv4_hc_mult}, the engine expects 4")


def _granite_switch(d: Draft, meta: Metadata) -> None:
    _switch_rope(d, meta)
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
    d.rope_pattern = _fit(d.rope_pattern[: d.n_layer], d.n_layer_all, d.rope_finetuned)


def _grok(d: Draft, meta: Metadata) -> None:
    _default(
        f_logit_scale=0.5773502691896257,
        f_embedding_scale=78.38367176906169,
        f_attn_out_scale=0.08838834764831845,
        f_attn_logit_softcapping=30.0,
        f_final_logit_softcapping=0.0,
    )(d, meta)


def _hrm_text(d: Draft, meta: Metadata) -> None:
    n_slots = d.n_hrm_layers_per_stack * d.n_hrm_h_cycles * (d.n_hrm_l_cycles + 1)
    if n_slots != d.n_layer or not (d.n_hrm_layers_per_stack and d.n_hrm_h_cycles and d.n_hrm_l_cycles):
        meta.refuse("hrm.layers_per_stack", f"and cycles make {n_slots} blocks, the file has {d.n_layer}")


def _hy_v4(d: Draft, meta: Metadata) -> None:
    if d.indexer_top_k > 0:
        if d.indexer_n_head == 0 or d.indexer_head_size <= d.n_rot_full:
            meta.refuse("attention.indexer.key_length", "or head count is too small")
        if not d.is_indexer_full[0]:
            meta.refuse("attention.indexer.types", "leaves layer 0 without an indexer")
    if not (d.n_embd_head_k_mla_impl and d.n_embd_head_v_mla_impl):
        meta.refuse("attention.key_length_mla", "is 0")


def _kimi_k3(d: Draft, meta: Metadata) -> None:
    d.n_embd_head_v_full = d.n_lora_kv
    _recurrent_without_kv_heads(d, meta)


def _laguna(d: Draft, meta: Metadata) -> None:
    _default(n_expert_shared=1)(d, meta)
    d.n_ff_shexp = d.n_ff_shexp or d.n_ff_exp[0] * d.n_expert_shared
    _gating(_SIGMOID)(d, meta)
    _swa(4, first=True)(d, meta)


def _lfm2(d: Draft, meta: Metadata) -> None:
    _recurrent_without_kv_heads(d, meta)
    d.n_layer_dense_lead = d.n_layer
    if d.n_swa > 0:
        d.swa_type = "standard"
        d.is_swa = [il < d.n_layer and not d.is_recr[il] for il in range(d.n_layer_all)]


def _llama4(d: Draft, meta: Metadata) -> None:
    if "n_swa" in d.given and d.n_swa == 0:
        d.n_no_rope_layer_step = d.n_layer
    else:
        d.n_swa = d.n_attn_temp_floor_scale = 8192
        d.f_attn_temp_scale, d.f_attn_temp_offset = 0.1, 1.0
        _swa_always(4, kind="chunked")(d, meta)
    d.use_kq_norm = d.n_expert != 128


def _minicpm(d: Draft, meta: Metadata) -> None:
    _default(f_embedding_scale=12.0, f_residual_scale=1.4 / d.n_layer**0.5, f_logit_scale=256.0 / d.n_embd)(d, meta)
    d.rope_finetuned = True


def _minimax_01(d: Draft, meta: Metadata) -> None:
    d.n_embd_head_la = d.n_embd_head_k_full
    _recurrent_interval(8)(d, meta)


def _minimax_m3(d: Draft, meta: Metadata) -> None:
    if d.indexer_block_size == 0:
        meta.refuse("attention.indexer.block_size", "is 0")


def _mistral3(d: Draft, meta: Metadata) -> None:
    if d.f_attn_temp_scale:
        d.n_attn_temp_floor_scale = meta.number("rope.scaling.original_context_length", default=d.n_ctx_train)
        if d.n_attn_temp_floor_scale == 0:
            meta.refuse("rope.scaling.original_context_length", "is 0")


def _modern_bert(d: Draft, meta: Metadata) -> None:
    _swa(3, first=True, kind="symmetric")(d, meta)
    if d.pooling_type_cls == -1:
        d.pooling_type_cls = 1  # mean


def _mimo2(d: Draft, meta: Metadata) -> None:
    d.swa_type = "standard"
    if d.f_attn_value_scale == 1.0:
        d.f_attn_value_scale = 0.0


def _nanbeige(d: Draft, meta: Metadata) -> None:
    if d.n_loops < 1 or d.n_layer * d.n_loops > MAX_LAYERS:
        meta.refuse("num_loops", f"is {d.n_loops}, the engine takes at most {MAX_LAYERS} blocks")
    if d.n_loops > 1:
        for field in ("n_head", "n_head_kv", "n_ff", "is_swa", "is_recr"):
            setattr(d, field, getattr(d, field)[: d.n_layer] * d.n_loops)
        d.n_layer_all = d.n_layer * d.n_loops


def _nemotron_h(d: Draft, meta: Metadata) -> None:
    d.is_recr = [il < d.n_layer and d.n_head_kv[il] == 0 and d.n_ff[il] == 0 for il in range(d.n_layer_all)]
    if "f_norm_rms_eps" not in d.given:
        d.f_norm_rms_eps = d.f_norm_eps


def _phi3(d: Draft, meta: Metadata) -> None:
    d.n_swa = 0  # the engine has sliding windows of this family switched off


def _qwen4exp(d: Draft, meta: Metadata) -> None:
    for field in _words("""
        ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank ssm_n_group hc_low_rank indexer_n_head
        indexer_head_size indexer_top_k
    """):
        if getattr(d, field) == 0:
            meta.refuse(_KEYS[field][0], "is 0")
    if d.dsv4_hc_mult <= 1:
        meta.refuse("hyper_connection.count", f"is {d.dsv4_hc_mult}, the engine expects more than one")
    d.n_embd_out = d.dsv4_hc_mult * d.n_embd
    _recurrent_interval(4)(d, meta)
    layers = meta.read("ple.layers", "ints", 0, 0) or []
    if layers:
        if len(layers) != 1 or not 0 <= layers[0] < d.n_layer_all or not d.is_recr[layers[0]]:
            meta.refuse("ple.layers", "is not one linear-attention layer")
        d.is_ple = [il == layers[0] for il in range(d.n_layer_all)]
        d.ple_ngram_size = meta.number("ple.ngram_size")
        d.ple_heads_per_ngram = meta.number("ple.heads_per_ngram")
        d.ple_conv_kernel = meta.number("ple.conv_kernel")
        d.n_embd_per_layer = d.ple_head_dim = meta.number("embedding_length_per_layer_input")
        d.ple_n_heads = (d.ple_ngram_size - 1) * d.ple_heads_per_ngram
        if not 2 <= d.ple_ngram_size <= 8 or not 0 < d.ple_n_heads <= 64:
            meta.refuse("ple.ngram_size", "or heads_per_ngram is out of range")
        if d.ple_conv_kernel == 0 or d.n_embd_per_layer == 0:
            meta.refuse("ple.conv_kernel", "or embedding_length_per_layer_input is 0")


def _smallthinker(d: Draft, meta: Metadata) -> None:
    if d.n_swa > 0:
        d.n_swa = 4096
        _swa_always(4, first=True)(d, meta)
    else:
        d.n_no_rope_layer_step = d.n_layer


def _step35(d: Draft, meta: Metadata) -> None:
    d.swa_type = "standard"
    d.n_rot_full //= 2  # full-attention layers rotate half of the dimensions
    _gating(_SIGMOID)(d, meta)


def _t5(d: Draft, meta: Metadata) -> None:
    _default(dec_n_layer=d.n_layer)(d, meta)


# architectures: the fields that they read. `?`: may be missing.
_TABLE = """
apertus arcee arctic baichuan bitnet chatglm cogvlm deci dream eurobert exaone gemma internlm2 llada llama
    llama-embed maincoder neo-bert olmoe openelm pangu-embedded phimoe plamo qwen qwen2 qwen3 refact
    seed_oss smollm3 xverse: f_norm_rms_eps
bert bloom codeshell falcon gpt2 jais2 jina-bert-v2 jina-bert-v3 nemotron nomic-bert orion phi2 pockettts
    stablelm starcoder starcoder2: f_norm_eps
glm4 hunyuan-dense hunyuan_vl: f_norm_rms_eps rope_sections?
llada-moe qwen3moe rnd1: n_ff_exp? f_norm_rms_eps
olmo2 phi3 plamo3: f_norm_rms_eps n_swa?
afmoe: f_norm_rms_eps n_layer_dense_lead? n_ff_exp n_expert_shared expert_weights_scale?
    expert_weights_norm? expert_gating_func? n_swa?
arwkv7 rwkv7: f_norm_eps? f_norm_rms_eps? wkv_head_size token_shift_count? n_lora_decay n_lora_iclr
    n_lora_value_res_mix n_lora_gate?
bailingmoe: f_norm_rms_eps n_layer_dense_lead? n_ff_exp n_expert_shared expert_weights_scale?
    expert_weights_norm?
bailingmoe2: f_norm_rms_eps n_layer_dense_lead? n_ff_exp n_expert_shared expert_weights_scale?
    expert_weights_norm? n_ff_shexp? expert_gating_func
bailingmoe3: f_norm_rms_eps n_embd_head_k_mla_impl n_embd_head_v_mla_impl n_lora_kv n_lora_q? ssm_d_conv
    n_embd_head_kda kda_safe_gate? kda_gate_lower_bound rope_sections? n_ff_exp n_expert_shared
    expert_weights_scale? expert_weights_norm? n_ff_shexp? n_layer_dense_lead expert_gating_func
    swiglu_clamp_exp? swiglu_clamp_shexp?
chameleon: f_norm_rms_eps swin_norm?
cohere2: n_swa f_logit_scale f_norm_eps
cohere2moe: f_norm_eps? f_norm_rms_eps? n_swa f_logit_scale n_layer_dense_lead n_ff_exp n_ff_shexp?
    n_expert_shared? expert_weights_norm? expert_weights_scale? expert_gating_func?
command-r: f_logit_scale? f_norm_eps
dbrx: f_norm_eps f_clamp_kqv
deepseek: f_norm_rms_eps n_layer_dense_lead? n_ff_exp n_expert_shared expert_weights_scale?
deepseek2 mistral4: f_norm_rms_eps n_layer_dense_lead? n_lora_kv n_embd_head_k_mla_impl?
    n_embd_head_v_mla_impl? n_ff_exp n_expert_shared expert_weights_scale? expert_weights_norm?
    expert_gating_func? f_attn_temp_scale? n_attn_temp_floor_scale?
dflash+deepseek4: n_lora_q n_swa n_ff_exp n_expert_shared expert_weights_scale expert_weights_norm
    expert_gating_func swiglu_clamp_exp swiglu_clamp_shexp? dsv4_o_group_count dsv4_o_lora_rank
    dsv4_hc_sinkhorn_iters dsv4_hc_eps dsv4_compress_ratios?
deepseek2-ocr dots1: f_norm_rms_eps n_layer_dense_lead? n_ff_exp n_expert_shared expert_weights_scale?
    expert_weights_norm? expert_gating_func?
deepseek32: f_norm_rms_eps rope_sections? n_ff_exp n_expert_shared expert_weights_scale?
    expert_weights_norm? n_layer_dense_lead? n_lora_q n_lora_kv n_embd_head_k_mla_impl?
    n_embd_head_v_mla_impl? indexer_n_head indexer_head_size indexer_top_k expert_gating_func
deepseek4: f_norm_rms_eps n_lora_q n_swa n_ff_exp n_expert_shared expert_weights_scale expert_weights_norm
    expert_gating_func swiglu_clamp_exp swiglu_clamp_shexp? indexer_n_head indexer_head_size indexer_top_k
    dsv4_o_group_count dsv4_o_lora_rank dsv4_compress_rope_base dsv4_hc_mult dsv4_hc_sinkhorn_iters
    dsv4_hc_eps dsv4_hash_layer_count dsv4_compress_ratios
dflash: f_embedding_scale? f_attention_scale? f_attn_value_scale? hidden_act? f_norm_rms_eps f_logit_scale?
    f_final_logit_softcapping? rope_sections? dflash_block_size? dflash_conv_kernel_size?
    dflash_conv_group_size? dflash_selector_rank? dflash_selector_top_k? dsv4_hc_mult? n_swa?
dots3note: f_norm_rms_eps n_ff_exp n_expert_shared expert_weights_scale? expert_weights_norm?
    n_layer_dense_lead expert_gating_func n_lora_q n_lora_kv n_embd_head_k_mla_impl n_embd_head_v_mla_impl
    n_lora_kv_swa n_embd_head_k_mla_swa n_embd_head_v_mla_swa n_swa is_swa indexer_n_head indexer_head_size
    indexer_top_k is_indexer_full
eagle3: f_norm_rms_eps n_embd_tgt norm_before_residual? norm_before_fc?
ernie4_5 paddleocr: rope_sections? f_norm_rms_eps
ernie4_5-moe: rope_sections? f_norm_rms_eps n_ff_exp n_ff_shexp? n_moe_layer_step n_layer_dense_lead?
exaone-moe: n_swa f_norm_rms_eps n_expert_shared? n_ff_exp n_ff_shexp? expert_gating_func
    expert_weights_scale? expert_weights_norm? n_layer_dense_lead?
exaone4: n_swa? f_norm_rms_eps
falcon-h1: f_norm_rms_eps ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank ssm_n_group
gemma-embedding: n_swa f_norm_rms_eps dense_2_feat_in? dense_2_feat_out? dense_3_feat_in? dense_3_feat_out?
gemma2: n_swa? f_norm_rms_eps f_attn_logit_softcapping? f_final_logit_softcapping?
gemma3: n_swa? f_norm_rms_eps f_final_logit_softcapping?
gemma3n: n_swa f_norm_rms_eps
gemma4: is_swa n_swa f_norm_rms_eps n_embd_head_k_swa n_embd_head_v_swa n_ff_exp? n_embd_per_layer
    f_final_logit_softcapping?
gemma4-assistant: is_swa n_swa f_norm_rms_eps n_embd_head_k_swa n_embd_head_v_swa
glm-dsa: f_norm_rms_eps rope_sections? n_ff_exp n_expert_shared expert_weights_scale? expert_weights_norm?
    n_layer_dense_lead? n_lora_q n_lora_kv n_embd_head_k_mla_impl? n_embd_head_v_mla_impl? indexer_n_head
    indexer_head_size indexer_top_k expert_gating_func? is_indexer_full?
glm4moe: f_norm_rms_eps rope_sections? n_ff_exp n_expert_shared expert_weights_scale? expert_weights_norm?
    n_layer_dense_lead? expert_gating_func?
glm5-next: f_norm_rms_eps f_norm_eps? n_lora_q n_lora_kv n_embd_head_k_mla_impl n_embd_head_v_mla_impl
    ssm_d_conv n_embd_head_kda kda_gate_lower_bound? n_ff_exp n_expert_shared expert_weights_scale?
    expert_weights_norm? n_layer_dense_lead? expert_gating_func? swiglu_clamp_exp? swiglu_clamp_shexp?
    indexer_n_head indexer_head_size indexer_top_k indexer_kpool indexer_kpool_select_tail? is_indexer_full?
    dsv4_hc_mult dsv4_hc_sinkhorn_iters dsv4_hc_eps
gpt-oss: f_norm_rms_eps n_ff_exp n_swa
gptneox: f_norm_eps use_par_res
granite: f_norm_rms_eps f_logit_scale f_residual_scale? f_embedding_scale? f_attention_scale? n_ff_shexp?
    deepstack_mapping? rope_finetuned?
granite_swa: f_norm_rms_eps f_logit_scale f_residual_scale? f_embedding_scale? f_attention_scale?
    n_ff_shexp? is_swa n_swa deepstack_mapping? rope_pattern?
granitehybrid: f_norm_rms_eps f_logit_scale? f_residual_scale? f_embedding_scale? f_attention_scale?
    n_ff_shexp? ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank ssm_n_group rope_finetuned?
granitemoe: f_norm_rms_eps f_logit_scale f_residual_scale? f_embedding_scale? f_attention_scale? n_ff_shexp?
graniteswitch: f_norm_rms_eps f_logit_scale f_residual_scale? f_embedding_scale? f_attention_scale?
    n_ff_shexp? rope_finetuned? n_adapters max_lora_rank
grok: f_norm_rms_eps n_ff_exp? f_logit_scale? f_embedding_scale? f_attn_out_scale? f_attn_logit_softcapping?
    f_router_logit_softcapping? f_final_logit_softcapping? attn_temp_length?
grovemoe: n_ff_exp n_ff_chexp? expert_group_scale n_group_experts f_norm_rms_eps
hrm_text: f_norm_rms_eps f_embedding_scale? n_hrm_layers_per_stack n_hrm_h_cycles n_hrm_l_cycles
hunyuan-moe: f_norm_rms_eps n_ff_exp n_ff_shexp?
hy_v3: f_norm_rms_eps n_ff_exp n_ff_shexp? expert_gating_func? expert_weights_scale? expert_weights_norm?
hy_v4: f_norm_rms_eps n_layer_dense_lead? n_lora_q n_lora_kv n_embd_head_k_mla_impl n_embd_head_v_mla_impl
    n_ff_exp n_expert_shared expert_weights_scale? expert_weights_norm? expert_gating_func?
    swiglu_clamp_exp? dsv4_hc_mult dsv4_hc_eps hc_magnitude indexer_n_head? indexer_head_size?
    indexer_top_k? is_indexer_full?
jais: f_norm_eps f_max_alibi_bias?
jamba: ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank f_norm_rms_eps
kimi-k3: f_norm_rms_eps n_embd_head_k_mla_impl n_embd_head_v_mla_impl n_lora_q? n_lora_kv ssm_d_conv
    n_embd_head_kda kda_gate_lower_bound? n_ff_exp n_expert_shared expert_weights_scale?
    expert_weights_norm? n_layer_dense_lead? expert_gating_func n_expert_latent? attn_res_block_size
    situ_beta situ_linear_beta
kimi-linear: f_norm_rms_eps n_embd_head_k_mla_impl n_embd_head_v_mla_impl n_lora_kv ssm_d_conv
    n_embd_head_kda n_ff_exp n_expert_shared n_layer_dense_lead? expert_weights_scale? expert_gating_func
laguna: f_norm_rms_eps n_layer_dense_lead n_ff_exp expert_gating_func? expert_weights_scale?
    expert_weights_norm? n_expert_shared? n_ff_shexp? n_swa?
lfm2: n_shortconv_l_cache f_norm_rms_eps n_swa?
lfm2moe: n_shortconv_l_cache f_norm_rms_eps n_layer_dense_lead? n_ff_exp expert_gating_func
llama4: f_norm_rms_eps n_ff_exp n_moe_layer_step n_swa?
mamba: ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank ssm_dt_b_c_rms? f_norm_rms_eps
mamba2: ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank ssm_n_group f_norm_rms_eps
maple: f_norm_rms_eps n_swa n_ff_exp is_swa swiglu_clamp_exp
mellum: f_norm_rms_eps n_ff_exp n_swa?
mimo2: f_norm_rms_eps n_ff_exp n_swa is_swa f_attn_value_scale?
minicpm: f_norm_rms_eps f_embedding_scale? f_residual_scale? f_logit_scale?
minicpm3: f_norm_rms_eps n_lora_q n_lora_kv
minimax-01: f_norm_rms_eps f_residual_scale
minimax-m2: f_norm_rms_eps n_ff_exp expert_gating_func?
minimax-m3: f_norm_rms_eps n_layer_dense_lead? n_ff_exp n_expert_shared expert_weights_scale?
    expert_weights_norm? expert_gating_func indexer_n_head indexer_head_size indexer_top_k
    indexer_block_size indexer_local_blocks
mistral3: f_norm_rms_eps f_attn_temp_scale?
modern-bert: n_swa? f_norm_eps hidden_act?
mpt: f_norm_eps f_clamp_kqv? f_max_alibi_bias?
muse-glimmer: f_norm_rms_eps n_swa f_final_logit_softcapping? f_logit_scale
nanbeige: f_norm_rms_eps n_loops? skip_loop_final_norm?
nemotron_h nemotron_h_moe: ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank ssm_n_group f_norm_eps
    f_norm_rms_eps? n_ff_exp? n_ff_shexp? n_expert_shared? expert_weights_norm? expert_weights_scale?
    moe_latent_size?
nomic-bert-moe: f_norm_eps moe_every_n_layers?
olmo: f_norm_eps f_clamp_kqv?
plamo2: f_norm_rms_eps ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank ssm_n_group n_embd_head_k_full?
    n_embd_head_v_full?
plm: f_norm_rms_eps n_lora_kv
qwen2moe: n_ff_exp? n_ff_shexp? f_norm_rms_eps
qwen2vl: rope_sections
qwen35: f_norm_rms_eps rope_sections ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank ssm_n_group
qwen35moe: n_ff_exp? n_ff_shexp? f_norm_rms_eps rope_sections ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank
    ssm_n_group
qwen3next: n_ff_exp? n_ff_shexp? f_norm_rms_eps ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank ssm_n_group
qwen3tts qwen3vl: n_deepstack_layers? rope_sections f_norm_rms_eps
qwen3vlmoe: n_deepstack_layers? rope_sections n_ff_exp? f_norm_rms_eps
qwen4exp: n_ff_exp? n_ff_shexp? f_norm_rms_eps rope_sections ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank
    ssm_n_group dsv4_hc_mult hc_low_rank indexer_n_head indexer_head_size indexer_top_k
    dsv4_compress_ratios?
rwkv6 rwkv6qwen2: f_norm_eps? f_norm_rms_eps? wkv_head_size token_shift_count? time_mix_extra_dim
    time_decay_extra_dim rescale_every_n_layers?
smallthinker: n_swa? n_ff_exp? f_norm_rms_eps expert_gating_func?
spark2_5: f_norm_rms_eps n_swa is_swa
step35: f_norm_rms_eps n_ff_exp n_ff_shexp? expert_gating_func? expert_weights_scale? expert_weights_norm?
    n_swa is_swa swiglu_clamp_exp? swiglu_clamp_shexp?
t5: f_norm_rms_eps n_rel_attn_bkts dec_n_layer?
t5encoder: f_norm_rms_eps n_rel_attn_bkts
talkie: f_norm_rms_eps f_logit_scale
wavtokenizer-dec: f_norm_eps f_norm_group_eps n_norm_groups
"""

# What an architecture does besides reading, in order.
_RULES: Mapping[str, tuple[Rule, ...]] = {
    "afmoe": (_swa(4), _gating(_SIGMOID)),
    "baichuan": (_baichuan,),
    "bailingmoe3": (_default(kda_safe_gate=True), _bailingmoe3),
    "bloom": (_force(f_max_alibi_bias=8.0),),
    "cohere2": (_swa_always(4),),
    "cohere2moe": (_cohere2moe, _gating(_SIGMOID), _swa_always(4, first=True)),
    "deepseek2": (_deepseek2,),
    "deepseek2-ocr": (_gating(_SOFTMAX),),
    "deepseek32": (_force(f_norm_eps=1e-06),),
    "deepseek4": (_deepseek4, _clamp_shared_as_routed),
    "dflash": (_default(f_final_logit_softcapping=0.0), _dflash),
    "dots3note": (_force(f_norm_eps=1e-06, swa_type="standard"),),
    "dream": (_force(causal_attn=False),),
    "eagle3": (_eagle3,),
    "exaone-moe": (_swa_always(4),),
    "exaone4": (_exaone4,),
    "falcon-h1": (_falcon_h1,),
    "gemma-embedding": (_gemma_embedding,),
    "gemma2": (_gemma2,),
    "gemma3": (_default(f_final_logit_softcapping=0.0), _swa(6)),
    "gemma3n": (_swa_always(5), _force(n_layer_kv_from_start=20, f_attention_scale=1.0)),
    "gemma4": (_gemma4,),
    "gemma4-assistant": (_gemma4_assistant,),
    "glm-dsa": (_glm_dsa,),
    "glm4moe": (_gating(_SIGMOID),),
    "glm5-next": (_glm5_next,),
    "gpt-oss": (_swa_always(2),),
    "granite": (_deepstack, _switch_rope),
    "granite_swa": (_deepstack, _swa_given),
    "granitehybrid": (_switch_rope, _recurrent_without_kv_heads),
    "graniteswitch": (_granite_switch,),
    "grok": (_grok,),
    "hrm_text": (_hrm_text,),
    "hy_v3": (_gating(_SIGMOID),),
    "hy_v4": (_hy_v4,),
    "jamba": (_recurrent_without_kv_heads,),
    "jina-bert-v2": (_force(f_max_alibi_bias=8.0),),
    "kimi-k3": (_kimi_k3,),
    "kimi-linear": (_recurrent_without_kv_heads,),
    "laguna": (_laguna,),
    "lfm2": (_lfm2,),
    "lfm2moe": (_recurrent_without_kv_heads,),
    "llada": (_force(causal_attn=False),),
    "llada-moe": (_force(causal_attn=False),),
    "llama4": (_llama4,),
    "maple": (_swa_given,),
    "mellum": (_swa(4),),
    "mimo2": (_mimo2,),
    "minicpm": (_minicpm,),
    "minimax-01": (_minimax_01,),
    "minimax-m3": (_minimax_m3,),
    "mistral3": (_mistral3,),
    "mistral4": (_deepseek2,),
    "modern-bert": (_modern_bert,),
    "muse-glimmer": (_swa_always(4),),
    "nanbeige": (_nanbeige,),
    "nemotron_h": (_nemotron_h,),
    "nemotron_h_moe": (_nemotron_h,),
    "olmo2": (_swa(4),),
    "phi3": (_phi3,),
    "plamo2": (_recurrent_without_kv_heads,),
    "plamo3": (_swa(8),),
    "qwen35": (_recurrent_interval(4),),
    "qwen35moe": (_recurrent_interval(4),),
    "qwen3next": (_recurrent_interval(4),),
    "qwen4exp": (_qwen4exp,),
    "refact": (_force(f_max_alibi_bias=8.0),),
    "rnd1": (_force(causal_attn=False),),
    "smallthinker": (_smallthinker,),
    "spark2_5": (_swa_given,),
    "step35": (_step35,),
    "t5": (_t5,),
}


def _parse(table: str) -> Mapping[str, str]:
    joined = table.replace("\n    ", " ")
    rows = (line.split(": ") for line in joined.splitlines() if line)
    return {arch: fields for archs, fields in rows for arch in archs.split()}


_READS = _parse(_TABLE)
ARCHITECTURES = frozenset(
    arch for arch in _READS if "+" not in arch
)  #: every architecture that llama.cpp loads as a language model

# An architecture that is not in the table: what a bound can use, nothing that would make it smaller.
_UNKNOWN = """
    n_ff_exp? n_ff_shexp? n_expert_shared? n_layer_dense_lead? ssm_d_conv? ssm_d_inner? ssm_d_state?
    ssm_dt_rank? ssm_n_group? wkv_head_size? n_embd_head_kda? n_shortconv_l_cache? n_lora_q? n_lora_kv?
    rope_sections?
"""

RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})  #: llm_arch_is_recurrent
_NO_VOCAB_ROTATION = frozenset({"llama", "deci", "falcon", "llama-embed"})  #: n_rot must be the head size

_ROPE_NONE = _words("""
    gpt2 gptj mpt refact bloom mamba mamba2 jamba jina-bert-v2 t5 t5encoder jais rwkv6 rwkv6qwen2 rwkv7 arwkv7
    wavtokenizer-dec nemotron_h nemotron_h_moe kimi-linear kimi-k3 glm5-next
""")
_ROPE_NORM = _words("""
    llama llada llama4 deci baichuan starcoder internlm2 minicpm xverse command-r cohere2 cohere2moe olmo
    arctic deepseek deepseek2 deepseek2-ocr deepseek32 deepseek4 muse-glimmer plm chatglm granite granitemoe
    granitehybrid graniteswitch granite_swa chameleon bailingmoe neo-bert smollm3 arcee ernie4_5 ernie4_5-moe
    mistral3 eagle3 mistral4 llama-embed maincoder glm-dsa dots3note nanbeige pockettts hy_v4
""")
_ROPE_MROPE = ("qwen2vl", "paddleocr")
_ROPE_IMROPE = ("qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "qwen4exp", "qwen3tts")
_ROPE_BY_SECTIONS = {"bailingmoe3": "norm", "glm4": "norm", "glm4moe": "neox", "hunyuan_vl": "neox"}


def _rope_type(d: Draft) -> str:
    """src/llama-model.cpp:llama_model_rope_type."""
    if d.arch == "dflash":
        return "mrope" if any(d.rope_sections) else "norm" if d.dsv4_hc_mult > 0 else "neox"
    if d.arch in _ROPE_BY_SECTIONS:
        use_mrope = d.rope_sections[0] > 0 and d.rope_sections[1] > 0
        return "mrope" if use_mrope else _ROPE_BY_SECTIONS[d.arch]
    for name, archs in (
        ("none", _ROPE_NONE),
        ("norm", _ROPE_NORM),
        ("mrope", _ROPE_MROPE),
        ("imrope", _ROPE_IMROPE),
    ):
        if d.arch in archs:
            return name
    return "neox"


def _read(d: Draft, meta: Metadata, words: str) -> None:
    for word in words.split():
        field = word.removesuffix("?")
        key, kind = _KEYS[field]
        value = meta.read(key, kind, d.n_layer_all, d.n_layer)
        if value is None:
            if word == field:
                meta.refuse(key, "is missing")
            continue
        setattr(d, field, value)
        d.given.add(field)


def resolve(model: ModelSpec) -> dict[str, Any]:
    """Every field of `HParams` for `model`.

    Raises:
        CorruptModelError, UnsupportedModelError
    """
    meta = Metadata(model)
    if meta.arch == "clip":
        raise UnsupportedModelError(
            "clip is not a language model", hint="give it to llama-server with --mmproj, beside its model"
        )
    known = meta.arch in _READS
    words = _READS.get(meta.arch, _UNKNOWN)
    rules = _RULES.get(meta.arch, () if known else (_recurrent_without_kv_heads,))
    d = _base(meta)
    _read(d, meta, words)
    for rule in rules:
        rule(d, meta)
    return _finish(d, known)


def _base(meta: Metadata) -> Draft:
    """src/llama-model.cpp:load_hparams up to load_arch_hparams."""
    d = Draft(arch=meta.arch, given=set(), n_vocab=meta.n_vocab)
    for field, (_, kind) in _KEYS.items():
        if kind in _ZERO:
            setattr(d, field, _ZERO[kind])
    for field in _OTHER_ZEROS:
        setattr(d, field, 0)
    for field, value in _DEFAULTS.items():
        setattr(d, field, value)
    d.use_alibi = d.attn_soft_cap = d.use_kq_norm = False
    d.f_attn_temp_offset = 0.0

    d.n_ctx_train = meta.number("context_length")
    d.n_ctx_orig_yarn = meta.number("rope.scaling.original_context_length", default=d.n_ctx_train)
    d.n_embd = meta.number("embedding_length")
    d.n_embd_out = meta.number("embedding_length_out", default=0)
    d.causal_attn = meta.read("attention.causal", "bool", 0, 0) is not False
    d.pooling_type = meta.number("pooling_type", default=-1)
    d.pooling_type_cls = meta.number("classifier.pooling_type", default=-1)
    d.n_layer_all = n = meta.number("block_count")
    if not 0 < n <= MAX_LAYERS:
        meta.refuse("block_count", f"is {n}, the engine takes 1 to {MAX_LAYERS}")
    d.n_layer_nextn = meta.number("nextn_predict_layers", default=0)
    if d.n_layer_nextn > n:
        meta.refuse("nextn_predict_layers", f"is {d.n_layer_nextn} of {n} blocks")
    d.n_layer = n - d.n_layer_nextn
    if meta.arch == "wavtokenizer-dec":
        _wavtokenizer(d, meta)
    if d.n_embd == 0:
        meta.refuse("embedding_length", "is 0")
    _experts(d, meta)

    d.n_ff = meta.read("feed_forward_length", "layers", n, n) or [0] * n
    d.n_head = meta.read("attention.head_count", "layers", n, n) or [0] * n
    d.n_head_kv = meta.read("attention.head_count_kv", "layers", n, n) or list(d.n_head)
    for key, values in (
        ("feed_forward_length", d.n_ff),
        ("attention.head_count", d.n_head),
        ("attention.head_count_kv", d.n_head_kv),
    ):
        if min(values) < 0:
            meta.refuse(key, f"holds {min(values)}")
    if meta.arch not in RECURRENT and meta.arch in _READS and not any(d.n_head):
        meta.refuse("attention.head_count", "is 0 or missing")
    d.n_ff_exp = [0] * n
    d.swiglu_clamp_exp, d.swiglu_clamp_shexp = [0.0] * n, [0.0] * n
    d.rope_pattern = [True] * n
    d.is_swa, d.is_indexer_full, d.is_ple = [False] * n, [False] * n, [False] * n
    d.is_recr = [meta.arch in RECURRENT] * n
    d.deepstack_mapping, d.dsv4_compress_ratios = [-1] * n, [0] * n

    finetuned = meta.read("rope.scaling.finetuned", "bool", 0, 0)
    d.rope_finetuned = bool(finetuned)
    n_head = d.n_head[0]
    if n_head > 0:
        d.n_embd_head_k_full = meta.number("attention.key_length", default=d.n_embd // n_head)
        d.n_embd_head_v_full = meta.number("attention.value_length", default=d.n_embd // n_head)
        d.n_rot_full = meta.number("rope.dimension_count", default=d.n_embd_head_k_full)
        if meta.arch in _NO_VOCAB_ROTATION and d.n_rot_full != d.n_embd_head_k_full:
            meta.refuse("rope.dimension_count", f"is {d.n_rot_full}, the engine expects {d.n_embd_head_k_full}")
    d.n_embd_head_k_swa = meta.number("attention.key_length_swa", default=d.n_embd_head_k_full)
    d.n_embd_head_v_swa = meta.number("attention.value_length_swa", default=d.n_embd_head_v_full)
    d.n_rot_swa = meta.number("rope.dimension_count_swa", default=d.n_rot_full)
    d.n_cls_out = meta.count("classifier.output_labels") or 1
    return d


def _wavtokenizer(d: Draft, meta: Metadata) -> None:
    d.n_embd_out = d.n_embd
    d.n_embd = meta.number("features_length")
    d.posnet_n_embd, d.posnet_n_layer = (
        meta.number("posnet.embedding_length"),
        meta.number("posnet.block_count"),
    )
    d.convnext_n_embd = meta.number("convnext.embedding_length")
    d.convnext_n_layer = meta.number("convnext.block_count")
    if max(d.posnet_n_layer, d.convnext_n_layer) > d.n_layer_all:
        meta.refuse("posnet.block_count", "or convnext.block_count is beyond block_count")


def _experts(d: Draft, meta: Metadata) -> None:
    n = d.n_layer_all
    d.n_expert = meta.number("expert_count", default=0)
    d.n_expert_used = meta.read("expert_used_count", "layers", n, n) or [0] * n
    d.n_expert_groups = meta.number("expert_group_count", default=0)
    d.n_group_used = meta.number("expert_group_used_count", default=0)
    if meta.arch in ("hunyuan_vl", "hunyuan-dense") and d.n_expert <= 1:
        d.n_expert, d.n_expert_used = 0, [0] * n
    used = max(d.n_expert_used)
    if d.n_expert > MAX_EXPERTS:
        meta.refuse("expert_count", f"is {d.n_expert}, the engine takes at most {MAX_EXPERTS}")
    if used > d.n_expert or min(d.n_expert_used) < 0 or (d.n_expert and not used):
        meta.refuse("expert_used_count", f"is {used} of {d.n_expert} experts")
    groups = d.n_expert_groups
    if groups and groups >= d.n_expert:
        meta.refuse("expert_group_count", f"is {groups} for {d.n_expert} experts")
    if groups > 1 and (d.n_expert % groups or not 0 < d.n_group_used < groups):
        meta.refuse("expert_group_used_count", f"is {d.n_group_used} of {groups} groups of {d.n_expert} experts")


_PER_LAYER: Mapping[str, object] = {
    "n_head": 0, "n_head_kv": 0, "n_ff": 0, "n_ff_exp": 0, "n_expert_used": 0, "dsv4_compress_ratios": 0,
    "deepstack_mapping": -1, "rope_pattern": True, "is_swa": False, "is_recr": False, "is_ple": False,
    "is_indexer_full": False, "swiglu_clamp_exp": 0.0, "swiglu_clamp_shexp": 0.0,
}  # fmt: skip


def _finish(d: Draft, known: bool) -> dict[str, Any]:
    for field, fill in _PER_LAYER.items():
        values = _fit(getattr(d, field), d.n_layer_all, fill)
        setattr(d, field, tuple(map(bool, values)) if isinstance(fill, bool) else tuple(values))
    d.use_alibi = d.f_max_alibi_bias > 0.0
    d.rope_type = _rope_type(d)
    d.n_embd_inp = d.n_embd_inp or d.n_embd * (1 + d.n_deepstack_layers)
    d.n_embd_inp_enc = d.n_embd_inp_enc or d.n_embd_inp
    d.n_embd_out = d.n_embd_out or d.n_embd
    fields: dict[str, Any] = vars(d)
    for internal in ("given", "n_layer", "n_kv_shared"):
        del fields[internal]
    return {**fields, "known": known}
