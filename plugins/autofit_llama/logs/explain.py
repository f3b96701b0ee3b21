"""A failure in words: which allocation, how large, why, and what helps that is no flag."""

from __future__ import annotations

from collections.abc import Sequence

from autofit.domain.observed import Observed
from autofit.domain.units import format_bytes

_FOR = {
    "weights": "weights",
    "cache": "the KV cache",
    "compute": "compute buffers",
    "transient": "a prompt that is being processed",
    "runtime": "the device's context and libraries",
}


OLLAMA = (
    "in Ollama's words -c is num_ctx, -ngl is num_gpu, -ub is num_batch, -np is OLLAMA_NUM_PARALLEL, "
    "and -ctk with -ctv is OLLAMA_KV_CACHE_TYPE, with OLLAMA_FLASH_ATTENTION=1"
)


def cause_of(observed: Observed) -> str:
    """One sentence: what failed, where, for what, and what was free."""
    failure = observed.failure
    if failure is None:
        done = "it began to serve" if observed.is_ready else "the log ends while it starts"
        return f"no failure in this log: {done}"
    if failure.cause == "other":
        return f"it did not run out of memory: {failure.words}"
    if failure.cause == "killed":
        why = "as the kernel does when RAM runs out"
        return f"the process was killed from outside (SIGKILL), {why}; the log does not say by whom"
    what = _FOR.get(failure.kind or "", "memory")
    size = f"{format_bytes(failure.requested_bytes)} " if failure.requested_bytes is not None else ""
    place = failure.place or "a device"
    if failure.cause == "limit":
        return f"{place} cannot allocate {size}for {what} in one piece: the driver limits the size of one allocation"
    if failure.cause == "RAM":
        held = observed.facts.get("killed.resident_bytes")
        grown = f" when it had {format_bytes(held)}" if isinstance(held, int) else ""
        where = " of its container" if observed.facts.get("killed.in_cgroup") else ""
        if observed.facts.get("killed.process") or failure.place == "host":
            return f"the kernel killed it{grown}: RAM{where} ran out"
        return f"RAM ran out: {size or 'an allocation '}for {what} failed"
    held = sum(part.n_bytes for part in observed.parts if part.place == failure.place and part.group != "breakdown")
    free = next((device.free_bytes for device in observed.devices if device.place == failure.place), None)
    parts = [f"{size}for {what} could not be allocated on {place}" if size else f"{place} ran out of memory for {what}"]
    if held:
        parts.append(f"which held {format_bytes(held)} already")
    if free is not None:
        parts.append(f"of {format_bytes(free)} that were free at the start")
    return ", ".join(parts)


def advice_of(observed: Observed) -> tuple[str, ...]:
    """What helps beside flags."""
    failure = observed.failure
    if failure is None:
        return ()
    found = []
    if failure.cause == "limit":
        found.append("a driver of newer date, or another of the device's drivers, may allow larger allocations")
    for device in observed.devices:
        if device.place == failure.place and device.free_bytes is not None and device.total_bytes is not None:
            others = device.total_bytes - device.free_bytes
            if others > device.total_bytes // 10:
                found.append(f"other processes held {format_bytes(others)} of {device.place} when it started")
    if observed.facts.get("killed.in_cgroup"):
        found.append(
            "raise the memory limit of the container or unit, or let the file be mapped (no --no-mmap, no --mlock)"
        )
    if observed.facts.get("failure.device_lost"):
        found.append(
            "the driver reset the device: a watchdog (a step takes too long: -ub 128), or a fault of the driver"
        )
    if observed.facts.get("ollama"):
        found.append(OLLAMA)
    if failure.cause == "killed":
        found.append("`dmesg` or `journalctl -k` says whether the kernel did it: Out of memory: Killed process")
    return tuple(found)


def missing_of(observed: Observed, missing: Sequence[str]) -> tuple[str, ...]:
    """Lines that the log lacks, and how to get them."""
    if observed.failure is None:
        return ()
    found = list(missing)
    if not observed.devices and not any(not part.is_host for part in observed.parts):
        found.append("... using device CUDA0 (...) - ... MiB free")
    if not found:
        return ()
    rest = "what the engine prints with -v, from its first line on: run it again so"
    return (*found, f"{rest}, or name the model's file with --model" if missing else rest)
