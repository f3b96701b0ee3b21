"""Public runs as inputs of the speed model: the machine, the model's blocks, where they lie, how full the
cache is.

A run names a GPU, a model, a quantization and a command. What a run does not say (the layers of a model, the
bandwidth of a card) is looked up here, in published figures; what nobody says (how much of a model that
cannot fit lies in RAM) is taken from the peak that the run reports.

These tables exist to fit and to check. The product reads models and machines themselves.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autofit.domain.machine import HOST_POOL, Device, Host, Machine
from autofit.domain.model import FeedForwardKind, Mixer
from autofit.hardware import load_machine
from autofit.speed import Draft, LayerWork, Place, Read, n_kernels

GB = 10**9


# Devices by the names that runs give them: shipped hardware profiles, which cite their figures.
PROFILES: Mapping[str, str] = {
    "RTX 5090": "rtx-5090",
    "RTX 5080": "rtx-5080",
    "RTX 5060 Ti": "rtx-5060-ti-16gb",
    "RTX 4090": "rtx-4090",
    "RTX 4070 Super": "rtx-4070-super",
    "RTX 4070 Ti": "rtx-4070-ti",
    "RTX 4070": "rtx-4070",
    "RTX 3090 Ti": "rtx-3090-ti",
    "RTX 3090": "rtx-3090",
    "RTX 3060": "rtx-3060-12gb",
    "RTX 2080": "rtx-2080",
    "RTX 6000 Ada": "rtx-6000-ada",
    "RX 7900 XTX": "rx-7900-xtx",
    "RX 9070 XT": "rx-9070-xt",
    "RX 7900 GRE": "rx-7900-gre",
    "RX 6700 XT": "rx-6700-xt",
    "Radeon AI PRO R9700": "r9700",
    "Radeon PRO W7900": "w7900",
    "Radeon 8060S": "strix-halo",
    "MI50": "mi50-32gb",
    "GTX 1070": "gtx-1070",
    "Radeon W7800": "w7800",
    "GB10": "gb10",
    "M4 Max": "apple-m4-max",
    "M2 Ultra": "apple-m2-ultra",
    "M1 Max": "apple-m1-max",
}
# A processor's own graphics, on two channels of DDR5-5600: 12 units, 512 operations each, 2.8 GHz.
_RADEON_780M = Device(
    id="GPU0",
    index=0,
    name="Radeon 780M",
    api="vulkan",
    total_bytes=None,
    free_bytes=None,
    pool=HOST_POOL,
    bandwidth_bytes_per_s=89_600_000_000,
    fp16_flops_per_s=17_200_000_000_000,
)
# RAM of the hosts that runs name: two channels of what the platform takes, eight on EPYC.
HOSTS: Mapping[str, tuple[float, int]] = {
    "Ryzen 5 5600X": (51.2e9, 6),
    "Ryzen 7 3700X": (51.2e9, 8),
    "EPYC 7543": (204.8e9, 32),
    "Xeon Gold 6138": (128e9, 20),
    "Snapdragon 888": (51.2e9, 8),
    "8745H": (89.6e9, 8),
}

# Bits per weight of a whole file, as llama.cpp quantizes dense models of 7 to 30 billion parameters.
BITS: Mapping[str, float] = {
    "BF16": 16, "F16": 16, "Q8_0": 8.5, "FP8": 8.1, "Q8_K_XL": 9.3, "Q6_K_XL": 7.0, "Q6_K": 6.57,
    "Q5_K_M": 5.7,
    "Q4_K_XL": 5.2, "Q4_K_L": 5.0, "Q4_K_P": 5.2, "Q4_K_M": 4.9, "Q4_K_S": 4.65, "Q4_0": 4.6, "IQ4_XS": 4.4,
    "QAT": 4.6, "INT4": 4.6, "NVFP4": 5.3, "MXFP4": 4.3, "MQ4": 4.5,
    "Q3_K_XL": 4.3, "Q3_K_M": 3.97, "Q3_K_S": 3.6, "IQ3_XXS": 3.3, "IQ2_M": 3.1, "IQ2_XXS": 2.75,
    "IQ1_M": 2.1, "IQ1_S": 1.95,
}  # fmt: skip
# The storage type most of such a file's bytes have.
TYPES: Mapping[str, str] = {
    "BF16": "bf16", "F16": "f16", "Q8_0": "q8_0", "FP8": "F8_E4M3", "Q8_K_XL": "q8_0", "Q6_K_XL": "q6_K",
    "Q6_K": "q6_K", "Q5_K_M": "q5_K", "Q4_K_XL": "q4_K", "Q4_K_L": "q4_K", "Q4_K_P": "q4_K", "Q4_K_M": "q4_K",
    "Q4_K_S": "q4_K", "Q4_0": "q4_0", "IQ4_XS": "iq4_xs", "QAT": "q4_0",
    "INT4": "int4", "NVFP4": "nvfp4", "MXFP4": "mxfp4",
    "MQ4": "q4_0", "Q3_K_XL": "q3_K", "Q3_K_M": "q3_K", "Q3_K_S": "q3_K", "IQ3_XXS": "iq3_xxs",
    "IQ2_M": "iq2_s",
    "IQ2_XXS": "iq2_xxs", "IQ1_M": "iq1_m", "IQ1_S": "iq1_s",
}  # fmt: skip
CACHE_BITS: Mapping[str, float] = {
    "f16": 16, "fp16": 16, "bf16": 16, "auto": 16, "q8_0": 8.5, "q8": 8.5, "fp8": 8, "fp8_e4m3": 8,
    "q5_0": 5.5,
    "q4_0": 4.5, "turbo4": 4.5, "turbo2": 2.5, "kvarn6": 6.5,
}  # fmt: skip


class Block(NamedTuple):
    """One layer in parameters: mixer, dense feed-forward and shared experts, routed experts."""

    mixer: Mixer
    feed_forward: FeedForwardKind
    dense: int
    experts: int = 0
    shared: bool = False
    cache_elements: int = 0
    n_heads_by_dims: int = 0  #: query heads · (key + value dimension)
    window: int | None = None
    state_bytes: int = 0
    head_dim: int = 128
    shares_cache: bool = False
    n_norms: int = 2

    @property
    def n_kept(self) -> int:
        return 0 if self.shares_cache else self.cache_elements


class Shape(NamedTuple):
    """A model: its blocks, its output matrix (elements) and embedding, its routing."""

    blocks: tuple[Block, ...]
    hidden: int
    output: int
    embedding: int
    n_experts: int = 0
    n_used: int = 0

    @property
    def n_parameters(self) -> int:
        return self.embedding + self.output + sum(block.dense + block.experts for block in self.blocks)


def _attention(hidden: int, heads: int, kv: int, dim: int, *, gated: bool = False) -> int:
    return hidden * heads * dim * (3 if gated else 2) + 2 * hidden * kv * dim


def _transformer(
    n_layers: int,
    hidden: int,
    feed_forward: int,
    heads: int,
    kv: int,
    vocab: int,
    *,
    dim: int = 128,
    tied: bool = False,
    gated: bool = False,
    window: Callable[[int], int | None] = lambda _: None,
    moe: tuple[int, int, int, int] | None = None,
    n_dense: int = 0,
    n_norms: int = 2,
) -> Shape:
    """`moe`: experts, used, expert width, shared width. The first `n_dense` layers keep `feed_forward`."""
    blocks = []
    for i in range(n_layers):
        routed = moe is not None and i >= n_dense
        n_experts, _, width, shared = moe or (0, 0, 0, 0)
        mlp = 3 * hidden * (shared if routed else feed_forward) + (hidden * n_experts if routed else 0)
        blocks.append(
            Block(
                mixer="full" if window(i) is None else "sliding",
                feed_forward="experts" if routed else "dense",
                dense=_attention(hidden, heads, kv, dim, gated=gated) + mlp,
                experts=n_experts * 3 * hidden * width if routed else 0,
                shared=routed and shared > 0,
                cache_elements=2 * kv * dim,
                n_heads_by_dims=heads * 2 * dim,
                window=window(i),
                head_dim=dim,
                n_norms=n_norms,
            )
        )
    output = vocab * hidden
    n_experts, n_used = (moe[0], moe[1]) if moe else (0, 0)
    return Shape(tuple(blocks), hidden, output, 0 if tied else output, n_experts, n_used)


def _qwen35(
    n_layers: int,
    hidden: int,
    feed_forward: int,
    heads: int,
    kv: int,
    value_heads: int,
    *,
    key_heads: int = 16,
    tied: bool = False,
    moe: tuple[int, int, int, int] | None = None,
) -> Shape:
    """Qwen3-Next and Qwen3.5: every fourth layer is gated attention, the others a gated delta net."""
    full = _transformer(
        n_layers, hidden, feed_forward, heads, kv, 248320, dim=256, tied=tied, gated=True, moe=moe, n_norms=6
    )
    d = 128
    mix = hidden * ((2 * key_heads + value_heads) * d + 2 * value_heads * d + 2 * value_heads)
    blocks = list(full.blocks)
    attention = _attention(hidden, heads, kv, 256, gated=True)
    for i, block in enumerate(blocks):
        if i % 4 != 3:
            blocks[i] = block._replace(
                mixer="recurrent",
                n_norms=3,
                dense=block.dense - attention + mix,
                cache_elements=0,
                n_heads_by_dims=0,
                state_bytes=4 * (value_heads * d * d + 3 * (2 * key_heads + value_heads) * d),
            )
    return full._replace(blocks=tuple(blocks))


def _gemma4(
    n_layers: int,
    hidden: int,
    feed_forward: int,
    heads: int,
    kv: int,
    *,
    every: int = 6,
    window: int = 1024,
    global_kv: int | None = None,
    moe: tuple[int, int, int] | None = None,
    per_layer: int = 0,
    n_shared_kv: int = 0,
    wide_shared: bool = False,
) -> Shape:
    """Gemma 4: every sixth layer (fifth in E2B) is global with heads of 512; E models embed per layer."""
    blocks = []
    for i in range(n_layers):
        is_global = i % every == every - 1
        dim, n_kv = (512, global_kv or kv) if is_global else (256, kv)
        shares = i >= n_layers - n_shared_kv
        width = feed_forward * 2 if shares and wide_shared else feed_forward
        kv_elements = 0 if shares else hidden * n_kv * dim * (1 if is_global and global_kv else 2)
        dense = 2 * hidden * heads * dim + kv_elements + 3 * hidden * width + 2 * hidden * per_layer
        n_experts, _, expert_width = moe or (0, 0, 0)
        blocks.append(
            Block(
                mixer="full" if is_global else "sliding",
                feed_forward="experts" if moe else "dense",
                dense=dense + hidden * n_experts,
                experts=3 * hidden * expert_width * n_experts,
                shared=moe is not None,
                cache_elements=2 * n_kv * dim,
                n_heads_by_dims=heads * 2 * dim,
                window=None if is_global else window,
                head_dim=dim,
                shares_cache=shares,
                n_norms=13 if per_layer else 8 if moe else 6,
            )
        )
    output = 262144 * hidden
    # Per-layer embeddings are looked up, a row per layer: part of the file, not of a step.
    embedding = 262144 * per_layer * n_layers
    return Shape(tuple(blocks), hidden, output, embedding, moe[0] if moe else 0, moe[1] if moe else 0)


def _every(n: int, window: int) -> Callable[[int], int | None]:
    return lambda i: None if i % n == n - 1 else window


def _glm47_flash() -> Shape:
    hidden, heads, rank, rope = 2048, 20, 512, 64
    mla = hidden * 768 + 768 * heads * (192 + rope) + hidden * (rank + rope) + heads * rank * (192 + 256)
    mla += heads * 256 * hidden
    blocks = []
    for i in range(47):
        routed = i > 0
        mlp = 3 * hidden * (1536 if routed else 10240) + (64 * hidden if routed else 0)
        blocks.append(
            Block(
                mixer="latent",
                feed_forward="experts" if routed else "dense",
                dense=mla + mlp,
                experts=64 * 3 * hidden * 1536 if routed else 0,
                shared=routed,
                cache_elements=rank + rope,
                n_heads_by_dims=heads * (2 * rank + rope),
                head_dim=576,
            )
        )
    return Shape(tuple(blocks), hidden, 154880 * hidden, 154880 * hidden, 64, 4)


def _nemotron3_nano() -> Shape:
    hidden, pattern = 2688, "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
    inner, groups, state, heads = 4096, 8, 128, 64
    mamba = hidden * (2 * inner + 2 * groups * state + heads) + inner * hidden
    blocks = []
    for kind in pattern:
        if kind == "M":
            n_state = inner * state + 3 * (inner + 2 * groups * state)
            # Mamba-2 has one projection where a delta net has four: fewer kernels by ten.
            blocks.append(Block("recurrent", "none", mamba, state_bytes=4 * n_state, n_norms=2 - 10))
        elif kind == "*":
            attention = _attention(hidden, 32, 2, 128)
            blocks.append(Block("full", "none", attention, cache_elements=512, n_heads_by_dims=32 * 256))
        else:
            dense = 2 * hidden * 3712 + hidden * 128
            blocks.append(Block("none", "experts", dense, 128 * 2 * hidden * 1856, shared=True))
    return Shape(tuple(blocks), hidden, 131072 * hidden, 131072 * hidden, 128, 6)


def _lfm2_350m() -> Shape:
    hidden, width = 1024, 4608
    blocks = []
    for i in range(16):
        is_attention = i in (2, 5, 8, 10, 12, 14)
        mix = _attention(hidden, 16, 8, 64) if is_attention else 4 * hidden * hidden
        blocks.append(
            Block(
                "full" if is_attention else "shortconv",
                "dense",
                mix + 3 * hidden * width,
                cache_elements=2 * 8 * 64 if is_attention else 0,
                n_heads_by_dims=16 * 128 if is_attention else 0,
                head_dim=64,
            )
        )
    return Shape(tuple(blocks), hidden, 65536 * hidden, 0)


# Published configurations (config.json of the base model), by what its names contain; the first match counts.
SHAPES: Sequence[tuple[str, Callable[[], Shape]]] = (
    (r"35b-a3b|btl-4", lambda: _qwen35(40, 2048, 0, 16, 2, 32, moe=(256, 8, 512, 512))),
    (r"qwen3\.[568]-27b|qwopus3\.5-27b", lambda: _qwen35(64, 5120, 17408, 24, 4, 48)),
    (r"qwen3\.5-9b|qwythos-9b", lambda: _qwen35(32, 4096, 12288, 16, 4, 32)),
    (r"qwen3\.5-2b", lambda: _qwen35(24, 2048, 6144, 8, 2, 16, tied=True)),
    (r"qwen3\.5-0\.8b", lambda: _qwen35(24, 1024, 3584, 8, 2, 16, tied=True)),
    (r"gemma-4-31b", lambda: _gemma4(60, 5376, 21504, 32, 16, global_kv=4)),
    (r"26b-a4b", lambda: _gemma4(30, 2816, 2112, 16, 8, global_kv=2, moe=(128, 8, 704))),
    (r"gemma-4-12b", lambda: _gemma4(48, 3840, 15360, 16, 8, global_kv=1)),
    (r"gemma-4-e4b", lambda: _gemma4(42, 2560, 10240, 8, 2, window=512, per_layer=256, n_shared_kv=18)),
    (
        r"gemma-4-e2b",
        lambda: _gemma4(35, 1536, 6144, 8, 1, every=5, window=512, per_layer=256, n_shared_kv=20, wide_shared=True),
    ),
    (
        r"gemma-3-1b",
        lambda: _transformer(26, 1152, 6912, 4, 1, 262144, dim=256, tied=True, window=_every(6, 512), n_norms=6),
    ),
    (
        r"gemma-3-4b",
        lambda: _transformer(34, 2560, 10240, 8, 4, 262144, dim=256, tied=True, window=_every(6, 1024), n_norms=6),
    ),
    (r"nemotron-3-nano-30b", _nemotron3_nano),
    (
        r"north-mini",
        lambda: _transformer(
            49,
            2048,
            3072,
            32,
            4,
            262144,
            tied=True,
            window=_every(4, 4096),
            moe=(128, 8, 768, 0),
            n_dense=1,
            n_norms=1,
        ),
    ),
    (r"glm-4\.7-flash", _glm47_flash),
    (
        r"laguna-xs",
        lambda: _transformer(
            40, 2048, 8192, 56, 8, 100352, window=_every(4, 512), moe=(256, 8, 512, 512), n_dense=1, n_norms=5
        ),
    ),
    (
        r"trinity-mini",
        lambda: _transformer(
            32,
            2048,
            6144,
            32,
            4,
            200192,
            gated=True,
            window=_every(4, 2048),
            moe=(128, 8, 1024, 1024),
            n_dense=2,
            n_norms=8,
        ),
    ),
    (
        r"qwen3(-coder)?-30b-a3b",
        lambda: _transformer(48, 2048, 0, 32, 4, 151936, moe=(128, 8, 768, 0), n_norms=4),
    ),
    (r"qwen2\.5(-coder)?-7b", lambda: _transformer(28, 3584, 18944, 28, 4, 152064)),
    (r"qwen3-14b", lambda: _transformer(40, 5120, 17408, 40, 8, 151936, n_norms=4)),
    (
        r"gemma-3-12b",
        lambda: _transformer(48, 3840, 15360, 16, 8, 262144, dim=256, tied=True, window=_every(6, 1024), n_norms=6),
    ),
    (r"qwen3-8b", lambda: _transformer(36, 4096, 12288, 32, 8, 151936, n_norms=4)),
    (r"qwen3-1\.7b", lambda: _transformer(28, 2048, 6144, 16, 8, 151936, tied=True, n_norms=4)),
    (r"qwen3-0\.6b", lambda: _transformer(28, 1024, 3072, 16, 8, 151936, tied=True, n_norms=4)),
    (r"phi-4-mini", lambda: _transformer(32, 3072, 8192, 24, 8, 200064, tied=True)),
    (r"lfm2\.5-350m", _lfm2_350m),
    (r"llama-(3(\.1)?-)?8b|llama 8b", lambda: _transformer(32, 4096, 14336, 32, 8, 128256)),
    (
        r"gpt-oss-20b",
        lambda: _transformer(
            24, 2880, 0, 64, 8, 201088, dim=64, window=_every(2, 128), moe=(32, 4, 2880, 0), n_norms=8
        ),
    ),
    (
        r"gpt-oss-120b",
        lambda: _transformer(
            36, 2880, 0, 64, 8, 201088, dim=64, window=_every(2, 128), moe=(128, 4, 2880, 0), n_norms=8
        ),
    ),
    (r"llama-7b", lambda: _transformer(32, 4096, 11008, 32, 32, 32000)),
    (r"mixtral-8x7b", lambda: _transformer(32, 4096, 0, 32, 8, 32000, moe=(8, 2, 14336, 0))),
    (r"mixtral-8x22b", lambda: _transformer(56, 6144, 0, 48, 8, 32768, moe=(8, 2, 16384, 0))),
)


def _api(machine: Machine) -> str:
    return machine.devices[0].api if machine.devices else "cpu"


def shape_of(name: str) -> Shape | None:
    """The shape of a model by its name, or `None` when it is not in the table."""
    lowered = name.lower()
    return next((make() for pattern, make in SHAPES if re.search(pattern, lowered)), None)


def quant_name(text: str, command: str = "") -> str | None:
    """The key of `BITS` for a quantization as runs spell it."""
    if "-qat-" in command.lower():
        return "QAT"
    name = text.upper().replace("UD-", "").replace("UNSLOTH-DYNAMIC-", "")
    name = {"FP8": "FP8", "MLX-4BIT": "INT4", "MLX-8BIT": "Q8_0"}.get(name, name)
    return name if name in BITS else None


def blocks_of(
    shape: Shape, quant: str, cache_bits: float, *, is_vllm: bool = False, is_dynamic: bool = False
) -> list[LayerWork]:
    """One `LayerWork` per block, then the output stage."""
    bits, type_name = BITS[quant], TYPES[quant]
    if type_name.endswith("_K") and shape.hidden % 256:
        bits *= 1.3  # rows that superblocks do not divide fall back to q5_0 and q8_0
    hidden_bytes = (2 if is_vllm else 4) * shape.hidden

    def weights(n_elements: int, n_bits: float = bits, name: str = type_name) -> tuple[Read, ...]:
        return (Read(name, int(n_elements * n_bits / 8), n_elements),) if n_elements else ()

    # Dynamic quantizers keep the attention of MoE models higher than the experts; outputs are q6_K or more.
    is_mixed = is_dynamic and shape.n_experts > 0 and bits < 8
    dense_bits = max(bits, 6.6) if is_mixed else bits
    dense_type = "q6_K" if dense_bits != bits else type_name
    layers: list[LayerWork] = []
    made: dict[Block, LayerWork] = {}
    for block in shape.blocks:
        if block in made:
            layers.append(made[block])
            continue
        # A quantized cache with heads over 256 has no vector kernel: CUDA first unpacks it to f16 (fattn.cu).
        unpacked = 4.0 if cache_bits < 16 and block.head_dim > 256 and not is_vllm else 0.0
        layers.append(
            LayerWork(
                dense=weights(block.dense, dense_bits, dense_type),
                experts=weights(block.experts),
                n_experts=shape.n_experts if block.experts else 0,
                n_experts_used=shape.n_used if block.experts else 0,
                cache_token_bytes=int(block.cache_elements * (cache_bits / 8 + unpacked)),
                cache_is_quantized=cache_bits < 16 and not unpacked and not is_vllm,
                window_tokens=block.window,
                state_bytes=block.state_bytes,
                attention_flops=2 * block.n_heads_by_dims,
                hidden_bytes=hidden_bytes,
                n_kernels=n_kernels(
                    block.mixer, block.feed_forward, n_norms=block.n_norms, has_shared_experts=block.shared
                ),
            )
        )
        made[block] = layers[-1]
    if is_vllm:
        output = weights(shape.output, 16, "BF16")
    elif quant == "QAT":
        output = weights(shape.output)
    else:
        output = weights(shape.output, max(bits, 6.57), "q6_K" if bits < 6.57 else type_name)
    layers.append(LayerWork(dense=output, n_kernels=4, last_token_only=True))
    return layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One public run, ready for the model. A split keeps runs of one `group` (machine, model) together."""

    index: int
    group: str
    label: str
    engine: str
    api: str
    machine: Machine
    layers: tuple[tuple[LayerWork, Place], ...]
    n_filled: int
    n_sequences: int
    n_ubatch: int
    n_prompt: int
    n_before: int  #: tokens in the cache when the prompt of the prefill rate begins
    decode: float
    prefill: float | None  #: only where the run says how long its prompt was
    draft: Draft | None = None


