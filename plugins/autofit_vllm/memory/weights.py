"""What the weights of a model weigh on each rank (model_executor/layers/*, before and after loading)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

from autofit.domain.text import printable
from autofit.domain.values import NamedTuple, replace
from autofit.errors import EngineRefusalError, ModelError

from autofit_vllm.memory.lora import LoraSpec, lora_bytes
from autofit_vllm.modules.dtypes import dtype_bytes
from autofit_vllm.modules.model import (
    Attention,
    Buffer,
    Experts,
    Linear,
    Module,
    Parallel,
    Plain,
    StageWeights,
    VllmModel,
    Vocabulary,
)
from autofit_vllm.modules.sharding import (
    ExpertsShape,
    LinearShape,
    column_part,
    divide,
    experts_shape,
    layer_partition,
    linear_shape,
    on_stage,
    round_up,
    stage_layers,
    vocabulary_rows,
)
from autofit_vllm.quantization import NONE, UNQUANTISED, Quantization, Scheme

__all__ = ["LoraSpec", "RankTensor", "layer_partition", "rank_tensors", "stage_layers", "weights_per_rank"]

_ATTENTION_SCALES = 16  #: fp32 scales of q, k, v and probabilities (layers/attention/attention.py)
_EXPERT_MAP_ENTRY = 4  #: where each expert lives (layers/fused_moe/expert_map_manager.py)

Kind = Literal["linear", "vocabulary", "experts", "plain", "scale"]


class RankTensor(NamedTuple):
    """A parameter as vLLM creates it on one rank; the names are those of its `named_parameters`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    tower: bool

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * dtype_bytes(self.dtype)


def rank_tensors(
    model: VllmModel,
    parallel: Parallel,
    stage: int = 0,
    *,
    dtype: str,
    quantization: Quantization = NONE,
    loaded: bool = False,
) -> Iterator[RankTensor]:
    """Every parameter of tensor-parallel rank 0 of a pipeline stage, as created or (`loaded`) as kept.

    Raises:
        EngineRefusalError: something does not divide, in vLLM's terms.
    """
    for number in _held(model, _on(model, parallel, stage)):
        module = model.modules[number]
        shape = _shape(module, parallel, dtype, quantization)
        scheme = _scheme(module, shape, quantization)
        yield from _tensors(module, shape, scheme, parallel, dtype, quantization, loaded)


def _on(model: VllmModel, parallel: Parallel, stage: int) -> list[int]:
    """Numbers of the modules that live on a stage."""
    layers = stage_layers(model.n_layers, parallel, stage)
    here = {place for place in model.places if on_stage(place, stage, parallel.pp, layers)}
    return [number for number, module in enumerate(model.modules) if module.stage in here]


def _held(model: VllmModel, numbers: Iterable[int]) -> Iterator[int]:
    """Of these modules those with parameters of their own: a vocabulary that two of them share is held once."""
    seen: set[str] = set()
    for number in numbers:
        module = model.modules[number]
        if isinstance(module, Vocabulary):
            if module.name in seen or (module.tied_to is not None and module.tied_to in seen):
                continue
            seen.add(module.name)
        yield number


def _shape(
    module: Module, parallel: Parallel, dtype: str, quantization: Quantization
) -> LinearShape | ExpertsShape | None:
    """The part of a module that a rank has; `None` where nothing quantises it.

    Raises:
        EngineRefusalError: the ranks cannot share it.
    """
    if isinstance(module, Linear):
        if module.fp32_without_kernel and not _routes_in_half(quantization.capability):
            dtype = "float32"
        return linear_shape(module, parallel, dtype, quantization.name)
    if isinstance(module, Vocabulary):
        rows = vocabulary_rows(module, parallel)
        return LinearShape(
            in_size=module.columns,
            in_rank=module.columns,
            outs_rank=(rows,),
            out_size=rows * parallel.tp,
            dtype=module.dtype or dtype,
            tp=parallel.tp,
        )
    return experts_shape(module, parallel, dtype) if isinstance(module, Experts) else None


def _scheme(module: Module, shape: LinearShape | ExpertsShape | None, quantization: Quantization) -> Scheme:
    """How a module keeps its weights."""
    if isinstance(module, Linear):
        return quantization.linear(module) if module.quantizable else UNQUANTISED
    if isinstance(module, Vocabulary):
        return quantization.vocabulary(module)
    if isinstance(module, Experts) and isinstance(shape, ExpertsShape):
        return quantization.experts(module, shape) if module.quantizable else UNQUANTISED
    return UNQUANTISED


