"""What runs at the same time in a paged cache: one sequence of the whole length, and how many of an average one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autofit.domain.plan import Finding
from autofit.domain.request import Request
from autofit.domain.units import format_rate
from autofit.domain.values import dataclass
from autofit.speed import Roofline

from autofit_vllm.memory.kv import KvPlan
from autofit_vllm.planning.codes import finding
from autofit_vllm.planning.evaluation import Evaluation
from autofit_vllm.planning.speed import decodes, speed_of

if TYPE_CHECKING:
    from autofit_vllm.planning.report import LoadDocument, RequestDocument

MEAN_SHARE = 4  #: a sequence holds this part of the context on average, unless it is said


def mean_length(length: int, request: Request) -> int:
    """Tokens that a sequence of a context of `length` holds on average."""
    if request.fill == "full":
        return length
    return max(1, min(length, request.mean_tokens or -(-length // MEAN_SHARE)))


def blocks_for(kv: KvPlan, length: int, n_sequences: int, mean_tokens: int) -> int:
    """Blocks of one sequence of `length` and of the others at the average, and the null block."""
    others = (n_sequences - 1) * kv.blocks_per_request(mean_tokens) if n_sequences > 1 else 0
    return kv.blocks_per_request(length) + others + 1


def sequences_at(evaluation: Evaluation, n_tokens: int) -> int:
    """Sequences of `n_tokens` each that one replica runs at a time."""
    capacity, most = evaluation.capacity, evaluation.config.max_num_seqs
    if capacity is None:
        return 0
    each = evaluation.kv.blocks_per_request(n_tokens)
    return min(most, max(0, capacity.n_blocks - 1) // each) if each else most


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """All replicas, every sequence at the average length. Rates are `None` where a bandwidth is unknown."""

    mean_tokens: int
    n_sequences: int
    n_slots: int  #: of all replicas (`--max-num-seqs`)
    tokens_per_s: float | None  #: of each sequence
    total_tokens_per_s: float | None

    @property
    def report(self) -> LoadDocument:
        """For the engine's report."""
        return {
            "mean_tokens": self.mean_tokens,
            "sequences_at_mean": self.n_sequences,
            "total_tokens_per_s": None if self.total_tokens_per_s is None else round(self.total_tokens_per_s, 1),
        }


def load_of(evaluation: Evaluation, roofline: Roofline, mean_tokens: int, *, min_tps: float | None = None) -> Load:
    """The most sequences that run at a time, or as many as decode at `min_tps` each (one, if not even that does)."""
    replicas = evaluation.config.parallel.dp
    most = sequences_at(evaluation, mean_tokens)

    def rate(n: int) -> float | None:
        if not decodes(evaluation):
            return None
        speed = speed_of(evaluation, roofline, n_sequences=n, n_filled=mean_tokens, n_replicas=replicas)
        return None if speed is None else speed.decode_tokens_per_s

    each = rate(most) if most else None
    if min_tps is not None and each is not None and each < min_tps:
        low, high = 1, most  # more sequences never decode faster each
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if (rate(middle) or 0.0) >= min_tps else (low, middle - 1)
        most, each = low, rate(low)
    total = None if each is None else each * most * replicas
    return Load(
        mean_tokens=mean_tokens,
        n_sequences=most * replicas,
        n_slots=evaluation.config.max_num_seqs * replicas,
        tokens_per_s=each,
        total_tokens_per_s=total,
    )


def prompts_of(evaluation: Evaluation, roofline: Roofline, prompt_tokens: int) -> RequestDocument:
    """What an instance takes for a prompt that it reads alone, and hands over to another instance like it: each rank
    reads what one of the others has (distributed/kv_transfer/kv_connector/v1/nixl/tp_mapping.py)."""
    parallel, kv = evaluation.config.parallel, evaluation.kv
    speed = speed_of(evaluation, roofline, n_filled=prompt_tokens)
    rate = None if speed is None else speed.prefill_tokens_per_s
    per_stage = (kv.moved_bytes(prompt_tokens, stage) for stage in range(parallel.pp))
    return {
        "prompt_seconds": None if rate is None else round(prompt_tokens / rate, 4),
        "prompts_per_s": None if rate is None else round(parallel.dp * rate / prompt_tokens, 4),
        "kv_bytes_per_prompt": parallel.tp * sum(per_stage),
    }


def capacity_finding(evaluation: Evaluation, load: Load) -> list[Finding]:
    """Tokens of cache, full contexts, sequences at their average length and what they decode together."""
    capacity, replicas = evaluation.capacity, evaluation.config.parallel.dp
    if capacity is None or not capacity.n_tokens:
        return []
    each = f" on each of {replicas} replicas" if replicas > 1 else ""
    message = f"KV cache {capacity.n_tokens:,} tokens{each}: {capacity.max_concurrency:.2f} full contexts"
    mean = f"at {load.mean_tokens:,} tokens on average"
    if load.n_sequences < load.n_slots:
        message += f"; {load.n_sequences:,} of {load.n_slots:,} sequences at a time {mean}"
    else:
        message += f"; all {load.n_slots:,} sequences at a time {mean}"
    if load.total_tokens_per_s is not None and load.tokens_per_s is not None and load.n_sequences:
        message += f", ~{format_rate(load.total_tokens_per_s)} tokens/s in all (~{format_rate(load.tokens_per_s)} each)"
    return [finding("kv-capacity", message)]