def _flag(command: str, *names: str) -> str | None:
    for name in names:
        match = re.search(rf"(?:^|\s){re.escape(name)}[ =]+(\S+)", command)
        if match:
            return match[1]
    return None


def _number(command: str, *names: str) -> int | None:
    text = _flag(command, *names)
    return int(text) if text and text.isdigit() else None


def _depth(row: Mapping[str, Any], command: str) -> int:
    """Tokens in the cache while decoding."""
    n_new = _number(command, "-n") or 128
    context = int(row["context"] or 0)
    if "llama-bench" in command:
        depth = _number(command, "-d")
        if depth is not None:
            return depth + n_new // 2
        # Some runs give the depth as the prompt's length and report it as the context.
        return context if context == _number(command, "-p") else n_new // 2
    asked = _number(command, "-c", "--ctx-size", "--max-model-len")
    if asked is not None and context < asked:
        return context
    return min(context, 1024)


def _machine(names: str, cpu: str, n_devices: int, api: str | None) -> Machine | None:
    """The machine with `n_devices` of the first device that is known by one of the names, or `None`."""
    if "780M" in names:
        return Machine(host=_host(cpu), devices=(_RADEON_780M,))
    found = next((profile for name, profile in PROFILES.items() if name in names), None)
    if found is None:
        return None
    device = load_machine(found, ram="512GiB:none").devices[0]
    devices = (
        dataclasses.replace(
            device,
            id=f"GPU{i}",
            index=i,
            pool=HOST_POOL if device.pool == HOST_POOL else "",
            api=api or device.api,
        )
        for i in range(n_devices)
    )
    return Machine(host=_host(cpu), devices=tuple(devices))


