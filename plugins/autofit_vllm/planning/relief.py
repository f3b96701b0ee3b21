"""What it would take: a shorter context, or more GPUs."""

from __future__ import annotations

import dataclasses

from autofit.errors import EngineRefusalError

from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.config.resolve.parallel import possible_tp
from autofit_vllm.modules.model import Parallel
from autofit_vllm.planning.batch import LayoutBase
from autofit_vllm.planning.evaluation import gpu_of
from autofit_vllm.planning.layouts import LAYOUT_VALUES
from autofit_vllm.planning.offload import OFFLOAD_SEQUENCES, OFFLOAD_STEP_TOKENS
from autofit_vllm.planning.problem import ENOUGH_TOKENS, Candidate, Layout, Problem
from autofit_vllm.planning.ranking import timed
from autofit_vllm.planning.search import search


def longest_plan(problem: Problem) -> Candidate | None:
    """The best plan of whatever length fits, with all weights on GPUs."""
    request = dataclasses.replace(problem.request, context=0, min_context=None, min_tps=None, max_ttft=None)
    free = dataclasses.replace(problem, request=request)
    if problem.settings.pins("max_model_len"):
        return None
    found = [timed(candidate, free) for candidate in search(free, eager=False)[0]]
    fitting = [candidate for candidate in found if candidate.fits and candidate.length >= ENOUGH_TOKENS]
    return max(fitting, key=lambda candidate: (candidate.length, candidate.rate), default=None)


def gpus_needed(problem: Problem, length: int, limit: int = 64) -> Parallel | None:
    """How many GPUs like the first would hold the sequences that are wished, of this length, and how they would
    share the model: tensor parallel within a node like this one, stages across nodes."""
    sequences = max(OFFLOAD_SEQUENCES, problem.n_parallel)
    if not problem.devices:
        return None
    device, per_node = problem.devices[0], len(problem.devices)
    heads = possible_tp(problem.model)
    least = _weights_bytes(problem) // max(1, device.total_bytes or 1)
    n_nodes = max(1, -(-least // per_node))
    while n_nodes * per_node <= limit:
        world = n_nodes * per_node
        n_nodes += max(1, n_nodes // 8)
        for tp in sorted((tp for tp in heads if world % tp == 0 and tp <= max(8, per_node)), reverse=True):
            pp = world // tp
            if pp > max(1, problem.model.n_layers) or (pp > 1 and not problem.model.supports_pipeline):
                continue
            many = dataclasses.replace(problem, devices=(device,) * world, settings=_unpinned(problem.settings))
            values = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}
            layout = Layout(values=values, devices=many.devices, world_size=world)
            try:
                base = LayoutBase.of(many, layout, values)
                tokens = max(OFFLOAD_STEP_TOKENS, sequences, problem.settings.max_num_seqs or 0)
                candidate = base.candidate(tokens, sequences)
                if candidate.fits and candidate.length >= min(length, problem.lengths[0]):
                    return base.config.parallel
            except EngineRefusalError:
                continue
    return None


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
    return dataclasses.replace(
        settings,
        given=given,
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        data_parallel_size=1,
        enable_expert_parallel=False,
        decode_context_parallel_size=1,
    )
