"""What a command of llama.cpp pins, as values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autofit.domain.values import dataclass, fields, replace

from autofit_llama.engine.vocabulary import FlashAttention, LazyMode, LoadMode, Override, SplitMode


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaSettings:
    """Flags of a command line; `None` means not given. A repeated flag overrides, except list flags, which append.

    `n_ctx` 0 is the trained context and never to be reduced, `n_gpu_layers` -1 is `auto`, -2 `all`; empty
    `devices` are `-dev none`; `n_parallel` -1 is `auto`; `fit_target_mib` is repeated for every device when
    it has one entry.
    """

    model: str | None = None
    model_url: str | None = None
    hf_repo: str | None = None
    hf_file: str | None = None
    docker_repo: str | None = None
    n_ctx: int | None = None
    n_batch: int | None = None
    n_ubatch: int | None = None
    n_parallel: int | None = None
    kv_unified: bool | None = None
    kv_unified_per_slot: int | None = None
    swa_full: bool | None = None
    flash_attn: FlashAttention | None = None
    type_k: str | None = None
    type_v: str | None = None
    kv_offload: bool | None = None
    op_offload: bool | None = None
    n_gpu_layers: int | None = None
    split_mode: SplitMode | None = None
    tensor_split: tuple[float, ...] | None = None
    main_gpu: int | None = None
    rpc: tuple[str, ...] = ()
    devices: tuple[str, ...] | None = None
    overrides: tuple[Override, ...] = ()
    moe_cache_mib: int | None = None
    load_mode: LoadMode | None = None
    lazy_mode: LazyMode | None = None
    repack: bool | None = None
    no_host: bool | None = None
    numa: str | None = None
    n_threads: int | None = None
    n_threads_batch: int | None = None
    embedding: bool | None = None
    pooling: str | None = None
    backend_sampling: bool | None = None
    logits_all: bool | None = None
    fit: bool | None = None
    fit_target_mib: tuple[int, ...] | None = None
    fit_ctx: int | None = None
    cache_ram_mib: int | None = None
    n_checkpoints: int | None = None
    checkpoint_min_step: int | None = None
    mmproj: str | None = None
    mmproj_url: str | None = None
    mmproj_auto: bool | None = None
    mmproj_device: str | None = None
    mmproj_offload: bool | None = None
    image_max_tokens: int | None = None
    mtmd_batch_max_tokens: int | None = None
    loras: tuple[str, ...] = ()
    control_vectors: tuple[str, ...] = ()
    kv_overrides: tuple[str, ...] = ()
    spec_types: tuple[str, ...] = ()
    draft_n_max: int | None = None
    draft_model: str | None = None
    draft_hf_repo: str | None = None
    draft_n_gpu_layers: int | None = None
    draft_devices: tuple[str, ...] | None = None
    draft_overrides: tuple[Override, ...] = ()
    draft_type_k: str | None = None
    draft_type_v: str | None = None
    ngram_mod_n_max: int | None = None
    ngram_simple_size_m: int | None = None
    ngram_map_k_size_m: int | None = None
    ngram_map_k4v_size_m: int | None = None

    def pinned(self) -> Mapping[str, Any]:
        """The fields that the command says, by name."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def or_else(self, other: LlamaSettings) -> LlamaSettings:
        """These settings; what they leave open is taken from `other`."""
        return replace(other, **self.pinned())