def _host(cpu: str) -> Host:
    bandwidth, n_cores = next((facts for name, facts in HOSTS.items() if name in cpu), (None, None))
    return Host(
        total_bytes=None,
        available_bytes=None,
        bandwidth_bytes_per_s=None if bandwidth is None else int(bandwidth),
        n_cores_physical=n_cores,
    )


def _places(
    row: Mapping[str, Any], flags: str, layers: Sequence[LayerWork], engine: str, caches: Sequence[int]
) -> list[Place]:
    """Where the blocks lie: what the command says, or what the peak implies when the model cannot fit."""
    n_devices, n_layers = int(row["gpu_count"] or 1), len(layers)
    if engine == "vllm":
        ranks = tuple(f"GPU{i}" for i in range(n_devices))
        return [Place("GPU0", ranks=ranks if n_devices > 1 else ())] * n_layers
    if n_devices > 1:
        return [Place(f"GPU{i * n_devices // n_layers}") for i in range(n_layers)]
    if "--no-kv-offload" in flags:
        return [Place("GPU0", cache=HOST_POOL if layer.cache_token_bytes else None) for layer in layers]
    n_host_experts = _number(flags, "--n-cpu-moe", "-ncmoe")
    n_gpu = _number(flags, "-ngl", "--gpu-layers", "--n-gpu-layers")
    sizes = [_weights_bytes(layer) + n for layer, n in zip(layers, caches, strict=True)]
    capacity, peak = (row["vram_gb"] or math.inf) * GB, (row["peak_vram_gb"] or 0) * GB
    if n_host_experts is None and n_gpu is None and sum(sizes) + GB // 2 > capacity:
        if any(layer.experts for layer in layers):
            hosted = sum(sizes) + GB - peak
            n_host_experts = math.ceil(hosted / max(_expert_bytes(layer) for layer in layers))
        else:
            room, n_gpu = peak - GB, 0
            for size in reversed(sizes):
                room -= size
                n_gpu += room >= 0
    if n_gpu is not None and n_gpu < n_layers - 1:
        return [Place("GPU0" if i >= n_layers - n_gpu else HOST_POOL) for i in range(n_layers)]
    n_hosted = n_host_experts or 0
    in_ram = [i < n_hosted and bool(layer.experts) for i, layer in enumerate(layers)]
    return [Place("GPU0", experts=HOST_POOL if hosted else None) for hosted in in_ram]


