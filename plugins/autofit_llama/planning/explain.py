"""Why each setting has its value, what the next better one lacks, and the way from decisions to a command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from autofit.domain.plan import Decision, NextRejected, Origin
from autofit.domain.text import joined
from autofit.domain.units import format_gib
from autofit.domain.values import dataclass
from autofit.planning.decisions import argument, arguments, origin_of, remark

from autofit_llama.command.model_files import model_flags
from autofit_llama.command.settings import LlamaSettings
from autofit_llama.memory.estimate import Estimate
from autofit_llama.model.context import CELL_PADDING
from autofit_llama.planning.goals import LARGE_UBATCHES, Goals
from autofit_llama.planning.search import Found, Search
from autofit_llama.planning.topics import topic_of

if TYPE_CHECKING:
    from autofit_llama.planning.task import Task

DEFAULT_BATCH, DEFAULT_UBATCH = 2048, 512
_OF_DEVICES = ("split_mode", "main_gpu")
_OF_RAM = ("cache_ram_mib", "n_checkpoints", "logits_all", "load_mode")
_FLASH_ON = "every device in use supports it for this model; attention scores need no buffer"
_BECAUSE = {
    "rpc": "the machines whose devices take layers",
    "n_batch": "holds at least one micro-batch",
    "n_ubatch": "faster prompt processing: fewer passes over the weights",
    "embedding": "this is an embedding model: without this flag the server rejects embedding requests",
    "pooling": "this is a reranking model: without this flag the server rejects reranking requests",
    "n_threads": "one thread per physical or performance core: memory bandwidth limits decoding",
    "cache_ram_mib": "MiB of RAM for the prompt cache; the default is 8192",
    "n_checkpoints": "as many context checkpoints as fit in the RAM left",
    "split_mode": "the device that was asked for, alone",
    "main_gpu": "its number, in the engine's order",
    "logits_all": "logits of every token of the context do not fit in RAM; requests for logprobs are refused",
    "load_mode": "weights are not locked in RAM: they do not all fit",
    "fit": "every setting is explicit, so llama.cpp's --fit is turned off",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """The decisions in the order of the command line; those that are not on it come last."""

    decisions: tuple[Decision, ...]


def explain(
    task: Task, search: Search, goals: Goals, found: Found, settings: LlamaSettings, final: Estimate
) -> Explained:
    """Every setting of the command with its origin and reason."""
    pins = task.pins
    decisions: list[Decision] = []
    if not _names_model(pins.settings):
        decisions += [
            argument(flag, values, "user", "as given", topic="model") for flag, values in _pairs(_model_flags(task))
        ]
    decisions += pins.decisions()
    for name in said(task, found, settings):
        because = _reason(name, task, search, goals, found, settings)
        next_rejected = _next(name, task, search, goals, found) if task.request.explain else None
        for flag, values in _pairs(pins.written(_only(settings, pins.settings, name))):
            origin, topic = _origin(task, name), topic_of(name)
            decisions.append(argument(flag, values, origin, because, next_rejected, topic))
            next_rejected = None
    decisions += _unsaid(task, settings, found)
    for device in task.devices:
        margin, because = task.margins[device.id]
        n_bytes = margin.of(device.total_bytes or device.free_bytes or 0)
        origin = task.request.origin("margin") if task.request.margin else "engine default"
        value, why = f"{format_gib(n_bytes)} GiB", f"left free: {because}"
        decisions.append(remark(f"margin {device.id}", value, origin, why, "placement"))
    return Explained(decisions=tuple(decisions))


def command_of(task: Task, found: Found, settings: LlamaSettings) -> tuple[str, ...]:
    """The whole command for an answer, without reasons."""
    pins = task.pins
    program = pins.reading.words or (pins.reading.program,)
    model = () if _names_model(pins.settings) else _model_flags(task)
    names = said(task, found, settings)
    solved = [pins.written(_only(settings, pins.settings, name)) for name in names]
    return (*program, *model, *arguments(pins.decisions()), *(token for tokens in solved for token in tokens))


def _model_flags(task: Task) -> tuple[str, ...]:
    named = task.request.model_reference or task.model.files[0].path
    return task.pins.written(LlamaSettings(model=named)) if task.pins.is_python else model_flags(named)


def _only(settings: LlamaSettings, pinned: LlamaSettings, name: str) -> LlamaSettings:
    """One setting by itself, as far as it is not the user's own."""
    value = getattr(settings, name)
    if name == "overrides":
        value = value[len(pinned.overrides) :]
    only: dict[str, Any] = {name: value}
    return LlamaSettings(**only)


