"""The engine's configuration once every default is resolved, and the facts of the GPU that its rules read."""

from __future__ import annotations

from typing import Literal, get_args

from autofit.domain.machine import Device
from autofit.domain.values import dataclass
from autofit.errors import HardwareError

from autofit_vllm.engine.versions import DEFAULT, Change, Engine
from autofit_vllm.modules.model import Draft, Parallel

GraphMode = Literal["NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE"]


GRAPH_MODES: tuple[GraphMode, ...] = get_args(GraphMode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """The device facts that vLLM's rules read; `cpu` is its CPU build."""

    name: str
    total_bytes: int
    cc: tuple[int, int]
    cpu: bool = False

    @classmethod
    def of(cls, device: Device) -> Gpu:
        """Raises: HardwareError, for a device vLLM's CUDA build does not drive or whose facts are missing."""
        if device.api != "cuda":
            raise HardwareError(
                f"{device.name}: only NVIDIA GPUs are planned for vLLM, not {device.api}",
                hint="choose others with --device",
            )
        if device.compute_capability is None or device.total_bytes is None:
            missing = "compute capability" if device.compute_capability is None else "memory"
            raise HardwareError(f"{device.name}: its {missing} is unknown", hint="name a profile: --on rtx-4090")
        return cls(name=device.name, total_bytes=device.total_bytes, cc=device.compute_capability)

    @property
    def capability(self) -> int:
        return self.cc[0] * 10 + self.cc[1]


IN_FLIGHT = Change(
    since="0.26.0",
    source="config/vllm.py:max_in_flight_tokens",
    before="0.25.1: SlidingWindowSpec keeps one step of max_num_batched_tokens, whatever is scheduled ahead",
)
CPU = Gpu(name="CPU", total_bytes=0, cc=(0, 0), cpu=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The engine's configuration after all defaults (config/vllm.py:VllmConfig), as far as memory depends
    on it."""

    engine: Engine = DEFAULT
    gpu: Gpu
    parallel: Parallel
    dtype: str
    quantization: str | None
    max_model_len: int
    auto_length: bool
    max_num_seqs: int
    max_num_batched_tokens: int
    chunked_prefill: bool
    prefix_caching: bool
    async_scheduling: bool
    max_concurrent_batches: int
    hybrid_manager: bool
    kv_cache_dtype: str
    kv_skip_layers: frozenset[str]
    block_size: int | None
    attention_backend: str | None
    flash_version: int | None
    indexer_kv_dtype: str  #: of the keys that a sparse-attention indexer keeps
    sliding_window: bool  #: windows limit what is kept
    mm_prefix: bool
    images: bool  #: encoders are built and profiled
    speculative_tokens: int
    draft: Draft | None
    graph_mode: GraphMode
    capture_sizes: tuple[int, ...]
    fused_allreduce_bytes: int  #: of the buffer through which ranks join a sum and the norm behind it
    mamba_cache_dtype: str
    mamba_ssm_dtype: str
    mamba_block_size: int | None
    mamba_cache_mode: str | None  #: as asked for
    replay_ssm: bool
    gdn_backend: str
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | None
    num_gpu_blocks_override: int | None

    @property
    def max_in_flight_tokens(self) -> int:
        """Tokens scheduled but not yet settled (config/vllm.py:max_in_flight_tokens)."""
        batches = self.max_concurrent_batches if self.engine.has(IN_FLIGHT) else 1
        return batches * self.max_num_batched_tokens
