"""The plan for people: what goes where, how fast, what to know, and why."""

from __future__ import annotations

from collections.abc import Iterator

from autofit.domain.memory import KINDS, DeviceLimit, PoolUse
from autofit.domain.plan import Alternative, Finding, NextRejected, Plan, Speed
from autofit.domain.text import printable
from autofit.domain.units import format_bytes, format_rate
from autofit.text import shell


def summary(plan: Plan) -> Iterator[str]:
    """A few lines: one per pool, then context and speed, then what to know."""
    rows = [_pool_row(pool) for pool in plan.memory.pools]
    widths = [max(len(row[i]) for row in rows) for i in range(3)] if rows else []
    for row in rows:
        yield f"  {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip()
    for pool in plan.memory.pools:
        yield from (f"  {limit_row(limit, pool)}" for limit in pool.limits)
    if said := list(facts(plan)):
        yield "  " + " · ".join(said)
    if plan.engine_source is not None:
        yield f"  for {printable(plan.engine_source, 200)}"
    yield from (finding(found) for found in plan.findings)


def facts(plan: Plan) -> Iterator[str]:
    """The context, and how fast."""
    if plan.context_tokens:
        yield f"context {plan.context_tokens:,} tokens"
    if plan.safe_fill_tokens is not None and plan.safe_fill_tokens != plan.context_tokens:
        yield f"safe to fill to {plan.safe_fill_tokens:,}"
    if plan.speed and (rates := speed(plan.speed)):
        yield rates


def no_fit(plan: Plan) -> str:
    """One line for a plan that does not fit: the first error, with its shortfall."""
    found = next((f.message for f in plan.findings if f.severity == "error"), "it does not fit")
    return printable(found, 400)


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


def explain(plan: Plan) -> Iterator[str]:
    """Every setting with its origin and reason, every figure with its basis, and the plans not taken."""
    yield "settings"
    width = max((len(f"{d.setting} {d.value}") for d in plan.decisions), default=0)
    width = min(width, 44)
    for d in plan.decisions:
        yield f"  {printable(f'{d.setting} {d.value}', 80):<{width}}  [{d.origin}] {printable(d.because, 300)}"
        if d.next_rejected:
            yield f"  {'':<{width}}  next: {rejected(d.next_rejected)}"
    yield "memory"
    for pool in plan.memory.pools:
        yield f"  {pool.id} {printable(pool.name, 60)}: {room(pool)}"
        for item in sorted(pool.items, key=lambda item: KINDS.index(item.kind)):
            mapped = ", file-backed" if item.mapped else ""
            source = f" ({item.source})" if item.source else ""
            yield f"    {item.kind:<9} {format_bytes(item.n_bytes):>10}  {item.label}, {item.basis}{mapped}{source}"
    if plan.speed and plan.speed.basis:
        yield f"speed\n  {speed(plan.speed)}\n  {plan.speed.basis}"
    if plan.alternatives:
        yield "alternatives"
        for a in plan.alternatives:
            devices, host = format_bytes(a.device_bytes), format_bytes(a.host_bytes)
            title = f"{a.title} ({shell.shown(a.flags)})" if a.flags else a.title
            facts = [printable(title, 120), f"devices {devices}", f"host {host}"]
            yield "  " + " · ".join([*facts, speed(a.speed)] if a.speed else facts)
            yield f"    {shell.shown(a.argv)}"
            yield f"    {printable(a.because, 300)}"


def rejected(rejected: NextRejected) -> str:
    """The next better value, and what it lacks."""
    value, because = printable(rejected.value, 80), printable(rejected.because, 200)
    if rejected.shortfall_bytes:
        value += f" needs {format_bytes(rejected.shortfall_bytes)} more on {rejected.pool}"
        return f"{value}: {because}" if because else value
    return f"{value} {because}".rstrip()


def _pool_row(pool: PoolUse) -> tuple[str, str, str, str]:
    parts = []
    for kind in KINDS:
        n_bytes = pool.sum_bytes(kind)
        if n_bytes:
            parts.append(f"{kind} {format_bytes(n_bytes)}")
    return pool.id, printable(pool.name, 40), room(pool), " · ".join(parts)


def limit_row(limit: DeviceLimit, pool: PoolUse) -> str:
    """What a device may take of a pool, and what of it is used."""
    used, most = format_bytes(limit.used_bytes), format_bytes(limit.limit_bytes)
    return f"{limit.id}  {printable(limit.name, 40)}: {used} used of the {most} that it may take of {pool.name}"


def room(pool: PoolUse) -> str:
    if pool.free_bytes is None:
        return f"{format_bytes(pool.used_bytes)} used of an unknown amount"
    return f"{format_bytes(pool.used_bytes)} used of {format_bytes(pool.free_bytes)} free"