def _pairs(argv: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(flag, its values) of rendered flags, none of whose values begins with a letter behind a dash."""
    at = 0
    while at < len(argv):
        end = at + 1
        while end < len(argv) and not (argv[end].startswith("-") and argv[end][1:2].isalpha()):
            end += 1
        yield argv[at], argv[at + 1 : end]
        at = end


def said(task: Task, found: Found, settings: LlamaSettings) -> Iterator[str]:
    """The settings that were solved and are not what the program does anyway, in the order of the command."""
    given, candidate = task.pins.settings, found.candidate
    usual = DEFAULT_UBATCH if task.pins.is_python else DEFAULT_BATCH
    if not given.rpc and settings.rpc and any(task.is_remote(name) for name in found.split.order):
        yield "rpc"  # before what names its devices
    if given.n_ctx is None and given.kv_unified_per_slot is None:
        yield "n_ctx"
    if given.devices is None and settings.devices is not None:
        yield "devices"
    # devices that stay visible take layers unless they are told to take none
    if given.n_gpu_layers is None and (found.split.rows or (task.devices and settings.devices != ())):
        yield "n_gpu_layers"
    if given.tensor_split is None and settings.tensor_split:
        yield "tensor_split"
    if len(settings.overrides) > len(given.overrides):
        yield "overrides"
    if given.type_k is None and candidate.type_k != "f16":
        yield "type_k"
    if given.type_v is None and candidate.type_v != "f16":
        yield "type_v"
    if given.flash_attn is None and settings.flash_attn in (("on",) if task.pins.is_python else ("on", "off")):
        yield "flash_attn"
    # a server for embeddings cuts a larger one to the micro-batch by itself
    least = usual if task.base.embedding else 0
    if given.n_batch is None and candidate.n_batch != usual and candidate.n_batch > least:
        yield "n_batch"
    if given.n_ubatch is None and candidate.n_ubatch != DEFAULT_UBATCH:
        yield "n_ubatch"
    for name in (*_OF_DEVICES, "embedding", "pooling", "n_parallel", "n_threads", *_OF_RAM, "fit"):
        if getattr(given, name) is None and getattr(settings, name) is not None:
            yield name


def _reason(name: str, task: Task, search: Search, goals: Goals, found: Found, settings: LlamaSettings) -> str:
    """Why a setting has its value."""
    candidate = found.candidate
    if name == "n_ctx":
        return _why_context(task, goals, found)
    if name == "n_gpu_layers":
        return _why_layers(task, found)
    if name == "overrides":
        return _why_overrides(found, search)
    if name == "devices":
        return _why_devices(task, found)
    if name == "tensor_split" and task.shares_blocks:
        return "share of each tensor per device, weighted by bandwidth and memory; the slowest device sets the pace"
    if name == "tensor_split":
        counts = ", ".join(f"{device} {count}" for device, count in found.split.rows)
        return f"layers per device ({counts}); pinned, so the split does not depend on free memory at start-up"
    if name in ("type_k", "type_v"):
        return _why_kv(task, found, candidate.type_k if name == "type_k" else candidate.type_v)
    if name == "flash_attn":
        if task.shares_blocks:
            return "-sm tensor needs it"
        on = settings.flash_attn == "on"
        return _FLASH_ON if on else "a device in use does not support flash attention for this model's head size"
    if name == "n_ubatch" and candidate.n_ubatch < DEFAULT_UBATCH:
        return "smaller compute buffers leave more memory for weights"
    if name in ("n_batch", "n_ubatch") and task.base.embedding:
        return "an input must fit in one micro-batch; the server rejects longer inputs"
    if name == "n_parallel":
        return _why_parallel(task)
    return _BECAUSE[name]


def _next(name: str, task: Task, search: Search, goals: Goals, found: Found) -> NextRejected | None:
    """The next better value of a setting, with what it lacks."""
    if name == "n_ctx":
        return _next_context(task, search, goals, found)
    if name == "n_gpu_layers":
        return _next_layers(task, search, found)
    if name == "n_ubatch":
        return _next_ubatch(search, found)
    if name == "type_k" and task.request.kv in (None, "auto") and found.memory.fits:
        lossless = found.candidate._replace(type_k="f16", type_v="f16")
        return _lacking(search, found._replace(candidate=lossless), "f16", "with the same layers and context")
    return _next_cpu_ffn(search, found) if name == "overrides" else None


def _unsaid(task: Task, settings: LlamaSettings, found: Found) -> Iterator[Decision]:
    """Defaults that were left as they are, for a reason."""
    given = task.pins.settings
    if given.n_ubatch is None and found.candidate.n_ubatch == DEFAULT_UBATCH:
        yield remark(
            task.pins.word("n_ubatch"),
            "512",
            "engine default",
            "a larger micro-batch only speeds up prompt processing and needs larger compute buffers",
            "batch",
        )
    if given.type_k is None and found.candidate.type_k == "f16":
        yield remark(
            task.pins.word("type_k"),
            "f16",
            "engine default",
            "lossless; --kv auto may choose a quantized type",
            "context",
        )
    if task.pins.reading.program == "llama-server" and settings.cache_ram_mib is None and given.cache_ram_mib is None:
        yield remark("-cram", "8192", "engine default", "MiB of RAM for past prompts, which fit", "context")


def _origin(task: Task, name: str) -> Origin:
    """Where a setting comes from that is not pinned: an option, or the search."""
    request = task.request
    typed = ("kv", request.kv not in (None, "auto"))
    stated = {"n_ctx": ("context", bool(request.context)), "n_parallel": ("parallel", request.parallel is not None)}
    return origin_of(request, *{**stated, "type_k": typed, "type_v": typed}.get(name, ("", False)))


def _why_context(task: Task, goals: Goals, found: Found) -> str:
    n, n_ctx = task.n_parallel, found.candidate.n_ctx_seq
    each = f"{n_ctx} tokens" + (f" for each of {n} sequences" if n > 1 else "")
    if task.exact_context is not None:
        return f"{each}, as asked"
    if n_ctx >= goals.most:
        capped = goals.most < task.trained
        return f"{each}: " + ("the maximum asked for" if capped else "the trained context")
    if not found.memory.fits:
        return f"{each}: nothing fits, not even the shortest useful context"
    if goals.prefer == "context":
        return f"{each}: the longest context at this decode rate"
    return f"{each}: the longest context that keeps most of the decode rate of a short one"


def _why_devices(task: Task, found: Found) -> str:
    used = joined(found.split.order) or "none"
    left = [device.id for device in task.devices if device.id not in found.split.order]
    if not found.split.order:
        return "no device is used: no layer fits on one, or the CPU is faster"
    if left:
        return f"{used}: {joined(left)} would only add a transfer between devices"
    return f"{used} in this order: the fastest assignment that fits"


def _why_layers(task: Task, found: Found) -> str:
    n_blocks = task.sized.hparams.n_layer_all
    head = found.split.head
    if head == 0:
        return f"all {n_blocks} layers and the output layer on {joined(found.split.order)}"
    return f"{head} of {n_blocks} layers stay in RAM; the others fill {joined(found.split.order) or 'none'}"


def _why_overrides(found: Found, search: Search) -> str:
    parts, split_ = [], found.split
    what = "experts" if search.tables(found.candidate).ffn_kind == "experts" else "feed-forward weights"
    if split_.n_cpu_ffn:
        least = ", the minimum that fits" if found.memory.fits else ""
        parts.append(f"the {what} of the first {split_.n_cpu_ffn} layers stay in RAM{least}")
    if split_.offloaded:
        blocks = joined([str(slot) for slot in dict.fromkeys(slot for slot, _ in split_.offloaded)])
        plural = "s" if " and " in blocks else ""
        parts.append(f"parts of layer{plural} {blocks}{' too' if parts else ''}, so that devices are full")
    for slot, projection, device in split_.moved:
        parts.append(f"{projection} of layer {slot} fills {device}")
    if not parts and found.candidate.one_by_one:
        return (
            "this pattern matches no tensor: it only disables pipeline parallelism, "
            "which would need four copies of the compute buffers"
        )
    return "; ".join(parts)


def _why_kv(task: Task, found: Found, value: str) -> str:
    if task.request.kv not in (None, "auto"):
        return "as asked"
    if not found.memory.fits:
        return f"nothing fits; {value} takes the least memory"
    return f"{value} fits; f16 would shorten the context or lower the decode rate"


def _why_parallel(task: Task) -> str:
    if task.request.parallel is not None:
        return "as asked"
    return "one sequence gets the whole context; llama-server's default is 4 slots"


def _next_context(task: Task, search: Search, goals: Goals, found: Found) -> NextRejected | None:
    if task.exact_context is not None or found.candidate.n_ctx_seq >= goals.most or not found.memory.fits:
        return None
    n_ctx = min(goals.most, (found.candidate.n_ctx_seq // CELL_PADDING + 1) * CELL_PADDING)
    longer = found.candidate._replace(n_ctx_seq=n_ctx)
    return _lacking(
        search, found._replace(candidate=longer), str(n_ctx * task.n_parallel), "with the same layers on each device"
    )


def _next_layers(task: Task, search: Search, found: Found) -> NextRejected | None:
    """One more block on the first device in use, its feed-forward with it unless those before leave theirs behind."""
    split_ = found.split
    if split_.head == 0 or not split_.rows or not found.memory.fits:
        return None
    if split_.head - 1 not in search.problem.bounds.heads:
        return None
    (first, count), *rest = split_.rows
    more = split_._replace(head=split_.head - 1, rows=((first, count + 1), *rest))
    if task.shares_blocks:
        more = split_._replace(head=split_.head - 1)
    elif search.problem.bounds.split is not None:
        more = more._replace(rows=search.rows_at(more.head))
    n = search.problem.n_rows - more.head
    return _lacking(search, found._replace(split=more), str(n), "with one more layer on a device")


def _next_ubatch(search: Search, found: Found) -> NextRejected | None:
    """Twice the micro-batch, for prompts."""
    candidate = found.candidate
    n = 2 * candidate.n_ubatch
    if not found.memory.fits or n > min(LARGE_UBATCHES[0], candidate.n_ctx_seq):
        return None
    larger = candidate._replace(n_ubatch=n, n_batch=max(n, candidate.n_batch))
    return _lacking(search, found._replace(candidate=larger), str(n), "with the same layers and context")


def _next_cpu_ffn(search: Search, found: Found) -> NextRejected | None:
    """The feed-forward of one more block on its device."""
    split_ = found.split
    if not (split_.n_cpu_ffn or split_.offloaded) or not found.memory.fits:
        return None
    n_cpu_ffn = split_.n_cpu_ffn if split_.offloaded else split_.n_cpu_ffn - 1
    less = split_._replace(n_cpu_ffn=n_cpu_ffn if n_cpu_ffn > split_.head else 0, offloaded=())
    word = "-ncmoe" if search.tables(found.candidate).ffn_kind == "experts" else "-ncffn"
    value = f"{word} {n_cpu_ffn}" if search.problem.counts_blocks else f"-ot of {n_cpu_ffn} layers"
    if split_.offloaded and search.problem.counts_blocks:
        value += " without -ot"
    return _lacking(search, found._replace(split=less), value, "with one layer more whole on a device")


def _lacking(search: Search, other: Found, value: str, because: str) -> NextRejected | None:
    """What `other` lacks, in all where that is in several pools; `None` if it lacks nothing: only what does not fit is
    called rejected."""
    memory = search.measure(other.candidate, other.split)
    if memory.fits:
        return None
    short = [pool for pool in memory.pools if pool.shortfall_bytes > 0]
    pool, lacks = (short[0].id if len(short) == 1 else None), sum(pool.shortfall_bytes for pool in short)
    return NextRejected(value=value, pool=pool, shortfall_bytes=lacks, because=because)


def _names_model(settings: LlamaSettings) -> bool:
    return any((settings.model, settings.hf_repo, settings.model_url, settings.docker_repo))
