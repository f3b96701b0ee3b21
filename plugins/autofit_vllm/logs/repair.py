"""Why a start of vLLM ran out of memory, and the smallest change: arithmetic on the figures that its log has.

Source: v1/worker/gpu_worker.py:determine_available_memory (what the share of the card is spent on),
v1/core/kv_cache_planning.py:_check_enough_kv_cache_memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from autofit.domain.machine import Device
from autofit.domain.observed import Failure, Observed
from autofit.domain.repair import Change, Repair
from autofit.domain.units import GIB, format_bytes
from autofit.domain.values import NamedTuple, replace
from autofit.errors import AutofitError

from autofit_vllm.engine.versions import NEWEST, OLDEST, find_engine
from autofit_vllm.logs.arguments import facts_of

MOST_SHARE = 0.97
"""What lies outside the share (block tables, workspaces, graphs beyond their estimate) needs half a GiB at least."""
LEAST_CACHE_BYTES = GIB
"""KV cache to end up with where the log says none is left: enough to be of use."""
SLACK_BYTES = 256 << 20
"""Beside what was missing: allocators round, and the next start is not the same to the byte."""


class Case(NamedTuple):
    """A failed start: its figures, and its command (`vllm serve MODEL` with `...` where nobody knows it)."""

    observed: Observed
    failure: Failure
    argv: tuple[str, ...]
    total_bytes: int | None
    free_bytes: int | None

    @property
    def share(self) -> float:
        """`--gpu-memory-utilization`: as the log has it, or the release's default; of releases, the most it can be."""
        return self._share(NEWEST)

    @property
    def least_share(self) -> float:
        """The same, the least that it can be: what is less than this is less, whatever the release."""
        return self._share(OLDEST)

    def _share(self, unknown: str) -> float:
        value = self.observed.facts.get("gpu_memory_utilization")
        if isinstance(value, (int, float)) and 0 < value <= 1:
            return float(value)
        try:
            return find_engine(self.observed.version or unknown).default_gpu_memory_utilization
        except AutofitError:  # older than any that is known
            return find_engine(OLDEST).default_gpu_memory_utilization

    @property
    def most_share(self) -> float | None:
        """The largest share that a start may ask for: what is free of the card, with room beside it."""
        if self.total_bytes is None:
            return None
        free = self.free_bytes if self.free_bytes is not None else self.total_bytes
        return math.floor(100 * min(MOST_SHARE, free / self.total_bytes)) / 100

    def number(self, name: str) -> int | None:
        value = self.observed.facts.get(name)
        return value if isinstance(value, int) else None

    def change(self, flags: Sequence[str], because: str, frees: int | None = None) -> Change:
        argv = with_flags(self.argv, flags)
        return Change(flags=tuple(flags), argv=argv, because=because, frees_bytes=frees)


def repair(observed: Observed, argv: Sequence[str], devices: Sequence[Device]) -> Repair:
    """The answer to a log. A change is one flag that the figures of the log say is enough."""
    failure = observed.failure
    model = observed.facts.get("model", observed.facts.get("model_tag"))
    words = tuple(argv) or observed.command or ("vllm", "serve", str(model or "MODEL"))
    observed = replace(observed, facts={**facts_of(words), **observed.facts})
    if failure is None or not failure.is_memory:
        done = "it began to serve" if observed.is_ready else "the log ends while it starts"
        cause = (
            f"no failure in this log: {done}" if failure is None else f"it did not run out of memory: {failure.words}"
        )
        missing = () if failure is None else ("the traceback of the process that failed first, above this line",)
        return Repair(cause=cause, missing=missing, is_command=bool(argv or observed.command))
    total = failure.total_bytes or next((device.total_bytes for device in devices if device.total_bytes), None)
    free = next((device.free_bytes for device in devices if device.free_bytes), None)
    case = Case(observed, failure, words, total, free)
    check = str(observed.facts.get("failure.check", ""))
    changes = tuple(_ANSWERS.get(check, _allocation)(case))
    return Repair(
        cause=_cause(case, check),
        changes=changes,
        advice=tuple(_advice(case)),
        missing=() if changes else tuple(_missing(case, check)),
        basis=("figures of the log alone: the model was not looked at",) if changes else (),
        is_command=bool(argv or observed.command),
        lacks_bytes=_lacks(failure),
    )


