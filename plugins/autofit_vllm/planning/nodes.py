"""Several machines: which ranks are here, and what each of them starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from autofit.domain.machine import Machine
from autofit.domain.plan import HEAD_ADDRESS, Finding, NodeCommand
from autofit.domain.text import printable

from autofit_vllm.command.flags import spellings
from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.planning.codes import finding
from autofit_vllm.planning.evaluation import Evaluation

RAY_PORT = 6379
"""Where `ray start --head` listens, unless it is told."""
_OF_A_NODE = {"node_rank": 1, "master_addr": 1, "headless": 0}
"""Settings that differ from node to node, and how many words follow their flags."""
_OF_REPLICAS = {
    "data_parallel_size_local": 1,
    "data_parallel_start_rank": 1,
    "data_parallel_address": 1,
    "headless": 0,
}


def nodes_finding(evaluation: Evaluation) -> list[Finding]:
    """Of ranks that are spread over several machines; nothing where all are here."""
    config, settings = evaluation.config, evaluation.settings
    parallel = config.parallel
    if parallel.nnodes > 1:
        return [_by_ray(evaluation) if settings.nnodes == 1 else _by_rank(evaluation)]
    return [_by_replica(settings, parallel.dp)] if _replicas_of_nodes(evaluation) else []


def node_commands(
    evaluation: Evaluation, argv: Sequence[str], env: Mapping[str, str], machine: Machine
) -> tuple[NodeCommand, ...]:
    """What each machine starts, the head first; none where one has all ranks, or a Ray cluster runs."""
    settings, n_nodes = evaluation.settings, evaluation.config.parallel.nnodes
    replicas = _replicas_of_nodes(evaluation) if n_nodes < 2 else []
    if not replicas and (n_nodes < 2 or (machine.origin == "ray" and settings.nnodes == 1)):
        return ()
    used = dict.fromkeys(rank.device.node for rank in evaluation.ranks)
    members = {"": machine.node, **{node.name: node for node in machine.nodes}}
    first = members.get(next(iter(used)))
    known = first.address if first is not None else None
    given = settings.given.get("data_parallel_address") if replicas else settings.given.get("master_addr")
    head = given if isinstance(given, str) and given else known or HEAD_ADDRESS
    names = [name or (machine.node.name if machine.node is not None else "node0") for name in used]
    each = [len(evaluation.ranks) // n_nodes] * n_nodes
    lists: list[tuple[tuple[str, ...], ...]]
    if replicas:
        lists = [(_of_replicas(argv, settings, start, count, head),) for start, count in replicas]
        each = [count * evaluation.config.parallel.world_size for _, count in replicas]
        names = [*names, *(node.name for node in machine.nodes if node.name not in used)]
    elif settings.nnodes == 1:
        lists = _ray_commands(argv, n_nodes, head)
    else:
        lists = [(_of_rank(argv, rank, head),) for rank in range(n_nodes)]
    return tuple(
        NodeCommand(
            node=names[rank] if rank < len(names) else f"node{rank}",
            role="worker" if rank else "head",
            commands=commands,
            env=env,
            n_devices=each[rank],
            head_address=head if any(head in word for words in commands for word in words) else None,
        )
        for rank, commands in enumerate(lists)
    )


def _replicas_of_nodes(evaluation: Evaluation) -> list[tuple[int, int]]:
    """(first, count) of the replicas of each machine, where `--data-parallel-size-local` shares them out; none where
    one machine has all, Ray places them, or each process is given its rank (`--data-parallel-rank`)."""
    settings, n_replicas = evaluation.settings, evaluation.config.parallel.dp
    local = settings.data_parallel_size_local
    by_rank = settings.data_parallel_external_lb or settings.data_parallel_rank is not None
    if not local or local >= n_replicas or settings.data_parallel_backend == "ray" or by_rank:
        return []
    return [(start, min(local, n_replicas - start)) for start in range(0, n_replicas, local)]


def _is_hybrid(settings: VllmSettings) -> bool:
    starts = "data_parallel_start_rank" in settings.given and not settings.given.get("headless")
    return settings.data_parallel_hybrid_lb or starts


def _of_replicas(argv: Sequence[str], settings: VllmSettings, start: int, count: int, head: str) -> tuple[str, ...]:
    """The command of a machine with its own replicas: each has a server where they share requests (hybrid), else only
    the first (engine/arg_utils.py:create_engine_config; entrypoints/cli/serve.py:run_headless)."""
    hybrid = _is_hybrid(settings)
    own = ["--data-parallel-size-local", str(count), "--data-parallel-address", head]
    if hybrid or start:  # a start of the first machine alone would make it hybrid
        own += ["--data-parallel-start-rank", str(start)]
    if start and not hybrid:
        own.append("--headless")
    return (*_without(argv, _OF_REPLICAS), *own)


def _of_rank(argv: Sequence[str], rank: int, head: str) -> tuple[str, ...]:
    """The command of one node of `--nnodes`: only the first has a server (entrypoints/cli/serve.py:run_headless)."""
    own = ("--node-rank", str(rank), "--master-addr", head, *(("--headless",) if rank else ()))
    return (*_without(argv, _OF_A_NODE), *own)


def _ray_commands(argv: Sequence[str], n_nodes: int, head: str) -> list[tuple[tuple[str, ...], ...]]:
    """The cluster, then the engine on its head, which Ray starts on the other nodes too."""
    first = (("ray", "start", "--head", f"--port={RAY_PORT}"), tuple(argv))
    others = (("ray", "start", f"--address={head}:{RAY_PORT}", "--block"),)
    return [first, *[others] * (n_nodes - 1)]


def _without(argv: Sequence[str], settings: Mapping[str, int]) -> Iterable[str]:
    """The words without the flags of these settings, in whatever spelling, and what follows them."""
    n_values = {word: n for name, n in settings.items() for word in spellings(name)}
    kept: list[str] = []
    at = 0
    while at < len(argv):
        flag, equals, _ = argv[at].partition("=")
        flag = "--" + flag[2:].replace("_", "-") if flag.startswith("--") else flag
        n = n_values.get(flag)
        if n is None:
            kept.append(argv[at])
        at += 1 + (0 if n is None or equals else n)
    return kept


def _by_rank(evaluation: Evaluation) -> Finding:
    """`--nnodes`, without Ray (config/parallel.py, entrypoints/cli/serve.py:run_headless)."""
    settings, nodes = evaluation.settings, evaluation.config.parallel.nnodes
    each = len(evaluation.ranks) // nodes
    here = settings.node_rank
    message = f"{nodes} nodes like this one with {each} GPU{'s' if each > 1 else ''} each"
    if "node_rank" in settings.given:
        message += f", of which this is node {here} (ranks {here * each} to {(here + 1) * each - 1})"
    if settings.nnodes > 1 and any(rank.device.node for rank in evaluation.ranks) and "nnodes" not in settings.given:
        return finding("nodes", _told(evaluation, nodes, each))
    others = "1" if nodes == 2 else f"1 to {nodes - 1}"
    message += (
        f": node 0 adds --node-rank 0 --master-addr ADDRESS to the command, node{'' if nodes == 2 else 's'} {others}"
    )
    message += f" --node-rank {'1' if nodes == 2 else 'K'} --master-addr ADDRESS --headless; ADDRESS is that of node 0"
    return finding("nodes", message)


def _told(evaluation: Evaluation, nodes: int, each: int) -> str:
    """Of machines that are described: the command is the head's, and what the others start is in the plan."""
    names = list(dict.fromkeys(rank.device.node for rank in evaluation.ranks if rank.device.node))
    shown = ", ".join(printable(name, 40) for name in names[:4]) + (
        f" and {len(names) - 4} more" if len(names) > 4 else ""
    )
    message = f"{nodes} nodes with {each} GPU{'s' if each > 1 else ''} each: {shown} start"
    message += f"{'s' if nodes == 2 else ''} the same command with --node-rank {'1' if nodes == 2 else 'K'} --headless"
    return f"{message}; {HEAD_ADDRESS} stands for the address of the first, where nobody stated it"


def _by_replica(settings: VllmSettings, n_replicas: int) -> Finding:
    """`--data-parallel-size-local`: of the others, each machine has as many, and the last one the rest."""
    local = settings.data_parallel_size_local or n_replicas
    first = settings.given.get("data_parallel_start_rank") or 0
    here = f"replicas {first} to {first + local - 1} of {n_replicas} run here" if local > 1 else f"replica {first} here"
    more = n_replicas - local
    message = f"{here}: {more} more run{'s' if more == 1 else ''} on other machines, taken to be like this one, with"
    message += " the same command, --data-parallel-address of the first machine and --data-parallel-start-rank of their"
    message += " first replica"
    return finding("nodes", message + (", behind a router" if _is_hybrid(settings) else ", and --headless"))


def _by_ray(evaluation: Evaluation) -> Finding:
    nodes = evaluation.config.parallel.nnodes
    each = len(evaluation.ranks) // nodes
    message = (
        f"Ray spreads the ranks over {nodes} nodes, taken to be like this one, {each} GPUs on each: the command is"
    )
    message += " started once, after `ray start --head` here and `ray start --address` on the others"
    return finding("nodes", message)
