"""A GGUF file as the checkpoint that vLLM's plugin makes of it: a configuration, and tensors for their types.

The plugin does not read the model's sizes from the file. It takes a `config.json`: that of `--hf-config-path`,
of `--tokenizer`, or of the file's directory (plugin.py:_get_gguf_config_source). Where none of these is at hand,
the configuration is worked out from the file's own keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autofit.domain.model import ModelSpec, StringArray
from autofit.domain.text import printable
from autofit.domain.values import replace
from autofit.errors import UnsupportedModelError

from autofit_vllm.command.settings import VllmSettings

#: model types whose tensors the plugin finds, what GGUF calls them and what vLLM does
#: (weights_adapter/default.py:build_name_map)
_KNOWN = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3_text": ("gemma3", "Gemma3ForCausalLM"),
    "phi3": ("phi3", "Phi3ForCausalLM"),
    "granite": ("granite", "GraniteForCausalLM"),
    "olmoe": ("olmoe", "OlmoeForCausalLM"),
}
_SOURCES = ("hf_config_path", "tokenizer")  #: flags that say where the configuration is, first wins
_NO_CONFIGURATION = (
    "vLLM's plugin reads config.json from the file's directory, and there is none: name the model's repository "
    "with --hf-config-path or --tokenizer; its sizes are taken from the file here"
)
#: those whose fused experts have no name in the plugin's map, so that it stops (Transformers 5.16 and later)
_UNMAPPED = frozenset({"qwen2moe", "qwen3moe"})
#: keys of a configuration by the file's, after the architecture's name
_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "sliding_window": "attention.sliding_window",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "rope_theta": "rope.freq_base",
}


def as_checkpoint(spec: ModelSpec, settings: VllmSettings) -> tuple[ModelSpec, tuple[str, ...]]:
    """The model with the configuration that vLLM will see, without tensors (their names are GGUF's), and notes.

    Raises:
        UnsupportedModelError: an architecture whose tensors the plugin does not find.
    """
    from autofit_vllm.quantization.plugins import require

    require("gguf", settings.env)
    if spec.architecture in _UNMAPPED:
        raise UnsupportedModelError(
            f"{spec.name}: Failed to map GGUF parameters: vLLM's plugin has no name for the experts of "
            f"{spec.architecture}",
            hint="use the safetensors checkpoint, or `autofit llama`",
        )
    given = _given(spec, settings)
    config = dict(_derived(spec) if given is None else given)
    kind = str(config.get("model_type"))
    own, architecture = _KNOWN.get(kind, ("", ""))
    if own != spec.architecture or "vision_config" in config:
        raise UnsupportedModelError(
            f"{spec.name}: a GGUF file of {printable(spec.architecture, 40)} as {printable(kind, 40)} is not one that "
            "can be planned for vLLM's plugin",
            hint=f"known: {', '.join(sorted(name for name, _ in _KNOWN.values()))}; or use `autofit llama`",
        )
    names = {tensor.name for tensor in spec.tensors}
    words = spec.metadata.get("tokenizer.ggml.tokens")
    if isinstance(words, StringArray):
        config["vocab_size"] = words.count
    config["tie_word_embeddings"] = "output.weight" not in names
    config["architectures"] = [architecture]
    config["quantization_config"] = {"quant_method": "gguf"}
    notes = () if given is not None or any(map(settings.given.get, _SOURCES)) else (_NO_CONFIGURATION,)
    return replace(spec, format="config", metadata=config, tensors=()), notes


def _given(spec: ModelSpec, settings: VllmSettings) -> Mapping[str, Any] | None:
    """The configuration that vLLM will read, if it is a local one."""
    named = next((settings.given[flag] for flag in _SOURCES if settings.given.get(flag)), None)
    if named is None and not spec.files:
        return None
    directory = Path(spec.files[0].path).parent if named is None else Path(str(named))
    file = directory / "config.json"
    if not file.is_file():
        return None
    from autofit.readers import read_model

    return read_model(str(file)).metadata


def _derived(spec: ModelSpec) -> Mapping[str, Any]:
    """The configuration that the file's keys describe."""
    own = spec.architecture

    def key(name: str) -> object:
        return spec.metadata.get(f"{own}.{name}")

    model_type = next((kind for kind, (name, _) in _KNOWN.items() if name == own), None)
    if model_type == "llama" and key("expert_count"):
        model_type = "mixtral"  # The plugin has no names for its experts.
    sizes = {name: value for name, gguf in _SIZES.items() if (value := key(gguf)) is not None}
    names = {tensor.name for tensor in spec.tensors}
    config: dict[str, Any] = {
        "model_type": model_type or own,
        "dtype": "bfloat16",
        **sizes,
        "attention_bias": "blk.0.attn_output.bias" in names,
        "qkv_bias": "blk.0.attn_q.bias" in names,
    }
    scaling = key("rope.scaling.type")
    if scaling in ("yarn", "linear"):
        config["rope_scaling"] = {
            "rope_type": scaling,
            "factor": key("rope.scaling.factor"),
            "original_max_position_embeddings": key("rope.scaling.original_context_length"),
        }
    return config