def _expert_bytes(layer: LayerWork) -> int:
    return sum(read.n_bytes for read in layer.experts)


def _weights_bytes(layer: LayerWork) -> int:
    return sum(read.n_bytes for read in (*layer.dense, *layer.experts))


def _cache_bytes(shape: Shape, n_cached: int, cache_bits: float) -> list[int]:
    """What each block keeps, and nothing for the output stage."""
    counts = (block.n_kept * min(n_cached, block.window or n_cached) for block in shape.blocks)
    return [*(int(n * cache_bits / 8) for n in counts), 0]


def _draft(command: str, engine: str, layers: Sequence[LayerWork], places: Sequence[Place]) -> Draft | None:
    """What drafts: a block and the output stage of the model (MTP), or a small model at once (DFlash)."""
    is_block = re.search(r"dflash", command, re.IGNORECASE) is not None
    if not is_block and not re.search(r"--spec-type|speculative-config|--mtp-head", command):
        return None
    match = re.search(r"num_speculative_tokens\W+(\d+)", command)
    n = _number(command, "--spec-draft-n-max", "--draft-max", "--draft-block-size", "--budget")
    n_tokens = int(match[1]) if match else n or 3
    block = next(layer for layer in reversed(layers) if layer.cache_token_bytes)
    at = Place(places[-1].device, ranks=places[-1].ranks)
    own = () if re.search(r"gemma", command, re.IGNORECASE) else ((layers[-1], at),)
    if is_block:
        return Draft(layers=((block, at),) * 5 + own, n_tokens=n_tokens, is_parallel=True)
    return Draft(layers=((block, at), *own), n_tokens=n_tokens)


