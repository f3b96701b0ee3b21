"""Several machines: which ranks are here, and what the others are started with."""

from __future__ import annotations

from autofit.domain.plan import Finding

from autofit_vllm.planning.codes import finding
from autofit_vllm.planning.evaluation import Evaluation


def nodes_finding(evaluation: Evaluation) -> list[Finding]:
    """Of ranks that are spread over machines like this one; nothing where all are here."""
    config, settings = evaluation.config, evaluation.settings
    parallel = config.parallel
    if parallel.nnodes > 1:
        return [_by_ray(evaluation) if settings.nnodes == 1 else _by_rank(evaluation)]
    local = settings.data_parallel_size_local
    if not local or local >= parallel.dp or parallel.dp == 1:
        return []
    first = settings.given.get("data_parallel_start_rank") or 0
    here = (
        f"replicas {first} to {first + local - 1} of {parallel.dp} run here" if local > 1 else f"replica {first} here"
    )
    message = f"{here}: {parallel.dp - local} more run on other machines, with the same command and"
    message += " --headless --data-parallel-start-rank of their first, and the --data-parallel-address of this one"
    return [finding("nodes", message)]


def _by_rank(evaluation: Evaluation) -> Finding:
    """`--nnodes`, without Ray (config/parallel.py, entrypoints/cli/serve.py:run_headless)."""
    settings, nodes = evaluation.settings, evaluation.config.parallel.nnodes
    each = len(evaluation.ranks) // nodes
    here = settings.node_rank
    message = f"{nodes} nodes like this one with {each} GPU{'s' if each > 1 else ''} each"
    if "node_rank" in settings.given:
        message += f", of which this is node {here} (ranks {here * each} to {(here + 1) * each - 1})"
    others = "1" if nodes == 2 else f"1 to {nodes - 1}"
    message += (
        f": node 0 adds --node-rank 0 --master-addr ADDRESS to the command, node{'' if nodes == 2 else 's'} {others}"
    )
    message += f" --node-rank {'1' if nodes == 2 else 'K'} --master-addr ADDRESS --headless; ADDRESS is that of node 0"
    return finding("nodes", message)


def _by_ray(evaluation: Evaluation) -> Finding:
    nodes = evaluation.config.parallel.nnodes
    each = len(evaluation.ranks) // nodes
    message = (
        f"Ray spreads the ranks over {nodes} nodes, taken to be like this one, {each} GPUs on each: the command is"
    )
    message += " started once, after `ray start --head` here and `ray start --address` on the others"
    return finding("nodes", message)
