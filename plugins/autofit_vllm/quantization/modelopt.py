"""NVIDIA ModelOpt checkpoints (layers/quantization/modelopt.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from autofit.domain.values import dataclass, field
from autofit.errors import EngineRefusalError

from autofit_vllm.modules.model import Experts, Linear, Vocabulary
from autofit_vllm.modules.sharding import ExpertsShape, LinearShape
from autofit_vllm.quantization.floating import (
    Fp8Scheme,
    MicroscaledScheme,
    Nvfp4Scheme,
    cache_scales,
)
from autofit_vllm.quantization.names import Below, NameList, bare, skipped
from autofit_vllm.quantization.scheme import UNQUANTISED, Quantization, Scheme, Tensor, cdiv

_ENCODERS = ("vision_tower", "vision_model", "vit_large_projector")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFp8Scheme(Fp8Scheme):
    """128 by 128 blocks, the scales in four dimensions."""

    def linear(self, shape: LinearShape) -> Iterator[Tensor]:
        if shape.in_rank % 128:
            raise EngineRefusalError(f"FP8_PB_WO requires in divisible by 128, got {shape.in_rank}")
        yield Tensor("weight", (shape.out_rank, shape.in_rank), "float8_e4m3fn")
        yield Tensor("weight_scale", (cdiv(shape.out_rank, 128), 1, shape.in_rank // 128, 1), "float32")


def scheme_of(algorithm: str, group: int) -> Scheme:
    """The layout of one algorithm (modelopt.py:resolve).

    Raises:
        EngineRefusalError: not one that vLLM knows.
    """
    if algorithm == "FP8":
        return Fp8Scheme(granularity="tensor", static=True, bias_in_checkpoint=False)
    if algorithm == "FP8_PER_CHANNEL_PER_TOKEN":
        return _PerChannelScheme(granularity="channel", bias_in_checkpoint=False)
    if algorithm in ("FP8_PB_WO", "FP8_BLOCK_SCALES"):
        return BlockFp8Scheme(granularity="block", suffix="weight_scale_inv")
    if algorithm in ("NVFP4", "W4A16_NVFP4"):
        return Nvfp4Scheme(
            group=group,
            packed="weight",
            overall="weight_scale_2",
            inputs="input_scale",
            experts_inputs="input_scale",
            experts_packed="weight",
        )
    if algorithm == "MXFP8":
        return MicroscaledScheme(bits=8)
    raise EngineRefusalError(f"ModelOpt: {algorithm} is not a quantization that vLLM knows")


@dataclass(frozen=True, slots=True, kw_only=True)
class _PerChannelScheme(Fp8Scheme):
    """ModelOpt keeps the scales of channels in one dimension."""

    def linear(self, shape: LinearShape) -> Iterator[Tensor]:
        yield Tensor("weight", (shape.out_rank, shape.in_rank), "float8_e4m3fn")
        yield Tensor("weight_scale", (shape.out_rank,), "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOpt(Quantization):
    """One algorithm for all layers that are not excluded, or one per layer (`layers`)."""

    scheme: Scheme
    excluded: NameList
    layers: Mapping[str, str] | None = None  #: bare layer names to algorithms, of a mixed checkpoint
    below: Below = field(default_factory=lambda: Below({}))  #: the same, by what they lie below
    group: int = 16
    claims: bool = False  #: this method is taken whatever word was asked for

    def linear(self, module: Linear) -> Scheme:
        return self._of(module.name, module.shards)

    def vocabulary(self, module: Vocabulary) -> Scheme:
        return self._of(module.name, (module.name,)) if module.head else UNQUANTISED

    def experts(self, module: Experts, shape: ExpertsShape) -> Scheme:
        return self._of(module.name, (module.name,))

    def attention(self, kv_heads: int, dtype: str, *, latent: bool) -> Iterable[Tensor]:
        if self.layers is not None and (latent or self.kv_cache_dtype is None):
            return ()
        return cache_scales(dtype)

    def _of(self, name: str, shards: tuple[str, ...]) -> Scheme:
        if self._excludes(name, shards):
            return UNQUANTISED
        if self.layers is None:
            return UNQUANTISED if any(word in name for word in _ENCODERS) else self.scheme
        algorithm = self._algorithm(name, shards)
        return UNQUANTISED if algorithm is None else scheme_of(algorithm, self.group)

    def _excludes(self, name: str, shards: tuple[str, ...]) -> bool:
        return skipped(name, shards, self.excluded) or self.excluded.part_of(name) or self.excluded.glob(name)

    def _algorithm(self, name: str, shards: tuple[str, ...]) -> str | None:
        """(modelopt.py:ModelOptMixedPrecisionConfig._resolve_quant_algo)"""
        layers = self.layers or {}
        found = {layers[bare(shard)] for shard in (name, *shards) if bare(shard) in layers}
        if len(found) > 1:
            raise EngineRefusalError(f"Mixed quant_algo within fused layer {name}")
        if found:
            return found.pop()
        below = bare(name).removesuffix(".experts") + "." if name.endswith(".experts") else bare(name) + "."
        algorithms = [*self.below.at(bare(name) + "."), *self.below.at(below)]
        return str(algorithms[0]) if algorithms else None


def modelopt(config: Mapping[str, Any]) -> ModelOpt:
    """Raises:
    EngineRefusalError: an algorithm that vLLM does not know, or none.
    """
    nested = config.get("quantization")
    inner: Mapping[str, Any] = nested if isinstance(nested, Mapping) else config
    algorithm = str(inner.get("quant_algo") or "").upper()
    if not algorithm:
        raise EngineRefusalError("Missing 'quant_algo' in quantization config")
    if nested is not None:
        cache, excluded = inner.get("kv_cache_quant_algo"), inner.get("exclude_modules")
    else:
        scheme = config.get("kv_cache_scheme")
        eight = isinstance(scheme, Mapping) and scheme.get("type") == "float" and scheme.get("num_bits") == 8
        cache = "FP8" if eight else None
        excluded = config.get("ignore", config.get("exclude_modules"))
    group = inner.get("group_size")
    size = group if isinstance(group, int) and group > 0 else 16
    names = NameList(_split_stars(entry for entry in excluded or () if isinstance(entry, str)))
    layers: dict[str, str] | None = None
    if algorithm == "MIXED_PRECISION":
        declared = inner.get("quantized_layers")
        if not isinstance(declared, Mapping) or not declared:
            raise EngineRefusalError("MIXED_PRECISION quant_algo requires a non-empty 'quantized_layers'")
        layers = {bare(name): str(info.get("quant_algo", "")).upper() for name, info in declared.items()}
        sizes = (info.get("group_size") for info in declared.values() if "NVFP4" in str(info.get("quant_algo")))
        size = group if isinstance(group, int) else next((s for s in sizes if isinstance(s, int)), 16)
    return ModelOpt(
        name=_NAMES.get(algorithm, "modelopt"),
        min_capability=_CAPABILITY.get(algorithm, 75),
        dtypes=("bfloat16", "float16"),
        kv_cache_dtype={"FP8": "fp8", "NVFP4": "nvfp4"}.get(str(cache).upper()),
        scheme=UNQUANTISED if layers is not None else scheme_of(algorithm, size),
        excluded=names,
        layers=layers,
        below=Below(layers or {}),
        group=size,
        claims=algorithm in ("FP8", "MIXED_PRECISION") or "FP4" in algorithm or "MXFP8" in algorithm,
    )


def _split_stars(names: Iterable[str]) -> Iterator[str]:
    """`path*` means the layer and all below it."""
    for name in names:
        if len(name) >= 2 and name.endswith("*") and name[-2] != ".":
            yield name[:-1]
            yield name[:-1] + ".*"
        else:
            yield name


_NAMES = {
    "NVFP4": "modelopt_fp4",
    "W4A16_NVFP4": "modelopt_fp4",
    "MXFP8": "modelopt_mxfp8",
    "MIXED_PRECISION": "modelopt_mixed",
}
_CAPABILITY = {"FP8": 80, "FP8_PER_CHANNEL_PER_TOKEN": 80, "FP8_PB_WO": 80, "MXFP8": 80}
