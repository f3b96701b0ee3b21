"""The shape of `engine_report` in a plan's JSON: vLLM's figures by the names that it uses."""

from __future__ import annotations

from typing import Annotated, NotRequired, TypedDict

from autofit.domain.document import SIGNED


class GroupDocument(TypedDict):
    """Layers that share blocks of the KV cache."""

    layers: int
    kind: str
    block_size: int
    page_bytes: int


class InstancesDocument(TypedDict, total=False):
    """What instances behind a router serve together, at the rates that are expected."""

    replicas: Annotated[int, "that answer requests alone"]
    total_tokens_per_s: Annotated[float | None, "of all replicas"]
    prefill: Annotated[int, "instances that read prompts"]
    decode: Annotated[int, "instances that answer"]
    requests_per_s: Annotated[float, "that the slowest of prompts, answers and network allows"]
    prompts_per_s: float
    answers_per_s: float
    transfers_per_s: Annotated[float, "that the network carries"]
    kv_bytes_per_prompt: Annotated[int, "that go from one instance to the other"]
    kv_seconds_per_prompt: float
    first_token_seconds: Annotated[float, "where nothing waits"]
    requests_per_s_as_copies: Annotated[float, "of as many replicas instead"]


class RequestDocument(TypedDict):
    """What requests of a known length add."""

    prompt_seconds: float | None
    prompts_per_s: float | None
    kv_bytes_per_prompt: int


class VllmReportDocument(TypedDict):
    """Figures of vLLM. Lists by rank or of bytes have an entry for each stage of the pipeline. Null is not known."""

    weights_bytes_per_rank: list[int]
    model_memory_bytes_per_rank: list[int]
    bytes_per_block: list[int]
    block_size: int
    num_gpu_blocks: int | None
    kv_cache_tokens: Annotated[int | None, "tokens that all sequences together may hold"]
    max_concurrency: Annotated[float | None, "sequences of the whole context that the cache holds at a time"]
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_in_flight_tokens: int
    dtype: str
    quantization: str | None
    kv_cache_dtype: str
    attention_backends: list[str]
    kv_cache_groups: list[GroupDocument]
    available_kv_cache_bytes: list[Annotated[int, SIGNED]]
    gpu_memory_utilization: float
    cudagraph_mode: str
    cudagraph_capture_sizes: list[int]
    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    mean_tokens: NotRequired[int]
    sequences_at_mean: NotRequired[Annotated[int, "sequences of that mean length that run at a time"]]
    total_tokens_per_s: NotRequired[Annotated[float | None, "of all of them together"]]
    prompt_seconds: NotRequired[Annotated[float | None, "to read a prompt of --disaggregate alone"]]
    prompts_per_s: NotRequired[Annotated[float | None, "that an instance reads which does nothing else"]]
    kv_bytes_per_prompt: NotRequired[Annotated[int, "that all ranks of an instance read of another one's cache"]]
    instances: NotRequired[Annotated[InstancesDocument, "behind a router, where several are planned"]]


class LoadDocument(TypedDict):
    """What a mean length adds."""

    mean_tokens: int
    sequences_at_mean: int
    total_tokens_per_s: float | None
