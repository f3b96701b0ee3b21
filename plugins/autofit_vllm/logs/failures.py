"""vLLM's words for too little memory: its own checks before and after profiling, and PyTorch's and NCCL's."""

from __future__ import annotations

import re
from typing import Any

from autofit.domain.memory import Kind
from autofit.logs.messages import Message
from autofit.logs.notes import Notes
from autofit.logs.numbers import bytes_of, whole

from autofit_vllm.logs.ranks import place_of

#: lines of a traceback, which repeats in every process above the one that failed
NEAR = 200
_STAGE_KINDS: dict[str, Kind] = {"start": "weights", "weights": "weights", "cache": "cache", "compute": "compute"}


def _kind(notes: Notes) -> Kind | None:
    """What an allocation of this stage is for; nobody knows where the log does not reach back to a start."""
    if notes.stage == "start" and notes.version is None and not notes.command:
        return None
    return _STAGE_KINDS.get(notes.stage, "transient")


def _torch(notes: Notes, match: re.Match[str]) -> None:
    """PyTorch's own account: what was tried, the card's total, what was free. Graphs come when the cache is there."""
    has_graphs = "allocated in private pools" in match.string[match.end() :]
    notes.fail(
        "device memory",
        match[0],
        near=NEAR,
        place=f"cuda:{match['index']}" if match["index"] else place_of(notes, match.string),
        requested_bytes=bytes_of(match["n"], match["unit"]),
        total_bytes=bytes_of(match["total"] or "", match["total_unit"] or ""),
        free_bytes=bytes_of(match["free"] or "", match["free_unit"] or ""),
        kind="transient" if has_graphs else _kind(notes),
    )
    if has_graphs:
        notes.fact("failure.has_graphs", True)
    used = re.search(r"this process has ([\d.]{1,12}) (\wiB) memory in use", match.string[match.end() :])
    if used:
        notes.fact("failure.process_bytes", bytes_of(used[1], used[2]))
    spare = re.search(r"and ([\d.]{1,12}) (\wiB) is reserved by PyTorch but unallocated", match.string[match.end() :])
    if spare:
        notes.fact("failure.fragmented_bytes", bytes_of(spare[1], spare[2]))


def _cuda(notes: Notes, match: re.Match[str]) -> None:
    notes.fail("device memory", match[0], near=NEAR, place=place_of(notes, match.string), kind=_kind(notes))


def _nccl(notes: Notes, match: re.Match[str]) -> None:
    notes.fail("device memory", match[0], near=NEAR, place=place_of(notes, match.string), kind="runtime")


def _startup(notes: Notes, match: re.Match[str]) -> None:
    """The check before anything is loaded: the share of the card that was asked for is not free."""
    place = match["place"].strip() if match["place"] else place_of(notes, match.string)
    total, free = bytes_of(match["total"], "GiB"), bytes_of(match["free"], "GiB")
    wanted = bytes_of(match["wanted"], "GiB")
    notes.device(place, free_bytes=free, total_bytes=total)
    notes.fact("gpu_memory_utilization", float(match["share"]))
    notes.fail(
        "budget", match[0], near=NEAR, stage="start", place=place, requested_bytes=wanted, free_bytes=free,
        total_bytes=total,
    )  # fmt: skip
    notes.fact("failure.check", "startup")


def _too_long(notes: Notes, match: re.Match[str]) -> None:
    """The check after profiling: one request of the longest length does not fit in the KV cache.

    Its line is long: terminals and mails break it, so each part of it counts where it stands; a figure at an edge may
    be half of one, and does not count.
    """
    groups = match.groupdict()
    need, have = (bytes_of(groups.get(name) or "", groups.get("unit") or "") for name in ("need", "have"))
    notes.fail("budget", match[0], near=NEAR, kind="cache", requested_bytes=need, free_bytes=have)
    notes.fact("failure.check", "length")
    if groups.get("length"):
        notes.fact("max_seq_len", whole(match["length"]))


def _fitting(notes: Notes, match: re.Match[str]) -> None:
    notes.fact("failure.fitting_tokens", int(match["tokens"]))


