"""What somebody who starts a command ought to know of it."""

from __future__ import annotations

from autofit.domain.machine import Machine
from autofit.domain.memory import PoolUse
from autofit.domain.plan import Finding
from autofit.domain.text import printable
from autofit.domain.units import GIB, format_bytes

from autofit_vllm.command.flags import flag_of
from autofit_vllm.config.connectors import uncounted
from autofit_vllm.memory.budget import requested_bytes
from autofit_vllm.planning.codes import finding
from autofit_vllm.planning.evaluation import Evaluation

SHM_BYTES = GIB  #: message queues and NCCL between the workers of one node


def findings_of(evaluation: Evaluation, machine: Machine) -> list[Finding]:
    """What somebody who starts this ought to know."""
    config, capacity = evaluation.config, evaluation.capacity
    found = [finding("model-note", note) for note in evaluation.model.notes]
    if evaluation.model.basis == "bound":
        found.append(
            finding(
                "unknown-architecture",
                f"unknown architecture {evaluation.model.architecture}: figures are upper bounds",
            )
        )
    if evaluation.refusal is not None:
        message = str(evaluation.refusal)
        if evaluation.refusal.hint:
            message += f" ({evaluation.refusal.hint})"
        found.append(finding("kv-cache-too-small", message))
    if not evaluation.given_kv:
        found += _start_findings(evaluation)
    if capacity and not evaluation._graphs_fit:
        found.append(
            finding(
                "too-many-sequences",
                f"max_num_seqs ({config.max_num_seqs}) exceeds available Mamba cache blocks "
                f"({capacity.n_blocks}); use --max-num-seqs {capacity.n_blocks} or less",
            )
        )
    found += _device_findings(evaluation)
    if others := uncounted(evaluation.settings):
        names = printable(", ".join(others), 100)
        found.append(
            finding("connector-memory", f"{names}: what it allocates itself, in RAM or on GPUs, is not counted")
        )
    moves = bool(evaluation.offload or evaluation.settings.kv_offloading_size)
    if moves and any(rank.n_sharing for rank in evaluation.ranks):
        found.append(
            finding(
                "one-memory",
                "unified memory: offloading weights frees nothing and uses additional pinned memory",
            )
        )
    towers = sum(stage.tower_bytes for stage in evaluation.weights)
    if config.images and towers:
        found.append(
            finding(
                "images-kept",
                f"image and audio encoders take {format_bytes(towers)} of weights, and memory in the first "
                "step; --language-model-only leaves them out for text alone",
            )
        )
    return [*found, *_machine_findings(evaluation, machine)]


def _machine_findings(evaluation: Evaluation, machine: Machine) -> list[Finding]:
    """About several GPUs, and kinds of them."""
    config, found = evaluation.config, []
    n_ranks = len(evaluation.ranks)
    shm = machine.host.shm_bytes
    if n_ranks > 1 and shm is not None and shm < SHM_BYTES:
        found.append(
            finding(
                "small-shm",
                f"shared memory: {format_bytes(shm)} for {n_ranks} workers, which need about 1 GiB; "
                "in a container, start it with --ipc=host",
            )
        )
    names = {rank.device.name for rank in evaluation.ranks}
    if len(names) > 1 and config.parallel.layer_partition is None:
        found.append(
            finding(
                "mixed-gpus",
                f"{', '.join(sorted(names))}: shards are equal in size, so the smallest GPU sets the limit",
            )
        )
    if evaluation.model.is_moe and config.gpu.cc[0] == 10 and config.graph_mode != "NONE":
        found.append(
            finding(
                "blackwell-graphs",
                "CUDA graphs of large MoE models take tens of GiB on this GPU, by public reports; "
                "smaller --cudagraph-capture-sizes limit them",
            )
        )
    return found


