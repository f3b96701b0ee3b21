"""The keys of one model, read as llama.cpp's loader does: each by its exact type.

Keys: src/llama-arch.cpp:LLM_KV_NAMES. Reading: src/llama-model-loader.cpp (get_key, get_key_or_arr, get_arr).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal, NoReturn

from autofit.domain.model import ModelSpec, StringArray
from autofit.errors import CorruptModelError

MAX_LAYERS, MAX_EXPERTS = 512, 1024  #: src/llama-hparams.h


_U32 = 1 << 32


Kind = Literal["int", "float", "bool", "str", "layers", "trunk", "floats", "flags", "ints", "four"]


_NAMES = {"float": "f32", "bool": "bool", "str": "str"}
_LISTS = ("u32[]", "i32[]", "bool[]")  #: what get_arr puts into an std::array of 32-bit numbers


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# field -> key and kind. `layers`: a number or an array of n_layer_all, `trunk`: of n_layer, `floats` the same
# of float; `flags` and `ints`: an array of any length up to MAX_LAYERS; `four`: rope sections.
KEYS: Mapping[str, tuple[str, Kind]] = {
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
    "n_value_expert": ("attention.value_expert_count", "int"),
    "n_value_expert_used": ("attention.value_expert_used_count", "int"),
    "n_layer_routing": ("decision.routing_block_count", "int"),
    "n_layer_joint": ("decision.block_count", "int"),
    "n_head_decision": ("decision.head_count", "int"),
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


#: of fields that every architecture has, and that are read apart
OTHER_KEYS = {
    "n_embd": "embedding_length", "n_head": "attention.head_count", "n_head_kv": "attention.head_count_kv",
    "n_ff": "feed_forward_length", "n_layer_nextn": "nextn_predict_layers",
}  # fmt: skip


def key_of(field: str) -> str:
    """The key that a hyperparameter comes from, or its own name."""
    return OTHER_KEYS.get(field) or KEYS.get(field, (field,))[0]


class HParamsDraft(SimpleNamespace):
    """Hyperparameters while they are read; `given` are the fields that the file has."""


class Metadata:
    """The keys of one model, read as the engine's loader does: by exact type, refusing what is missing."""

    def __init__(self, model: ModelSpec) -> None:
        self._metadata = model.metadata
        self._types = model.metadata_types
        self._path = model.files[0].path if model.files else model.name
        self.tensor_names = frozenset(tensor.name for tensor in model.tensors if ".nextn." in tensor.name)
        self.arch = model.architecture

    def refuse(self, key: str, cause: str) -> NoReturn:
        raise CorruptModelError(self._path, f"metadata key {self.arch}.{key}: {cause}")

    def get(self, key: str) -> object:
        return self._metadata.get(f"{self.arch}.{key}")

    def hold(self, key: str, *expected: str) -> None:
        """Refuse a value that the file has with another type than one of these (get_key, get_arr)."""
        found = self._types.get(f"{self.arch}.{key}")
        if found is not None and found not in expected:
            self.refuse(key, f"is {found} {_shown(self.get(key))}, the engine expects {' or '.join(expected)}")

    def number(self, key: str, *, default: int | None = None) -> int:
        """A uint32. `default`: what a missing key means; without one it is refused."""
        value = self.get(key)
        if value is None:
            if default is None:
                self.refuse(key, "is missing")
            return default
        self.hold(key, "u32")
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
                self.hold(key, _NAMES[kind])
                if type(value) is not expected:
                    self.refuse(key, f"is not a {kind}: {value!r:.40}")
                return value
            case "four":
                self.hold(key, "i32", *_LISTS)
                return (*self._per_layer(key, value, 4, int),)
            case "layers":
                self.hold(key, "u32", *_LISTS)
                return self._per_layer(key, value, n_layer_all, int)
            case "trunk":
                self.hold(key, "u32", *_LISTS)
                return self._per_layer(key, value, n_layer, int)
            case "floats":
                self.hold(key, "f32", "f32[]")
                return self._per_layer(key, value, n_layer_all, float)
            case "flags" | "ints":
                if isinstance(value, StringArray):
                    self.refuse(key, f"has {value.count} entries of {value.element_type}, not numbers of {MAX_LAYERS}")
                if not isinstance(value, tuple):
                    return None
                self.hold(key, *_LISTS)
                return self._array(key, value, int)

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

    def wide(self, key: str, n: int) -> tuple[int, ...]:
        """`n` numbers of 64 bits without a sign."""
        value = self.get(key)
        self.hold(key, "u64[]")
        if not isinstance(value, tuple) or len(value) != n:
            self.refuse(key, f"is not an array of {n}")
        for item in value:
            if type(item) is not int or item < 0:
                self.refuse(key, f"holds {item!r:.40}, not an unsigned 64-bit number")
        return value

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


def _shown(value: object) -> str:
    return f"of {len(value)}" if isinstance(value, tuple) else f"{value!r:.40}"


def fit(values: Sequence[Any], n: int, fill: Any = False) -> list[Any]:
    return [*values[:n], *[fill] * (n - len(values))]


def read(d: HParamsDraft, meta: Metadata, fields: str) -> None:
    """The `fields` that the file has; one without `?` is refused where it is missing.

    With `[]` it is read as an array of any length (get_arr), though others read the key by layers (get_key_or_arr).
    """
    for word in fields.split():
        name = word.removesuffix("?")
        field = name.removesuffix("[]")
        key, kind = KEYS[field]
        value = meta.read(key, kind if name == field else "flags", d.n_layer_all, d.n_layer)
        if value is None:
            if word == name:
                meta.refuse(key, "is missing")
            continue
        setattr(d, field, value)
        d.given.add(field)