def _too_few_slots(notes: Notes, match: re.Match[str]) -> None:
    """The same check of engines before 0.8, in tokens."""
    notes.fail("budget", match[0], near=NEAR, kind="cache")
    notes.fact("failure.check", "length")
    notes.fact("max_seq_len", whole(match["length"]))
    notes.fact("failure.fitting_tokens", whole(match["tokens"]))


def _no_blocks(notes: Notes, match: re.Match[str]) -> None:
    free = notes.facts.get("available_kv_bytes")
    notes.fail("budget", match[0], near=NEAR, kind="cache", free_bytes=free)
    notes.fact("failure.check", "blocks")


def _sequences(notes: Notes, match: re.Match[str]) -> None:
    notes.fail("budget", match[0], near=NEAR, kind="cache")
    notes.fact("failure.check", "sequences")
    notes.fact("failure.max_num_seqs", whole(match["seqs"]))
    notes.fact("failure.blocks", whole(match["blocks"]))


def _sampler(notes: Notes, match: re.Match[str]) -> None:
    notes.fail("device memory", match[0], near=NEAR, place=place_of(notes, match.string), kind="compute")
    notes.fact("failure.check", "sampler")
    notes.fact("failure.max_num_seqs", whole(match["seqs"]))


def _host(notes: Notes, match: re.Match[str]) -> None:
    groups = match.groupdict()
    size = whole(groups["n"]) if groups.get("n") else None
    notes.fail("RAM", match[0], near=NEAR, place="host", requested_bytes=size, kind=_kind(notes))


def _cpu_budget(notes: Notes, match: re.Match[str]) -> None:
    """The checks of the CPU's worker: the share of RAM that was asked for holds no KV cache, or is not free."""
    known: dict[str, Any] = {name: bytes_of(text, "GiB") for name, text in match.groupdict().items()}
    notes.fail("budget", match[0], near=NEAR, place="host", kind="cache", **known)
    notes.fact("failure.check", "CPU")


def _profiling(notes: Notes, match: re.Match[str]) -> None:
    notes.fail("budget", match[0], near=NEAR, place=place_of(notes, match.string), kind="compute")
    notes.fact("failure.check", "profiling")


def _shared(notes: Notes, match: re.Match[str]) -> None:
    notes.fail("RAM", match[0], near=NEAR, place="host", kind="runtime")
    notes.fact("failure.check", "shared memory")


def _dead(notes: Notes, match: re.Match[str]) -> None:
    notes.fail("other", match[0], near=NEAR)


