"""What is settled once the placement is known: the server's caches in RAM, threads, and no fitting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from autofit.domain.machine import HOST_POOL
from autofit.domain.plan import Finding
from autofit.domain.units import MIB, format_bytes
from autofit.domain.values import replace

from autofit_llama.command.options import offers
from autofit_llama.command.settings import LlamaSettings
from autofit_llama.engine.codes import finding
from autofit_llama.launch.defaults import FITTING, SERVERS
from autofit_llama.launch.findings import SPARE_BYTES
from autofit_llama.memory.estimate import Estimate, keeps_prompts
from autofit_llama.planning.search import Found

if TYPE_CHECKING:
    from autofit_llama.planning.problem import LaunchProblem
    from autofit_llama.planning.task import Task

PROMPTS_KEPT = 4  #: whole contexts that the prompt cache holds, where prompts are what is waited for


def complete(task: Task, solved: LlamaSettings, found: Found, final: Estimate) -> LlamaSettings:
    """What is left when the placement is known: the server's caches, threads, and no fitting."""
    given, host = task.pins.settings, task.machine.host
    more: dict[str, Any] = {}
    if task.pins.reading.program in SERVERS:
        more |= _server_caches(task, final)
    if given.n_threads is None and (found.split.on_host or not found.split.rows):
        more["n_threads"] = host.n_cores_performance or host.n_cores_physical
    if given.fit is None and offers(task.pins.version, "fit") and task.pins.reading.program in FITTING:
        more["fit"] = False
    return replace(solved, **more)


def settled(task: Task, problem: LaunchProblem, solved: LlamaSettings, final: Estimate) -> LlamaSettings:
    """What llama-cpp-python's server does by itself, where there is room for it: logits of every token, locked weights.

    They are worth no context and no layer on a device. `None` where its default is left.
    """
    given = task.pins.settings
    for name in ("logits_all", "load_mode"):
        if getattr(given, name) is None:
            left: dict[str, Any] = {name: None}
            usual = replace(solved, **left)
            if not final.memory.fits or problem.estimate(usual, layout=final.layout).memory.fits:
                solved = usual
    return solved


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
    if given.cache_ram_mib is None and not keeps_prompts(final.layout):
        found["cache_ram_mib"] = None
    elif given.cache_ram_mib is None and offers(version, "cache-ram"):
        default = max(version.numbers("cache_ram_mib"))
        fits = default if spare is None else spare // MIB
        wanted = PROMPTS_KEPT * slot_bytes(final) // MIB if task.request.prefer == "throughput" else 0
        most = min(wanted, fits // 2)  # the rest of RAM is for others
        found["cache_ram_mib"] = most if most > default else None if fits >= default else fits if fits >= 256 else 0
    return found


def slot_bytes(final: Estimate) -> int:
    """Of the caches of one sequence with its context full: what the prompt cache takes for it."""
    caches = final.layout.caches
    return sum(tensor.n_bytes for cache in caches for tensor in cache.tensors) // final.layout.context.n_seq_max


def kept_prompts(task: Task, settings: LlamaSettings, final: Estimate) -> Iterator[Finding]:
    """What a larger prompt cache than the engine's own is for, and what it takes."""
    mib, own = settings.cache_ram_mib, max(task.pins.version.numbers("cache_ram_mib"), default=0)
    if task.pins.settings.cache_ram_mib is not None or mib is None or mib <= own:
        return
    tokens, by_default = (n * MIB * final.layout.context.n_ctx_seq // slot_bytes(final) for n in (mib, own))
    message = (
        f"the prompt cache may grow to {format_bytes(mib * MIB)} of RAM and keeps ~{tokens:,} tokens of past prompts"
    )
    yield finding("prompt-cache", f"{message}, which are not processed again (-cram {own}: ~{by_default:,})")


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
