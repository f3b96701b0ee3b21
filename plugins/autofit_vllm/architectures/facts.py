"""What vLLM's own settings read from a model's configuration (transformers_utils/model_arch_config_convertor.py
and config/model.py)."""

from __future__ import annotations

from collections.abc import Mapping

from autofit.domain.values import NamedTuple

from autofit_vllm.architectures.config import Config
from autofit_vllm.architectures.rope import all_rope_parameters

_LENGTH_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
_ALREADY_SCALED = frozenset(
    {"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling", "telechat3-yarn"}
)
_MLA_TYPES = frozenset(
    {
        "axk1",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "deepseek_v4",
        "deepseek_v41",
        "dots3_note",
        "glm5_next",
        "glm5_next_text",
        "glm_moe_dsa",
        "glm4_moe_lite",
        "kimi_k2",
        "kimi_linear",
        "longcat_flash",
        "pangu_ultra_moe",
        "bailing_hybrid",
        "hy_v4",
    }
)
_DTYPES = {
    "half": "float16",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float": "float32",
    "float32": "float32",
    "float64": "float64",
}


class Length(NamedTuple):
    """How long a sequence may get: derived, from which key, and what `--max-model-len` is by itself."""

    derived: int | None
    key: str | None
    default: int | None


def model_length(text: Config) -> Length:
    """(config/model.py:_get_and_verify_max_len) the smallest of many keys, times what the rope stretches it by."""
    found = [(value, key) for key in _LENGTH_KEYS if (value := text.maybe_int(key)) is not None]
    if own := text.maybe_int("model_max_length"):
        derived, key = own, "model_max_length"
    elif found:
        derived, key = min(found, key=lambda pair: pair[0])
    else:
        return Length(None, None, None)
    ropes = all_rope_parameters(text)
    if ropes and "gemma3" not in text.model_type:
        factor = 1.0
        for rope in ropes:
            stretch = rope.get("factor", factor)
            if rope["rope_type"] not in _ALREADY_SCALED and isinstance(stretch, int | float):
                factor = float(stretch)
        derived = int(derived * factor)
    default = derived
    if any(rope["rope_type"] == "longrope" for rope in ropes):
        default = text.int("original_max_position_embeddings", default=derived)
    return Length(derived, key, default)


def attention_heads(text: Config) -> int:
    return text.maybe_int("num_attention_heads", "n_heads", "n_head") or 0


def key_value_heads(text: Config) -> int:
    """KV heads of the whole model, as the checks on parallelism count them."""
    if text.model_type in ("mamba", "falcon_mamba", "mamba2"):
        return 0
    heads = attention_heads(text)
    falcon = text.model_type in ("falcon", "RefinedWeb", "RefinedWebModel")
    if falcon and not text.flag("new_decoder_architecture") and text.flag("multi_query"):
        return 1
    if text.model_type == "dbrx":
        return text.section("attn_config").int("kv_n_heads", default=heads)
    found = text.maybe_int(
        "n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups"
    )
    return heads if found is None else found


def expert_count(text: Config) -> int:
    """Routed experts of one layer; 0 where the keys vLLM knows are missing, as in DBRX
    (get_num_experts: a list counts by its first entry, a mixed model by its widest block)."""
    count = _first_number(text, "num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
    blocks = [block for block in text.items_of("block_configs") if isinstance(block, Mapping)]
    return count or max(
        (Config(block).int("n_routed_experts", default=0) for block in blocks if block.get("block_type") == "moe"),
        default=0,
    )


def experts_per_token(text: Config) -> int:
    return _first_number(
        text,
        "num_experts_per_tok",
        "num_experts_per_token",
        "top_k_experts",
        "moe_topk",
        "moe_top_k",
        "top_k",
    )


def _first_number(text: Config, *keys: str) -> int:
    """The first of the keys that is there, if it is a number; a list counts by its largest."""
    for key in keys:
        if key in text:
            numbers = text.items_of(key) or [text[key]]
            return max((n for n in numbers if isinstance(n, int) and not isinstance(n, bool)), default=0)
    return 0


def uses_mla(text: Config) -> bool:
    return text.model_type in _MLA_TYPES and text.maybe_int("kv_lora_rank") is not None


def is_encoder_decoder(root: Config, text: Config) -> bool:
    """(transformers_utils/config.py:is_encoder_decoder) Whisper's configuration class says so by itself."""
    return any(config.flag("is_encoder_decoder", config.model_type == "whisper") for config in (root, text))


def head_size(text: Config) -> int:
    if uses_mla(text):
        return text.int("kv_lora_rank") + text.int("qk_rope_head_dim", default=0)
    if text.model_type in ("mamba", "falcon_mamba"):
        return 0
    if text.model_type == "zamba2":
        return text.int("attention_head_dim", default=0)
    size = text.maybe_int("head_dim")
    if size:
        return size
    heads = attention_heads(text)
    return text.int("hidden_size", "d_model", "n_embd", default=0) // heads if heads else 0


def config_dtype(root: Config, text: Config) -> str | None:
    """The element type that the file names; `None` if it names none."""
    for section in (root, text, root.section("vision_config"), root.section("encoder_config")):
        for key in ("dtype", "torch_dtype"):
            value = section.get(key)
            if isinstance(value, str):
                found = _DTYPES.get(value.removeprefix("torch."))
                if found is not None:
                    return found
    return None


def ssm_dtype(root: Config, text: Config, architecture: str) -> str | None:
    """The type of a recurrent state where vLLM follows the file (model_executor/models/config.py: for these classes,
    not for others around the same text model)."""
    kind = text.model_type
    if kind.startswith(("qwen3_5", "qwen4_exp")) and architecture.startswith(("Qwen", "ColQwen")):
        return text.text("mamba_ssm_dtype") or None
    if kind.startswith("nemotron_h"):
        return text.text("mamba_ssm_cache_dtype") or root.text("mamba_ssm_cache_dtype") or "float32"
    return None