FAILURES = (
    Message(
        "out of memory. Tried to allocate",
        r"(?:CUDA|HIP|XPU) out of memory\. Tried to allocate (?P<n>[\d.]{1,12}) (?P<unit>[KMGT]iB|bytes)"
        r"(?:\. GPU (?P<index>\d{1,3}) has a total capac\w{1,4} of (?P<total>[\d.]{1,12}) (?P<total_unit>[KMGT]iB)"
        r"(?: of which (?P<free>[\d.]{1,12}) (?P<free_unit>[KMGT]iB|bytes) is free)?)?",
        _torch,
        "PyTorch, c10/cuda/CUDACachingAllocator.cpp",
    ),
    Message("error: out of memory", r"(?:CUDA|HIP) error: out of memory", _cuda, "PyTorch, c10/cuda/CUDAException.cpp"),
    Message("CUBLAS_STATUS_ALLOC_FAILED", r"CUBLAS_STATUS_ALLOC_FAILED", _cuda, "PyTorch, aten/src/ATen/cuda"),
    Message(
        "'out of memory'", r"(?:NCCL|RCCL)?.{0,80}Cuda failure(?: \d+)? 'out of memory'", _nccl, "NCCL, src/init.cc"
    ),
    Message(
        "is less than desired GPU memory utilization",
        r"Free memory on device (?P<place>\w{1,8}:\d{1,3} )?\((?P<free>[\d.]{1,10})/(?P<total>[\d.]{1,10}) GiB\) on startup "
        r"is less than desired GPU memory utilization \((?P<share>[\d.]{1,20}), (?P<wanted>[\d.]{1,12}) GiB\)",
        _startup,
        "v1/worker/utils.py:request_memory",
    ),
    Message(
        "To serve at least one request",
        r"To serve at least one request with the models?'s max seq len \((?P<length>\d{1,12})\).{0,400}",
        _too_long,
        "v1/core/kv_cache_planning.py:_check_enough_kv_cache_memory",
    ),
    Message(
        "larger than the available KV",
        r"(?<=[\s(])(?P<need>[\d.]{1,16}) (?P<unit>GiB|GB) KV cache is ?needed, "
        r"which is larger than the available KV [cC]ache memory \((?P<have>-?[\d.]{1,16}) (?:GiB|GB)\)",
        _too_long,
        "v1/core/kv_cache_planning.py:_check_enough_kv_cache_memory",
    ),
    Message(
        "maximum model length is",
        r"estimated maximum model length is (?P<tokens>\d{1,12})(?=[^\d])",
        _fitting,
        "v1/core/kv_cache_planning.py:_check_enough_kv_cache_memory",
    ),
    Message(
        "that can be stored in KV cache",
        r"max seq len \((?P<length>\d{1,12})\) is larger than the maximum number of tokens that can be stored in KV cache "
        r"\((?P<tokens>\d{1,12})\)",
        _too_few_slots,
        "the worker of V0, to 0.10",
    ),
    Message(
        "No available memory for the cache blocks",
        r"No available memory for the cache blocks",
        _no_blocks,
        "v1/core/kv_cache_planning.py:_check_enough_kv_cache_memory",
    ),
    Message(
        "Cannot auto-fit max_model_len",
        r"Cannot auto-fit max_model_len.{0,200}",
        _no_blocks,
        "v1/core/kv_cache_planning.py:_auto_fit_max_model_len",
    ),
    Message(
        "Mamba cache blocks",
        r"max_num_seqs \((?P<seqs>\d{1,9})\) exceeds available Mamba cache blocks \((?P<blocks>\d{1,9})\)",
        _sequences,
        "config/compilation.py:resolve_cudagraph_mode_and_sizes",
    ),
    Message(
        "when warming up sampler",
        r"out of memory occurred when warming up sampler with (?P<seqs>\d{1,9}) dummy requests",
        _sampler,
        "v1/worker/gpu_model_runner.py:_dummy_sampler_run",
    ),
    Message(
        "when warming up pooler",
        r"out of memory occurred when warming up pooler",
        _cuda,
        "v1/worker/gpu_model_runner.py:_dummy_pooler_run",
    ),
    Message(
        "Error in memory profiling",
        r"Error in memory profiling\..{0,200}",
        _profiling,
        "v1/worker/gpu_worker.py:determine_available_memory",
    ),
    Message(
        "The worker already uses",
        r"The worker already uses (?P<requested_bytes>[\d.]{1,12}) GiB .{0,60}more than the (?P<total_bytes>[\d.]{1,12}) GiB",
        _cpu_budget,
        "v1/worker/cpu_worker.py:determine_available_memory",
    ),
    Message(
        "Available memory on node",
        r"Available memory on node \d{1,4} \((?P<free_bytes>[\d.]{1,12})/(?P<total_bytes>[\d.]{1,12}) GiB\) on kv cache"
        r" allocation is less than requested memory for kv \((?P<requested_bytes>[\d.]{1,12})/",
        _cpu_budget,
        "v1/worker/cpu_worker.py:determine_available_memory",
    ),
    Message(
        "you tried to allocate",
        r"can't allocate memory: you tried to allocate (?P<n>\d{1,18}) bytes",
        _host,
        "PyTorch, c10/core/impl/alloc_cpu.cpp",
    ),
    Message("Cannot allocate memory", r"\[Errno 12\] Cannot allocate memory", _host, "Python"),
    Message("shm", r"No space left on device.{0,40}\bshm\b|\bshm\b.{0,80}No space left", _shared, "Python"),
    Message(
        "Engine core",
        r"Engine core (?:initialization failed|proc \S{1,40} died unexpectedly)",
        _dead,
        "v1/engine/utils.py, v1/engine/core_client.py",
    ),
    Message("EngineCore failed", r"EngineCore failed to start", _dead, "v1/engine/core.py:run_engine_core"),
    Message("died unexpectedly", r"Worker proc \S{1,60} died unexpectedly", _dead, "v1/executor/multiproc_executor.py"),
)
