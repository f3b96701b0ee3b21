"""The engine's words that more than one stage speaks: choices of flags, types of the KV cache, overrides of buffers."""

from __future__ import annotations

from typing import Literal

from autofit.domain.values import dataclass

FlashAttention = Literal["on", "off", "auto"]
SplitMode = Literal["none", "layer", "row", "tensor"]
LoadMode = Literal["auto", "none", "mmap", "mlock", "mmap+mlock", "dio"]
LazyMode = Literal["on", "auto", "off"]
#: of a tensor (src/llama-arch.cpp:LLM_TENSOR_INFOS), by ggml's name
Operation = Literal[
    "NONE", "GET_ROWS", "MUL_MAT", "MUL_MAT_ID", "ADD", "ADD_ID", "MUL", "DIV", "SCALE", "ROPE", "SSM_CONV",
    "SSM_SCAN", "RWKV_WKV6", "IM2COL",
]  # fmt: skip

#: common/arg.cpp:kv_cache_types
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
#: enum llama_pooling_type (include/llama.h)
POOLING_UNSPECIFIED, POOLING_NONE, POOLING_MEAN, POOLING_CLS, POOLING_LAST, POOLING_RANK = -1, 0, 1, 2, 3, 4
MAX_DEVICES = 16  #: llama_max_devices


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """One of `-ot PATTERN=BUFFER`, `-cmoe`, `-ncmoe N`, `-ncffn N`: they are tried in command-line order."""

    kind: Literal["pattern", "cpu_moe", "n_cpu_moe", "n_cpu_ffn"]
    pattern: str = ""
    buffer: str = "CPU"
    n_blocks: int = 0
