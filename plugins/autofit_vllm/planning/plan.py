"""The plan of one evaluation: its pools, the engine's own figures, findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from autofit.domain.machine import HOST_POOL, Machine
from autofit.domain.memory import Memory, MemoryItem
from autofit.domain.plan import Alternative, Decision, Finding, Plan, Speed
from autofit.planning.accounting import DeviceUse, account

from autofit_vllm.config.cluster import is_cluster
from autofit_vllm.planning.evaluation import Evaluation, host_items
from autofit_vllm.planning.findings import findings_of, host_finding
from autofit_vllm.planning.nodes import node_commands

if TYPE_CHECKING:
    from autofit_vllm.planning.report import VllmReportDocument


def memory_of(evaluation: Evaluation, machine: Machine) -> Memory:
    """Pools in the engine's device order, the host last; GPUs that draw on RAM are part of its pool."""
    n_blocks = evaluation.capacity.n_blocks if evaluation.capacity else 0
    uses = []
    for rank in evaluation.ranks:
        cache = MemoryItem(
            kind="cache",
            n_bytes=n_blocks * evaluation.kv.bytes_per_block[rank.stage],
            basis="exact" if evaluation.given_kv else "derived",
            label=f"KV cache, {n_blocks} blocks",
            source="v1/core/kv_cache_planning.py",
        )
        uses.append(
            DeviceUse(
                device=rank.device,
                items=(*evaluation.budget_of(rank).items, cache),
                total_bytes=rank.total_bytes,
                free_bytes=rank.free_bytes,
                margin_bytes=rank.margin_bytes,
            )
        )
    # processes are part of what a GPU takes that shares RAM with them
    return account(uses, () if any(use.shares_memory for use in uses) else host_items(evaluation), machine)


def report(evaluation: Evaluation) -> VllmReportDocument:
    """The engine's own figures, by the names it uses."""
    config, kv, capacity = evaluation.config, evaluation.kv, evaluation.capacity
    return {
        "weights_bytes_per_rank": [stage.parameter_bytes for stage in evaluation.weights],
        "model_memory_bytes_per_rank": [stage.total_bytes for stage in evaluation.weights],
        "bytes_per_block": list(kv.bytes_per_block),
        "block_size": kv.layout.block_tokens,
        "num_gpu_blocks": capacity.n_blocks if capacity else None,
        "kv_cache_tokens": capacity.n_tokens if capacity else None,
        "max_concurrency": round(capacity.max_concurrency, 2) if capacity else None,
        "max_model_len": capacity.max_model_len if capacity else config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "max_in_flight_tokens": config.max_in_flight_tokens,
        "dtype": config.dtype,
        "quantization": config.quantization,
        "kv_cache_dtype": kv.layout.kv_dtype,
        "attention_backends": list(kv.layout.backends),
        "kv_cache_groups": [
            {
                "layers": len(group.layers),
                "kind": group.first.kind,
                "block_size": group.first.block_tokens,
                "page_bytes": sum(layer.page_bytes for layer in group.layers)
                if len(group.kinds) > 1
                else group.first.page_bytes,
            }
            for group in kv.groups
        ],
        "available_kv_cache_bytes": list(evaluation.available_bytes),
        "gpu_memory_utilization": evaluation.utilization,
        "cudagraph_mode": config.graph_mode,
        "cudagraph_capture_sizes": list(config.capture_sizes),
        "tensor_parallel_size": config.parallel.tp,
        "pipeline_parallel_size": config.parallel.pp,
        "data_parallel_size": config.parallel.dp,
    }


def build_plan(
    evaluation: Evaluation,
    machine: Machine,
    *,
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    kwargs: Mapping[str, object] | None = None,
    decisions: Sequence[Decision] = (),
    alternatives: Sequence[Alternative] = (),
    findings: Sequence[Finding] = (),
    speed: Speed | None = None,
) -> Plan:
    """The plan of an evaluation; its findings come first."""
    memory = memory_of(evaluation, machine)
    nodes = node_commands(evaluation, argv, env or {}, machine)
    if nodes and is_cluster(machine) and not {"nnodes", "node_rank"} & evaluation.settings.given.keys():
        argv = nodes[0].commands[-1]
    own = findings_of(evaluation, machine)
    length = evaluation.capacity.max_model_len if evaluation.capacity else evaluation.config.max_model_len
    hosts = (pool for pool in memory.pools if pool.id == HOST_POOL or pool.id.endswith(f"/{HOST_POOL}"))
    host = max(hosts, key=lambda pool: pool.shortfall_bytes)
    # A stated KV memory replaces the accounting: whether weights fit beside it is not asked. On the CPU
    # it is RAM, which holds everything else too.
    asked = evaluation.config.gpu.cpu or not evaluation.given_kv
    if asked and host.shortfall_bytes > 0 and (evaluation.fits or not any(r.n_sharing for r in evaluation.ranks)):
        own.append(host_finding(host))
    fits = evaluation.fits and not (asked and host.shortfall_bytes > 0)
    return Plan(
        backend="vllm",
        fits=fits,
        argv=tuple(argv),
        env=dict(env or {}),
        kwargs=dict(kwargs or {}),
        memory=memory,
        speed=speed,
        context_tokens=length,
        safe_fill_tokens=length if evaluation.capacity else None,
        decisions=tuple(decisions),
        alternatives=tuple(alternatives),
        findings=(*own, *findings),
        engine_report={**report(evaluation)},
        engine_version=evaluation.settings.version.version,
        nodes=nodes,
    )