def with_flags(argv: Sequence[str], flags: Sequence[str]) -> tuple[str, ...]:
    """The command with these flags in the place of the same ones, however those were spelled."""
    names = {flag[2:] for flag in flags if flag.startswith("--")}
    kept: list[str] = []
    skips = False
    for word in argv:
        name, equals, _ = word.partition("=")
        if name.startswith("--") and name[2:].replace("_", "-") in names:
            skips = not equals
            continue
        if skips and not word.startswith("-"):
            skips = False
            continue
        skips = False
        kept.append(word)
    return (*kept, *flags)


def _lacks(failure: Failure) -> int | None:
    if failure.requested_bytes is None or failure.free_bytes is None:
        return None
    return max(0, failure.requested_bytes - failure.free_bytes)


# -- by what failed ---------------------------------------------------------------------------------------


def _startup(case: Case) -> Iterator[Change]:
    """The share of the card that was asked for is not free: others hold some of it."""
    most = case.most_share
    if most is not None and most >= 0.05:
        frees = case.failure.requested_bytes
        yield case.change(
            ("--gpu-memory-utilization", f"{most:.2f}"),
            f"all of it must fit in {format_bytes(round(most * (case.total_bytes or 0)))}, which is free",
            frees,
        )


def _length(case: Case) -> Iterator[Change]:
    """One request of the longest length does not fit in the KV cache."""
    need, have = case.failure.requested_bytes, case.failure.free_bytes
    length, fitting = case.number("max_seq_len"), case.number("failure.fitting_tokens")
    changes: list[Change] = []
    if need and have and have > 0 and case.total_bytes and case.most_share:
        share = math.ceil(100 * (case.share + (need - have + SLACK_BYTES) / case.total_bytes)) / 100
        if case.share < share <= case.most_share:
            changes.append(
                case.change(
                    ("--gpu-memory-utilization", f"{share:.2f}"), "less of the card is left to others", need - have
                )
            )
    because = f"requests of at most that many tokens instead of {length}"
    if fitting is None and need and have and have > 0 and length:
        fitting = int(length * have / need)
        because += ", if the cache grows evenly with the length"
    if fitting is not None and fitting >= 16:
        tokens = fitting // 16 * 16
        changes.append(
            case.change(("--max-model-len", str(tokens)), because, None if not need or not have else need - have)
        )
    kind = case.observed.facts.get("kv_cache_dtype", "auto")
    if need and have and kind in ("auto", "bfloat16", "float16") and have >= need / 2 + SLACK_BYTES:
        cost = "half of the KV cache's precision; needs a GPU of compute capability 8.0 or more"
        changes.append(case.change(("--kv-cache-dtype", "fp8"), cost, need // 2))
    yield from changes


def _blocks(case: Case) -> Iterator[Change]:
    """After weights and activations nothing of the share is left for the KV cache."""
    left = case.number("available_kv_bytes")
    if left is None:
        return
    lacks = LEAST_CACHE_BYTES - left
    if case.total_bytes and case.most_share:
        share = math.ceil(100 * (case.share + lacks / case.total_bytes)) / 100
        if case.share < share <= case.most_share:
            yield case.change(("--gpu-memory-utilization", f"{share:.2f}"), "less of the card is left to others", lacks)
    peak = sum(part.n_bytes for part in case.observed.parts if part.kind == "compute")
    batched = case.number("max_num_batched_tokens")
    if batched and batched > 1024 and peak and peak * (1 - 1024 / batched) > lacks:
        yield case.change(("--max-num-batched-tokens", "1024"), "long prompts are read in more steps", lacks)
    gib = math.ceil((lacks + SLACK_BYTES) / GIB)
    weights = max((part.n_bytes for part in case.observed.parts if part.kind == "weights"), default=None)
    if weights is None or gib * GIB < weights:
        yield case.change(
            ("--cpu-offload-gb", str(gib)),
            f"{gib} GiB of weights of each GPU stay in RAM, which slows everything",
            lacks,
        )
    tp = case.number("tensor_parallel_size") or 1
    yield case.change(("--tensor-parallel-size", str(2 * tp)), "twice as many GPUs", lacks)


def _sequences(case: Case) -> Iterator[Change]:
    """A hybrid model has a state per sequence, and fewer blocks than sequences."""
    blocks = case.number("failure.blocks")
    if blocks and blocks >= 1:
        n = blocks // 8 * 8 or blocks
        yield case.change(("--max-num-seqs", str(n)), f"at most {n} requests run at once; more of them wait")


def _sampler(case: Case) -> Iterator[Change]:
    n = case.number("failure.max_num_seqs")
    if n and n > 1:
        yield case.change(("--max-num-seqs", str(n // 4 or 1)), "fewer requests run at once")


def _cpu(case: Case) -> Iterator[Change]:
    """The CPU's worker: its share of RAM (`--gpu-memory-utilization`, despite its name)."""
    need, total, free = case.failure.requested_bytes, case.failure.total_bytes, case.failure.free_bytes
    if free is None and need and total and case.share:
        ram = total / case.share
        share = math.ceil(100 * (need + LEAST_CACHE_BYTES) / ram) / 100
        if share <= MOST_SHARE:
            yield case.change(("--gpu-memory-utilization", f"{share:.2f}"), "more of RAM is reserved for it")
    elif free:
        gib = max(1, int((free - SLACK_BYTES) // GIB))
        yield case.change(("--kv-cache-memory-bytes", f"{gib}G"), f"a KV cache of {gib} GiB, which is free")


def _profiling(case: Case) -> Iterator[Change]:
    yield case.change((), "the same command again, while no other process of the GPU starts or ends")


def _none(case: Case) -> Iterator[Change]:
    yield from ()


def _allocation(case: Case) -> Iterator[Change]:
    """An allocation of PyTorch, NCCL or the driver failed."""
    failure = case.failure
    if failure.cause in {"RAM", "killed"}:
        return
    lacks = (_lacks(failure) or failure.requested_bytes or 0) + SLACK_BYTES
    tp = case.number("tensor_parallel_size") or 1
    if failure.kind == "weights":
        # how many more would have come is not in the log
        yield case.change(("--tensor-parallel-size", str(2 * tp)), "twice as many GPUs, each with half of the weights")
        return
    if failure.kind is None:  # when it failed is not in the log, and each answer is wrong at another time
        return
    has_cache = case.number("available_kv_bytes") is not None or "failure.has_graphs" in case.observed.facts
    if has_cache and case.total_bytes:
        share = math.floor(100 * (case.least_share - lacks / case.total_bytes)) / 100
        if share > 0.1:
            because = (
                f"{format_bytes(lacks)} more stay outside of vLLM's share, for what failed; the KV cache is smaller"
            )
            yield case.change(("--gpu-memory-utilization", f"{share:.2f}"), because, lacks)
    batched = case.number("max_num_batched_tokens")
    if not has_cache and (batched is None or batched > 1024):
        n = max(1024, (batched or 2048) // 2)
        yield case.change(("--max-num-batched-tokens", str(n)), "long prompts are read in more steps")
    if not case.observed.facts.get("enforce_eager"):
        yield case.change(("--enforce-eager",), "no CUDA graphs: decoding of few sequences is slower")


_ANSWERS: Mapping[str, Callable[[Case], Iterator[Change]]] = {
    "startup": _startup,
    "length": _length,
    "blocks": _blocks,
    "sequences": _sequences,
    "sampler": _sampler,
    "CPU": _cpu,
    "profiling": _profiling,
    "shared memory": _none,
}


_DURING: Mapping[str, str] = {
    "start": "it started",
    "weights": "weights were loaded",
    "cache": "the KV cache was made",
    "compute": "it profiled or captured graphs",
    "ready": "it served requests",
}


# -- words ------------------------------------------------------------------------------------------------


def _cause(case: Case, check: str) -> str:
    failure, facts = case.failure, case.observed.facts

    def size(n_bytes: int | None) -> str:
        return "?" if n_bytes is None else format_bytes(n_bytes)

    if check == "startup":
        wanted = f"{size(failure.requested_bytes)} of {failure.place} are asked for"
        free = f"{size(failure.free_bytes)} were free: other processes hold the rest"
        return f"{wanted} ({case.share:g} of {size(failure.total_bytes)}), and {free}; nothing was loaded yet"
    if check == "length" and (failure.requested_bytes is None or failure.free_bytes is None):
        return (
            f"a request of {facts.get('max_seq_len')} tokens needs more KV cache than is left for it after weights and"
            " activations"
        )
    if check == "length":
        return (
            f"a request of {facts.get('max_seq_len')} tokens needs {size(failure.requested_bytes)} of KV cache, and"
            f" {size(failure.free_bytes)} are left for it after weights and activations"
        )
    if check == "blocks":
        left = case.number("available_kv_bytes")
        over = "" if left is None else f": they take {size(-left)} more than the share of the card that is planned with"
        return f"nothing is left for the KV cache after weights and activations{over}"
    if check == "sequences":
        n, blocks = facts.get("failure.max_num_seqs"), facts.get("failure.blocks")
        return f"{n} sequences may run at once, and there is state for {blocks}: hybrid models need a block for each"
    if check == "sampler":
        return (
            f"the sampler's buffers for {facts.get('failure.max_num_seqs')} sequences did not fit when it had started"
        )
    if check == "profiling":
        return "another process gave memory back while vLLM measured its own: the measurement is void"
    if failure.cause == "killed":
        return "a process was killed from outside (SIGKILL), as the kernel does when RAM runs out"
    if failure.cause == "RAM":
        return f"RAM ran out: {failure.words}"
    if failure.kind is None:
        when = "; the log does not reach back to what was done then"
    elif "failure.has_graphs" in facts and failure.stage == "start":
        when = ", while it captured graphs or served requests"
    else:
        when = f", while {_DURING[failure.stage]}"
    free = "" if failure.free_bytes is None else f", of which {size(failure.free_bytes)} were free"
    return f"{size(failure.requested_bytes)} could not be allocated on {failure.place}{free}{when}"


def _advice(case: Case) -> Iterator[str]:
    failure, facts = case.failure, case.observed.facts
    if facts.get("failure.check") == "startup" and failure.total_bytes and failure.free_bytes:
        held = failure.total_bytes - failure.free_bytes
        yield f"ending what holds {format_bytes(held)} of {failure.place} (nvidia-smi shows it) helps without a change"
    spare = case.number("failure.fragmented_bytes")
    if spare and failure.requested_bytes and spare > failure.requested_bytes:
        yield "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: more lay unused in fragments than was asked for"
    if facts.get("failure.check") == "shared memory":
        yield "docker run --ipc=host, or a larger --shm-size"
    if failure.cause == "killed":
        yield "`dmesg` or `journalctl -k` says whether the kernel did it: Out of memory: Killed process"


def _missing(case: Case, check: str) -> Iterator[str]:
    if check == "blocks":
        yield "Available KV cache memory: ... GiB, which vLLM prints before this failure"
    elif check in {"startup", "length"}:
        yield "the whole line of the failure, with its figures"
    elif case.failure.cause not in {"RAM", "killed"}:
        yield "the output from the start of vLLM on (its arguments, Model loading took ... GiB)"
