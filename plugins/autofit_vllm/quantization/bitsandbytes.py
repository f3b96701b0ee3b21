"""bitsandbytes, as vLLM's plugin keeps it: four bits with a scale per block, or eight with one per row
(vllm_bnb_plugin)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from autofit.domain.values import dataclass
from autofit.errors import EngineRefusalError

from autofit_vllm.modules.model import Experts, Linear
from autofit_vllm.modules.sharding import ExpertsShape, LinearShape
from autofit_vllm.quantization.scheme import UNQUANTISED, Quantization, Scheme, Tensor, cdiv

_BLOCK = 64  #: weights under one scale (bitsandbytes' functional.py:quantize_4bit)
_CODE = 16  #: values of four bits, listed beside each weight


@dataclass(frozen=True, slots=True, kw_only=True)
class FourBitScheme(Scheme):
    """Two weights a byte; the scales are no parameters, and are kept in fp32 (bitsandbytes_loader.py)."""

    out_size: int  #: of the checkpoint's weight; more on all ranks together: they hold copies

    def linear(self, shape: LinearShape) -> Iterator[Tensor]:
        if shape.out_size > self.out_size:
            raise EngineRefusalError(
                "bitsandbytes cannot load copies of KV heads: the weights are cut into as many parts as ranks",
                hint="use a tensor parallel size of at most the number of KV heads",
            )
        yield Tensor("weight", (shape.in_rank * shape.out_rank // 2, 1), "uint8")

    def loaded_linear(self, shape: LinearShape) -> Iterator[Tensor]:
        yield from self.linear(shape)
        for size in shape.outs_rank:
            yield Tensor("absmax", (cdiv(size * shape.in_rank, _BLOCK),), "float32")
            yield Tensor("code", (_CODE,), "float32")

    def experts(self, shape: ExpertsShape) -> Iterator[Tensor]:
        hidden, width = shape.hidden_size, shape.intermediate_rank
        yield Tensor("w13_weight", (shape.count, hidden * 2 * width // 2, 1), "uint8")
        yield Tensor("w2_weight", (shape.count, hidden * width // 2, 1), "uint8")

    def loaded_experts(self, shape: ExpertsShape) -> Iterator[Tensor]:
        yield from self.experts(shape)
        blocks = cdiv(shape.hidden_size * shape.intermediate_rank, _BLOCK)
        yield Tensor("absmax", (3 * shape.count * blocks,), "float32")
        yield Tensor("code", (2 * _CODE,), "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class EightBitScheme(Scheme):
    """One byte a weight, an fp32 scale per output."""

    def linear(self, shape: LinearShape) -> Iterator[Tensor]:
        yield Tensor("weight", (shape.out_rank, shape.in_rank), "int8")

    def loaded_linear(self, shape: LinearShape) -> Iterator[Tensor]:
        yield from self.linear(shape)
        yield Tensor("SCB", (shape.out_rank,), "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsAndBytes(Quantization):
    """vllm_bnb_plugin's quantization/config.py:BitsAndBytesConfig."""

    eight_bits: bool
    skipped: frozenset[str]

    def linear(self, module: Linear) -> Scheme:
        words = module.name.split(".")
        paths = {".".join(words[: end + 1]) for end in range(len(words))}
        if self.skipped & (paths | set(words)):
            return UNQUANTISED
        return EightBitScheme() if self.eight_bits else FourBitScheme(out_size=module.out_size)

    def experts(self, module: Experts, shape: ExpertsShape) -> Scheme:
        if self.eight_bits:
            raise EngineRefusalError("Prequant BitsAndBytes 8bit models with RoutedExperts is not supported yet.")
        return FourBitScheme(out_size=module.intermediate_size)


def bitsandbytes(config: Mapping[str, Any], *, stored: bool) -> BitsAndBytes:
    """`stored`: the checkpoint holds quantized weights; otherwise they are quantized to four bits while loading.

    Raises:
        EngineRefusalError: packed into another type than bytes.
    """
    storage = config.get("bnb_4bit_quant_storage") or "uint8"
    if storage != "uint8":
        raise EngineRefusalError(f"Unsupported bnb_4bit_quant_storage: {storage}")
    eight = bool(config.get("load_in_8bit"))
    return BitsAndBytes(
        name="bitsandbytes",
        min_capability=70,
        # In fp32 the plugin counts four weights a byte, and cannot load them
        # (quantization/utils.py:calculate_quant_ratio).
        dtypes=("float16", "bfloat16"),
        while_loading=True,
        one_rank=stored,
        eager=eight,
        eight_bits=eight,
        skipped=frozenset(str(name) for name in config.get("llm_int8_skip_modules") or ()),
    )
