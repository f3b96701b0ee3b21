"""Which hardware takes a model: the cheapest, the smallest, the fastest, and what one more card brings.

Bounds (`autofit.advice.bounds`) discard what cannot take it; what is left is ranked by price and memory, those first
that no other is better than in price, memory and bandwidth. Rows are the engine's own plan, made for just as many.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autofit.advice.bounds import LEAST_CACHE_BITS, FirstToken, Needs, endless, first_token, needs_of
from autofit.advice.candidates import Candidate, candidates, one_more
from autofit.domain.machine import HOST_POOL
from autofit.domain.request import Request
from autofit.domain.units import GIB
from autofit.domain.values import dataclass, replace
from autofit.errors import AutofitError, EngineRefusalError, HardwareError, ModelError, UsageError
from autofit.host import blamed, host
from autofit.machines import load_machine
from autofit.pipeline import plan_of, stated_options
from autofit.planning.offers import at_full_speed
from autofit.references import find, with_companions, written_as
from autofit.solve.front import dominates

if TYPE_CHECKING:
    from autofit.advice.prices import Prices
    from autofit.domain.machine import Machine
    from autofit.domain.model import ModelSpec
    from autofit.domain.plan import Plan, Speed
    from autofit.settings.layers import Options, Surroundings

ROWS = 12
CONTEXT_TOKENS = 16_384  #: for which hardware is compared, unless a context is asked for
LEAST_RAM_BYTES = 64 * GIB  #: of the computer that cards are in, unless --ram says; doubled while weights need more
AMPLE = 1.5  #: times the bound, from which on devices are taken to hold the model, and a plan is made at once
_CONTEXTS = ("context", "min_context", "max_context")
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
class HardwareRow:
    """One piece of hardware with its plan. `on_front`: no other row is as cheap, as small and as fast, and more."""

    candidate: Candidate
    plan: Plan
    command: tuple[str, ...]
    on_front: bool = False

    @property
    def speed(self) -> Speed | None:
        return self.plan.speed if self.plan.speed is not None and self.plan.speed.decodes else None

    @property
    def first_s(self) -> float | None:
        """Seconds until the first token of a prompt that fills the context."""
        rate = self.plan.speed.prefill_tokens_per_s if self.plan.speed is not None else None
        return self.plan.context_tokens / rate if rate and self.plan.context_tokens else None

    @property
    def used_bytes(self) -> int:
        """Of the devices' memory, or of RAM where they share it."""
        return sum(pool.used_bytes for pool in self._pools)

    @property
    def free_bytes(self) -> int | None:
        free = [pool.free_bytes for pool in self._pools]
        return None if None in free else sum(n for n in free if n is not None)

    @property
    def n_idle(self) -> int:
        """Devices that the plan leaves alone."""
        used = sum(pool.id != HOST_POOL for pool in self.plan.memory.pools)
        return max(0, self.candidate.n_devices - used)

    @property
    def _pools(self) -> list[Any]:
        pools = self.plan.memory.pools
        return [pool for pool in pools if pool.id != HOST_POOL] or list(pools)


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


