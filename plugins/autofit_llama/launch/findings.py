"""What the user should know about a run, whether it was planned or only checked."""

from __future__ import annotations

from collections.abc import Iterator

from autofit.domain.machine import HOST_POOL
from autofit.domain.memory import Memory
from autofit.domain.plan import Finding
from autofit.domain.text import printable
from autofit.domain.units import GIB, MIB, format_bytes
from autofit.planning.findings import does_not_fit

from autofit_llama.command.options import PYTHON_SERVER
from autofit_llama.command.reading import Reading
from autofit_llama.command.values import parse_split
from autofit_llama.engine.codes import finding
from autofit_llama.engine.numbers import integer
from autofit_llama.engine.versions import LATEST
from autofit_llama.engine.vocabulary import POOLING_NONE, POOLING_RANK
from autofit_llama.memory.estimate import Estimate, Run, keeps_prompts
from autofit_llama.memory.layout import MemoryLayout
from autofit_llama.model.context import CELL_PADDING

SPARE_BYTES = 1 * GIB  #: of RAM, kept free beside a prompt cache
#: options with which a model may read more than it was trained for
_STRETCHES = frozenset(("rope-scaling", "rope-scale", "rope-freq-base", "rope-freq-scale", "yarn-orig-ctx"))


def findings_of(reading: Reading, run: Run, found: Estimate, *, fit: bool) -> list[Finding]:
    """`fit`: the engine's own `--fit` is on, and may change what is not pinned."""
    return [
        *_sliced(run),
        *_fitting(reading, found.memory, fit),
        *_known(reading, run, found),
        *_ignored(reading, run),
        *_context(reading, run, found),
        *_embeddings(reading, run, found),
        *_prompt_cache(run, found.layout, found.memory),
    ]


def _fitting(reading: Reading, memory: Memory, fit: bool) -> Iterator[Finding]:
    if memory.fits:
        return
    if memory.starts:
        yield _runs_short(memory)
    else:
        yield does_not_fit(memory)
    host = memory.pool(HOST_POOL)
    mapped = sum(item.n_bytes for item in host.items if item.mapped)
    if 0 < host.start_shortfall_bytes <= mapped:
        message = f"{format_bytes(mapped)} of weights are memory-mapped and do not all fit in RAM: the server starts"
        yield finding("reads-from-disk", f"{message}, but reads them from disk for every token")
    if fit:
        message = f"{reading.program}'s own --fit may change settings that are not given; -fit off keeps them"
        yield finding("engine-fit", message)


def _runs_short(memory: Memory) -> Finding:
    """Memory that is there at start and not when it has grown, and what makes it grow."""
    worst = max(memory.pools, key=lambda pool: pool.shortfall_bytes)
    growing = {item.when: item.n_bytes for item in worst.tightest.items if item.when}
    when = " and ".join(sorted(growing, key=lambda cause: -growing[cause]))
    amount = f"{format_bytes(worst.shortfall_bytes)} ({worst.shortfall_bytes} bytes)"
    where = f"{worst.id} {printable(worst.name, 40)}"
    return finding("runs-short", f"starts; {where} runs short by {amount} when {when}")


def _sliced(run: Run) -> Iterator[Finding]:
    if run.arguments.sliced:
        message = "-sm tensor is experimental in llama.cpp: memory is verified, run-time behavior is not"
        yield finding("experimental-split", message)
        if any(override.kind == "pattern" for override in run.arguments.overrides):
            message = "some -ot patterns make llama.cpp abort under -sm tensor; not all of them are detected"
            yield finding("unverified-overrides", message)


def _known(reading: Reading, run: Run, found: Estimate) -> Iterator[Finding]:
    if reading.unknown:
        words = printable(" ".join(reading.unknown), 200)
        yield finding("unknown-flags", f"unknown flags, passed through; their memory is not counted: {words}")
    hparams = run.sized.hparams
    if not hparams.known:
        message = f"unknown architecture {hparams.arch!r}: KV cache and compute buffers are upper bounds"
        yield finding("unknown-architecture", message)
    elif not found.layout.has_graph:
        message = f"no compute graph for architecture {hparams.arch!r}: compute buffers are upper bounds"
        yield finding("bounded-compute", message)
    if run.arguments.context.version != LATEST:
        yield from _unsure(run)
    other = next((device for device in run.devices if device.api not in ("cuda", "rpc")), None)
    if other is not None:
        message = f"{other.id}: figures for {other.api} follow llama.cpp's source and are not verified on hardware"
        yield finding("unverified-device", message)


def _unsure(run: Run) -> Iterator[Finding]:
    from autofit_llama.memory.changes import unsure  # few commands need it

    version = run.arguments.context.version
    if names := unsure(run.sized.hparams.arch, version):
        message = f"it is not known whether llama.cpp {version.name} has: {', '.join(names)}"
        yield finding("engine-version-uncertain", f"{message}; what takes more memory is counted")


