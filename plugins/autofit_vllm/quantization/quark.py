"""AMD Quark checkpoints: one scheme for all layers, or one per name (layers/quantization/quark)."""

from __future__ import annotations

import fnmatch
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from autofit.domain.values import dataclass, replace
from autofit.errors import EngineRefusalError

from autofit_vllm.modules.model import Experts, Linear
from autofit_vllm.modules.sharding import ExpertsShape, LinearShape, round_up
from autofit_vllm.quantization.floating import Fp8Scheme, MicroscaledScheme, Nvfp4Scheme, cache_scales, gpt_oss_rounding
from autofit_vllm.quantization.names import Listed, all_or_none, bare, check_count, listed
from autofit_vllm.quantization.scheme import UNQUANTISED, Quantization, Scheme, Tensor, cdiv, expert_biases

_MX_GROUP = 32  #: weights that share an exponent
_MX_BITS = {"fp4": 4, "fp6_e3m2": 6, "fp6_e2m3": 6, "fp8_e4m3": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarkFp8Scheme(Fp8Scheme):
    """As other fp8 checkpoints, but the scales of channels in one dimension, and biases in fp32."""

    fused: bool = False  #: gate and up of an expert are one weight, under one scale

    def linear(self, shape: LinearShape) -> Iterator[Tensor]:
        for tensor in Fp8Scheme.linear(self, shape):
            if tensor.suffix == self.suffix and self.granularity == "channel":
                tensor = tensor._replace(shape=(shape.out_rank,))
            yield tensor

    def experts(self, shape: ExpertsShape) -> Iterator[Tensor]:
        if self.scale_dtype != "float32":
            raise EngineRefusalError("Quark: MoE experts with exponent-only (E8M0) block scales are not supported")
        for tensor in Fp8Scheme.experts(self, shape):
            if tensor.suffix == "w13_weight_scale" and self.granularity == "tensor" and self.fused:
                tensor = tensor._replace(shape=(shape.count, 1))
            yield tensor
        yield from expert_biases(shape, "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarkInt8Scheme(Scheme):
    """Zero points come with the scales, and go when the weights are loaded (schemes/quark_w8a8_int8.py)."""

    channel: bool
    static: bool

    def linear(self, shape: LinearShape) -> Iterator[Tensor]:
        scales = (shape.out_rank, 1) if self.channel else (len(shape.outs_rank),)
        yield Tensor("weight", (shape.out_rank, shape.in_rank), "int8")
        yield Tensor("weight_scale", scales, "float32")
        yield Tensor("weight_zero_point", scales, "int8")
        if self.static:
            yield Tensor("input_scale", (1,), "float32")
            yield Tensor("input_zero_point", (1,), "int8")

    def experts(self, shape: ExpertsShape) -> Iterator[Tensor]:
        count, hidden, rows, shards = shape.count, shape.hidden_size, shape.w13_rows, shape.shards
        yield Tensor("w13_weight", (count, rows, hidden), "int8")
        yield Tensor("w2_weight", (count, hidden, shape.intermediate_rank), "int8")
        first, second = ((count, rows), (count, hidden)) if self.channel else ((count, shards), (count,))
        for name, kind in (("weight_scale", "float32"), ("weight_zero_point", "int8")):
            yield Tensor(f"w13_{name}", first, kind)
            yield Tensor(f"w2_{name}", second, kind)
        if self.static:
            yield Tensor("w13_input_scale", (count,), "float32")
            yield Tensor("w2_input_scale", (count,), "float32")
        yield Tensor("w13_input_zero_point", (count, shards), "int8")
        yield Tensor("w2_input_zero_point", (count,), "int8")
        yield from expert_biases(shape, "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarkInt4Scheme(Scheme):
    """Eight weights a word along the output, zero points even where there are none (schemes/quark_w4a16_int4.py)."""

    group: int

    def linear(self, shape: LinearShape) -> Iterator[Tensor]:
        if shape.in_rank % self.group:
            raise EngineRefusalError(
                "The input size is not aligned with the quantized weight shape. This can be caused by too large "
                f"tensor parallel size. input_size_per_partition={shape.in_rank}, group_size={self.group}.",
                hint="use a smaller tensor parallel size",
            )
        packed, groups = cdiv(shape.out_rank, 8), shape.in_rank // self.group
        yield Tensor("weight", (shape.in_rank, packed), "int32")
        yield Tensor("weight_zero_point", (groups, packed), "int32")
        yield Tensor("weight_scale", (groups, packed * 8), shape.dtype)

    def experts(self, shape: ExpertsShape) -> Iterator[Tensor]:
        count, hidden, width, rows = shape.count, shape.hidden_size, shape.intermediate_rank, shape.w13_rows
        group = self.group
        while group > 1 and (width % group or hidden % group):
            group //= 2
        if group < _MX_GROUP:
            raise EngineRefusalError(
                f"no group of at least {_MX_GROUP} weights divides {width} and {hidden} of the experts",
                hint="use a smaller tensor parallel size or expert parallelism",
            )
        yield Tensor("w13_weight", (count, rows, hidden // 2), "uint8")
        yield Tensor("w2_weight", (count, hidden, width // 2), "uint8")
        yield Tensor("w13_weight_scale", (count, rows, hidden // group), shape.dtype)
        yield Tensor("w2_weight_scale", (count, hidden, width // group), shape.dtype)
        yield Tensor("w13_weight_zero_point", (count, rows // 2, hidden // group), "uint8")
        yield Tensor("w2_weight_zero_point", (count, hidden // 2, width // group), "uint8")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarkMicroscaledScheme(MicroscaledScheme):
    """Four and six bits packed, eight as they are (schemes/quark_ocp_mx.py); experts may have scales of inputs."""

    static: bool = False

    def linear(self, shape: LinearShape) -> Iterator[Tensor]:
        if not self.static and shape.in_rank % _MX_GROUP:
            raise EngineRefusalError(
                f"OCP MX linear layer has an input size per partition of {shape.in_rank}, which must be divisible by "
                f"the OCP MX group size {_MX_GROUP}.",
                hint="use a smaller tensor parallel size",
            )
        yield from MicroscaledScheme.linear(self, shape)
        if self.static:
            yield Tensor("input_scale", (len(shape.outs_rank),), "float32")

    def experts(self, shape: ExpertsShape) -> Iterator[Tensor]:
        yield from MicroscaledScheme.experts(self, replace(shape, bias=False))
        width = round_up(shape.intermediate_rank, self.rounding[0])
        hidden = round_up(shape.hidden_size, self.rounding[1])
        yield from expert_biases(replace(shape, intermediate_rank=width, hidden_size=hidden), "float32")
        if self.static:
            yield Tensor("w13_input_scale", (shape.count,), "float32")
            yield Tensor("w2_input_scale", (shape.count,), "float32")


_NVFP4 = Nvfp4Scheme(
    packed="weight",
    overall="weight_scale_2",
    inputs="input_scale_2",
    experts_inputs="input_scale_2",
    experts_packed="weight",
)


def _one(given: object) -> Mapping[str, Any] | None:
    """A list of one counts as its entry (quark.py:_unwrap_single_quant_config)."""
    if isinstance(given, list | tuple):
        given = given[0] if len(given) == 1 else None
    return given if isinstance(given, Mapping) else None


def _kinds(given: object) -> tuple[tuple[object, object], ...]:
    entries = given if isinstance(given, list | tuple) else ()
    return tuple((e.get("dtype"), e.get("qscheme")) for e in entries if isinstance(e, Mapping))


def scheme_of(config: Mapping[str, Any], capability: int, *, gpt_oss: bool = False) -> Scheme:
    """The scheme of one entry of the configuration, tried in vLLM's order (quark.py:_get_scheme_cls_from_config,
    quark_moe.py:get_moe_method_target).

    Raises:
        EngineRefusalError: it knows none, or the GPU is too old for it.
    """
    if config.get("output_tensors") or config.get("bias"):
        raise EngineRefusalError("Currently, Quark models with output_tensors and bias quantized are not supported")
    many = (("fp4", "per_group"), ("fp8_e4m3", "per_tensor"))
    if _kinds(config.get("weight")) == _kinds(config.get("input_tensors")) == many:
        return _NVFP4
    weight, inputs = _one(config.get("weight")), _one(config.get("input_tensors"))
    if weight is None:
        raise EngineRefusalError("No quark compatible scheme was found: unknown weights")
    kind, form = weight.get("dtype"), weight.get("qscheme")
    static = inputs is not None and not inputs.get("is_dynamic")
    input_kind = None if inputs is None else inputs.get("dtype")
    block = list(weight.get("block_size") or ())
    if kind == input_kind == "fp8_e4m3" and (form in ("per_tensor", "per_channel") or block == [128, 128]):
        return _fp8(weight, static, capability, gpt_oss=gpt_oss)
    integers = _int8(weight, inputs, static) if kind == input_kind == "int8" else None
    if integers is not None:
        return integers
    if kind in ("int4", "uint4") and inputs is None:
        group = weight.get("group_size")
        if not isinstance(group, int) or group <= 0:
            raise EngineRefusalError(f"Quark W4A16 weight.group_size must be a positive int, got {group!r}")
        return QuarkInt4Scheme(group=group)
    bits = _MX_BITS.get(str(kind))
    if bits and form == "per_group" and weight.get("group_size") == _MX_GROUP and weight.get("scale_format") == "e8m0":
        # (fused_moe/oracle/mxfp4.py) The kernels with smaller tiles know gpt-oss's activation only.
        wide = gpt_oss_rounding(capability) if gpt_oss else (128, 256)
        if input_kind == "fp4" and capability // 10 == 10:
            wide = 128, 128
        return QuarkMicroscaledScheme(bits=bits, rounding=wide if bits == 4 else (1, 1), static=static)
    raise EngineRefusalError(f"No quark compatible scheme was found for {kind} weights {form}")


def _fp8(weight: Mapping[str, Any], static: bool, capability: int, *, gpt_oss: bool) -> Scheme:
    form = weight["qscheme"]
    if capability < 89:
        raise EngineRefusalError(
            f"Quantization scheme is not supported for the current GPU. Min capability: 89. Current capability: "
            f"{capability}.",
            hint="use a newer GPU or another quantization",
        )
    if form == "per_block":
        exponents = weight.get("scale_type") == "float8_e8m0fnu"
        return QuarkFp8Scheme(
            granularity="block",
            bias_in_checkpoint=False,
            scale_dtype="float8_e8m0fnu" if exponents else "float32",
        )
    granularity: Any = form.removeprefix("per_")
    return QuarkFp8Scheme(granularity=granularity, static=static, bias_in_checkpoint=False, fused=gpt_oss)


def _int8(weight: Mapping[str, Any], inputs: Mapping[str, Any] | None, static: bool) -> Scheme | None:
    form = weight.get("qscheme")
    if inputs is None or weight.get("symmetric") is not True or form not in ("per_tensor", "per_channel"):
        return None
    if inputs.get("qscheme") != ("per_tensor" if static else "per_channel"):
        return None
    return QuarkInt8Scheme(channel=form == "per_channel", static=static)


class Entries:
    """Entries by a pattern with `*`, or by a name that has the layer's in it; the first counts."""

    def __init__(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        self._entries = tuple(entries.values())
        self._patterns = [(number, name[:512]) for number, name in enumerate(entries) if "*" in name]
        check_count(len(self._patterns))
        plain = [(number, name) for number, name in enumerate(entries) if "*" not in name]
        self._numbers = [number for number, _ in plain]
        self._starts = list(accumulate((len(name) + 1 for _, name in plain), initial=0))
        self._text = "\n".join(name for _, name in plain)

    def of(self, name: str) -> Mapping[str, Any] | None:
        at = self._text.find(name)
        plain = len(self._entries) if at < 0 or not self._numbers else self._numbers[bisect_right(self._starts, at) - 1]
        matching = (number for number, pattern in self._patterns if fnmatch.fnmatchcase(name, pattern))
        first = min(plain, next(matching, len(self._entries)))
        return self._entries[first] if first < len(self._entries) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quark(Quantization):
    """quark.py:QuarkConfig."""

    overall: Mapping[str, Any]
    layers: Entries
    excluded: Listed
    gpt_oss: bool

    def linear(self, module: Linear) -> Scheme:
        if self._excludes(module.name, module.shards):
            return UNQUANTISED
        return scheme_of(self._entry(module.name, module.shards), self.capability)

    def experts(self, module: Experts, shape: ExpertsShape) -> Scheme:
        below = bare(module.name) + "."
        if self._excludes(module.name, (module.name,)) or self.excluded.any_below(below):
            return UNQUANTISED
        return scheme_of(self._entry(module.name, (module.name,)), self.capability, gpt_oss=self.gpt_oss)

    def attention(self, kv_heads: int, dtype: str, *, latent: bool) -> Iterable[Tensor]:
        return () if latent else cache_scales(dtype)

    def _excludes(self, name: str, shards: tuple[str, ...]) -> bool:
        return self.excluded.means(name) or all_or_none(shards, self.excluded.means)

    def _entry(self, name: str, shards: tuple[str, ...]) -> Mapping[str, Any]:
        found = [self._named(shard) for shard in shards]
        entries = [self.overall if entry is None else entry for entry in found]
        if any(entry != entries[0] for entry in entries):
            raise EngineRefusalError(
                f"Found a different quantization configuration for {', '.join(shards)} in {name}. vLLM requires all "
                "to use the same scheme."
            )
        return entries[0]

    def _named(self, name: str) -> Mapping[str, Any] | None:
        return self.layers.of(name)


def quark(config: Mapping[str, Any], *, gpt_oss: bool = False) -> Quark:
    """Raises:
    EngineRefusalError: no export section.
    """
    export = config.get("export")
    if not isinstance(export, Mapping):
        raise EngineRefusalError("The export key should be included in the configurations of Quark quantized model")
    overall = config.get("global_quant_config")
    layers = config.get("layer_quant_config")
    named = {
        str(name): entry
        for name, entry in (layers.items() if isinstance(layers, Mapping) else ())
        if isinstance(entry, Mapping)
    }
    cached = [str(name) for name in export.get("kv_cache_group") or ()]
    for name, entry in named.items():
        # What a cache keeps is no output of its projections (quark.py:from_config).
        if any(fnmatch.fnmatchcase(name, pattern[:512]) for pattern in cached) or (cached and name == "*q_proj"):
            named[name] = {**entry, "output_tensors": None}
    return Quark(
        name="quark",
        min_capability=70,
        dtypes=("float16", "bfloat16"),
        overall=overall if isinstance(overall, Mapping) else {},
        layers=Entries(named),
        gpt_oss=gpt_oss,
        excluded=listed(str(name) for name in config.get("exclude") or ()),
    )
