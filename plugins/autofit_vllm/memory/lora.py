"""Room for LoRA adapters: two thin matrices beside every linear layer (vllm/lora/layers)."""

from __future__ import annotations

from autofit.domain.values import dataclass

from autofit_vllm.modules.dtypes import dtype_bytes
from autofit_vllm.modules.model import Experts, Linear, Module, Parallel, Vocabulary
from autofit_vllm.modules.sharding import divide, experts_shape, linear_shape


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec:
    """What `--enable-lora` makes room for: `--max-loras` adapters of at most `--max-lora-rank`."""

    max_loras: int = 1
    max_rank: int = 16
    dtype: str = "bfloat16"  #: `--lora-dtype`; `auto` is the model's
    fully_sharded: bool = False


def lora_bytes(module: Module, parallel: Parallel, spec: LoraSpec) -> int:
    """Bytes beside one module on a rank; encoders and plain parameters have none.

    Raises:
        EngineRefusalError: a rank that fully sharded adapters cannot divide.
    """
    slots = spec.max_loras * dtype_bytes(spec.dtype)
    if isinstance(module, Linear):
        return 0 if module.tower else slots * _linear(module, parallel, spec)
    if isinstance(module, Experts):
        return slots * _experts(module, parallel, spec)
    if isinstance(module, Vocabulary) and module.tower is None:
        return slots * spec.max_rank * (module.rows + module.columns)
    return 0


def _linear(module: Linear, parallel: Parallel, spec: LoraSpec) -> int:
    """lora/layers/base_linear.py and column_parallel_linear.py:create_lora_weights."""
    shape, rank = linear_shape(module, parallel, spec.dtype), spec.max_rank
    sharded = spec.fully_sharded and parallel.tp > 1
    if module.kind == "row":
        out = divide(module.out_size, parallel.tp, "LoRA output") if sharded else module.out_size
        return rank * (shape.in_rank + out)
    thin = rank
    if sharded and module.kind != "replicated":
        thin = divide(rank, parallel.tp, "--max-lora-rank with --fully-sharded-loras")
    return len(shape.outs_rank) * thin * shape.in_rank + rank * shape.out_rank


def _experts(module: Experts, parallel: Parallel, spec: LoraSpec) -> int:
    """lora/layers/fused_moe.py:FusedMoEWithLoRA."""
    shape, rank = experts_shape(module, parallel, spec.dtype), spec.max_rank
    gate_up = shape.shards * rank * (shape.hidden_size + shape.intermediate_rank)
    return shape.count * (gate_up + rank * (shape.intermediate_rank + shape.hidden_size))