def _tensors(
    module: Module,
    shape: LinearShape | ExpertsShape | None,
    scheme: Scheme,
    parallel: Parallel,
    dtype: str,
    quantization: Quantization,
    loaded: bool,
) -> Iterator[RankTensor]:
    """The parameters of a module; without their names they are the same for all of a kind and a scheme."""
    if isinstance(shape, ExpertsShape):
        if (
            isinstance(module, Experts)
            and scheme is UNQUANTISED
            and module.fused_routing
            and quantization.capability // 10 == 10
        ):
            # (fused_moe/oracle/unquantized.py) TRT-LLM's kernels work on tiles of 128.
            shape = replace(shape, intermediate_rank=round_up(shape.intermediate_rank, 128))
        for suffix, size, kind in scheme.loaded_experts(shape) if loaded else scheme.experts(shape):
            yield RankTensor(f"{module.name}.routed_experts.{suffix}", size, kind, "experts", False)
    elif isinstance(module, Linear) and shape is not None:
        tower = module.tower is not None
        for suffix, size, kind in scheme.loaded_linear(shape) if loaded else scheme.linear(shape):
            yield RankTensor(f"{module.name}.{suffix}", size, kind, "linear", tower)
        if module.bias:
            rows = module.out_size if module.kind == "row" else shape.out_rank
            yield RankTensor(f"{module.name}.bias", (rows,), shape.dtype, "linear", tower)
    elif isinstance(module, Vocabulary) and shape is not None:
        tower = module.tower is not None
        for suffix, size, kind in scheme.linear(shape):
            yield RankTensor(f"{module.name}.{suffix}", size, kind, "vocabulary", tower)
        if module.bias:
            yield RankTensor(f"{module.name}.bias", (shape.out_rank,), shape.dtype, "vocabulary", tower)
    elif isinstance(module, Attention):
        if not loaded:
            heads = max(1, module.kv_heads // parallel.tp)
            scales = quantization.attention(heads, dtype, latent=module.latent) if module.quantizable else ()
            for suffix, size, kind in scales:
                kind = dtype if module.scale_dtype == "model" else kind
                yield RankTensor(f"{module.name}.{suffix}", size, kind, "scale", False)
    elif isinstance(module, Plain):
        sides = list(module.shape)
        if module.axis is not None and not (module.tower and parallel.vision_data_parallel):
            part = divide(sides[module.axis], parallel.tp, module.name)
            sides[module.axis] = round_up(part, module.multiple)
        yield RankTensor(module.name, tuple(sides), module.dtype or dtype, "plain", module.tower is not None)


def _routes_in_half(capability: int) -> bool:
    """Whether a kernel computes fp32 scores from half-precision weights: on Hopper and B200
    (fused_moe/router/gate_linear.py:GateLinear)."""
    return capability == 90 or capability // 10 == 10


class _Scales:
    """Weighs the modules of a model on a rank: of those that are alike and quantized alike, one."""

    def __init__(self, model: VllmModel, parallel: Parallel, dtype: str, quantization: Quantization) -> None:
        self.model = model
        self.parallel = parallel
        self.dtype = dtype
        self.quantization = quantization
        self.shapes: dict[int, LinearShape | ExpertsShape | None] = {}
        self.schemes: dict[int, Scheme] = {}  #: by identity, which is how quantizations share them
        self.weighed: dict[tuple[int, int, bool], int] = {}

    def n_bytes(self, number: int, *, loaded: bool = False) -> int:
        """Bytes of the module of this number, as created or as kept."""
        kind, module = self.model.module_kinds[number], self.model.modules[number]
        if kind not in self.shapes:
            self.shapes[kind] = _shape(module, self.parallel, self.dtype, self.quantization)
        shape = self.shapes[kind]
        scheme = _scheme(module, shape, self.quantization)
        key = kind, id(scheme), loaded
        if key not in self.weighed:
            self.schemes[id(scheme)] = scheme
            self.weighed[key] = self.weigh(module, shape, scheme, loaded)
        return self.weighed[key]

    def weigh(self, module: Module, shape: LinearShape | ExpertsShape | None, scheme: Scheme, loaded: bool) -> int:
        tensors = _tensors(module, shape, scheme, self.parallel, self.dtype, self.quantization, loaded)
        return sum(tensor.n_bytes for tensor in tensors)


def weights_per_rank(
    model: VllmModel,
    parallel: Parallel,
    *,
    dtype: str,
    quantization: Quantization = NONE,
    lora: LoraSpec | None = None,
    with_draft: bool = False,
) -> tuple[StageWeights, ...]:
    """Bytes of weights on the first tensor-parallel rank of every pipeline stage.

    `dtype` is the resolved type of the model, `quantization` what `quantization_for` found. `with_draft` adds
    the checkpoint's own multi-token-prediction layers, on the last stage.

    Raises:
        EngineRefusalError: heads, features, experts, blocks or layers that cannot be divided so.
        ModelError: sizes that make no sense.
    """
    if quantization.one_rank and parallel.tp > 1:
        raise EngineRefusalError(
            "Prequant BitsAndBytes models with tensor parallelism is not supported. Please try with pipeline "
            "parallelism.",
            hint="use --pipeline-parallel-size, or the unquantized checkpoint with --quantization bitsandbytes",
        )
    scales = _Scales(model, parallel, dtype, quantization)
    try:
        return tuple(_stage_weights(scales, stage, lora, with_draft) for stage in range(parallel.pp))
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # What the configuration says per layer is read here for the first time: a group of nothing, say.
        cause = f"{type(error).__name__}: {printable(str(error), 80)}"
        raise ModelError(f"config.json: its weights cannot be laid out ({cause})") from error


def _stage_weights(scales: _Scales, stage: int, lora: LoraSpec | None, with_draft: bool) -> StageWeights:
    model, parallel, dtype, quantization = scales.model, scales.parallel, scales.dtype, scales.quantization
    first, last = stage_layers(model.n_layers, parallel, stage)
    by_class: dict[type[Module], int] = dict.fromkeys(get_args(Module), 0)
    towers = 0
    on_it = _on(model, parallel, stage)
    modules = [model.modules[number] for number in on_it]
    held = tuple(_held(model, on_it))
    for number in held:
        module, n_bytes = model.modules[number], scales.n_bytes(number)
        by_class[type(module)] += n_bytes
        towers += n_bytes if getattr(module, "tower", None) is not None else 0
    created = sum(by_class.values())
    loaded = created - by_class[Attention]
    if quantization.while_loading:
        loaded = sum(scales.n_bytes(number, loaded=True) for number in held)
    draft = 0
    if with_draft and model.draft is not None and stage == parallel.pp - 1:
        for module in model.draft.modules:
            shape = _shape(module, parallel, dtype, quantization)
            draft += scales.weigh(module, shape, _scheme(module, shape, quantization), False)
    extra = loaded - created + _absorbed_bytes(modules, parallel, dtype, quantization)
    return StageWeights(
        stage=stage,
        n_layers=last - first,
        parameter_bytes=created,
        expert_bytes=by_class[Experts],
        embedding_bytes=by_class[Vocabulary],
        tower_bytes=towers,
        buffer_bytes=_buffer_bytes(model, modules, parallel, stage, dtype),
        extra_bytes=extra,
        lora_bytes=0 if lora is None else sum(lora_bytes(module, parallel, lora) for module in modules),
        draft_bytes=draft,
        on_meta=tuple(kind for kind in quantization.on_meta if by_class[Experts if kind == "experts" else Linear]),
    )


def _absorbed_bytes(modules: Iterable[Module], parallel: Parallel, dtype: str, quantization: Quantization) -> int:
    """The up-projections of latent attention, unpacked beside their quantized form: W_UK and W_UV
    (layers/attention/mla_attention.py:process_weights_after_loading)."""
    total = 0
    for module in modules:
        if not isinstance(module, Linear) or not module.name.endswith(".kv_b_proj"):
            continue
        if module.quantizable and quantization.linear(module) is not UNQUANTISED:
            shape = linear_shape(module, parallel, dtype)
            total += shape.out_rank * shape.in_rank * dtype_bytes(dtype)
    return total


def _buffer_elements(buffer: Buffer, tp: int) -> int:
    if not buffer.parts:
        return math.prod(buffer.shape)
    return math.prod(buffer.shape[:-1]) * sum(column_part(part, tp, buffer.name) for part in buffer.parts)


def _buffer_bytes(model: VllmModel, modules: Sequence[Module], parallel: Parallel, stage: int, dtype: str) -> int:
    """Tables and scales that no checkpoint holds; one of each name."""
    layers = stage_layers(model.n_layers, parallel, stage)
    sizes = {
        buffer.name: _buffer_elements(buffer, parallel.tp) * dtype_bytes(buffer.dtype or dtype)
        for buffer in model.buffers
        if on_stage(buffer.stage, stage, parallel.pp, layers)
    }
    scales = sum(isinstance(module, Attention) for module in modules)
    spread = parallel.expert_parallel and parallel.tp * parallel.dp * parallel.pcp > 1
    maps = (module.count + parallel.redundant_experts for module in modules if isinstance(module, Experts) and spread)
    return sum(sizes.values()) + _ATTENTION_SCALES * scales + _EXPERT_MAP_ENTRY * sum(maps)
