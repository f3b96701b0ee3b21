"""Unquantized checkpoints that are quantized while they load (layers/quantization/online).

Weights are created in the model's type, layer by layer, and replaced by their quantized form at once: the peak
is the final size and one layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from autofit.domain.values import dataclass, replace
from autofit.errors import EngineRefusalError

from autofit_vllm.modules.model import Experts, Linear
from autofit_vllm.modules.sharding import ExpertsShape, LinearShape, round_up
from autofit_vllm.quantization.floating import Fp8Scheme, MicroscaledScheme, Mxfp4, Nvfp4Scheme
from autofit_vllm.quantization.scheme import UNQUANTISED, Quantization, Scheme, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineScheme(Scheme):
    """Created unquantized, kept as `final`; `rounding` are multiples of an expert's width and hidden size."""

    final: Scheme
    rounding: tuple[int, int] = (1, 1)

    def experts(self, shape: ExpertsShape) -> Iterator[Tensor]:
        yield from UNQUANTISED.experts(self._rounded(shape))

    def loaded_linear(self, shape: LinearShape) -> Iterable[Tensor]:
        return self.final.linear(shape)

    def loaded_experts(self, shape: ExpertsShape) -> Iterable[Tensor]:
        return self.final.experts(self._rounded(shape))

    def _rounded(self, shape: ExpertsShape) -> ExpertsShape:
        return ExpertsShape(
            count=shape.count,
            hidden_size=round_up(shape.hidden_size, self.rounding[1]),
            intermediate_rank=round_up(shape.intermediate_rank, self.rounding[0]),
            shards=shape.shards,
            bias=shape.bias,
            dtype=shape.dtype,
            tp=1,
            expert_parallel=shape.expert_parallel,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8ExpertsScheme(Scheme):
    """One fp32 scale per output channel."""

    def experts(self, shape: ExpertsShape) -> Iterator[Tensor]:
        count, hidden, rows = shape.count, shape.hidden_size, shape.w13_rows
        yield Tensor("w13_weight", (count, rows, hidden), "int8")
        yield Tensor("w2_weight", (count, hidden, shape.intermediate_rank), "int8")
        yield Tensor("w13_scale", (count, rows), "float32")
        yield Tensor("w2_scale", (count, hidden), "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Online(Quantization):
    """layers/quantization/online/base.py:OnlineQuantizationConfig."""

    linear_scheme: Scheme
    experts_scheme: Scheme

    def linear(self, module: Linear) -> Scheme:
        return self.linear_scheme

    def experts(self, module: Experts, shape: ExpertsShape) -> Scheme:
        if self.name == "nvfp4_per_token" and self.capability // 10 != 10:
            raise EngineRefusalError("nvfp4_per_token online quantization requires a Blackwell (SM100) GPU.")
        return self.experts_scheme


_BLOCK = OnlineScheme(final=Fp8Scheme(granularity="block"))
_SCHEMES: dict[str, tuple[Scheme, Scheme]] = {
    "fp8_per_tensor": (OnlineScheme(final=Fp8Scheme(granularity="tensor")),) * 2,
    "fp8_per_channel": (OnlineScheme(final=Fp8Scheme(granularity="channel")),) * 2,
    "fp8_per_block": (_BLOCK, OnlineScheme(final=Fp8Scheme(granularity="block"), rounding=(128, 128))),
    "mxfp8": (OnlineScheme(final=MicroscaledScheme(bits=8)),) * 2,
    "mxfp4": (
        OnlineScheme(final=MicroscaledScheme(bits=4)),
        OnlineScheme(final=MicroscaledScheme(bits=4), rounding=(128, 256)),
    ),
    "int8_per_channel_weight_only": (UNQUANTISED, OnlineScheme(final=Int8ExpertsScheme())),
    "experts_int8": (UNQUANTISED, OnlineScheme(final=Int8ExpertsScheme())),
    "nvfp4_per_token": (UNQUANTISED, OnlineScheme(final=Nvfp4Scheme())),
}

SHORTHANDS = frozenset(_SCHEMES)
#: those that a checkpoint of its own does not silence (config/quantization.py:_DEFERRED_ONLINE_SHORTHANDS)
COMPOSABLE = SHORTHANDS - {"mxfp4", "mxfp8", "experts_int8"}


def online(shorthand: str) -> Online:
    """`--quantization fp8_per_tensor` and its siblings."""
    linear, experts = _SCHEMES[shorthand]
    return Online(
        name=shorthand,
        min_capability=80 if shorthand == "experts_int8" else 75,
        dtypes=("bfloat16", "float16"),
        while_loading=True,
        on_meta=tuple(kind for kind, scheme in (("linear", linear), ("experts", experts)) if scheme is not UNQUANTISED),
        linear_scheme=linear,
        experts_scheme=experts,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed(Quantization):
    """gpt-oss under a shorthand: what its checkpoint leaves alone is quantized while loading, and its experts are not
    filled up for any kernel (config/quantization.py:resolve_quantization_config)."""

    base: Mxfp4
    rest: Online

    def linear(self, module: Linear) -> Scheme:
        return self.rest.linear(module)

    def experts(self, module: Experts, shape: ExpertsShape) -> Scheme:
        replace(self.rest, capability=self.capability).experts(module, shape)  # for what it refuses
        return replace(self.base.scheme, rounding=(1, 1))


def composed(base: Mxfp4, shorthand: str) -> Composed:
    rest = online(shorthand)
    return Composed(
        name=base.name,
        min_capability=base.min_capability,
        dtypes=base.dtypes,
        while_loading=True,
        on_meta=tuple(kind for kind in rest.on_meta if kind == "linear"),
        base=base,
        rest=rest,
    )
