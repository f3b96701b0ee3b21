"""Methods that vLLM takes with --allow-deprecated-quantization only: FBGEMM's fp8 and FP-Quant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from autofit.domain.values import dataclass
from autofit.errors import EngineRefusalError

from autofit_vllm.modules.model import Linear
from autofit_vllm.modules.sharding import LinearShape
from autofit_vllm.quantization.floating import Fp8Scheme
from autofit_vllm.quantization.names import NameList, skipped
from autofit_vllm.quantization.scheme import UNQUANTISED, Quantization, Scheme, Tensor, group_size_of

_FP_QUANT_GROUPS = {"mxfp4": 32, "nvfp4": 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class FbgemmScheme(Fp8Scheme):
    """A scale per channel, and a bound on those of the inputs (layers/quantization/fbgemm_fp8.py)."""

    def linear(self, shape: LinearShape) -> Iterator[Tensor]:
        yield from Fp8Scheme.linear(self, shape)
        yield Tensor("input_scale_ub", (), "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fbgemm(Quantization):
    """fbgemm_fp8.py:FBGEMMFp8Config. Experts stay as they are."""

    ignored: NameList

    def linear(self, module: Linear) -> Scheme:
        if skipped(module.name, module.shards, self.ignored):
            return UNQUANTISED
        return FbgemmScheme(granularity="channel")


def fbgemm(config: Mapping[str, Any]) -> Fbgemm:
    return Fbgemm(
        name="fbgemm_fp8",
        min_capability=80,
        dtypes=("bfloat16", "float16"),
        ignored=NameList(str(name) for name in config.get("modules_to_not_convert") or ()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FpQuantScheme(Scheme):
    """Two weights a byte, a byte of scale per group, and a rotation (layers/quantization/fp_quant.py)."""

    group: int
    rotation: int

    def linear(self, shape: LinearShape) -> Iterator[Tensor]:
        if shape.in_rank % self.rotation:
            raise EngineRefusalError(
                "The input size is not aligned with the quantized weight shape. This can be caused by too large "
                "tensor parallel size.",
                hint="use a smaller tensor parallel size",
            )
        yield Tensor("qweight", (shape.out_rank, shape.in_rank // 2), "uint8")
        yield Tensor("scales", (shape.out_rank, shape.in_rank // self.group), "uint8")
        yield Tensor("weight_global_scale", (1,), "float32")
        yield Tensor("act_global_scale", (1,), "float32")
        yield Tensor("forward_hadamard_matrix", (self.rotation, self.rotation), shape.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class FpQuant(Quantization):
    """fp_quant.py:FPQuantConfig. Experts stay as they are."""

    scheme: Scheme
    ignored: tuple[str, ...]

    def linear(self, module: Linear) -> Scheme:
        return UNQUANTISED if module.name.endswith(self.ignored) else self.scheme


def fp_quant(config: Mapping[str, Any]) -> FpQuant:
    """Raises:
    EngineRefusalError: a type that it does not take.
    """
    kind = str(config.get("forward_dtype"))
    if kind not in _FP_QUANT_GROUPS:
        raise EngineRefusalError("FP-Quant: Only mxfp4 and nvfp4 are supported for now")
    return FpQuant(
        name="fp_quant",
        min_capability=100,
        dtypes=("bfloat16",),
        scheme=FpQuantScheme(group=_FP_QUANT_GROUPS[kind], rotation=group_size_of(config, "hadamard_group_size")),
        ignored=tuple(str(name) for name in config.get("modules_to_not_convert") or ()),
    )
