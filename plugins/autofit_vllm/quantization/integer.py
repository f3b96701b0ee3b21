"""Four- and eight-bit integer weights in groups: GPTQ and AWQ checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from autofit.domain.values import dataclass, field
from autofit.errors import EngineRefusalError

from autofit_vllm.modules.model import Experts, Linear, Vocabulary
from autofit_vllm.modules.sharding import ExpertsShape, LinearShape
from autofit_vllm.quantization.names import NameList, all_or_none, check_count, regex_matches, skipped
from autofit_vllm.quantization.scheme import UNQUANTISED, Quantization, Scheme, Tensor, group_size_of

_WORD = 32  #: bits of the integers that weights are packed into


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqScheme(Scheme):
    """Packed along the input (layers/quantization/auto_gptq.py)."""

    bits: int
    group: int
    capability: int

    def linear(self, shape: LinearShape) -> Iterator[Tensor]:
        pack = _WORD // self.bits
        group = shape.in_size if self.group == -1 else self.group
        # One group per output channel does not divide with the input, so every rank keeps it.
        length = shape.in_size if self.group == -1 and shape.is_row else shape.in_rank
        if self.group != -1 and shape.in_rank % group and group < shape.in_size and not self._straddles(shape):
            raise EngineRefusalError(
                "Failed to find a kernel that can implement the WNA16 linear layer. in_features per partition "
                f"{shape.in_rank} is not divisible by group_size = {group}.",
                hint="use another tensor parallel size",
            )
        groups = length // group
        yield Tensor("qweight", (shape.in_rank // pack, shape.out_rank), "int32")
        yield Tensor("qzeros", (groups, shape.out_rank // pack), "int32")
        yield Tensor("scales", (groups, shape.out_rank), shape.dtype)

    def _straddles(self, shape: LinearShape) -> bool:
        """Whether a kernel takes a group that begins on one rank and ends on the next: Machete on Hopper, Exllama
        in half precision (kernels/linear/mixed_precision)."""
        machete = self.capability == 90 and self.group in (64, 128)
        if machete and shape.in_rank % 64 == 0 and shape.out_rank % 128 == 0:
            return True
        return shape.dtype == "float16" and shape.in_size % self.group == 0

    def experts(self, shape: ExpertsShape) -> Iterator[Tensor]:
        pack, count = _WORD // self.bits, shape.count
        hidden, width, rows = shape.hidden_size, shape.intermediate_rank, shape.w13_rows
        groups13, groups2 = (1, 1) if self.group == -1 else (hidden // self.group, width // self.group)
        yield Tensor("w13_qweight", (count, hidden // pack, rows), "int32")
        yield Tensor("w2_qweight", (count, width // pack, hidden), "int32")
        yield Tensor("w13_scales", (count, groups13, rows), shape.dtype)
        yield Tensor("w2_scales", (count, groups2, hidden), shape.dtype)
        yield Tensor("w13_qzeros", (count, groups13, rows // pack), "int32")
        yield Tensor("w2_qzeros", (count, groups2, hidden // pack), "int32")
        yield Tensor("w13_bias", (count, rows), shape.dtype)
        yield Tensor("w2_bias", (count, hidden), shape.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class AwqScheme(Scheme):
    """Packed along the output (layers/quantization/auto_awq.py)."""

    bits: int
    group: int

    def linear(self, shape: LinearShape) -> Iterator[Tensor]:
        pack = _WORD // self.bits
        group = shape.in_size if self.group == -1 else self.group
        if shape.in_rank % group and group < shape.in_size:
            raise EngineRefusalError(
                "The input size is not aligned with the quantized weight shape. This can be caused by too "
                f"large tensor parallel size: {shape.in_rank} inputs, groups of {group}",
                hint="use a smaller tensor parallel size",
            )
        groups = shape.in_rank // group
        yield Tensor("qweight", (shape.in_rank, shape.out_rank // pack), "int32")
        yield Tensor("qzeros", (groups, shape.out_rank // pack), "int32")
        yield Tensor("scales", (groups, shape.out_rank), shape.dtype)

    def experts(self, shape: ExpertsShape) -> Iterator[Tensor]:
        pack, count = _WORD // self.bits, shape.count
        hidden, width, rows = shape.hidden_size, shape.intermediate_rank, shape.w13_rows
        groups13, groups2 = hidden // self.group, width // self.group
        yield Tensor("w13_qweight", (count, hidden, rows // pack), "int32")
        yield Tensor("w2_qweight", (count, width, hidden // pack), "int32")
        yield Tensor("w13_scales", (count, groups13, rows), shape.dtype)
        yield Tensor("w2_scales", (count, groups2, hidden), shape.dtype)
        yield Tensor("w13_qzeros", (count, groups13, rows // pack), "int32")
        yield Tensor("w2_qzeros", (count, groups2, hidden // pack), "int32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wna16ExpertsScheme(Scheme):
    """Experts that Marlin cannot take: bytes, and groups halved until they divide
    (layers/quantization/moe_wna16.py)."""

    bits: int
    group: int
    zero_points: bool

    def experts(self, shape: ExpertsShape) -> Iterator[Tensor]:
        pack, count = 8 // self.bits, shape.count
        hidden, width, rows = shape.hidden_size, shape.intermediate_rank, shape.w13_rows
        group = self.group
        while group > 0 and (width % group or hidden % group):
            group //= 2
        if group < 32:
            raise EngineRefusalError(
                f"no group of at least 32 weights divides {width} and {hidden} of the experts",
                hint="use a smaller tensor parallel size or expert parallelism",
            )
        yield Tensor("w13_qweight", (count, rows, hidden // pack), "uint8")
        yield Tensor("w2_qweight", (count, hidden, width // pack), "uint8")
        yield Tensor("w13_scales", (count, rows, hidden // group), shape.dtype)
        yield Tensor("w2_scales", (count, hidden, width // group), shape.dtype)
        if self.zero_points:
            yield Tensor("w13_qzeros", (count, rows // pack, hidden // group), "uint8")
            yield Tensor("w2_qzeros", (count, hidden // pack, width // group), "uint8")


def marlin_takes_experts(shape: ExpertsShape, group: int) -> bool:
    """Whether Marlin can hold these experts, its tiles padded
    (layers/quantization/utils/marlin_utils.py:check_moe_marlin_supports_config)."""
    if shape.hidden_size % 128 or group not in (-1, 32, 64, 128):
        return False
    return group == -1 or shape.intermediate_rank % group == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gptq(Quantization):
    """layers/quantization/auto_gptq.py:AutoGPTQConfig."""

    bits: int
    group: int
    symmetric: bool
    head: bool
    dynamic: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    listed: NameList = field(default_factory=NameList)  #: layers that are quantized; empty: all
    in_bytes: bool = False  #: experts by moe_wna16, as asked for

    def linear(self, module: Linear) -> Scheme:
        if not self._quantized(module.name, module.shards):
            return UNQUANTISED
        return self._scheme(module.name)

    def vocabulary(self, module: Vocabulary) -> Scheme:
        if not (module.head and self.head) or not self._quantized(module.name, (module.name,)):
            return UNQUANTISED
        return self._scheme(module.name)

    def experts(self, module: Experts, shape: ExpertsShape) -> Scheme:
        rule = self._rule(module.name)
        if rule is None:
            return UNQUANTISED
        bits, group = int(rule.get("bits", self.bits)), int(rule.get("group_size", self.group))
        if self.in_bytes or not marlin_takes_experts(shape, group):
            return Wna16ExpertsScheme(bits=bits, group=group, zero_points=not self.symmetric)
        return GptqScheme(bits=bits, group=group, capability=self.capability)

    def _quantized(self, name: str, shards: tuple[str, ...]) -> bool:
        if self._rule(name) is None:
            return False
        return not self.listed or all_or_none(shards, self.listed.part_of)

    def _rule(self, name: str) -> Mapping[str, Any] | None:
        """What `dynamic` changes for this layer; `None`: not quantized (utils/gptq_utils.py)."""
        for pattern, changes in self.dynamic.items():
            if pattern.startswith("-:"):
                if regex_matches(pattern[2:], name):
                    return None
            elif regex_matches(pattern.removeprefix("+:"), name):
                return changes
        return {}

    def _scheme(self, name: str) -> Scheme:
        rule = self._rule(name) or {}
        return GptqScheme(
            bits=int(rule.get("bits", self.bits)),
            group=int(rule.get("group_size", self.group)),
            capability=self.capability,
        )


def gptq(config: Mapping[str, Any], capability: int, quantized_layers: Iterable[str] = ()) -> Gptq:
    """`quantized_layers` are those that the checkpoint's tensors show as packed; without files all are.

    Raises:
        EngineRefusalError: an ordering, width or grouping that vLLM no longer takes.
    """
    bits, group = group_size_of(config, "bits"), group_size_of(config, "group_size")
    dynamic = config.get("dynamic") or {}
    if config.get("desc_act") and group != -1:
        raise EngineRefusalError(
            "GPTQ group activation ordering (desc_act=True) is no longer supported",
            hint="use a checkpoint with static activation ordering or desc_act=False",
        )
    symmetric = bool(config.get("sym", True))
    if bits not in (4, 8) or not symmetric:
        raise EngineRefusalError(f"Unsupported quantization config: bits={bits}, sym={symmetric}")
    if group not in (-1, 32, 64, 128):
        raise EngineRefusalError(f"Marlin does not support group_size = {group}. Only -1, 32, 64, 128 are.")
    listed = config.get("modules_in_block_to_quantize")
    # Experts are judged by their block, not one by one.
    names = NameList(name for name in (_flat(listed) if listed else quantized_layers) if ".experts." not in name)
    if isinstance(dynamic, Mapping):
        check_count(len(dynamic))
    return Gptq(
        name="auto_gptq",
        min_capability=75,
        dtypes=("float16", "bfloat16"),
        capability=capability,
        bits=bits,
        group=group,
        symmetric=symmetric,
        head=bool(config.get("lm_head", False)),
        dynamic=dynamic if isinstance(dynamic, Mapping) else {},
        listed=names,
    )


def _flat(listed: object) -> Iterator[str]:
    if isinstance(listed, str):
        yield listed
    elif isinstance(listed, list | tuple):
        for entry in listed:
            yield from _flat(entry)


@dataclass(frozen=True, slots=True, kw_only=True)
class Awq(Quantization):
    """layers/quantization/auto_awq.py:AutoAWQConfig."""

    bits: int
    group: int
    zero_points: bool
    head: bool
    ignored: NameList = field(default_factory=NameList)
    in_bytes: bool = False

    def linear(self, module: Linear) -> Scheme:
        if skipped(module.name, module.shards, self.ignored, part_of_name=True):
            return UNQUANTISED
        return AwqScheme(bits=self.bits, group=self.group)

    def vocabulary(self, module: Vocabulary) -> Scheme:
        if not (module.head and self.head) or self.ignored.part_of(module.name):
            return UNQUANTISED
        return AwqScheme(bits=self.bits, group=self.group)

    def experts(self, module: Experts, shape: ExpertsShape) -> Scheme:
        if self.ignored.part_of(module.name):
            return UNQUANTISED
        if self.in_bytes or not marlin_takes_experts(shape, self.group):
            return Wna16ExpertsScheme(bits=self.bits, group=self.group, zero_points=self.zero_points)
        return AwqScheme(bits=self.bits, group=self.group)


def awq(config: Mapping[str, Any]) -> Awq:
    """Raises:
    EngineRefusalError: not four bits.
    """
    bits = group_size_of(config, "w_bit", "bits")
    if bits != 4:
        raise EngineRefusalError(f"AWQ: Unsupported num_bits = {bits}")
    ignored = config.get("modules_to_not_convert") or ()
    return Awq(
        name="auto_awq",
        min_capability=75,
        dtypes=("float16", "bfloat16"),
        bits=bits,
        group=group_size_of(config, "q_group_size", "group_size"),
        zero_points=bool(config.get("zero_point", True)),
        head=bool(config.get("lm_head", False)),
        ignored=NameList(entry for entry in ignored if isinstance(entry, str)),
    )
