"""Where there is a real choice: the fastest plan, the one with the longest context, and the one that loses least.

Each is the engine's own plan for one or two options more, so that these flags give exactly it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from autofit.domain.machine import HOST_POOL
from autofit.domain.plan import Alternative, Pick, Plan
from autofit.domain.units import SAME_RATE, format_rate
from autofit.domain.values import NamedTuple, replace
from autofit.errors import AutofitError
from autofit.planning.offers import at_full_speed

if TYPE_CHECKING:
    from autofit.backend import Backend
    from autofit.domain.request import Request

FAST_TOKENS = 8192  #: a context that most talks stay below
NOTICED = 1.1  #: with less gain than this there is no choice to speak of
MOST_SETTINGS = 2


class _Way(NamedTuple):
    """Options to plan with, and the flags that say the same."""

    flags: tuple[str, ...]
    changed: Mapping[str, Any]


def picks_of(
    plan: Plan, request: Request, backend: Backend, trained_tokens: int | None, again: Callable[[Request], Plan]
) -> tuple[Alternative, ...]:
    """Up to three plans that are better than `plan` in one thing. `again` plans for a changed request."""
    if plan.verdict != "fits" or not plan.fits or (plan.speed is not None and not plan.speed.decodes):
        return ()

    def tried(ways: Iterable[_Way]) -> Iterator[tuple[_Way, Plan]]:
        for way in ways:
            origins = {**request.origins, **dict.fromkeys(way.changed, "user")}
            less: dict[str, Any] = {"alternatives": False, "explain": False, "nearest": False, "origins": origins}
            try:
                found = again(replace(request, **way.changed, **less))
            except AutofitError:
                continue  # what contradicts the engine's own flags is no choice
            if found.fits and found.verdict == "fits" and found.argv != plan.argv:
                yield way, found

    fastest = max(tried(_faster(plan, request, backend)), key=lambda one: _near(one[1]), default=None)
    longest: tuple[_Way, Plan] | None = None
    for one in tried(_longer(plan, request, backend, trained_tokens)):
        if longest is None or (one[1].context_tokens or 0) > (longest[1].context_tokens or 0):
            longest = one
        if (longest[1].context_tokens or 0) >= (trained_tokens or 0):
            break
    best = next(tried(_better(plan, request, backend)), None)
    told: list[tuple[Pick, tuple[_Way, Plan]]] = []
    if fastest is not None and _near(fastest[1]) >= NOTICED * _near(plan):
        told.append(("fastest", fastest))
    if longest is not None and (longest[1].context_tokens or 0) >= NOTICED * (plan.context_tokens or 0):
        told.append(("longest context", longest))
    if best is not None and not kv_of(best[1], backend.kv_types):
        told.append(("best quality", best))
    return tuple(_alternative(pick, way, plan, found, backend.kv_types) for pick, (way, found) in told)


def _faster(plan: Plan, request: Request, backend: Backend) -> Iterator[_Way]:
    """A shorter context and a smaller cache, where weights wait in RAM that a device could then hold."""
    if at_full_speed(plan) or plan.speed is None:
        return
    short = _Way((), {})
    if request.context is None and request.min_context is None and (plan.context_tokens or 0) > FAST_TOKENS:
        short = _Way(("-c", str(FAST_TOKENS)), {"context": FAST_TOKENS, "max_context": None})
        yield short
    small = backend.small_kv
    if small and request.kv in (None, "auto") and not kv_of(plan, backend.kv_types):
        yield _Way(("--kv", small), {"kv": small})
        if short.flags:
            yield _Way((*short.flags, "--kv", small), {**short.changed, "kv": small})


def _longer(plan: Plan, request: Request, backend: Backend, trained_tokens: int | None) -> Iterator[_Way]:
    """Ways to a longer context, where it was left open and the model was trained for more; one may do."""
    is_open = request.context is None and request.max_context is None
    if is_open and plan.context_tokens and trained_tokens and plan.context_tokens < trained_tokens:
        yield _Way(("-c", "max"), {"context": 0})
        yield _Way(("-c", str(trained_tokens)), {"context": trained_tokens})
        if backend.small_kv and request.kv in (None, "auto"):
            yield _Way(("-c", "max", "--kv", backend.small_kv), {"context": 0, "kv": backend.small_kv})


def _better(plan: Plan, request: Request, backend: Backend) -> Iterator[_Way]:
    """Without the lossy cache that was chosen."""
    if request.kv in (None, "auto") and request.prefer != "quality" and kv_of(plan, backend.kv_types):
        yield _Way(("--prefer", "quality"), {"prefer": "quality"})


def kv_of(plan: Plan, kv_types: Iterable[str]) -> str:
    """The type of the cache that the command names; empty where it keeps the engine's default, which loses nothing."""
    known = frozenset(kv_types)
    return next((word for word in plan.argv[1:] if word in known), "")


