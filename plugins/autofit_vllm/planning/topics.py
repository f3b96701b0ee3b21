"""What each setting is about, so that those who read many find it."""

from __future__ import annotations

from collections.abc import Mapping

from autofit.domain.plan import Topic

_ABOUT: Mapping[Topic, str] = {
    "model": "dtype quantization language_model_only",
    "context": "max_model_len kv_cache_dtype max_num_seqs decode_context_parallel_size",
    "placement": (
        "tensor_parallel_size pipeline_parallel_size data_parallel_size enable_expert_parallel device_ids nnodes "
        "distributed_executor_backend gpu_memory_utilization cpu_offload_gb cpu_offload_params offload_group_size "
        "offload_num_in_group offload_prefetch_step offload_params"
    ),
    "batch": "max_num_batched_tokens enforce_eager",
}
_TOPICS: Mapping[str, Topic] = {name: topic for topic, names in _ABOUT.items() for name in names.split()}


def topic_of(name: str) -> Topic:
    """What a setting is about."""
    return _TOPICS.get(name, "other")
