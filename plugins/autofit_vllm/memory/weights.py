"""What the weights of a model weigh on each rank (model_executor/layers/*, before and after loading)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

from autofit.domain.text import printable
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
    StageWeights,
    VllmModel,
    Vocabulary,
)
from autofit_vllm.modules.sharding import (
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
from autofit_vllm.quantization import NONE, UNQUANTISED, Quantization

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
    layers = stage_layers(model.n_layers, parallel, stage)
    seen: set[str] = set()
    for module in model.modules:
        if not on_stage(module.stage, stage, parallel.pp, layers):
            continue
        if isinstance(module, Vocabulary):
            if module.name in seen or (module.tied_to is not None and module.tied_to in seen):
                continue
            seen.add(module.name)
        yield from _tensors(module, parallel, dtype, quantization, loaded)


def _tensors(
    module: Module, parallel: Parallel, dtype: str, quantization: Quantization, loaded: bool
) -> Iterator[RankTensor]:
    if isinstance(module, Linear):
        if module.fp32_without_kernel and not _routes_in_half(quantization.capability):
            dtype = "float32"
        shape = linear_shape(module, parallel, dtype, quantization.name)
        scheme = quantization.linear(module) if module.quantizable else NONE.linear(module)
        tensors = scheme.loaded_linear(shape) if loaded else scheme.linear(shape)
        tower = module.tower is not None
        for suffix, size, kind in tensors:
            yield RankTensor(f"{module.name}.{suffix}", size, kind, "linear", tower)
        if module.bias:
            rows = module.out_size if module.kind == "row" else shape.out_rank
            yield RankTensor(f"{module.name}.bias", (rows,), shape.dtype, "linear", tower)
    elif isinstance(module, Vocabulary):
        yield from _vocabulary_tensors(module, parallel, dtype, quantization)
    elif isinstance(module, Experts):
        local = experts_shape(module, parallel, dtype)
        method = quantization.experts(module, local) if module.quantizable else NONE.experts(module, local)
        if method is UNQUANTISED and module.fused_routing and quantization.capability // 10 == 10:
            # (fused_moe/oracle/unquantized.py) TRT-LLM's kernels work on tiles of 128.
            local = replace(local, intermediate_rank=round_up(local.intermediate_rank, 128))
        for suffix, size, kind in method.loaded_experts(local) if loaded else method.experts(local):
            yield RankTensor(f"{module.name}.routed_experts.{suffix}", size, kind, "experts", False)
    elif isinstance(module, Attention):
        if not loaded:
            heads = max(1, module.kv_heads // parallel.tp)
            scales = quantization.attention(heads, dtype, latent=module.latent) if module.quantizable else ()
            for suffix, size, kind in scales:
                kind = dtype if module.scale_dtype == "model" else kind
                yield RankTensor(f"{module.name}.{suffix}", size, kind, "scale", False)
    else:
        sides = list(module.shape)
        if module.axis is not None and not (module.tower and parallel.vision_data_parallel):
            part = divide(sides[module.axis], parallel.tp, module.name)
            sides[module.axis] = round_up(part, module.multiple)
        yield RankTensor(module.name, tuple(sides), module.dtype or dtype, "plain", module.tower is not None)


def _routes_in_half(capability: int) -> bool:
    """Whether a kernel computes fp32 scores from half-precision weights: on Hopper and B200
    (fused_moe/router/gate_linear.py:GateLinear)."""
    return capability == 90 or capability // 10 == 10


def _vocabulary_tensors(
    module: Vocabulary, parallel: Parallel, dtype: str, quantization: Quantization
) -> Iterator[RankTensor]:
    rows = vocabulary_rows(module, parallel)
    shape = LinearShape(
        in_size=module.columns,
        in_rank=module.columns,
        outs_rank=(rows,),
        out_size=rows * parallel.tp,
        dtype=module.dtype or dtype,
        tp=parallel.tp,
    )
    tower = module.tower is not None
    for suffix, size, kind in quantization.vocabulary(module).linear(shape):
        yield RankTensor(f"{module.name}.{suffix}", size, kind, "vocabulary", tower)
    if module.bias:
        yield RankTensor(f"{module.name}.bias", (rows,), shape.dtype, "vocabulary", tower)


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
    try:
        return tuple(
            _stage_weights(model, parallel, stage, dtype, quantization, lora, with_draft)
            for stage in range(parallel.pp)
        )
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # What the configuration says per layer is read here for the first time: a group of nothing, say.
        cause = f"{type(error).__name__}: {printable(str(error), 80)}"
        raise ModelError(f"config.json: its weights cannot be laid out ({cause})") from error


def _stage_weights(
    model: VllmModel,
    parallel: Parallel,
    stage: int,
    dtype: str,
    quantization: Quantization,
    lora: LoraSpec | None,
    with_draft: bool,
) -> StageWeights:
    first, last = stage_layers(model.n_layers, parallel, stage)
    by_kind, towers = dict.fromkeys(get_args(Kind), 0), 0
    for tensor in rank_tensors(model, parallel, stage, dtype=dtype, quantization=quantization):
        by_kind[tensor.kind] += tensor.n_bytes
        towers += tensor.n_bytes if tensor.tower else 0
    created = sum(by_kind.values())
    loaded = created - by_kind["scale"]
    if quantization.while_loading:
        tensors = rank_tensors(model, parallel, stage, dtype=dtype, quantization=quantization, loaded=True)
        loaded = sum(tensor.n_bytes for tensor in tensors)
    draft = 0
    if with_draft and model.draft is not None and stage == parallel.pp - 1:
        for module in model.draft.modules:
            draft += sum(t.n_bytes for t in _tensors(module, parallel, dtype, quantization, False))
    extra = loaded - created + _absorbed_bytes(model, parallel, stage, dtype, quantization)
    return StageWeights(
        stage=stage,
        n_layers=last - first,
        parameter_bytes=created,
        expert_bytes=by_kind["experts"],
        embedding_bytes=by_kind["vocabulary"],
        tower_bytes=towers,
        buffer_bytes=_buffer_bytes(model, parallel, stage, dtype),
        extra_bytes=extra,
        lora_bytes=0
        if lora is None
        else sum(lora_bytes(module, parallel, lora) for module in _modules_of(model, parallel, stage)),
        draft_bytes=draft,
    )


def _modules_of(model: VllmModel, parallel: Parallel, stage: int) -> Iterator[Module]:
    layers = stage_layers(model.n_layers, parallel, stage)
    return (module for module in model.modules if on_stage(module.stage, stage, parallel.pp, layers))


def _absorbed_bytes(model: VllmModel, parallel: Parallel, stage: int, dtype: str, quantization: Quantization) -> int:
    """The up-projections of latent attention, unpacked beside their quantized form: W_UK and W_UV
    (layers/attention/mla_attention.py:process_weights_after_loading)."""
    total = 0
    for module in _modules_of(model, parallel, stage):
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


def _buffer_bytes(model: VllmModel, parallel: Parallel, stage: int, dtype: str) -> int:
    """Tables and scales that no checkpoint holds; one of each name."""
    layers = stage_layers(model.n_layers, parallel, stage)
    sizes = {
        buffer.name: _buffer_elements(buffer, parallel.tp) * dtype_bytes(buffer.dtype or dtype)
        for buffer in model.buffers
        if on_stage(buffer.stage, stage, parallel.pp, layers)
    }
    scales = sum(isinstance(module, Attention) for module in _modules_of(model, parallel, stage))
    spread = parallel.expert_parallel and parallel.tp * parallel.dp * parallel.pcp > 1
    maps = (
        module.count + parallel.redundant_experts
        for module in _modules_of(model, parallel, stage)
        if isinstance(module, Experts) and spread
    )
    return sum(sizes.values()) + _ATTENTION_SCALES * scales + _EXPERT_MAP_ENTRY * sum(maps)
