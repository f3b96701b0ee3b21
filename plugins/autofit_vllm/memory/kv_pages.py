"""What one layer keeps in the KV cache: the bytes of a token, its page, and how many pages a request takes.

One `LayerCache` per layer stands for vLLM's spec objects (v1/kv_cache_interface.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from autofit.domain.values import dataclass

from autofit_vllm.modules.dtypes import dtype_bytes
from autofit_vllm.modules.model import LAST
from autofit_vllm.modules.sharding import round_up

Kind = Literal["full", "latent", "sliding", "sliding latent", "chunked", "cross", "state", "ring"]
_KV_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
#: key bits, value bits (quantization/turboquant/config.py:TQ_PRESETS)
_TURBOQUANT_BITS = {
    "turboquant_k8v4": (8, 4),
    "turboquant_4bit_nc": (4, 4),
    "turboquant_k3v4_nc": (3, 4),
    "turboquant_3bit_nc": (3, 3),
}
_FULL_KINDS = ("full", "latent")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCache:
    """The cache of one layer on one rank. A page holds `block_tokens` tokens, or one state."""

    name: str
    stage: int  #: a decoder layer's index, or FIRST, LAST
    kind: Kind
    block_tokens: int
    token_bytes: int  #: of one token; of the whole state for `state`
    identity: tuple[object, ...]  #: layers are of one type when this and all sizes are equal
    window_tokens: int | None = None
    extra_tokens: int = 0  #: kept below the window for speculation with several modules
    row_tokens: int = 1  #: tokens that one stored row stands for; `token_bytes` are then those of a row
    padded_bytes: int | None = None
    stride_kernel: int | None = None
    stride_bytes_multiple: int = 1
    state_pages: int = 0  #: `state`: pages of one request
    encoder_tokens: int = 0  #: `cross`

    @property
    def own_bytes(self) -> int:
        return self.token_bytes if self.kind == "state" else self.token_bytes * (self.block_tokens // self.row_tokens)

    @property
    def page_bytes(self) -> int:
        return self.own_bytes if self.padded_bytes is None else self.padded_bytes

    @property
    def stride_bytes(self) -> int:
        """Distance between two blocks of this layer (kv_cache_planning.py:_get_layer_block_stride)."""
        return round_up(self.page_bytes, self.stride_unit)

    @property
    def stride_unit(self) -> int:
        """What the distance between two blocks is a multiple of, however layers are laid out."""
        kernel = math.gcd(self.stride_kernel or self.block_tokens, self.block_tokens)
        if self.kind == "state" or kernel == self.block_tokens:
            return self.stride_bytes_multiple
        return self.token_bytes * (kernel // self.row_tokens)

    @property
    def type(self) -> tuple[object, ...]:
        """Layers with the same are stored alike, in one group."""
        return (
            self.kind,
            self.identity,
            self.block_tokens,
            self.token_bytes,
            self.window_tokens,
            self.extra_tokens,
            self.padded_bytes,
            self.state_pages,
            self.stride_kernel,
            self.row_tokens,
            self.stride_bytes_multiple,
        )

    def pages(self, max_len: int, *, in_flight_tokens: int, dcp: int = 1) -> int:
        """Pages of one request of `max_len` tokens (max_memory_usage_bytes / page_size_bytes of each
        spec)."""
        block = self.block_tokens
        if self.kind == "state":
            return self.state_pages
        if self.kind == "ring":
            return 1
        if self.kind == "cross":
            return -(-self.encoder_tokens // block)
        if self.kind in _FULL_KINDS:
            share = -(-max_len // dcp)
            return -(-share // block)
        assert self.window_tokens is not None
        if self.kind == "chunked":
            return -(-min(self.window_tokens + in_flight_tokens, max_len) // block)
        kept = self.window_tokens - 1 + self.extra_tokens + in_flight_tokens
        return -(-min(kept, max_len) // block) + 1

    def moved_pages(self, n_tokens: int, *, dcp: int = 1) -> int:
        """Pages of a prompt that another instance reads: of a window those in it and one more, of a state the last
        (distributed/kv_transfer/kv_connector/v1/nixl/base_scheduler.py:get_exchange_clipped_blocks)."""
        if self.kind == "state":
            return 1
        pages = self.pages(n_tokens, in_flight_tokens=0, dcp=dcp)
        if self.window_tokens is not None and self.kind != "chunked":
            return min(-(-n_tokens // self.block_tokens), -(-self.window_tokens // self.block_tokens) + 1)
        return pages


def uniform(layers: Sequence[LayerCache]) -> bool:
    """Whether all layers always need the same number of tokens (UniformTypeKVCacheSpecs.is_uniform_type)."""
    first = layers[0]
    if len({layer.block_tokens for layer in layers}) > 1:
        return False
    if first.kind in _FULL_KINDS:
        return all(layer.kind in _FULL_KINDS for layer in layers)
    if first.kind == "state":
        return len({(layer.kind, layer.state_pages, layer.page_bytes) for layer in layers}) == 1
    if first.kind == "cross":
        return all(layer.kind == "cross" for layer in layers)
    kinds = ("sliding", "sliding latent") if first.kind == "sliding" else (first.kind,)
    return all(layer.kind in kinds and layer.window_tokens == first.window_tokens for layer in layers)


def packed_bytes(kv_dtype: str, dtype: str, head_size: int, head_size_v: int) -> int:
    """Bytes of K and V of one token and one KV head, as the backend packs them."""
    if kv_dtype in _TURBOQUANT_BITS:
        key_bits, value_bits = _TURBOQUANT_BITS[kv_dtype]
        key = head_size if key_bits == 8 else -(-head_size * key_bits // 8) + 2
        size = key + -(-head_size * value_bits // 8) + 4
        return size + size % 2
    if kv_dtype == "int4_per_token_head":
        return head_size // 2 + head_size_v // 2 + 8
    if kv_dtype.endswith("_per_token_head"):
        return head_size + head_size_v + 8
    if kv_dtype.startswith("nvfp4"):
        return 2 * (head_size // 2 + head_size // 16)
    return (head_size + head_size_v) * element_bytes(kv_dtype, dtype)


def element_bytes(kv_dtype: str, dtype: str) -> int:
    """Bytes of one cache element (utils/torch_utils.py:STR_DTYPE_TO_TORCH_DTYPE)."""
    return dtype_bytes(dtype) if kv_dtype == "auto" else _KV_BYTES.get(kv_dtype, 1)


def stage_of(layer: LayerCache, bounds: Sequence[int]) -> int:
    """The pipeline stage of a layer; `bounds` are the stages' first layers and the end."""
    if layer.stage == LAST:
        return len(bounds) - 2
    if layer.stage < 0:
        return 0
    for stage in range(len(bounds) - 1):
        if layer.stage < bounds[stage + 1]:
            return stage
    return len(bounds) - 2
