"""What is settled once the placement is known: the server's caches in RAM, threads, and no fitting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autofit.domain.machine import HOST_POOL
from autofit.domain.units import MIB
from autofit.domain.values import replace

from autofit_llama.command.options import offers
from autofit_llama.command.settings import LlamaSettings
from autofit_llama.launch.defaults import SERVERS
from autofit_llama.launch.findings import SPARE_BYTES
from autofit_llama.memory.estimate import Estimate
from autofit_llama.planning.search import Found

if TYPE_CHECKING:
    from autofit_llama.planning.task import Task


def complete(task: Task, solved: LlamaSettings, found: Found, final: Estimate) -> LlamaSettings:
    """What is left when the placement is known: the server's caches, threads, and no fitting."""
    given, host = task.pins.settings, task.machine.host
    more: dict[str, Any] = {}
    if task.pins.reading.program in SERVERS:
        more |= _server_caches(task, final)
    if given.n_threads is None and (found.split.on_host or not found.split.rows):
        more["n_threads"] = host.n_cores_performance or host.n_cores_physical
    if given.fit is None and offers(task.pins.version, "fit") and task.pins.reading.program != "llama-bench":
        more["fit"] = False
    return replace(solved, **more)


def _server_caches(task: Task, final: Estimate) -> dict[str, Any]:
    """`--cache-ram` and `--ctx-checkpoints`: the defaults (`None`), or what RAM has left for them.

    A version that does not take the flag has its default whatever is left.
    """
    given, version = task.pins.settings, task.pins.version
    pool = final.memory.pool(HOST_POOL)
    spare = None if pool.budget_bytes is None else max(0, pool.budget_bytes - pool.used_bytes - SPARE_BYTES)
    found: dict[str, Any] = {"n_checkpoints": given.n_checkpoints, "cache_ram_mib": given.cache_ram_mib}
    if given.n_checkpoints is None and offers(version, "ctx-checkpoints"):
        default = max(version.numbers("n_checkpoints"))
        one = _checkpoint_bytes(final)
        if one and spare is not None:
            most = min(default, spare // 2 // one)
            found["n_checkpoints"] = None if most >= default else int(most)
            spare -= most * one
    if given.cache_ram_mib is None and offers(version, "cache-ram"):
        default = max(version.numbers("cache_ram_mib"))
        fits = default if spare is None else spare // MIB
        found["cache_ram_mib"] = None if fits >= default else int(fits if fits >= 256 else 0)
    return found


def _checkpoint_bytes(final: Estimate) -> int:
    """Of one checkpoint of every slot: what cannot be rolled back."""
    context, total = final.layout.context, 0
    for cache in final.layout.caches:
        n_bytes = sum(tensor.n_bytes for tensor in cache.tensors)
        if cache.name == "swa" and not context.swa_full:
            total += n_bytes
        elif cache.name == "recurrent":
            total += n_bytes // (1 + context.n_rs_seq)
    return total
