"""A model, or one quantization of it, and how it is planned for on any hardware."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autofit.advice.bounds import LEAST_CACHE_BITS, FirstToken, Needs, endless, first_token, needs_of
from autofit.advice.candidates import Candidate
from autofit.domain.machine import HOST_POOL
from autofit.domain.request import Request
from autofit.domain.units import GIB
from autofit.domain.values import dataclass, replace
from autofit.errors import AutofitError, EngineRefusalError, HardwareError, ModelError, UsageError
from autofit.host import blamed, host
from autofit.machines import load_machine
from autofit.pipeline import plan_of, stated_options
from autofit.references import find, with_companions, written_as

if TYPE_CHECKING:
    from autofit.domain.machine import Machine
    from autofit.domain.model import ModelSpec
    from autofit.domain.plan import Plan, Speed
    from autofit.references import Found
    from autofit.settings.layers import Options, Surroundings

CONTEXT_TOKENS = 16_384  #: for which hardware is compared, unless a context is asked for
LEAST_RAM_BYTES = 64 * GIB  #: of the computer that cards are in, unless --ram says; doubled while weights need more
AMPLE = 1.5  #: times the bound, from which on devices are taken to hold the model, and a plan is made at once
_CONTEXTS = ("context", "min_context", "max_context")


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
        found: Found | None = None,
    ) -> None:
        """`found` is where the reference leads, if it has been followed.

        Raises:
            ModelError, UsageError
        """
        model, files = find(reference) if found is None else found
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
