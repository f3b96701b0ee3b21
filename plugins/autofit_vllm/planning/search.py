"""The decision: how to spread the model, and how much context, batch and cache then fit.

Every layout that the model divides over is tried. Within one, the length comes first, at vLLM's smallest default
batch; larger batches are taken as far as they do not shorten it, smaller ones as far as it takes to reach what was
wished. Then come an 8-bit cache, no CUDA graphs, and last experts or layers in RAM: for a moderate length, or as far as
the longest context needs (`-c max`). What the user pinned is never touched.

The cache is paged: `--parallel N` are N sequences at a time, not N full contexts. One full context is guaranteed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autofit.domain.units import GIB
from autofit.domain.values import replace
from autofit.errors import EngineRefusalError
from autofit.solve import largest

from autofit_vllm.planning.batch import LENGTH_STEP, base_of, best_of_layout
from autofit_vllm.planning.layouts import layouts
from autofit_vllm.planning.offload import offloaded
from autofit_vllm.planning.problem import LOSSY_KV, Candidate, Problem, RankLayout
from autofit_vllm.planning.ranking import READABLE, decodes_in_time, first_seconds, score, timed


def solve(problem: Problem) -> tuple[Candidate, list[Candidate]]:
    """The best candidate, and the others worth knowing. The best may not fit: it is then the nearest.

    Raises:
        EngineRefusalError: vLLM would refuse what the user pinned, whatever is chosen beside it.
    """
    found, refusals = search(problem, eager=False)
    worth = problem.worth

    def enough_fits() -> bool:
        return any(candidate.holds and candidate.length >= worth for candidate in found)

    if not enough_fits() and any(map(_graphs_decide, found)):
        eager, _ = search(problem, eager=True)
        found += eager
    if not found:
        raise refusals[0] if refusals else EngineRefusalError("no parallel sizes use these nodes and GPUs evenly")
    found = [timed(candidate, problem) for candidate in found]
    found += [timed(candidate, problem) for candidate in _worth_offloading(problem, found, enough_fits())]
    best = max(found, key=lambda candidate: score(candidate, problem))
    chosen = _leanest(problem, _no_slower(problem, best))
    return chosen, [candidate for candidate in found if candidate is not best]


def _worth_offloading(problem: Problem, found: Sequence[Candidate], enough_fits: bool) -> list[Candidate]:
    """Candidates with weights in RAM: where nothing useful fits, or only stages that wait for each other."""
    if not problem.request.in_ram:
        return []
    if not enough_fits:
        return offloaded(problem, found)
    rates = [candidate.rate for candidate in found if candidate.holds and candidate.length >= problem.worth]
    if not 0 < max(rates) < READABLE or problem.request.prefer in ("context", "throughput"):
        return []
    return offloaded(problem, [candidate for candidate in found if not candidate.holds], faster_than=max(rates))


def _leanest(problem: Problem, best: Candidate) -> Candidate:
    """No more of the GPUs than the plan needs, where memory is to be left."""
    pins, evaluation = problem.settings.pins, best.evaluation
    stated = any(map(pins, ("gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override")))
    if problem.request.prefer != "memory" or stated or not best.fits or evaluation.given_kv:
        return best
    base = replace(base_of(problem, best), offload=evaluation.offload)
    return timed(base.leanest(best), problem)


def _no_slower(problem: Problem, best: Candidate) -> Candidate:
    """No more sequences than decode at the wished rate, where nobody said how many."""
    pinned = problem.n_slots is not None or problem.settings.pins("max_num_seqs")
    if problem.request.min_tps is None or pinned or not best.fits or best.load is None:
        return best
    config = best.evaluation.config
    seqs = max(1, best.load.n_sequences // config.parallel.dp)
    if seqs >= config.max_num_seqs:
        return best
    base = replace(base_of(problem, best), offload=best.evaluation.offload)
    fewer = timed(base.candidate(config.max_num_batched_tokens, seqs, limit=best.length), problem)
    return fewer if fewer.fits and fewer.length >= best.length else best


def _graphs_decide(candidate: Candidate) -> bool:
    """Whether dropping CUDA graphs would roughly cover the shortfall."""
    evaluation = candidate.evaluation
    graphs = max(budget.graphs.n_bytes for budget in evaluation.budgets)
    return evaluation.shortfall_bytes <= 2 * graphs + GIB // 2


def search(problem: Problem, *, eager: bool) -> tuple[list[Candidate], list[EngineRefusalError]]:
    """A candidate per layout and cache type. Stages are added only until the wanted length fits."""
    found: list[Candidate] = []
    refusals: list[EngineRefusalError] = []
    if eager and problem.settings.pins("enforce_eager"):
        return found, refusals
    for kv_dtype in kv_dtypes(problem):
        values: dict[str, Any] = {} if kv_dtype is None else {"kv_cache_dtype": kv_dtype}
        if eager:
            values["enforce_eager"] = True
        cap = _cap(problem, kv_dtype, eager=eager)
        for family in layouts(problem):
            enough: int | None = None  # stages
            for layout in family:
                if enough is not None and layout.n_stages > enough:
                    found += _on_all(problem, family[-1], values, cap)
                    break
                try:
                    candidate = _in_time(problem, layout, {**layout.values, **values}, cap)
                except EngineRefusalError as refusal:
                    refusals.append(refusal)
                    continue
                found.append(candidate)
                if candidate.holds and candidate.length >= problem.target:
                    enough = layout.n_stages
    return found, refusals


def _in_time(problem: Problem, layout: RankLayout, values: Mapping[str, Any], cap: int | None) -> Candidate:
    """The best of a layout, with no longer a context than whose prompt is read, and which is decoded, as fast as is
    wished, where nobody said how long it is."""
    candidate = best_of_layout(problem, layout, values, cap=cap)
    goal, least = problem.lengths
    wished_s = problem.request.max_ttft
    if (wished_s, problem.request.min_tps) == (None, None) or goal == least:
        return candidate
    if problem.settings.pins("max_model_len") or not candidate.holds:
        return candidate

    def passes(length: int) -> bool:
        seconds = None if wished_s is None else first_seconds(candidate, problem, length)
        in_time = wished_s is None or (seconds is not None and seconds <= wished_s)
        return in_time and decodes_in_time(candidate, problem, length)

    if passes(candidate.length):
        return candidate
    longest = largest(passes, max(least, LENGTH_STEP), candidate.length, step=LENGTH_STEP)
    return candidate if longest is None else best_of_layout(problem, layout, values, cap=longest)


def _cap(problem: Problem, kv_dtype: str | None, *, eager: bool) -> int | None:
    """The longest length for which a change that costs something is made: with more memory the length that is reached
    without it is never shorter."""
    if eager:
        return problem.worth
    chosen = kv_dtype == LOSSY_KV and problem.request.kv in (None, "auto")
    if chosen:
        return problem.wished if problem.request.kv is None else problem.target
    return None


def _on_all(problem: Problem, layout: RankLayout, values: Mapping[str, Any], cap: int | None) -> list[Candidate]:
    """The layout that takes every GPU, where fewer would do: what leaving some out means is known then."""
    if layout.world_size != len(problem.devices):
        return []
    try:
        return [best_of_layout(problem, layout, {**layout.values, **values}, cap=cap)]
    except EngineRefusalError:
        return []


def kv_dtypes(problem: Problem) -> list[str | None]:
    """Types of the cache to try, the lossless one first. `None` leaves it to vLLM and the checkpoint."""
    if problem.settings.pins("kv_cache_dtype"):
        return [None]
    wish = problem.request.kv
    if wish in (None, "auto"):
        return [None] if problem.request.prefer == "quality" else [None, LOSSY_KV]
    return [{"f16": "float16", "bf16": "bfloat16"}.get(wish or "", wish)]
