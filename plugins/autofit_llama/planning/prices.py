"""What the choices of a plan cost, for its summary: context, cache type, micro-batch, RAM, devices left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from autofit.domain.machine import HOST_POOL
from autofit.domain.plan import Finding
from autofit.domain.text import printable
from autofit.domain.units import READ_TOKENS_PER_S, SAME_RATE, format_bytes, format_rate

from autofit_llama.engine.codes import finding
from autofit_llama.memory.estimate import Estimate
from autofit_llama.planning.goals import COMPARED_TOKENS, LOSSY_GAIN, Answer, Goals
from autofit_llama.planning.problem import ONE_BY_ONE
from autofit_llama.planning.search import Found

if TYPE_CHECKING:
    from autofit_llama.planning.task import Task


def prices(task: Task, goals: Goals, answer: Answer, final: Estimate) -> Iterator[Finding]:
    """One note for each choice that costs something; a plan that does not fit has none."""
    if not final.memory.fits:
        return
    yield from _weights_in_ram(task, answer.found, final)
    yield from _slow(task, goals, answer.found)
    yield from _context(task, goals, answer)
    yield from _cache(task, goals, answer)
    yield from _micro_batch(task, goals, answer)
    yield from _devices(task, answer.found)
    if answer.found.candidate.one_by_one and not answer.found.split.on_host:
        message = "no micro-batches overlap on the devices: the copies for that do not fit, and prompts take longer"
        yield finding("no-overlap", f"{message} (-ot {ONE_BY_ONE}=CPU names no tensor and turns it off)")


def _weights_in_ram(task: Task, found: Found, final: Estimate) -> Iterator[Finding]:
    if not (found.split.on_host and task.devices):
        return
    shares = any(device.pool == HOST_POOL for device in task.devices)
    n_bytes = final.layout.weight_plan.host_all_bytes
    where = "run on the CPU" if shares else "stay in RAM"
    yield finding("weights-in-ram", f"{format_bytes(n_bytes)} of weights {where}, which limits the decode rate")


def _slow(task: Task, goals: Goals, found: Found) -> Iterator[Finding]:
    """That nobody waits for such a plan who knows of another, unless a rate was asked for."""
    if not found.split.on_host or task.request.min_tps is not None:
        return
    rate = goals.rate(found)
    if 0 < rate < READ_TOKENS_PER_S / 2:
        message = f"decoding at ~{format_rate(rate)} tokens/s{goals.filled} is less than half as fast as people read"
        message += f" (~{READ_TOKENS_PER_S:.0f} tokens/s)"
        where = "`autofit quants MODEL` compares smaller quantizations, `autofit advise MODEL` hardware"
        yield finding("slow-decoding", f"{message}: {where}")


def _context(task: Task, goals: Goals, answer: Answer) -> Iterator[Finding]:
    if answer.compared is None:
        return
    rate, faster = goals.rate(answer.found), goals.rate(answer.compared)
    if faster > SAME_RATE * rate and format_rate(faster) != format_rate(rate):
        n_ctx, shorter = answer.found.candidate.n_ctx_seq, answer.compared.candidate.n_ctx_seq
        message = f"a context of {n_ctx} tokens lowers the decode rate: ~{format_rate(rate)} tokens/s{goals.filled}"
        yield finding("context-price", f"{message}, ~{format_rate(faster)} with {task.pins.word('n_ctx')} {shorter}")


def _cache(task: Task, goals: Goals, answer: Answer) -> Iterator[Finding]:
    candidate, lossless = answer.found.candidate, answer.lossless
    if lossless is not None:
        # what it is taken for may show only once the context fills
        near = answer.found.candidate.n_ctx_seq != lossless.candidate.n_ctx_seq
        near = near or goals.rate(answer.found) >= LOSSY_GAIN * goals.rate(lossless)
        rate, when = (goals.rate, goals.filled) if near else (goals.full, " with the context full")
        ours, theirs = (format_rate(rate(found)) for found in (answer.found, lossless))
        tokens, others = candidate.n_ctx_seq, lossless.candidate.n_ctx_seq
        message = f"a {candidate.type_k} KV cache loses some precision for ~{ours} tokens/s{when}"
        message += f" and {tokens} tokens of context; --kv f16 gives ~{theirs}"
        yield finding("lossy-cache", message if tokens == others else f"{message} and {others} tokens")
    elif answer.lossy is not None:
        rates = [format_rate(goals.rate(found)) for found in (answer.found, answer.lossy)]
        if rates[0] != rates[1]:
            message = f"an f16 KV cache keeps all precision at ~{rates[0]} tokens/s{goals.filled}"
            message += f"; --kv q8_0 gives ~{rates[1]}"
            yield finding("lossless-cache", message)
    elif _is_lossy(candidate.type_k) and task.pins.settings.type_k is None and task.request.kv in (None, "auto"):
        message = f"a {candidate.type_k} KV cache loses some precision; this context does not fit with f16"
        yield finding("lossy-cache", message)


def _is_lossy(name: str) -> bool:
    return name.startswith(("q", "iq"))


def _micro_batch(task: Task, goals: Goals, answer: Answer) -> Iterator[Finding]:
    if answer.plain is None:
        return
    found, plain = answer.found, answer.plain
    n, before = found.candidate.n_ubatch, plain.candidate.n_ubatch
    prompts, slower = format_rate(goals.prompts(found, n)), format_rate(goals.prompts(plain, before))
    decode, faster = format_rate(goals.rate(found)), format_rate(goals.rate(plain))
    price = "at the same decode rate" if decode == faster else f"for decode ~{decode} instead of ~{faster}"
    length = max(COMPARED_TOKENS, n, before)
    message = (
        f"micro-batches of {n} process prompts of {length} tokens at ~{prompts} instead of ~{slower} tokens/s {price}"
    )
    if answer.found.candidate.n_ctx_seq < plain.candidate.n_ctx_seq:
        message += f", in a context of {found.candidate.n_ctx_seq} instead of {plain.candidate.n_ctx_seq} tokens"
    yield finding("micro-batch", f"{message} ({task.pins.word('n_ubatch')} {before})")


def _devices(task: Task, found: Found) -> Iterator[Finding]:
    left = [device for device in task.devices if device.id not in found.split.order]
    if not left or not found.split.order:
        return
    names = ", ".join(f"{device.id} ({printable(device.name, 40)})" for device in left)
    if found.split.on_host:
        why = "no layer fits there with the driver's memory and the compute buffers"
    else:
        *first, last = found.split.order
        why = f"{', '.join(first)} and {last} alone are faster" if first else f"{last} alone is faster"
    yield finding("device-left-out", f"{names} left out: {why}")
