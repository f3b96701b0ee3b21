"""The plan in words: what goes where, how fast, what limits it, and what to know."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from autofit.domain.memory import KINDS, DeviceLimit, PoolUse
from autofit.domain.plan import Alternative, Finding, NextRejected, Plan, Speed
from autofit.domain.text import printable
from autofit.domain.units import format_bytes, format_rate
from autofit.render.pools import are_equal, folded, fullest, group_of, ids
from autofit.text import shell

_REMEDIES = ("would-fit", "gpus-needed")
FULL_FRACTION = 0.05  #: of free memory: with less left, the pool is nearly full


def summary(plan: Plan) -> Iterator[str]:
    """A few lines: one per pool or for equal ones, then context and speed, what limits it, and what to know."""
    rows = [(*name.split("  ", 1), room(pools), parts(fullest(pools))) for name, pools in folded(plan.memory.pools)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)] if rows else []
    for row in rows:
        yield f"  {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip()
    for pool in plan.memory.pools:
        yield from (f"  {limit_row(limit, pool)}" for limit in pool.limits)
    if said := list(facts(plan)):
        yield "  " + " · ".join(said)
    yield from (f"  {words}" for words in limits(plan))
    if plan.engine_source is not None:
        yield f"  for {printable(plan.engine_source, 200)}"
    yield from (finding(found) for found in told(plan))


def told(plan: Plan) -> Sequence[Finding]:
    """The findings; of a plan that does not fit what is missing first, then the nearest that would fit."""
    if plan.fits:
        is_said = plan.limit is not None and plan.limit.what == "decode rate"  # by the sentence on what limits it
        return [found for found in plan.findings if not (is_said and found.code == "weights-in-ram")]
    return sorted(plan.findings, key=_place)


def _place(found: Finding) -> int:
    if found.severity == "error":
        return 0 if found.code == "does-not-fit" else 1
    return 2 if found.code in _REMEDIES else 3


def limits(plan: Plan) -> Iterator[str]:
    """What limits the plan, and what the next step up would need; nothing of one that runs short."""
    if plan.verdict != "fits" or not plan.fits:
        return
    limit = plan.limit
    if limit is None:
        yield _fullness(plan)
    elif limit.pool is not None:
        some = group_of(plan.memory.pools, limit.pool)
        device = _tightest_device(some)
        if device is not None:
            who, verb = f"{device.id}{_left_to(device, some[0])}", "limits"
        else:
            who, verb = f"{ids(some) or limit.pool}{_left(some)}", "limits" if len(some) < 2 else "limit"
        yield printable(f"{who} {verb} the {limit.what}: {limit.because}", 400)
        if limit.next_step is not None:
            step = limit.next_step
            yield _step(replace(step, pool=device.id) if device is not None and step.pool == limit.pool else step)
    elif limit.what:
        yield printable(f"memory does not limit the {limit.what}: {limit.because}", 400)
    else:
        pool = _fewest_left(plan)
        left = f"; {pool.id} has {format_bytes(pool.room_bytes or 0)} left{_margin(pool)}" if pool is not None else ""
        yield printable(f"nothing is short: {limit.because}{left}", 400)


def _fullness(plan: Plan) -> str:
    """How full the fullest pool is, of a command that is kept as it is."""
    pool = _fewest_left(plan)
    if pool is None:
        return "what limits it is not known: free memory was not told"
    left = f"{format_bytes(pool.room_bytes or 0)} left{_margin(pool)}"
    if (pool.room_bytes or 0) > FULL_FRACTION * (pool.free_bytes or 0):
        return f"nothing is short: {pool.id}, the fullest, has {left}"
    return f"{pool.id} is nearly full: it has {left}"


def _fewest_left(plan: Plan) -> PoolUse | None:
    """The pool with the least room for its size."""
    known = [pool for pool in plan.memory.pools if pool.room_bytes is not None and pool.free_bytes]
    return min(known, key=lambda pool: (pool.room_bytes or 0) / (pool.free_bytes or 1), default=None)


def _left(pools: Sequence[PoolUse]) -> str:
    rooms = [(pool.room_bytes, pool) for pool in pools if pool.room_bytes is not None]
    if not rooms:
        return ""
    room, pool = min(rooms, key=lambda one: one[0])
    return f" ({format_bytes(room)} left{_margin(pool)})" if room >= 0 else ""


def _tightest_device(pools: Sequence[PoolUse]) -> DeviceLimit | None:
    """The device that reaches what it may take of a pool before the pool itself is full."""
    tightest = pools[0].tightest if len(pools) == 1 else None
    return tightest if isinstance(tightest, DeviceLimit) else None


def _left_to(device: DeviceLimit, pool: PoolUse) -> str:
    room = device.limit_bytes - device.used_bytes
    return f" ({format_bytes(room)} left of what it may take of {pool.name})" if room >= 0 else ""


def _step(step: NextRejected) -> str:
    """The second sentence."""
    value, pool = printable(step.value, 200), step.pool
    where = "" if pool is None else " there" if pool in value.split() else f" on {pool}"
    where = f" {printable(step.because, 200)}" if step.because else where
    return f"the next step up, {value}, takes {format_bytes(step.shortfall_bytes or 0)} more{where}"


def _margin(pool: PoolUse) -> str:
    return " beside the margin" if pool.sum_bytes("reserve") else ""


def facts(plan: Plan) -> Iterator[str]:
    """The context, and how fast."""
    if plan.context_tokens:
        yield f"context {plan.context_tokens:,} tokens"
    if plan.safe_fill_tokens is not None and plan.safe_fill_tokens != plan.context_tokens:
        yield f"safe to fill to {plan.safe_fill_tokens:,}"
    if plan.speed and (rates := speed(plan.speed)):
        yield rates


def no_fit(plan: Plan) -> str:
    """One line for a plan that does not fit: the error with the shortfall, or the first."""
    found = next((f.message for f in told(plan) if f.severity == "error"), "it does not fit")
    return printable(found, 400)


def no_fit_and_nearest(plan: Plan) -> str:
    """The same line with the nearest that would fit, where that is known."""
    known = [found.message for code in _REMEDIES for found in plan.findings if found.code == code]
    return "; ".join([no_fit(plan), *(printable(message, 400) for message in known[:1])])


def speed(estimate: Speed) -> str:
    """`decode ~45 tokens/s (32-58)`, from what rate it falls to that, and prompt processing where it is known."""
    said = [_decode(estimate)] if estimate.decodes else []
    if estimate.prefill_tokens_per_s:
        prompts = f"prompt processing ~{format_rate(estimate.prefill_tokens_per_s)} tokens/s"
        if estimate.prefill_low and estimate.prefill_high:
            prompts += f" ({format_rate(estimate.prefill_low)}-{format_rate(estimate.prefill_high)})"
        said.append(prompts)
    return " · ".join(said)


def _decode(estimate: Speed) -> str:
    decode, start = estimate.decode_tokens_per_s, estimate.start_tokens_per_s
    full = f"~{format_rate(decode)} tokens/s ({format_rate(estimate.low)}-{format_rate(estimate.high)})"
    if start is not None and start > 1.1 * decode:
        return f"decode ~{format_rate(start)}, with a full context {full}"
    return f"decode {full}"


def finding(found: Finding) -> str:
    return f"  {'note' if found.severity == 'info' else found.severity}: {printable(found.message, 400)}"


def pick(one: Alternative) -> str:
    """`or -c max, the longest context: 131,072 instead of 56,064 tokens of context, for decode ~11 instead of ~61`."""
    what = one.pick if one.pick in (None, "fastest") else f"the {one.pick}"
    gains, costs = ", ".join(one.gains) or "another plan", ", ".join(one.costs)
    return printable(f"or {shell.shown(one.flags)}, {what}: {gains}{f', for {costs}' if costs else ''}", 400)


def rejected(rejected: NextRejected, size: Callable[[int], str] = format_bytes) -> str:
    """The next better value, and what it lacks."""
    value, because = printable(rejected.value, 80), printable(rejected.because, 200)
    if rejected.shortfall_bytes:
        on = f" on {rejected.pool}" if rejected.pool else ""
        value += f" needs {size(rejected.shortfall_bytes)} more{on}"
    return f"{value}, {because}" if because else value


def called(kind: str) -> str:
    """A kind of memory as people call it."""
    return "margin" if kind == "reserve" else kind


def parts(pool: PoolUse) -> str:
    """The size of each kind in a pool."""
    sizes = [(kind, pool.sum_bytes(kind)) for kind in KINDS]
    return " · ".join(f"{called(kind)} {format_bytes(n_bytes)}" for kind, n_bytes in sizes if n_bytes)


def limit_row(limit: DeviceLimit, pool: PoolUse) -> str:
    """What a device may take of a pool, and what of it is used."""
    used, most = format_bytes(limit.used_bytes), format_bytes(limit.limit_bytes)
    return f"{limit.id}  {printable(limit.name, 40)}: {used} used of the {most} that it may take of {pool.name}"


def room(pools: Sequence[PoolUse]) -> str:
    """What is used of a pool, or at most of each of several that are alike; what is needed, where it is more."""
    pool = fullest(pools)
    used = format_bytes(pool.used_bytes)
    most = "up to " if not are_equal(pools) else ""
    if pool.free_bytes is None:
        return f"{most}{used} used of an unknown amount"
    each = " each" if len(pools) > 1 else ""
    if pool.used_bytes > pool.free_bytes:
        return f"{most}{used} needed, {format_bytes(pool.free_bytes)} free{each}"
    return f"{most}{used} used of {format_bytes(pool.free_bytes)} free{each}"
