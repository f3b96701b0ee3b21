"""Which hardware takes a model: the cheapest, the smallest, the fastest, and what one more card brings.

Bounds (`autofit.advice.bounds`) discard what cannot take it; what is left is ranked by price and memory, those first
that no other is better than in price, memory and bandwidth. Rows are the engine's own plan, made for just as many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from autofit.advice.bounds import FirstToken, Needs
from autofit.advice.candidates import Candidate, candidates, one_more
from autofit.advice.subject import AMPLE, HardwareRow, Subject
from autofit.domain.values import dataclass, replace
from autofit.host import host
from autofit.machines import load_machine
from autofit.planning.offers import at_full_speed
from autofit.solve.front import dominates

if TYPE_CHECKING:
    from autofit.advice.prices import Prices
    from autofit.domain.machine import Machine
    from autofit.domain.model import ModelSpec

ROWS = 12
_UNPRICED = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What any hardware must have. `first` bounds the time to the first token, where that is asked for and known.
    `ram_bytes` are beside cards; `at_once`: the engine reads from several devices at the same time."""

    needs: Needs
    first: FirstToken | None = None
    ram_bytes: int = 0
    at_once: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a row must keep to. `budget_bytes` is memory of all devices as sold; `max_price` rules out what has none."""

    budget_bytes: int | None = None
    max_price: float | None = None
    min_tokens_per_s: float | None = None
    max_first_s: float | None = None  #: until the first token, for a prompt of the whole context
    offload: bool = False  #: a part of the weights may wait in RAM

    @property
    def asks_for_speed(self) -> bool:
        return self.min_tokens_per_s is not None or self.max_first_s is not None

    def admits(self, one: Candidate, bounds: Bounds) -> bool:
        """Whether a candidate is worth a plan."""
        needs, first = bounds.needs, bounds.first
        if self.budget_bytes is not None and one.sold_bytes > self.budget_bytes:
            return False
        if self.max_price is not None and (one.price is None or one.price > self.max_price):
            return False
        room = one.memory_bytes + ((one.ram_bytes or bounds.ram_bytes) if self.offload else 0)
        if room < needs.device_bytes:
            return False
        if self.max_first_s is not None and first is not None and first.least_s(one.devices) > self.max_first_s:
            return False
        rate = one.bandwidth_bytes_per_s if bounds.at_once else one.fastest_bytes_per_s
        most = None if self.offload else needs.most_tokens_per_s(rate)
        return self.min_tokens_per_s is None or most is None or most >= self.min_tokens_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareAdvice:
    """Rows in the order of their price, the unpriced behind; `have` is what one has, as it is.

    `nearest` is what takes the model beyond the limits, where nothing within them does. `n_candidates` are all that
    there were, `n_possible` those that the bounds left, `n_planned` those that were planned for.
    """

    model: ModelSpec
    context_tokens: int | None
    ram_bytes: int
    needs: Needs
    limits: Limits
    prices: Prices
    rows: tuple[HardwareRow, ...]
    have: HardwareRow | None = None
    nearest: HardwareRow | None = None
    n_candidates: int = 0
    n_possible: int = 0
    n_planned: int = 0


def advise_hardware(
    subject: Subject,
    prices: Prices,
    limits: Limits,
    *,
    have: Sequence[str] = (),
    n_rows: int = ROWS,
) -> HardwareAdvice:
    """The hardware that takes the model within `limits`: at most `n_rows`, each with its plan.

    Raises:
        HardwareError: nothing is called as `have` says. UsageError: no card can be added to it. ModelError,
        EngineRefusalError: no hardware runs the model.
    """
    dirs = host().profile_dirs()
    mine = load_machine(*have, ram=subject.ram_bytes) if have else None
    whole = candidates(prices, dirs)
    choice = whole if mine is None else one_more(have, mine, prices, dirs)
    needs = subject.needs(whole)
    first = None if limits.max_first_s is None or limits.offload else subject.first_token(whole)
    bounds = Bounds(needs=needs, first=first, ram_bytes=subject.ram_bytes, at_once=subject.at_once)
    possible = [one for one in choice if limits.admits(one, bounds)]
    now = None if mine is None else subject.row(_as_it_is(have, mine))
    tried = 0
    rows: list[HardwareRow] = []
    counts = Counts(bounds, in_ram=limits.offload)
    for one in in_order(possible, at_once=subject.at_once):
        if len(rows) == n_rows:
            break
        if not counts.may_be(one):
            continue
        tried += 1
        row = subject.row(one) if limits.offload else subject.whole_row(one, needs)
        counts.saw(one, row)
        if row is not None and accepts(row, limits) and (now is None or gains(row, now)):
            rows.append(row)
    nearest = None if rows else _nearest(subject, choice, bounds, limits, now)
    return HardwareAdvice(
        model=subject.model,
        context_tokens=subject.context_tokens,
        ram_bytes=subject.ram_bytes,
        needs=needs,
        limits=limits,
        prices=prices,
        rows=tuple(sorted(marked(rows), key=lambda row: in_price(row.candidate))),
        have=now,
        nearest=nearest,
        n_candidates=len(choice),
        n_possible=len(possible),
        n_planned=tried,
    )


class Counts:
    """Which numbers of a card are worth a plan: the fewest that hold the model, and for an engine that reads from
    several at once twice as many again. An engine that reads them one after the other is no faster with more."""

    def __init__(self, bounds: Bounds, *, in_ram: bool) -> None:
        self._at_once, self._in_ram, self._ample_bytes = bounds.at_once, in_ram, AMPLE * bounds.needs.device_bytes
        self._held: dict[str, int] = {}  # the fewest of a card that hold it
        self._idle: dict[str, int] = {}  # and those of which a plan leaves some alone

    def may_be(self, one: Candidate) -> bool:
        n, doubled = one.n_devices, one.n_devices & (one.n_devices - 1) == 0
        if not one.card or (self._in_ram and doubled):
            return True
        if self._in_ram or n > self._idle.get(one.card, n):
            return False
        if not self._at_once and n > 1 and one.memory_bytes // n * (n - 1) >= self._ample_bytes:
            return False
        return n <= self._held.get(one.card, n) or (self._at_once and doubled)

    def saw(self, one: Candidate, row: HardwareRow | None) -> None:
        if row is None or not one.card or any(pool.shortfall_bytes > 0 for pool in row.plan.memory.pools):
            return
        found = self._idle if row.n_idle else self._held
        found[one.card] = min(one.n_devices, found.get(one.card, one.n_devices))


def accepts(row: HardwareRow, limits: Limits) -> bool:
    """Whether the plan keeps to the limits: at full speed, unless weights may wait in RAM, and on all cards."""
    plan = row.plan
    if plan.verdict != "fits" or not plan.fits or not (limits.offload or at_full_speed(plan)):
        return False
    if row.n_idle and row.candidate.card:
        return False
    if limits.max_first_s is not None and row.first_s is None:  # a plan that fits keeps to it, where a rate is known
        return False
    if limits.min_tokens_per_s is None:
        return True
    return row.speed is not None and row.speed.decode_tokens_per_s >= limits.min_tokens_per_s


def gains(row: HardwareRow, now: HardwareRow) -> bool:
    """Whether a card brings what was not there: full speed, or a higher rate."""
    if not at_full_speed(now.plan) and at_full_speed(row.plan):
        return True
    if now.speed is None or row.speed is None:
        return not now.plan.fits
    return row.speed.decode_tokens_per_s > now.speed.decode_tokens_per_s


def in_order(possible: Sequence[Candidate], *, at_once: bool) -> list[Candidate]:
    """Those first that no other is better than in price, memory and bandwidth; then by price and memory."""
    by_price = sorted(possible, key=in_price)
    front: list[tuple[tuple[float, ...], Candidate]] = []
    rest = []
    for one in by_price:
        goals = _goals(one, at_once)
        if any(dominates(other, goals) or other == goals for other, _ in front):
            rest.append(one)
        else:
            front.append((goals, one))
    return [*(one for _, one in front), *rest]


def _goals(one: Candidate, at_once: bool) -> tuple[float, ...]:
    """More is better. Of tensors that are split, each device waits for the others: a rate below the sum ranks well."""
    rate = (one.bandwidth_bytes_per_s or 0) / one.n_devices**0.5 if at_once else one.fastest_bytes_per_s or 0
    return -(_UNPRICED if one.price is None else one.price), -one.sold_bytes, rate


def in_price(one: Candidate) -> tuple[float, int, int, float, str]:
    """Sorts by price, what has none last; then by memory, the fewest devices and the highest bandwidth."""
    rate = one.bandwidth_bytes_per_s or 0
    return _UNPRICED if one.price is None else one.price, one.sold_bytes, one.n_devices, -rate, one.added


def marked(rows: Sequence[HardwareRow], quality: Sequence[float] = ()) -> Iterator[HardwareRow]:
    """The rows, those marked that no other row is better than in price, memory and expected rate, and in the `quality`
    of each, where that is told."""

    def goals(row: HardwareRow, more: float) -> tuple[float, ...]:
        price, memory, _ = _goals(row.candidate, True)
        return price, memory, row.speed.decode_tokens_per_s if row.speed is not None else 0.0, more

    scores = [goals(row, more) for row, more in zip(rows, quality or [0.0] * len(rows), strict=True)]
    for row, score in zip(rows, scores, strict=True):
        yield replace(row, on_front=not any(dominates(other, score) for other in scores))


def _nearest(
    subject: Subject, choice: Sequence[Candidate], bounds: Bounds, limits: Limits, now: HardwareRow | None
) -> HardwareRow | None:
    """The smallest that takes the model as fast as is asked; else the fastest, whatever its rates."""
    wide = replace(limits, budget_bytes=None, max_price=None)
    smallest = sorted(choice, key=lambda one: (one.sold_bytes, one.n_devices, one.added))
    if (row := _first(subject, smallest, bounds, wide, now)) is not None or not limits.asks_for_speed:
        return row
    fastest = sorted(choice, key=lambda one: (-_goals(one, subject.at_once)[2], one.n_devices, one.added))
    return _first(subject.at_any_rate(), fastest, bounds, Limits(offload=limits.offload), now)


def _first(
    subject: Subject, ordered: Sequence[Candidate], bounds: Bounds, limits: Limits, now: HardwareRow | None
) -> HardwareRow | None:
    counts = Counts(bounds, in_ram=limits.offload)
    for one in ordered:
        if limits.admits(one, bounds) and counts.may_be(one):
            row = subject.row(one) if limits.offload else subject.whole_row(one, bounds.needs)
            counts.saw(one, row)
            if row is not None and accepts(row, limits) and (now is None or gains(row, now)):
                return row
    return None


def _as_it_is(have: Sequence[str], machine: Machine) -> Candidate:
    devices = machine.devices
    return Candidate(
        on=tuple(have),
        added="",
        n_devices=len(devices),
        api=devices[0].api if devices else "",
        sold_bytes=sum(device.total_bytes or 0 for device in devices),
        memory_bytes=sum(device.free_bytes or 0 for device in devices),
        bandwidth_bytes_per_s=None,
        fastest_bytes_per_s=None,
        price=None,
    )
