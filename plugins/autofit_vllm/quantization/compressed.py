"""compressed-tensors checkpoints: a scheme per group of layers (layers/quantization/compressed_tensors)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from autofit.domain.values import dataclass
from autofit.errors import EngineRefusalError

from autofit_vllm.modules.model import Experts, Linear, Vocabulary
from autofit_vllm.modules.sharding import ExpertsShape, LinearShape
from autofit_vllm.quantization.floating import (
    Fp8Scheme,
    Granularity,
    MicroscaledScheme,
    Nvfp4Scheme,
)
from autofit_vllm.quantization.names import Listed, all_or_none, listed
from autofit_vllm.quantization.scheme import UNQUANTISED, Quantization, Scheme, Tensor, expert_biases

_WORD = 32
_ACTIVATION_FORMATS = frozenset({"naive-quantized", "int-quantized", "float-quantized", "nvfp4-pack-quantized"})


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantArgs:
    """How one kind of value is quantized (compressed_tensors' QuantizationArgs, with its defaults)."""

    bits: int = 8
    kind: str = "int"
    symmetric: bool = True
    strategy: str = "tensor"
    group: int | None = None
    dynamic: bool = False
    block: tuple[int, int] | None = None
    scale_dtype: str | None = None

    @classmethod
    def read(cls, raw: object) -> QuantArgs | None:
        """Raises:
        EngineRefusalError: an ordering that vLLM no longer takes, or no sense in a value.
        """
        if not isinstance(raw, Mapping):
            return None
        if raw.get("actorder") in ("group", "dynamic"):
            raise EngineRefusalError(
                "Compressed-tensors group/dynamic activation ordering "
                f"(actorder={raw['actorder']!r}) is no longer supported"
            )
        group, block = raw.get("group_size"), raw.get("block_structure")
        strategy = raw.get("strategy")
        if strategy is None:
            strategy = "tensor" if group is None else "channel" if group == -1 else "group"
        if isinstance(block, str) and "x" in block:
            block = [int(side) for side in block.split("x", 1) if side.isdigit()]
        sides = tuple(block) if isinstance(block, list | tuple) and len(block) == 2 else None
        try:
            read = cls(
                bits=int(raw.get("num_bits", 8)),
                kind=str(raw.get("type", "int")),
                symmetric=bool(raw.get("symmetric", True)),
                strategy=str(strategy),
                group=None if group is None else int(group),
                dynamic=bool(raw.get("dynamic", False)),
                block=None if sides is None else (int(sides[0]), int(sides[1])),
                scale_dtype=None if raw.get("scale_dtype") is None else str(raw["scale_dtype"]),
            )
        except (TypeError, ValueError, OverflowError):
            raise EngineRefusalError("quantization_config: the weights of a group are invalid") from None
        if not 0 < read.bits <= 32 or read.group == 0 or min(*(read.block or (1, 1)), 1) < 1:
            raise EngineRefusalError("quantization_config: the weights of a group are invalid")
        return read


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerScheme(Scheme):
    """Packed integers, weight only (schemes/compressed_tensors_wNa16.py)."""

    bits: int
    group: int  #: -1: one per output channel
    symmetric: bool
    channel: bool

    def linear(self, shape: LinearShape) -> Iterator[Tensor]:
        group = shape.in_size if self.group == -1 else self.group
        length = shape.in_rank
        if self.group == -1 and shape.is_row:
            length = shape.in_size
        elif shape.in_rank % group:
            raise EngineRefusalError(
                f"Weight input_size_per_partition = {shape.in_rank} is not divisible by group_size = {group}.",
                hint="use a smaller tensor parallel size",
            )
        groups = length // group
        packed = math.ceil(shape.in_rank * self.bits / _WORD)
        yield Tensor("weight_packed", (shape.out_rank, packed), "int32")
        yield Tensor("weight_scale", (shape.out_rank, groups), shape.dtype)
        yield Tensor("weight_shape", (2,), "int64")
        if not self.symmetric:
            zeros = math.ceil(shape.out_rank * self.bits / _WORD)
            yield Tensor("weight_zero_point", (zeros, groups), "int32")

    def experts(self, shape: ExpertsShape) -> Iterator[Tensor]:
        pack, count = _WORD // self.bits, shape.count
        hidden, width, rows = shape.hidden_size, shape.intermediate_rank, shape.w13_rows
        if self.channel:
            groups13 = groups2 = 1
        else:
            for size in (hidden, width):
                if size % self.group:
                    raise EngineRefusalError(
                        f"CompressedTensors WNA16 MoE: {size} per rank is not divisible by group_size {self.group}",
                        hint="use a smaller tensor parallel size or expert parallelism",
                    )
            groups13, groups2 = hidden // self.group, width // self.group
        yield Tensor("w13_weight_packed", (count, rows, hidden // pack), "int32")
        yield Tensor("w2_weight_packed", (count, hidden, width // pack), "int32")
        yield from expert_biases(shape)
        yield Tensor("w13_weight_scale", (count, rows, groups13), shape.dtype)
        yield Tensor("w2_weight_scale", (count, hidden, groups2), shape.dtype)
        if not self.symmetric:
            yield Tensor("w13_weight_zero_point", (count, rows // pack, groups13), "int32")
            yield Tensor("w2_weight_zero_point", (count, hidden // pack, groups2), "int32")
        yield Tensor("w2_weight_shape", (count, 2), shape.dtype)
        yield Tensor("w13_weight_shape", (count, 2), shape.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Scheme(Scheme):
    """Eight-bit weights and activations (schemes/compressed_tensors_w8a8_int8.py)."""

    channel: bool
    static: bool
    symmetric_input: bool

    def linear(self, shape: LinearShape) -> Iterator[Tensor]:
        yield Tensor("weight", (shape.out_rank, shape.in_rank), "int8")
        scales = (shape.out_rank, 1) if self.channel else (len(shape.outs_rank),)
        yield Tensor("weight_scale", scales, "float32")
        if self.static:
            yield Tensor("input_scale", (1,), "float32")
            if not self.symmetric_input:
                yield Tensor("input_zero_point", (1,), "int8")

    def experts(self, shape: ExpertsShape) -> Iterator[Tensor]:
        count, hidden = shape.count, shape.hidden_size
        yield Tensor("w13_weight", (count, shape.w13_rows, hidden), "int8")
        yield Tensor("w2_weight", (count, hidden, shape.intermediate_rank), "int8")
        yield from expert_biases(shape)
        yield Tensor("w13_weight_scale", (count, shape.w13_rows, 1), "float32")
        yield Tensor("w2_weight_scale", (count, hidden, 1), "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A config group: what it is for, and the scheme of a layer in it."""

    target: str
    linear: Scheme
    experts: Scheme


def scheme_of(
    weights: QuantArgs, inputs: QuantArgs | None, outputs: QuantArgs | None, layout: str, capability: int
) -> Scheme:
    """The scheme that vLLM picks, tried in its order (compressed_tensors.py:_get_scheme_from_parts).

    Raises:
        EngineRefusalError: it knows none.
    """
    group = -1 if weights.group is None else weights.group
    if weights.strategy == "tensor_group" and weights.kind == "float" and weights.bits == 4:
        return Nvfp4Scheme(inputs=None if inputs is None else "input_global_scale")
    if weights.kind == "float" and weights.strategy == "group" and group == 32:
        if weights.bits == 4:
            return MicroscaledScheme(bits=4, weight="weight_packed")
        if weights.bits == 8 and weights.scale_dtype in ("uint8", "torch.uint8"):
            return MicroscaledScheme(bits=8)
    if (
        inputs is not None
        and weights.kind == "int"
        and weights.bits == 4
        and inputs.kind == "float"
        and inputs.bits == 8
        and weights.strategy == "group"
        and capability == 90
    ):
        return IntegerScheme(bits=4, group=group, symmetric=True, channel=False)
    integers = weights.kind == "int" and weights.strategy in ("channel", "group") and not weights.dynamic
    plain = inputs is None or (inputs.kind == "int" and inputs.dynamic)
    if integers and plain and layout == "pack-quantized":
        return IntegerScheme(
            bits=weights.bits,
            group=group,
            symmetric=weights.symmetric,
            channel=weights.strategy == "channel",
        )
    if layout in _ACTIVATION_FORMATS:
        found = _eight_bits(weights, inputs, group)
        if found is not None:
            return found
    raise EngineRefusalError(
        f"No compressed-tensors compatible scheme was found for {weights.bits}-bit {weights.kind} weights "
        f"per {weights.strategy} in format {layout}"
    )


def _eight_bits(weights: QuantArgs, inputs: QuantArgs | None, group: int) -> Scheme | None:
    if weights.kind == "float" and weights.bits == 8 and weights.symmetric and not weights.dynamic:
        granularities: dict[str, Granularity] = {"tensor": "tensor", "channel": "channel", "block": "block"}
        if weights.strategy in granularities:
            return Fp8Scheme(
                granularity=granularities[weights.strategy],
                block=weights.block or (128, 128),
                static=inputs is not None and not inputs.dynamic,
                bias_in_checkpoint=False,
            )
    if inputs is None:
        return None
    if weights.bits == inputs.bits == 8 and weights.symmetric and weights.strategy in ("tensor", "channel"):
        return Int8Scheme(
            channel=weights.strategy == "channel",
            static=not inputs.dynamic,
            symmetric_input=inputs.symmetric,
        )
    if weights.bits == 4 and inputs.bits == 8 and inputs.dynamic and weights.strategy in ("group", "channel"):
        raise EngineRefusalError(
            "Failed to find a kernel that can implement the WNA16 linear layer: four-bit weights with eight-bit "
            "integer activations run on CPUs only"
        )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedTensors(Quantization):
    """compressed_tensors.py:CompressedTensorsConfig."""

    groups: tuple[tuple[str, Scheme], ...]  #: targets in their order
    targets: Listed  #: of the groups
    ignored: Listed
    per_head_scales: bool = False

    def linear(self, module: Linear) -> Scheme:
        if self._ignores(module.name, module.shards):
            return UNQUANTISED
        return self._of(module.name, module.shards, _CLASSES[module.kind])

    def vocabulary(self, module: Vocabulary) -> Scheme:
        if self._ignores(module.name, (module.name,)):
            return UNQUANTISED
        name = "ParallelLMHead" if module.head else "VocabParallelEmbedding"
        return self._of(module.name, (module.name,), name)

    def experts(self, module: Experts, shape: ExpertsShape) -> Scheme:
        shards = tuple(f"{module.name}.0.{name}" for name in dict.fromkeys(module.names))
        if any(self._ignores(shard, (shard,)) for shard in shards):
            return UNQUANTISED
        # Experts are many linear layers fused: a group for `Linear` means them too.
        if not module.plain_class:
            return UNQUANTISED
        return self._of(shards[0], (shards[0],), "RoutedExpertsLinear")

    def attention(self, kv_heads: int, dtype: str, *, latent: bool) -> Iterable[Tensor]:
        if latent:
            return
        count = kv_heads if self.per_head_scales else 1
        for name in ("k", "v", "q"):
            yield Tensor(f"{name}_scale", (count,), "float32")
            yield Tensor(f"{name}_zero_point", (count,), dtype)

    def _ignores(self, name: str, shards: tuple[str, ...]) -> bool:
        return self.ignored.means(name) or all_or_none(shards, self.ignored.means)

    def _of(self, name: str, shards: tuple[str, ...], class_name: str) -> Scheme:
        first = self.targets.first(name)
        if first is None and all(map(self.targets.means, shards)):
            first = self.targets.first(shards[0])
        if first is not None:
            return self.groups[first][1]
        for target, scheme in self.groups:
            if not target.startswith("re:") and target.lower() in class_name.lower():
                return scheme
        return UNQUANTISED


_CLASSES = {
    "column": "MergedColumnParallelLinear",
    "qkv": "QKVParallelLinear",
    "row": "RowParallelLinear",
    "replicated": "ReplicatedLinear",
}


def compressed_tensors(config: Mapping[str, Any], capability: int) -> CompressedTensors:
    """Raises:
    EngineRefusalError: a group that vLLM has no scheme for.
    """
    layout = str(config.get("format", ""))
    groups: list[tuple[str, Scheme]] = []
    declared = config.get("config_groups")
    for group in (declared if isinstance(declared, Mapping) else {}).values():
        targets = [target for target in group.get("targets") or () if isinstance(target, str)]
        if len(targets) == 1 and targets[0].endswith("Attention"):
            continue
        weights = QuantArgs.read(group.get("weights"))
        if weights is None:
            continue
        inputs, outputs = (QuantArgs.read(group.get(key)) for key in ("input_activations", "output_activations"))
        scheme = scheme_of(weights, inputs, outputs, str(group.get("format") or layout), capability)
        groups += [(target, scheme) for target in targets]
    cache = config.get("kv_cache_scheme")
    eight = isinstance(cache, Mapping) and cache.get("type") == "float" and cache.get("num_bits") == 8
    return CompressedTensors(
        name="compressed-tensors",
        min_capability=70,
        kv_cache_dtype="fp8" if eight else None,
        groups=tuple(groups),
        targets=listed(target for target, _ in groups),
        ignored=listed(entry for entry in config.get("ignore") or () if isinstance(entry, str)),
        per_head_scales=isinstance(cache, Mapping) and cache.get("strategy") == "attn_head",
    )
