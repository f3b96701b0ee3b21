"""AutoRound checkpoints: GPTQ's or AWQ's layout, with widths per layer (layers/quantization/inc)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autofit.domain.values import NamedTuple, dataclass
from autofit.errors import EngineRefusalError, UnsupportedModelError

from autofit_vllm.modules.model import Experts, Linear, Vocabulary
from autofit_vllm.modules.sharding import ExpertsShape
from autofit_vllm.quantization.integer import (
    AwqScheme,
    GptqScheme,
    Wna16ExpertsScheme,
    marlin_takes_experts,
)
from autofit_vllm.quantization.names import Below, bare, check_count, regex_searches
from autofit_vllm.quantization.scheme import UNQUANTISED, Quantization, Scheme, group_size_of

_SPECIAL = frozenset(r"*+?^$()[]{}|\\")


class Width(NamedTuple):
    bits: int
    group: int
    symmetric: bool


class Widths:
    """Widths by name or pattern, the first entry that means a layer; 16 bits: left alone."""

    def __init__(self, widths: Mapping[str, Width]) -> None:
        self._widths = tuple(widths.values())
        self._names = {name: number for number, name in enumerate(widths)}
        self._bare: dict[str, int] = {}
        for number, name in enumerate(widths):
            self._bare.setdefault(bare(name), number)
        self._below = Below({bare(name): width for name, width in widths.items()})
        self._patterns = tuple((number, name) for number, name in enumerate(widths) if _SPECIAL & set(name))
        check_count(len(self._patterns))

    def of(self, name: str) -> Width | None:
        """Of a name, of the end of one, or of a pattern, in this order."""
        parts = name.split(".")
        ends = (".".join(parts[at:]) for at in range(1, len(parts)))
        named = [self._bare.get(bare(name)), *map(self._names.get, ends)]
        first = min((number for number in named if number is not None), default=None)
        if first is None:
            first = next((number for number, entry in self._patterns if regex_searches(entry, name)), None)
        return None if first is None else self._widths[first]

    def below(self, name: str) -> set[Width]:
        return set(self._below.at(bare(name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoRound(Quantization):
    """layers/quantization/inc/inc.py:INCConfig, its integer layouts."""

    width: Width
    awq: bool
    layers: Widths
    blocks: tuple[str, ...] = ()  #: what is quantized lies below one of these

    def linear(self, module: Linear) -> Scheme:
        return self._scheme(self._width(module.name, module.shards, default=True))

    def vocabulary(self, module: Vocabulary) -> Scheme:
        if not module.head:
            return UNQUANTISED
        return self._scheme(self._width(module.name, (module.name,), default=False))

    def experts(self, module: Experts, shape: ExpertsShape) -> Scheme:
        below = self.layers.below(module.name)
        if len(below) > 1:
            raise EngineRefusalError(
                f"Fused MoE layer '{module.name}' requires consistent quant config for all sub-layers"
            )
        width = below.pop() if below else self._width(module.name, (module.name,), default=True)
        if width is not None and not marlin_takes_experts(shape, width.group):
            return Wna16ExpertsScheme(bits=width.bits, group=width.group, zero_points=not width.symmetric)
        return self._scheme(width)

    def _scheme(self, width: Width | None) -> Scheme:
        if width is None or width.bits >= 16:
            return UNQUANTISED
        if self.awq:
            return AwqScheme(bits=width.bits, group=width.group)
        if width.bits not in (4, 8) or not width.symmetric:
            raise EngineRefusalError(
                f"INC quantization with bits={width.bits}, sym={width.symmetric} is not supported. Only 4-bit "
                "and 8-bit symmetric quantization is supported with Marlin kernels."
            )
        return GptqScheme(bits=width.bits, group=width.group, capability=self.capability)

    def _width(self, name: str, shards: tuple[str, ...], *, default: bool) -> Width | None:
        """(inc/config_parser.py:INCConfigParser._resolve_raw)"""
        found = {self.layers.of(shard) for shard in (name, *shards)} - {None}
        if len(found) > 1:
            raise EngineRefusalError(f"Fused module '{name}' requires consistent quant config for {', '.join(shards)}")
        if found:
            return found.pop()
        if self.blocks:
            default = any(bare(name).startswith(bare(block)) for block in self.blocks)
        return self.width if default else None


def auto_round(config: Mapping[str, Any], capability: int) -> AutoRound:
    """Raises:
    EngineRefusalError: a width or packing that vLLM does not take.
    UnsupportedModelError: a floating-point layout.
    """
    if config.get("data_type", "int") != "int":
        raise UnsupportedModelError(f"unknown AutoRound data type {config['data_type']}")
    packing = config.get("packing_format") or "auto_round:auto_gptq"
    if packing not in ("auto_round:auto_gptq", "auto_round:auto_awq"):
        raise EngineRefusalError(f"INC int quantization does not support packing_format {packing!r}")
    width = Width(group_size_of(config, "bits"), group_size_of(config, "group_size"), bool(config.get("sym", True)))
    extra = config.get("extra_config")
    blocks = config.get("block_name_to_quantize") or config.get("to_quant_block_names") or ()
    return AutoRound(
        name="inc",
        min_capability=75,
        dtypes=("float16", "bfloat16"),
        width=width,
        awq="awq" in packing,
        capability=capability,
        layers=Widths(
            {
                name: Width(
                    group_size_of(own, "bits", default=width.bits),
                    group_size_of(own, "group_size", default=width.group),
                    bool(own.get("sym", width.symmetric)),
                )
                for name, own in (extra.items() if isinstance(extra, Mapping) else ())
                if isinstance(own, Mapping)
            }
        ),
        blocks=tuple(blocks.split(",")) if isinstance(blocks, str) else tuple(map(str, blocks)),
    )