class Subject:
    """A model, and how it is planned for on any hardware: one engine, one set of options."""

    __slots__ = (
        "_asked", "_known", "_ram", "_refused", "_short", "_start", "at_once", "backend", "context_tokens", "model",
        "options", "ram_bytes", "settings",
    )  # fmt: skip

    def __init__(
        self,
        reference: str,
        backend: str | None,
        given: Mapping[str, Any],
        settings: Surroundings | None,
    ) -> None:
        """Raises: ModelError, UsageError"""
        model, files = find(reference)
        self.backend = _serving(model, backend)
        engine = host().backend(self.backend)
        with blamed(self.backend):
            command = engine.command(Request(), model=reference)
            loaded = engine.loads(command, written_as(reference, model, files), files.beside) if files.beside else {}
        self.model = with_companions(model, {**command.companions, **loaded}, command.sought)
        self.settings = settings
        asked = {name: value for name, value in given.items() if value is not None and name not in ("on", "ram")}
        stated = stated_options(self.backend, asked, settings)
        if stated.get("min_context") is not None and stated.get("context") is None:
            stated = replace(stated, values={**stated.values, "context": stated.get("min_context")})
            asked["context"] = asked.pop("min_context", stated.get("context"))
        elif all(stated.get(name) is None for name in _CONTEXTS):
            tokens = min(CONTEXT_TOKENS, model.context_train_tokens or CONTEXT_TOKENS)
            stated = replace(stated, values={**stated.values, "context": tokens})
            asked["context"] = tokens
        self.options: Options = replace(stated, notes=())
        self.at_once = engine.reads_at_once or bool(stated.get("engine_args"))  # which may ask for it
        self.context_tokens: int | None = stated.get("context") or None
        self._ram = given.get("ram")
        self.ram_bytes = _ram_bytes(self._ram, model)
        self._start, self._asked = ("autofit", self.backend, reference), asked
        self._refused: set[object] = set()
        self._known: dict[tuple[str, ...], HardwareRow | None] = {}
        self._short: set[tuple[str, ...]] = set()

    def row(self, one: Candidate) -> HardwareRow | None:
        """The plan for a candidate, made once; `None` where the engine does not run on it."""
        if one.on not in self._known:
            self._known[one.on] = self._planned(one)
        found = self._known[one.on]
        return None if found is None else replace(found, candidate=one)

    def whole_row(self, one: Candidate, needs: Needs) -> HardwareRow | None:
        """The plan for a candidate; `None` also where its devices do not hold all of the weights.

        Where that is in doubt a plan is asked for that leaves no weights in RAM: it is none much sooner.
        """
        if one.on in self._known or one.memory_bytes >= AMPLE * needs.device_bytes:
            return self.row(one)
        if one.on in self._short:
            return None
        if not self._holds(one):
            self._short.add(one.on)
            return None
        return self.row(one)

    def _holds(self, one: Candidate) -> bool:
        try:
            plan = self.plan(load_machine(*one.on, ram=self._ram_beside(one)), False)
        except AutofitError:
            return True  # the plan itself says what is wrong
        return plan.fits

    def _ram_beside(self, one: Candidate) -> str | None:
        return None if one.ram_bytes is not None else self.ram

    def _planned(self, one: Candidate) -> HardwareRow | None:
        key = (one.kind, one.n_devices)
        if key in self._refused:
            return None
        ram = self._ram_beside(one)
        try:
            plan = self.plan(load_machine(*one.on, ram=ram))
        except (HardwareError, EngineRefusalError):
            self._refused.add(key)
            return None
        except UsageError:  # what is asked makes sense, as `needs` has seen, but not here: a margin beyond its memory
            return None
        return HardwareRow(candidate=one, plan=plan, command=self.command(one.on, ram))

    @property
    def ram(self) -> str:
        """RAM beside cards, as `--ram` takes it."""
        return str(self._ram or f"{self.ram_bytes // GIB}GiB")

    def command(self, on: Sequence[str], ram: str | None, **changed: object) -> tuple[str, ...]:
        """The command whose plan it is, with some options changed; on this machine where no hardware is named."""
        named = [word for name in on for word in ("--on", name)]
        stated = ("--ram", ram) if ram is not None else ()
        return (*self._start, *_as_flags({**self._asked, **changed}), *named, *stated)

    def at_any_rate(self) -> Subject:
        """The same without the rate that is asked for."""
        from copy import copy

        other = copy(self)
        other.options = replace(self.options, values={**self.options.values, "min_tps": None, "max_ttft": None})
        other._known, other._short = {}, set()
        other._asked = {name: value for name, value in self._asked.items() if name not in ("min_tps", "max_ttft")}
        return other

    def plan(self, machine: Machine, in_ram: bool = True, /, **changed: object) -> Plan:
        options = replace(self.options, values={**self.options.values, **changed}) if changed else self.options
        return plan_of(
            self.backend, self.model, machine, options, self.settings, details=False, nearest=False, in_ram=in_ram
        )

    def needs(self, choice: Sequence[Candidate]) -> Needs:
        """Lower bounds, of a plan on the largest device that the engine runs on, made endless.

        Raises:
            HardwareError, EngineRefusalError: it runs on none.
        """
        is_free = self.options.get("kv") is None and not self.options.engine_args
        kv_bits = host().backend(self.backend).least_kv_bits if is_free else LEAST_CACHE_BITS
        plan, _ = self._endless_plan(choice)
        return Needs() if plan is None else needs_of(self.model, plan, kv_bits, self.context_tokens)

    def first_token(self, choice: Sequence[Candidate]) -> FirstToken | None:
        """What bounds the time to the first token on any hardware; `None` where no context is asked for, which plans
        shorten for it, or where nothing is known.

        Raises:
            HardwareError, EngineRefusalError: the engine runs on none.
        """
        if self.context_tokens is None:
            return None
        _, machine = self._endless_plan(choice)
        if machine is None:
            return None

        def plan(machine: Machine) -> Plan:  # with the steps that read prompts fastest
            return self.at_any_rate().plan(machine, prefer="throughput")

        return first_token(plan, machine, host().backend(self.backend).efficiencies())

    def _endless_plan(self, choice: Sequence[Candidate]) -> tuple[Plan, Machine] | tuple[None, None]:
        """A plan on the largest device that the engine runs on, made endless, at any rate."""
        largest: dict[str, Candidate] = {}
        for one in sorted(choice, key=lambda one: (one.n_devices, -one.memory_bytes)):
            if one.ram_bytes is None:
                largest.setdefault(one.api, one)
        error: AutofitError | None = None
        for one in largest.values():
            try:
                machine = endless(load_machine(one.added, ram=LEAST_RAM_BYTES))
                return self.at_any_rate().plan(machine), machine
            except (HardwareError, EngineRefusalError) as refusal:
                error = error or refusal
        if error is not None:
            raise error
        return None, None


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
        rows=tuple(sorted(_marked(rows), key=lambda row: _order(row.candidate))),
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
    by_price = sorted(possible, key=_order)
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