def _device_findings(evaluation: Evaluation) -> list[Finding]:
    """What the kind of GPU, or weights that are not on it, mean for the run."""
    config, found = evaluation.config, []
    least = evaluation.settings.version.least_capability
    old = next((r.device for r in evaluation.ranks if (r.device.compute_capability or least) < least), None)
    if old is not None and old.compute_capability is not None:
        have, need = (f"{cc[0]}.{cc[1]}" for cc in (old.compute_capability, least))
        message = (
            f"vLLM {evaluation.settings.version.version} is published for compute capability {need} and newer; "
            f"{old.name} has {have}: build it from source; kernels may be missing"
        )
        found.append(finding("old-gpu", message))
    if config.dtype == "float32" and evaluation.model.dtype != "float32":
        message = (
            f"the model runs in float32 here: {config.gpu.name} has no bfloat16, and vLLM does not run "
            f"{evaluation.model.model_type} in float16; weights and cache take twice the memory"
        )
        if evaluation.settings.dtype != "float32" or not evaluation.settings.pins("dtype"):
            found.append(finding("float32", message))
    if evaluation.offload is not None and not any(rank.n_sharing for rank in evaluation.ranks):
        moved = format_bytes(sum(evaluation.offload.moved) * config.parallel.tp * config.parallel.dp)
        message = f"{moved} of weights stay in RAM; reading them over PCIe limits decoding"
        found.append(finding("weights-in-ram", message))
    return found


def _start_findings(evaluation: Evaluation) -> list[Finding]:
    """The check at start: so much must be free (v1/worker/utils.py:request_memory)."""
    found = []
    for rank in evaluation.ranks:
        requested = requested_bytes(rank.total_bytes, evaluation.utilization)
        free = rank.free_at_snapshot(evaluation.budget_of(rank))
        if free < requested:
            highest = max(0.0, free / rank.total_bytes - 0.005)
            found.append(
                finding(
                    "not-enough-free",
                    f"Free memory on device {rank.device.id} ({free / GIB:.2f}/"
                    f"{rank.total_bytes / GIB:.2f} GiB) on startup is less than desired GPU memory "
                    f"utilization ({evaluation.utilization}, {requested / GIB:.2f} GiB); "
                    f"at most {highest:.2f} will start",
                )
            )
            break
    if evaluation.overrun_bytes and not found:
        pins = evaluation.settings.pins
        pinned = next((flag_of(n) for n in ("num_gpu_blocks_override", "kv_cache_memory_bytes") if pins(n)), None)
        why = (
            f"vLLM uses {pinned} as given; lower it"
            if pinned
            else "graphs, tables and workspaces come on top of the utilization; lower --gpu-memory-utilization"
        )
        message = f"{format_bytes(evaluation.overrun_bytes)} more than {_allowed(evaluation)}: {why}"
        found.append(finding("does-not-fit", message))
    return found


def _allowed(evaluation: Evaluation) -> str:
    margins = [rank.margin_bytes for rank in evaluation.ranks if rank.margin_asked]
    return f"is free with a margin of {format_bytes(max(margins))}" if any(margins) else "is free"


def lacks_finding(evaluation: Evaluation) -> list[Finding]:
    """What the fullest GPU lacks for one sequence of the whole context, where vLLM would not start."""
    if evaluation.refusal is None or evaluation.shortfall_bytes <= 0 or not evaluation.ranks:
        return []
    rank = min(evaluation.ranks, key=lambda rank: evaluation.available_bytes[rank.stage])
    several = " on each GPU" if len(evaluation.ranks) > 1 else ""
    length = evaluation.config.max_model_len
    need = f"needs {format_bytes(evaluation.shortfall_bytes)} more for a sequence of {length:,} tokens{several}"
    return [finding("does-not-fit", f"does not fit: {rank.device.id} {printable(rank.device.name, 40)} {need}")]


def host_finding(host: PoolUse) -> Finding:
    """RAM is short; what takes most of it is named."""
    most = max(host.items, key=lambda item: item.n_bytes if item.kind != "reserve" else 0)
    return finding(
        "does-not-fit",
        f"{host.name} needs {format_bytes(host.shortfall_bytes)} more; the largest item is {most.label}: "
        f"{format_bytes(most.n_bytes)} of {format_bytes(host.free_bytes or 0)} free",
    )
