"""What it would take: a shorter context, or more GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from autofit.domain.plan import Finding
from autofit.domain.values import replace
from autofit.errors import EngineRefusalError

from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.config.resolve.parallel import possible_tp
from autofit_vllm.modules.model import Parallel
from autofit_vllm.planning.batch import LayoutBase
from autofit_vllm.planning.codes import finding
from autofit_vllm.planning.evaluation import gpu_of
from autofit_vllm.planning.layouts import LAYOUT_VALUES
from autofit_vllm.planning.offload import OFFLOAD_SEQUENCES, OFFLOAD_STEP_TOKENS
from autofit_vllm.planning.problem import ENOUGH_TOKENS, LOSSY_KV, Candidate, Problem, RankLayout
from autofit_vllm.planning.ranking import timed
from autofit_vllm.planning.search import search

NODE = 8  #: GPUs of a usual server


def longest_plan(problem: Problem) -> Candidate | None:
    """The best plan of whatever length fits, with all weights on GPUs; with an 8-bit cache, unless another was asked
    for, where that is longer."""
    if problem.settings.pins("max_model_len"):
        return None
    request = replace(problem.request, context=0, min_context=None, min_tps=None, max_ttft=None)
    wishes = [request, replace(request, kv=LOSSY_KV)] if request.kv in (None, "auto") else [request]
    found = [each for wish in wishes for each in _held(replace(problem, request=wish))]
    return max(found, key=lambda candidate: (candidate.length, candidate.rate), default=None)


def _held(problem: Problem) -> list[Candidate]:
    try:
        found = [timed(candidate, problem) for candidate in search(problem, eager=False)[0]]
    except EngineRefusalError:
        return []
    return [candidate for candidate in found if candidate.fits and candidate.length >= ENOUGH_TOKENS]


def gpus_needed(problem: Problem, length: int, limit: int = 64) -> Parallel | None:
    """How many GPUs like the first would hold the sequences that are wished, of this length, and how they would share
    the model: tensor parallel within a machine of up to `node_of`, stages across machines of as many GPUs each."""
    if not problem.devices:
        return None
    least = _weights_bytes(problem) // max(1, problem.devices[0].total_bytes or 1)
    for tp, pp in _sizes(problem, limit):
        found = _held_by(problem, tp, pp, length) if least <= tp * pp <= limit else None
        if found is not None:
            return found
    return None


def gpus_finding(problem: Problem, length: int) -> list[Finding]:
    """How many GPUs like the first would be enough, in words."""
    needed = gpus_needed(problem, length)
    if needed is None:
        return []
    world, node = needed.world_size, node_of(problem)
    nodes = f" in {world // node} machines of {node}" if world > node else ""
    message = f"{world} GPUs like {problem.devices[0].name}{nodes} would hold it: -tp {needed.tp} -pp {needed.pp}"
    return [finding("gpus-needed", message)]


def node_of(problem: Problem) -> int:
    """GPUs of a machine that is bought for more than this one holds."""
    return max(NODE, len(problem.devices))


def _sizes(problem: Problem, limit: int) -> Iterator[tuple[int, int]]:
    """(tensor parallel, stages), by the number of GPUs: what the heads divide over, else machines that are full."""
    node = node_of(problem)
    heads = [tp for tp in possible_tp(problem.model) if tp <= node]
    yield from ((tp, 1) for tp in heads)
    most = max(1, problem.model.n_layers) if problem.model.supports_pipeline else 1
    for world in (*range(2 * max(heads), node + 1, max(heads)), *range(2 * node, limit + 1, node)):
        tp = max(tp for tp in heads if world % tp == 0)
        if world // tp <= most:
            yield tp, world // tp


def _held_by(problem: Problem, tp: int, pp: int, length: int) -> Parallel | None:
    """Whether so many GPUs hold it."""
    sequences = max(OFFLOAD_SEQUENCES, problem.n_parallel)
    devices = (problem.devices[0],) * (tp * pp)
    host = replace(problem.machine.host, available_bytes=None)  # a machine that is bought has RAM of its own
    machine = replace(problem.machine, host=host)
    many = replace(problem, devices=devices, machine=machine, settings=_unpinned(problem.settings))
    values = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}
    try:
        base = LayoutBase.of(many, RankLayout(values=values, devices=devices, world_size=tp * pp), values)
        tokens = max(OFFLOAD_STEP_TOKENS, sequences, problem.settings.max_num_seqs or 0)
        candidate = base.candidate(tokens, sequences)
    except EngineRefusalError:
        return None
    enough = candidate.fits and candidate.length >= min(length, problem.lengths[0])
    return base.config.parallel if enough else None


def _weights_bytes(problem: Problem) -> int:
    """Weights on one GPU, however large: no layout has less in all."""
    plain = _unpinned(problem.settings)
    try:
        (stage,) = problem.weigh(problem.resolve(plain, gpu_of(problem.devices[:1])))
    except EngineRefusalError:
        return 0
    return stage.parameter_bytes


def _unpinned(settings: VllmSettings) -> VllmSettings:
    given = {name: value for name, value in settings.given.items() if name not in LAYOUT_VALUES}
    return replace(
        settings,
        given=given,
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        data_parallel_size=1,
        enable_expert_parallel=False,
        decode_context_parallel_size=1,
    )
