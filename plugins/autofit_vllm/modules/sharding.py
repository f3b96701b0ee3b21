"""What of each module one rank holds, and vLLM's own refusals when it does not divide.

Ranks of tensor parallelism differ by nothing but rounding; everything here is rank 0, which never has less.
"""

from __future__ import annotations

from autofit.domain.values import dataclass
from autofit.errors import EngineRefusalError

from autofit_vllm.modules.model import FIRST, LAST, Experts, Linear, Parallel, Part, Stage, Vocabulary


def divide(amount: int, by: int, what: str) -> int:
    """Exact division (distributed/utils.py:divide).

    Raises:
        EngineRefusalError: a remainder.
    """
    if by < 1 or amount % by:
        raise EngineRefusalError(
            f"{what}: {amount} is not divisible by {by}", hint=f"sizes that divide: {_divisors(amount)}"
        )
    return amount // by


def _divisors(amount: int) -> str:
    return ", ".join(str(n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 32, 64) if amount % n == 0)


def round_up(amount: int, multiple: int) -> int:
    return -(-amount // multiple) * multiple


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearShape:
    """A linear layer on one rank: what its quantization method is told (layers/linear.py)."""

    in_size: int
    in_rank: int
    outs_rank: tuple[int, ...]  #: one per fused part
    out_size: int
    dtype: str
    tp: int

    @property
    def out_rank(self) -> int:
        return sum(self.outs_rank)

    @property
    def is_row(self) -> bool:
        return self.in_rank != self.in_size


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsShape:
    """All routed experts on one rank (layers/fused_moe/config.py:FusedMoEConfig)."""

    count: int
    hidden_size: int
    intermediate_rank: int
    shards: int  #: gate and up, or up alone
    bias: bool
    dtype: str
    tp: int  #: of the model, not of the experts
    expert_parallel: bool

    @property
    def w13_rows(self) -> int:
        return self.shards * self.intermediate_rank


def linear_shape(module: Linear, parallel: Parallel, dtype: str, quantization: str | None = None) -> LinearShape:
    """Raises:
    EngineRefusalError: heads or features that the ranks cannot share.
    """
    whole = (
        (module.tower and parallel.vision_data_parallel)
        or (module.spreads_tokens and parallel.spreads_tokens)
        or quantization in module.undivided_with
        or (module.divides and module.divides % parallel.tp)
    )
    tp = 1 if whole else parallel.tp
    in_rank, outs = module.in_size, tuple(part.size for part in module.parts)
    out_size = sum(outs)
    if module.kind == "qkv":
        heads = divide(module.heads, tp, f"{module.name} heads")
        if tp >= module.kv_heads:
            divide(tp, module.kv_heads, f"{module.name}: tensor parallel size over KV heads")
            kv_heads = 1
        else:
            kv_heads = divide(module.kv_heads, tp, f"{module.name} KV heads")
        outs = (heads * module.head_size, kv_heads * module.head_size, kv_heads * module.head_size_v)
        out_size = sum(outs) * tp
    elif module.kind == "column":
        outs = tuple(column_part(part, tp, module.name) for part in module.parts)
        if filling := -sum(outs) % module.multiple:
            outs = (*outs, filling)
        out_size = sum(outs) * tp
    elif module.kind == "row":
        in_rank = divide(module.in_size, tp, module.name)
    return LinearShape(
        in_size=module.in_size,
        in_rank=in_rank,
        outs_rank=outs,
        out_size=out_size,
        dtype=module.dtype or dtype,
        tp=tp,
    )


def column_part(part: Part, tp: int, name: str) -> int:
    """Features of one part of a column layer on a rank; groups are copied rather than split."""
    if part.heads and tp >= part.heads:
        divide(tp, part.heads, f"{name}: tensor parallel size over heads")
        return part.size // part.heads
    if part.unit and part.size // part.unit % tp:
        if part.size != part.unit:
            raise EngineRefusalError(
                f"{name}: If tensor parallel world size does not divide num_groups, then num_groups must equal 1."
            )
        return part.unit
    return divide(part.size, tp, name)


def experts_shape(module: Experts, parallel: Parallel, dtype: str) -> ExpertsShape:
    """Experts go over all ranks of all replicas: each expert sliced, or whole experts with expert parallelism.

    Raises:
        EngineRefusalError: the slices are not equal.
    """
    ranks = parallel.tp * parallel.dp * parallel.pcp
    count, width = module.count + parallel.redundant_experts, module.intermediate_size
    spread = parallel.expert_parallel and ranks > 1
    if spread:
        count = -(-count // ranks)
    else:
        if parallel.tp > 1:
            width = max(width, module.least_width * parallel.tp)
        width = divide(width, ranks, f"{module.name} intermediate size")
    return ExpertsShape(
        count=count,
        hidden_size=module.hidden_size,
        intermediate_rank=width,
        shards=2 if module.gated else 1,
        bias=module.bias,
        dtype=dtype,
        tp=parallel.tp,
        expert_parallel=spread,
    )


def vocabulary_rows(module: Vocabulary, parallel: Parallel) -> int:
    """Rows of an embedding or head on one rank.

    Raises:
        EngineRefusalError: the padded vocabulary does not divide.
    """
    return divide(round_up(module.rows, module.padding), parallel.tp, f"{module.name} padded vocabulary")


def layer_partition(n_layers: int, parallel: Parallel) -> tuple[int, ...]:
    """Decoder layers of each stage: the remainder goes one each to the stages before the last
    (distributed/utils.py:get_pp_indices).

    Raises:
        EngineRefusalError: a partition of another length or sum was asked for.
    """
    given = parallel.layer_partition
    if given is not None:
        if len(given) != parallel.pp:
            raise EngineRefusalError(
                f"VLLM_PP_LAYER_PARTITION names {len(given)} stages, --pipeline-parallel-size is {parallel.pp}"
            )
        if sum(given) != n_layers:
            raise EngineRefusalError(
                f"VLLM_PP_LAYER_PARTITION adds up to {sum(given)} layers, the model has {n_layers}"
            )
        return given
    sizes = [n_layers // parallel.pp] * parallel.pp
    for back in range(2, n_layers % parallel.pp + 2):
        sizes[-back] += 1
    return tuple(sizes)


def stage_layers(n_layers: int, parallel: Parallel, stage: int) -> tuple[int, int]:
    """First decoder layer of a pipeline stage, and the one after its last."""
    sizes = layer_partition(n_layers, parallel)
    first = sum(sizes[:stage])
    return first, first + sizes[stage]


def on_stage(place: Stage, stage: int, pp: int, layers: tuple[int, int]) -> bool:
    """Whether a module or cache at `place` lives on pipeline stage `stage`, which has these layers."""
    if place >= 0:
        return layers[0] <= place < layers[1]
    if place == FIRST:
        return stage == 0
    return place != LAST or stage == pp - 1