def _ignored(reading: Reading, run: Run) -> Iterator[Finding]:
    """What is written and that the engine passes over without a word."""
    if reading.unread:
        names, s = printable(", ".join(reading.unread), 200), "" if len(reading.unread) == 1 else "s"
        message = f"{reading.program} {reading.version.name} does not read the setting{s} {names}"
        yield finding("unread-settings", message)
    if reading.others:
        names = printable(", ".join(reading.others), 200)
        message = f"{reading.program} loads these in the place of the first, which is shown, as requests ask"
        yield finding("other-models", f"{message}: {names}")
    for path in reading.unsure:
        message = f"llama.cpp {reading.version.name} may read {printable(path)} or not; its settings are ignored here"
        yield finding("settings-file-unsure", message)
    in_force: dict[str, list[str]] = {}
    for flag, replaced in reading.unwritten("file"):
        if not replaced:
            in_force.setdefault(flag.path or "", []).append(flag.spelling)
    for path, keys in in_force.items():
        message = f"{reading.program} reads {path}; its settings count here: {', '.join(keys)}"
        yield finding("settings-file", printable(message, 300))
    for flag in reading.flags:
        if flag.cut is not None:
            message = f"{reading.program} reads {flag.spelling} '{printable(flag.cut, 40)}' as {integer(flag.cut)}"
            yield finding("number-cut", message)
    split = reading.given("tensor-split")
    if split is None or not split.value or reading.program == "llama-bench":
        return
    numbers, n = parse_split(str(split.value)), len(run.devices)
    if n > 1 and any(numbers) and len(numbers) != n:
        what = "the last ones are ignored" if len(numbers) > n else "the other devices get no layers"
        message = f"-ts has {len(numbers)} number{'' if len(numbers) == 1 else 's'} for {n} devices: {what}"
        yield finding("split-length", message)


def _prompt_cache(run: Run, layout: MemoryLayout, memory: Memory) -> Iterator[Finding]:
    """A cache that may grow to more than the host has left, and the limit that there is room for."""
    if run.server is None or not keeps_prompts(layout):
        return
    host, limit = memory.pool(HOST_POOL), run.server.prompt_cache_bytes
    left = None if host.budget_bytes is None else host.budget_bytes - host.used_bytes + (limit or 0)
    if limit is None:
        message = "the prompt cache has no limit (--cache-ram -1) and is not counted: it may fill all RAM"
        if left is not None:
            message += f"; --cache-ram {max(left - SPARE_BYTES, 0) // MIB} fits"
        yield finding("unlimited-prompt-cache", message)
    elif left is not None and 0 <= left < limit:
        message = f"the prompt cache may grow to {format_bytes(limit)}, more than is free"
        room = left - SPARE_BYTES if left > SPARE_BYTES + 256 * MIB else 0
        yield finding("large-prompt-cache", f"{message}: --cache-ram {room // MIB} fits")


def _context(reading: Reading, run: Run, found: Estimate) -> Iterator[Finding]:
    """Contexts beyond the trained one; servers hold each slot to that, stretched or not (server-context.cpp)."""
    context, trained = found.layout.context, run.sized.hparams.n_ctx_train
    n_ctx, shared = context.n_ctx_seq, context.kv_unified and context.n_seq_max > 1
    key = f"{run.sized.hparams.arch}.context_length=int:{n_ctx}"
    if not trained and run.server is not None:
        message = f"{reading.program} limits a slot to the trained context, which the file states as 0: it answers no"
        yield finding("context-beyond-training", f"{message} request without --override-kv {printable(key, 80)}")
    if not trained or n_ctx <= max(trained, 256):
        return
    if run.server is not None and shared and context.n_ctx <= trained * context.n_seq_max:
        slots = f"{context.n_seq_max} slots; each slot is limited to the trained context of {trained}"
        message = f"{n_ctx} tokens of context are shared by {slots}"
        yield finding("slots-share-context", message)
    elif run.server is not None:
        message = (
            f"{n_ctx} tokens per sequence, but {reading.program} limits a slot to the trained context of {trained}"
        )
        message += f"; more needs RoPE scaling (--rope-scaling yarn) and --override-kv {printable(key, 80)}"
        yield finding("context-beyond-training", message)
    elif not any(flag.option.key in _STRETCHES for flag in reading.flags):
        message = f"{n_ctx} tokens per sequence, but the model was trained for {trained}: it needs RoPE scaling"
        how = "--rope_scaling_type 2" if reading.program == PYTHON_SERVER else "--rope-scaling yarn"
        yield finding("context-beyond-training", f"{message} ({how})")


def _embeddings(reading: Reading, run: Run, found: Estimate) -> Iterator[Finding]:
    """Servers of models that pool: what they refuse at the first request."""
    context, layout = found.layout.context, found.layout
    if run.server is None:
        return
    if not context.embeddings and run.sized.hparams.pooling_type > POOLING_NONE:
        flag = "--reranking" if run.sized.hparams.pooling_type == POOLING_RANK else "--embedding"
        message = f"this is an embedding model: {reading.program} rejects embedding requests without {flag}"
        yield finding("no-embeddings", message)
    longest = min(context.n_ctx_seq, run.sized.hparams.n_ctx_train or context.n_ctx_seq)
    if not context.splits_inputs(bool(layout.caches)) and context.n_ubatch + CELL_PADDING <= longest:
        message = f"inputs longer than {context.n_ubatch} tokens are rejected: an input must fit in one micro-batch"
        yield finding("inputs-one-micro-batch", f"{message}; -b {longest} -ub {longest} accepts all")
