"""What holds a plan that fits back, and what the next step up would need: one more estimate, with the same layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autofit.domain.memory import Memory, PoolUse
from autofit.domain.plan import Limit, NextRejected
from autofit.domain.text import joined
from autofit.domain.units import format_bytes

from autofit_llama.memory.estimate import Estimate
from autofit_llama.model.context import CELL_PADDING
from autofit_llama.planning.goals import Goals
from autofit_llama.planning.search import Found, Search
from autofit_llama.planning.tables import Split

if TYPE_CHECKING:
    from autofit_llama.planning.task import Task

LOSSLESS = "f16"


def limit_of(task: Task, search: Search, goals: Goals, found: Found, final: Estimate) -> Limit:
    """The first of these that more memory would make better: weights in RAM, a shorter context, a lossy cache."""
    candidate = found.candidate
    if found.split.on_host and task.devices:
        return _weights(task, search, found, final)
    if task.exact_context is None and candidate.n_ctx_seq < goals.most:
        return _context(task, search, goals, found)
    if candidate.type_k != LOSSLESS and task.pins.settings.type_k is None and task.request.kv in (None, "auto"):
        lossless = found._replace(candidate=candidate._replace(type_k=LOSSLESS, type_v=LOSSLESS))
        because = f"{candidate.type_k} loses some precision"
        step = f"{task.pins.word('type_k')} {LOSSLESS}"
        return _lacking(search.measure(*lossless[:2]), found, "precision of the KV cache", because, step)
    n_ctx = final.layout.context.n_ctx_seq  # as the engine pads it
    context = "" if task.base.embedding else f" and a context of {n_ctx:,} tokens"
    wanted = "as asked" if task.exact_context is not None else "the longest there is"
    where = f"on {joined(found.split.order)}" if found.split.order else "in RAM"
    return Limit(because=f"all layers{context}{context and f', {wanted},'} are {where}")


def _weights(task: Task, search: Search, found: Found, final: Estimate) -> Limit:
    """All blocks on the devices in use, those that wait in RAM on the first."""
    bounds = search.problem.bounds
    in_ram = f"{format_bytes(final.layout.weight_plan.host_all_bytes)} of weights stay in RAM"
    if 0 not in bounds.heads or bounds.n_cpu_ffn[0] > 0:
        return Limit(what="decode rate", because=f"{in_ram}, as the given flags say")
    if not found.split.rows:
        return Limit(what="decode rate", because=in_ram)
    memory = search.measure(found.candidate, _whole(task, search, found.split))
    pools = [search.problem.pool_of[name] for name in found.split.order]
    return _lacking(memory, found, "decode rate", in_ram, f"all layers on {joined(found.split.order)}", pools)


def _whole(task: Task, search: Search, split: Split) -> Split:
    whole = split._replace(head=0, n_cpu_ffn=0, offloaded=(), moved=())
    if task.shares_blocks:
        return whole
    if search.problem.bounds.split is not None:
        return whole._replace(rows=search.rows_at(0))
    (first, count), *rest = split.rows
    return whole._replace(rows=((first, count + split.head), *rest))


def _context(task: Task, search: Search, goals: Goals, found: Found) -> Limit:
    """Twice the context, or the most there is."""
    candidate, n = found.candidate, task.n_parallel
    because = f"{candidate.n_ctx_seq:,} of {goals.most:,} tokens"
    longer = min(goals.most, 2 * candidate.n_ctx_seq // CELL_PADDING * CELL_PADDING)
    memory = search.measure(candidate._replace(n_ctx_seq=longer), found.split)
    if memory.fits:
        return Limit(what="context", because=f"a longer one than {candidate.n_ctx_seq:,} tokens lowers the decode rate")
    return _lacking(memory, found, "context", because, f"{task.pins.word('n_ctx')} {longer * n}")


def _lacking(
    memory: Memory, found: Found, what: str, because: str, value: str, together: Sequence[str] | None = None
) -> Limit:
    """What a better plan lacks; where it lacks nothing, memory is not what limits.

    `together`: pools that may share what is missing, wherever this estimate has put it.
    """
    short = [pool for pool in memory.pools if pool.shortfall_bytes > 0]
    shared = [pool for pool in memory.pools if pool.id in together] if together else short
    lacks = sum(pool.shortfall_bytes for pool in shared)
    if not short or lacks <= 0:
        return Limit(what=what, because=because)
    tightest = min(shared, key=lambda pool: _room(found.memory.pool(pool.id)))
    step = NextRejected(value=value, pool=tightest.id if len(shared) == 1 else None, shortfall_bytes=lacks)
    return Limit(what=what, because=because, pool=tightest.id, next_step=step)


def _room(pool: PoolUse) -> float:
    return float("inf") if pool.room_bytes is None else pool.room_bytes / max(pool.free_bytes or 0, 1)