def _near(plan: Plan) -> float:
    """Decode tokens/s in a nearly empty context: the same fill for plans of unlike contexts."""
    speed = plan.speed
    return 0.0 if speed is None else speed.start_tokens_per_s or speed.decode_tokens_per_s


def _alternative(pick: Pick, way: _Way, plan: Plan, found: Plan, kv_types: Iterable[str]) -> Alternative:
    gains, costs = _differences(plan, found, tuple(kv_types))
    return Alternative(
        title=pick,
        argv=found.argv,
        context_tokens=found.context_tokens,
        device_bytes=sum(pool.used_bytes for pool in found.memory.pools if pool.id != HOST_POOL),
        host_bytes=sum(pool.used_bytes for pool in found.memory.pools if pool.id == HOST_POOL),
        speed=found.speed,
        because=f"costs {', '.join(costs)}" if costs else "no better at what is preferred",
        pick=pick,
        flags=way.flags,
        gains=gains,
        costs=costs,
    )


def _differences(plan: Plan, found: Plan, kv_types: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What another plan gains and what it costs, in words."""
    gains: list[str] = []
    costs: list[str] = []
    now, then = plan.context_tokens or 0, found.context_tokens or 0
    if now != then and now and then:
        (gains if then > now else costs).append(f"{then:,} instead of {now:,} tokens of context")
    before, after = _near(plan), _near(found)
    is_same = before <= SAME_RATE * after <= SAME_RATE * SAME_RATE * before or format_rate(before) == format_rate(after)
    if before and after and not is_same:
        full = found.speed.decode_tokens_per_s if found.speed is not None else after
        filled = f" (~{format_rate(full)} with it full)" if full * NOTICED < after else ""
        said = f"decode ~{format_rate(after)}{filled} instead of ~{format_rate(before)} tokens/s"
        (gains if after > before else costs).append(said)
    prompts = [one.speed.prefill_tokens_per_s or 0.0 if one.speed is not None else 0.0 for one in (plan, found)]
    if now == then and all(prompts) and prompts[0] > NOTICED * prompts[1]:
        costs.append(f"prompts at ~{format_rate(prompts[1])} instead of ~{format_rate(prompts[0])} tokens/s")
    kv, others = kv_of(plan, kv_types), kv_of(found, kv_types)
    if kv != others:
        (costs if others else gains).append(f"{_a(others)} KV cache" if others else f"no {kv} KV cache")
    return tuple(gains), tuple(costs or _settings(plan, found))


def _a(name: str) -> str:
    return f"{'an' if name[:1] in 'aefiou' else 'a'} {name}"


def _settings(plan: Plan, found: Plan) -> list[str]:
    """Options of the engine that another plan gives other values."""
    now, then = (dict(zip(one.argv, one.argv[1:], strict=False)) for one in (plan, found))
    lengths = {str(plan.context_tokens), str(found.context_tokens)}
    told = [flag for flag in then if flag.startswith("-") and flag in now and now[flag] != then[flag]]
    return [f"{flag} {then[flag]} instead of {now[flag]}" for flag in told if then[flag] not in lengths][:MOST_SETTINGS]