def _order(one: Candidate) -> tuple[float, int, int, float, str]:
    rate = one.bandwidth_bytes_per_s or 0
    return _UNPRICED if one.price is None else one.price, one.sold_bytes, one.n_devices, -rate, one.added


def _marked(rows: Sequence[HardwareRow]) -> Iterator[HardwareRow]:
    """The rows, those marked that no other row is better than in price, memory and expected rate."""

    def goals(row: HardwareRow) -> tuple[float, ...]:
        price, memory, _ = _goals(row.candidate, True)
        return price, memory, row.speed.decode_tokens_per_s if row.speed is not None else 0.0

    scores = [goals(row) for row in rows]
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


def _serving(model: ModelSpec, backend: str | None) -> str:
    """The engine to plan with: the one that is named, else the first that serves models of this format.

    Raises:
        UsageError: no such engine. ModelError: none serves it.
    """
    known = host().backends()
    if backend is not None and backend not in known:
        from autofit.text.suggest import close_names

        raise UsageError(
            f"no backend {backend[:60]!r}", hint=close_names(backend, known) or f"known: {', '.join(sorted(known))}"
        )
    takes = [name for name in known if model.format in host().backend(name).formats]
    if not takes or (backend is not None and backend not in takes):
        whose = "no backend serves" if backend is None else f"{backend} does not serve"
        raise ModelError(
            f"{model.name}: {whose} {model.format} models",
            hint=f"--backend {takes[0]} does" if takes else "name a GGUF file, or a directory with config.json",
        )
    return backend or takes[0]


def _ram_bytes(stated: Any, model: ModelSpec) -> int:
    """RAM beside cards: what is stated, else enough for the files too, as computers are sold."""
    if stated is not None:
        from autofit.domain.ram import parse_ram

        return parse_ram(str(stated)).total_bytes
    ram = LEAST_RAM_BYTES
    while ram < 2 * model.weights_bytes:
        ram *= 2
    return ram


def _as_flags(asked: Mapping[str, Any]) -> Iterator[str]:
    """Options as they are written on the command line."""
    from autofit.settings.options import BY_NAME

    for name, value in asked.items():
        option = BY_NAME[name]
        flag = option.flags[0] if option.flags else option.flag
        if option.metavar is None:
            yield from (flag,) if value else ()
        else:
            for one in value if isinstance(value, (list, tuple)) else [value]:
                yield flag
                yield os.fspath(one) if isinstance(one, (str, os.PathLike)) else str(one)
