"""Eight-bit floating-point weights with one scale per tensor, channel or block, and four-bit ones in groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from autofit.domain.values import dataclass
from autofit.errors import EngineRefusalError

from autofit_vllm.engine.versions import DEFAULT, Change, Engine
from autofit_vllm.modules.model import Experts, Linear
from autofit_vllm.modules.sharding import ExpertsShape, LinearShape, round_up
from autofit_vllm.quantization.names import NameList, skipped
from autofit_vllm.quantization.scheme import (
    UNQUANTISED,
    Quantization,
    Scheme,
    Tensor,
    cdiv,
    expert_biases,
)

Granularity = Literal["tensor", "channel", "block"]
Block = tuple[int, int]


def check_block_shape(shape: LinearShape, block: Block, *, lenient: bool) -> None:
    """A block of the checkpoint may not straddle two shards, or two parts of a merged layer
    (layers/quantization/utils/fp8_utils.py:validate_fp8_block_shape).

    `lenient` lets merged layers through whose parts end inside a block, as fp8 checkpoints do
    (layers/linear.py:_maybe_allow_fp8_block_shape_mismatch).

    Raises:
        EngineRefusalError: it would.
    """
    rows, columns = block
    merged = len(shape.outs_rank) > 1
    if lenient and merged and any(size % rows for size in shape.outs_rank):
        return
    if shape.tp > 1 and shape.is_row and shape.in_rank % columns:
        raise EngineRefusalError(
            f"Weight input_size_per_partition = {shape.in_rank} is not divisible by weight quantization "
            f"block_k = {columns}.",
            hint="use a smaller tensor parallel size",
        )
    split = shape.tp > 1 and shape.out_size != shape.out_rank
    for size in shape.outs_rank if split else shape.outs_rank[:-1]:
        if size % rows:
            raise EngineRefusalError(
                f"Weight output_partition_size = {size} is not divisible by weight quantization block_n = {rows}.",
                hint="use a smaller tensor parallel size",
            )


def check_experts_block_shape(shape: ExpertsShape, block: Block) -> None:
    """(layers/quantization/utils/fp8_utils.py:validate_fp8_block_shape_moe)

    Raises:
        EngineRefusalError: a block would straddle two shards.
    """
    if shape.intermediate_rank % block[0] or (shape.tp > 1 and shape.intermediate_rank % block[1]):
        raise EngineRefusalError(
            f"The output_size of gate's and up's weight = {shape.intermediate_rank} is not divisible by "
            f"weight quantization block_n = {block[0]}.",
            hint="use a smaller tensor parallel size or expert parallelism",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Scheme(Scheme):
    """`suffix` is what the scale of a weight is called; `static` adds a scale for the input."""

    granularity: Granularity
    block: Block = (128, 128)
    static: bool = False
    suffix: str = "weight_scale"
    scale_dtype: str = "float32"
    bias_in_checkpoint: bool = True  #: experts keep biases where the model has them
    lenient: bool = False  #: blocks may end inside a shard: merged layers, and experts with finer scales

    def linear(self, shape: LinearShape) -> Iterator[Tensor]:
        yield Tensor("weight", (shape.out_rank, shape.in_rank), "float8_e4m3fn")
        yield Tensor(self.suffix, self._linear_scale(shape), self.scale_dtype)
        if self.static:
            yield Tensor("input_scale", (len(shape.outs_rank),), "float32")

    def _linear_scale(self, shape: LinearShape) -> tuple[int, ...]:
        if self.granularity == "tensor":
            return (len(shape.outs_rank),)
        if self.granularity == "channel":
            return (shape.out_rank, 1)
        check_block_shape(shape, self.block, lenient=self.lenient)
        return (cdiv(shape.out_rank, self.block[0]), cdiv(shape.in_rank, self.block[1]))

    def experts_block(self, shape: ExpertsShape) -> Block:
        """The checkpoint's blocks, or finer ones that divide both them and the shards
        (fused_moe/oracle/fp8.py:refine_fp8_moe_block_shape)."""
        if self.lenient:
            width, aligned = shape.intermediate_rank, shape.intermediate_rank % self.block[0] == 0
            if not aligned or (shape.tp > 1 and width % self.block[1]):
                finer = math.gcd(*self.block, width, shape.hidden_size)
                if finer >= 32:
                    return finer, finer
        check_experts_block_shape(shape, self.block)
        return self.block

    def experts(self, shape: ExpertsShape) -> Iterator[Tensor]:
        count, hidden, width, rows = (
            shape.count,
            shape.hidden_size,
            shape.intermediate_rank,
            shape.w13_rows,
        )
        yield Tensor("w13_weight", (count, rows, hidden), "float8_e4m3fn")
        yield Tensor("w2_weight", (count, hidden, width), "float8_e4m3fn")
        if self.bias_in_checkpoint:
            yield from expert_biases(shape)
        if self.granularity == "tensor":
            scales: tuple[tuple[int, ...], tuple[int, ...]] = ((count, shape.shards), (count,))
        elif self.granularity == "channel":
            scales = ((count, rows, 1), (count, hidden, 1))
        else:
            n, k = self.experts_block(shape)
            scales = (
                (count, shape.shards * cdiv(width, n), cdiv(hidden, k)),
                (count, cdiv(hidden, n), cdiv(width, k)),
            )
        yield Tensor(f"w13_{self.suffix}", scales[0], "float32")
        yield Tensor(f"w2_{self.suffix}", scales[1], "float32")
        if self.static:
            yield Tensor("w13_input_scale", (count,), "float32")
            yield Tensor("w2_input_scale", (count,), "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8(Quantization):
    """layers/quantization/fp8.py:Fp8Config."""

    scheme: Fp8Scheme
    ignored: NameList
    four_bit_experts: Scheme | None = None

    def linear(self, module: Linear) -> Scheme:
        if skipped(module.name, module.shards, self.ignored):
            return UNQUANTISED
        return self.scheme

    def experts(self, module: Experts, shape: ExpertsShape) -> Scheme:
        if self.ignored.experts(module.name):
            return UNQUANTISED
        if self.four_bit_experts is not None:
            return self.four_bit_experts
        # Kernels that compute in half precision know the checkpoint's own blocks only (fused_moe/oracle/fp8.py).
        block = self.scheme.granularity == "block"
        if block and self.capability < 89 and self.scheme.experts_block(shape) != self.scheme.block:
            raise EngineRefusalError(
                "No FP8 MoE backend supports the deployment configuration.",
                hint="use a smaller tensor parallel size or expert parallelism",
            )
        return self.scheme

    def attention(self, kv_heads: int, dtype: str, *, latent: bool) -> Iterable[Tensor]:
        return () if latent else cache_scales(dtype)


def cache_scales(dtype: str) -> Iterator[Tensor]:
    """(layers/quantization/kv_cache.py:BaseKVCacheMethod)"""
    for name in ("q_scale", "k_scale", "v_scale", "prob_scale"):
        yield Tensor(name, (), dtype)


def fp8(config: Mapping[str, Any], *, experts: Scheme | None = None) -> Fp8:
    """`experts` is how experts of four bits are kept, where the file has such.

    Raises:
    EngineRefusalError: an activation scheme or block that vLLM does not take.
    """
    activation = config.get("activation_scheme", "dynamic")
    if activation not in ("static", "dynamic"):
        raise EngineRefusalError(f"Unsupported activation scheme {activation}")
    block = config.get("weight_block_size")
    if block is not None and (not isinstance(block, list | tuple) or len(block) != 2):
        raise EngineRefusalError("The quantization block size of weight must have 2 dimensions")
    if block is not None and any(type(side) is not int or side < 1 for side in block):
        raise EngineRefusalError(f"quantization_config: blocks of {block}")
    if block is not None and activation != "dynamic":
        raise EngineRefusalError("The block-wise quantization only supports dynamic activation scheme")
    of_v4 = config.get("quant_method") == "deepseek_v4_fp8"
    four = of_v4 and config.get("expert_dtype") == "fp4"
    ignored = config.get("ignored_layers") or config.get("modules_to_not_convert") or ()
    if block is None:
        scheme = Fp8Scheme(granularity="tensor", static=activation == "static")
    else:
        scheme = Fp8Scheme(
            granularity="block",
            block=(int(block[0]), int(block[1])),
            suffix="weight_scale_inv",
            scale_dtype="float8_e8m0fnu" if four else "float32",
            lenient=True,
        )
    return Fp8(
        name="deepseek_v4_fp8" if of_v4 else "fp8",
        min_capability=75,
        dtypes=("bfloat16", "float16"),
        scheme=scheme,
        ignored=NameList(entry for entry in ignored if isinstance(entry, str)),
        four_bit_experts=experts if four or config.get("store_dtype") == "mxfp4" else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Nvfp4Scheme(Scheme):
    """Two weights a byte, an fp8 scale per sixteen, an fp32 one per part.

    compressed-tensors and ModelOpt differ in the names and in whether a weight-only checkpoint keeps the scale
    of its inputs.
    """

    group: int = 16
    packed: str = "weight_packed"
    overall: str = "weight_global_scale"
    inputs: str | None = "input_global_scale"  #: of linear layers
    experts_inputs: str = "input_global_scale"
    experts_packed: str = "weight_packed"

    def linear(self, shape: LinearShape) -> Iterator[Tensor]:
        if shape.in_rank % 16:
            raise EngineRefusalError(
                f"Unsupported model when in features size is not multiple of 16: {shape.in_rank}",
                hint="use a smaller tensor parallel size",
            )
        parts = len(shape.outs_rank)
        yield Tensor(self.packed, (shape.out_rank, shape.in_rank // 2), "uint8")
        yield Tensor(self.overall, (parts,), "float32")
        yield Tensor("weight_scale", (shape.out_rank, shape.in_rank // self.group), "float8_e4m3fn")
        if self.inputs is not None:
            yield Tensor(self.inputs, (parts,), "float32")

    def experts(self, shape: ExpertsShape) -> Iterator[Tensor]:
        count, hidden, width, rows = (
            shape.count,
            shape.hidden_size,
            shape.intermediate_rank,
            shape.w13_rows,
        )
        name = self.experts_packed
        yield Tensor(f"w13_{name}", (count, rows, hidden // 2), "uint8")
        yield Tensor(f"w2_{name}", (count, hidden, width // 2), "uint8")
        yield Tensor("w13_weight_scale", (count, rows, hidden // self.group), "float8_e4m3fn")
        yield Tensor("w2_weight_scale", (count, hidden, width // self.group), "float8_e4m3fn")
        for scale in (self.overall, self.experts_inputs):
            yield Tensor(f"w13_{scale}", (count, shape.shards), "float32")
            yield Tensor(f"w2_{scale}", (count,), "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroscaledScheme(Scheme):
    """MXFP4, MXFP6 and MXFP8: a shared exponent per thirty-two weights.

    `rounding` are the multiples that an expert's width and the hidden size are filled up to.
    """

    bits: int
    weight: str = "weight"
    rounding: tuple[int, int] = (1, 1)
    linear_layers: bool = True  #: MXFP4 of gpt-oss is for experts only

    def linear(self, shape: LinearShape) -> Iterable[Tensor]:
        if not self.linear_layers:
            yield from UNQUANTISED.linear(shape)
            return
        yield self._packed(self.weight, (shape.out_rank,), shape.in_rank)
        yield Tensor("weight_scale", (shape.out_rank, shape.in_rank // 32), "uint8")

    def experts(self, shape: ExpertsShape) -> Iterator[Tensor]:
        width = round_up(shape.intermediate_rank, self.rounding[0])
        hidden = round_up(shape.hidden_size, self.rounding[1])
        rows, count = shape.shards * width, shape.count
        yield self._packed(f"w13_{self.weight}", (count, rows), hidden)
        yield self._packed(f"w2_{self.weight}", (count, hidden), width)
        yield Tensor("w13_weight_scale", (count, rows, hidden // 32), "uint8")
        yield Tensor("w2_weight_scale", (count, hidden, width // 32), "uint8")
        if shape.bias:
            yield Tensor("w13_bias", (count, rows), "bfloat16")
            yield Tensor("w2_bias", (count, hidden), "bfloat16")

    def _packed(self, name: str, rows: tuple[int, ...], columns: int) -> Tensor:
        if self.bits == 8:
            return Tensor(name, (*rows, columns), "float8_e4m3fn")
        return Tensor(name, (*rows, columns * self.bits // 8), "uint8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mxfp4(Quantization):
    """Experts in four bits, all else as it is (layers/quantization/mxfp4.py)."""

    scheme: MicroscaledScheme

    def experts(self, module: Experts, shape: ExpertsShape) -> Scheme:
        return self.scheme


_ROUNDING = "layers/fused_moe/oracle/mxfp4.py:mxfp4_round_up_hidden_size_and_intermediate_size"
TRITON_ON_HOPPER = Change(
    since="0.33.0",
    source=_ROUNDING,
    before="0.32.0: FLASHINFER_CUTLASS_MXFP4_BF16 comes first, and needs multiples of 128",
)
CUTLASS_ON_HOPPER = Change(
    since="0.20.0",
    source=_ROUNDING,
    before="0.19.1: Triton's kernels if they are installed, else Marlin, which takes more and is taken to be it",
)
NARROW_TILES = Change(
    since="0.27.0", source=_ROUNDING, before="0.26.0: TRT-LLM needs multiples of 256 of the width, too"
)


def gpt_oss_rounding(capability: int, engine: Engine = DEFAULT) -> tuple[int, int]:
    """Multiples of width and hidden size that the kernel of a GPU generation needs: Triton on Hopper, TRT-LLM
    on Blackwell, Marlin elsewhere (layers/fused_moe/oracle/mxfp4.py)."""
    if 90 <= capability < 100 and engine.has(CUTLASS_ON_HOPPER):
        return (64, 1) if engine.has(TRITON_ON_HOPPER) else (128, 128)
    if 100 <= capability < 110 and not engine.has(NARROW_TILES):
        return 256, 256
    return 128, 256


def mxfp4(capability: int, *, gpt_oss: bool, engine: Engine = DEFAULT) -> Mxfp4:
    rounding = gpt_oss_rounding(capability, engine) if gpt_oss else (128, 256)
    return Mxfp4(
        name="gpt_oss_mxfp4" if gpt_oss else "mxfp4",
        min_capability=80,
        dtypes=("bfloat16",),
        scheme=MicroscaledScheme(bits=4, rounding=rounding, linear_layers=False),
    )
