"""What each setting is about, so that those who read many find it."""

from __future__ import annotations

from collections.abc import Mapping

from autofit.domain.plan import Topic

#: topic -> fields of `LlamaSettings`, and keys of options that stand for several fields or none
_ABOUT: Mapping[Topic, str] = {
    "model": (
        "model model-url hf-repo hf-file docker-repo mmproj mmproj-url lora lora-scaled model-draft spec-draft-model"
    ),
    "context": (
        "n_ctx type_k type_v flash_attn n_parallel cache_ram_mib n_checkpoints embedding pooling logits_all "
        "ctx-size cache-type-k cache-type-v flash-attn parallel cache-ram ctx-checkpoints swa-full kv-unified "
        "kv-unified-per-slot no-kv-offload kv-offload"
    ),
    "placement": (
        "rpc devices n_gpu_layers tensor_split overrides split_mode main_gpu fit load_mode n_threads "
        "device gpu-layers n-gpu-layers tensor-split split-mode main-gpu override-tensor cpu-moe n-cpu-moe n-cpu-ffn "
        "mmap mlock threads load-mode"
    ),
    "batch": "n_batch n_ubatch batch-size ubatch-size",
}
_TOPICS: Mapping[str, Topic] = {name: topic for topic, names in _ABOUT.items() for name in names.split()}


def topic_of(name: str) -> Topic:
    """Of a field of the settings or of an option's key."""
    return _TOPICS.get(name, "other")