def load(path: Path) -> tuple[list[Run], list[str]]:
    """The runs of a file, once each, and why others are left out."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    runs: list[Run] = []
    left_out: list[str] = []
    seen: set[tuple[object, ...]] = set()
    deepest: dict[tuple[object, ...], int] = {}
    flags: dict[tuple[object, ...], str] = {}
    for row in rows:
        key, command = _series(row), row["command"] or ""
        deepest[key] = max(deepest.get(key, 0), _number(command, "-d") or 0)
        # Commands of a series are often shortened: what one run of it says holds for the others.
        said = re.findall(r"(?:-ctk|--cache-type-k|--n-cpu-moe) \S+", command)
        flags[_series(row)[:3]] = " ".join((flags.get(_series(row)[:3], ""), *said))
    for index, row in enumerate(rows):
        same = (row["hf_id"], row["quant"], row["tok_s"], row["prefill_tok_s"], row["command"])
        if same in seen:
            left_out.append(f"{index}: repeats another run")
            continue
        seen.add(same)
        key = _series(row)
        run = _run(index, row, f"{row['command'] or ''} {flags[key[:3]]}", deepest[key])
        if isinstance(run, str):
            left_out.append(f"{index}: {run}")
        else:
            runs.append(run)
    return runs, left_out


def _series(row: Mapping[str, Any]) -> tuple[object, ...]:
    return row["gpu"], row["hf_id"], row["quant"], row["peak_vram_gb"]


def _cache_name(row: Mapping[str, Any], flags: str, shape: Shape, quant: str, deepest: int) -> str:
    """The type of the cache: what is said, or the largest with which the series fits its card."""
    named = _flag(flags, "-ctk", "--cache-type-k", "--kv-cache-dtype") or row["kv"]
    if named or not deepest or int(row["gpu_count"] or 1) > 1:
        return named or "f16"
    capacity = (row["vram_gb"] or math.inf) * GB
    for name in ("f16", "q8_0"):
        layers = blocks_of(shape, quant, CACHE_BITS[name])
        n_bytes = sum(map(_weights_bytes, layers)) + sum(_cache_bytes(shape, deepest, CACHE_BITS[name]))
        if n_bytes + GB // 2 <= capacity or sum(map(_weights_bytes, layers)) > capacity:
            return name
    return "q4_0"


def _run(index: int, row: Mapping[str, Any], flags: str, deepest: int) -> Run | str:
    command = row["command"] or ""
    engine = {"llama.cpp": "llama", "vllm": "vllm"}.get(row["engine"])
    if engine is None:
        return f"engine {row['engine']}"
    if row["vram_gb"] and (row["peak_vram_gb"] or 0) > row["vram_gb"] * row["gpu_count"]:
        return "the peak exceeds the card: memory was overcommitted"
    quant, name = quant_name(row["quant"], command), row["hf_id"]
    file = _flag(command, "-m", "--model")
    if file and shape_of(file) and "llama-bench" in command:
        name = file  # what was run counts, not the page it was reported for
    shape = shape_of(name)
    if shape is None or quant is None:
        return f"no shape for {name} {row['quant']}"
    cache_name = _cache_name(row, flags, shape, quant, deepest)
    cache_bits = CACHE_BITS.get(cache_name, 16)
    is_dynamic = row["quant"].upper().startswith("U")
    layers = blocks_of(shape, quant, cache_bits, is_vllm=engine == "vllm", is_dynamic=is_dynamic)
    device_name = row["gpu"] or row["cpu"] or ""
    if row["backend"] == "cpu":
        machine, places = Machine(host=_host(device_name)), [Place(HOST_POOL)] * len(layers)
    else:
        found = _machine(device_name, row["cpu"] or "", int(row["gpu_count"] or 1), row["backend"])
        if found is None:
            return f"no profile for {device_name!r}"
        machine = found
        caches = _cache_bytes(shape, deepest, cache_bits)
        places = _places(row, flags, layers, engine, caches)
    draft = _draft(command, engine, layers, places)
    bandwidth = sum(device.bandwidth_bytes_per_s or 0 for device in machine.devices)
    active = sum(_weights_bytes(layer) - _expert_bytes(layer) for layer in layers)
    if draft is None and bandwidth and row["tok_s"] * active > bandwidth:
        return "faster than the memory of the card allows: speculation that the command does not show"
    context = int(row["context"] or 0)
    says_prompt = "llama-bench" in command or context < (_number(command, "-c", "--ctx-size") or 0)
    family = next(pattern for pattern, _ in SHAPES if re.search(pattern, name.lower()))
    return Run(
        index=index,
        group=f"{device_name}|{family}",
        label=f"{device_name} x{row['gpu_count']} {name.split('/')[-1]} {row['quant']} @{row['context']}",
        engine=engine,
        api=_api(machine),
        machine=machine,
        layers=tuple(zip(layers, places, strict=True)),
        n_filled=_depth(row, command),
        n_sequences=row["batch"] if engine == "vllm" else 1,
        n_ubatch=_number(command, "-ub", "--ubatch-size", "--max-num-batched-tokens") or 512,
        n_prompt=_number(command, "-p") or context,
        n_before=_number(command, "-d") or 0,
        decode=row["tok_s"],
        prefill=row["prefill_tok_s"] if says_prompt and draft is None else None,
        draft=draft,
    )


def anchors() -> list[Run]:
    """Cited measurements beside the runs, for placements and vendors of which there are few; from -1 down."""
    with (Path(__file__).parent / "anchors.csv").open(encoding="utf-8", newline="") as file:
        return [_anchor(-1 - i, row) for i, row in enumerate(csv.DictReader(file))]


def _anchor(index: int, row: Mapping[str, str]) -> Run:
    shape = shape_of(row["model"])
    assert shape is not None, row["model"]
    layers = blocks_of(shape, row["quant"], 16)
    machine = _machine(row["card"], "", 1, row["api"] or None) or Machine(host=_host(""))
    if row["host_gb_per_s"]:
        bandwidth, n_cores = int(float(row["host_gb_per_s"]) * GB), int(row["n_cores"])
        host = dataclasses.replace(machine.host, bandwidth_bytes_per_s=bandwidth, n_cores_physical=n_cores)
        machine = dataclasses.replace(machine, host=host)
    places = [Place("GPU0" if machine.devices else HOST_POOL)] * len(layers)
    n_host_experts = int(row["n_host_experts"])
    places[:n_host_experts] = [Place("GPU0", experts=HOST_POOL)] * n_host_experts
    return Run(
        index=index,
        group=f"{row['card']}|{row['model']}",
        label=f"{row['card']} {row['model']} {row['quant']} @{row['n_filled']}",
        engine="llama",
        api=_api(machine),
        machine=machine,
        layers=tuple(zip(layers, places, strict=True)),
        n_filled=int(row["n_filled"]),
        n_sequences=1,
        n_ubatch=int(row["n_ubatch"]),
        n_prompt=int(row["n_prompt"]),
        n_before=0,
        decode=float(row["decode"]),
        prefill=float(row["prefill"]) if row["prefill"] else None,
    )
