"""What each model takes on machines of each kind: plans of the engines, asked for once and kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from autofit.domain.fleet import FleetMachine, FleetModel
from autofit.domain.machine import HOST_POOL, Device, Machine
from autofit.domain.memory import DeviceLimit, PoolUse
from autofit.domain.plan import Plan
from autofit.domain.values import NamedTuple, dataclass, field, replace
from autofit.errors import AutofitError, EngineRefusalError, HardwareError, UnsupportedModelError, UsageError
from autofit.fleets.problem import ENDLESS, Kind, Shape, Take
from autofit.host import host
from autofit.inputs import HIDES
from autofit.pipeline import plan_on, stated_options, with_engine
from autofit.references import Found, find

if TYPE_CHECKING:
    from autofit.settings.layers import Options, Surroundings

LEAST_TOKENS = 8192  #: a context that nobody asked for is counted on up to this; what is left over makes it longer
HOST_SPARE_BYTES = 64 << 20  #: beside what is there from the start, where caches in RAM must be small
SQUEEZED = 16  #: parts of a device, of which a model is given as few as it takes on all devices that it is to take
MAX_SETS_OF_DEVICES = 64  #: of different classes, that a model is tried on
IN_RAM = "weights-in-ram"
FULL_SPEED = 0  #: first level: whole on as few devices as hold it
MORE_DEVICES = 1  #: whole on any number of devices
IN_PART = 2  #: with layers in RAM
LEVELS = (FULL_SPEED, MORE_DEVICES, IN_PART)
RAM_UNIT_BYTES = 64 << 20  #: in which machines that are alike have RAM
HALVING = 1000  #: cost of half a model's best rate, times its priority
PARTS = (2, 1)  #: quarters of a device that a model with layers in RAM is given, beside all of it
REFUSALS = (UsageError, EngineRefusalError, UnsupportedModelError, HardwareError)


class Held(NamedTuple):
    """What a plan holds: of each device (its own pool, or its part of the host's), and of the host."""

    devices: Mapping[str, int]
    host_bytes: int
    margins: Mapping[str, int]  #: of the plan, by device or host


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A plan on some devices, as an estimate for all devices that are alike."""

    plan: Plan
    held: Held
    devices: tuple[str, ...]
    is_whole: bool  #: no weights in RAM that a device could hold
    is_fixed: bool = False  #: its flags or variables name these devices


@dataclass(slots=True)
class Estimates:
    """Plans of the models of a fleet; each is made once for each kind of machine, devices and wishes."""

    settings: Surroundings | None
    small_caches: bool = False  #: caches in RAM are as small as the engine can make them
    n_plans: int = 0
    problems: dict[str, str] = field(default_factory=dict)  #: model -> why its last refused plan was refused
    _models: dict[str, Found] = field(default_factory=dict)
    _plans: dict[object, Plan | None] = field(default_factory=dict)
    _versions: dict[str, str | None] = field(default_factory=dict)

    # -- one plan ------------------------------------------------------------------------------------------

    def plan(
        self, model: FleetModel, one: FleetMachine, devices: Sequence[str], options: Mapping[str, Any]
    ) -> Plan | None:
        """The plan of a model on these devices; `None`: it is refused there, and `problems` says why."""
        key = (_wish_key(model, options), machine_key(one), tuple(devices))
        if key not in self._plans:
            margin = {} if one.margin is None or "margin" in options else {"margin": (one.margin,)}
            machine = visible(one.machine, model)
            chosen = devices and len(devices) < len(machine.devices)
            plan = self._made(model, machine, {**options, **margin, **({"device": tuple(devices)} if chosen else {})})
            if plan is None and chosen and model.engine_args:  # flags that name devices take no other word for it
                plan = self._made(model, machine, {**options, **margin})
                if plan is not None and not held_by(plan, one.machine).devices.keys() <= set(devices):
                    plan = None
            self._plans[key] = plan
        return self._plans[key]

    def _made(self, model: FleetModel, machine: Machine, options: Mapping[str, Any]) -> Plan | None:
        self.n_plans += 1
        try:
            plan, _ = plan_on(
                model.backend,
                None if model.reference is None else self.found(model),
                machine,
                self._stated(model, machine, options),
                self._settings_of(model),
                program=model.program,
                engine_args=model.engine_args,
                details=False,
                nearest=False,
            )
        except REFUSALS as error:
            self.problems[model.name] = error.message
            return None
        return plan

    def _stated(self, model: FleetModel, machine: Machine, options: Mapping[str, Any]) -> Options:
        """The options, with the version of the engine that is installed where the machine is this one."""
        stated = stated_options(model.backend, options, self.settings)
        if machine.origin != "detected" or "engine_version" in stated.values:
            return stated
        if model.backend not in self._versions:
            self._versions[model.backend] = with_engine(model.backend, stated, self.settings).get("engine_version")
        version = self._versions[model.backend]
        return stated if version is None else replace(stated, values={**stated.values, "engine_version": version})

    def found(self, model: FleetModel) -> Found:
        """The model of a reference, read once.

        Raises:
            ModelNotFoundError, CorruptModelError and others: the message begins with the model's name.
        """
        assert model.reference is not None
        if model.reference not in self._models:
            try:
                self._models[model.reference] = find(model.reference)
            except AutofitError as error:
                error.args = (f"{model.name}: {error.message}",)
                error.message = f"{model.name}: {error.message}"
                raise
        return self._models[model.reference]

    def _settings_of(self, model: FleetModel) -> Surroundings | None:
        if not model.environ:
            return self.settings
        from autofit.settings.layers import Surroundings

        around = {} if self.settings is None else self.settings.variables
        return Surroundings(environ={**around, **model.environ})

    # -- the least that a model takes ----------------------------------------------------------------------

    def least(self, model: FleetModel, one: FleetMachine, devices: Sequence[str]) -> Plan | None:
        """The plan that takes least of these devices, and some of each; `None`: there is none that fits."""
        for options in _least_options(model):
            plan = self.plan(model, one, devices, options)
            if plan is not None and plan.fits and len(devices) > 1:
                plan = self._on_all(model, one, devices, options, plan)
            if plan is not None and plan.fits and self.small_caches:
                plan = self._with_small_caches(model, one, devices, options, plan)
            if plan is not None:
                return plan if plan.fits else None
        return None

    def _on_all(
        self, model: FleetModel, one: FleetMachine, devices: Sequence[str], options: Mapping[str, Any], plan: Plan
    ) -> Plan | None:
        """The same on every device, with the least free on them with which it does so."""

        def of(parts: int, wishes: Mapping[str, Any]) -> Plan | None:
            smaller = tuple(
                replace(device, free_bytes=device.free_bytes * parts // SQUEEZED)
                if device.id in devices and device.free_bytes is not None
                else device
                for device in one.machine.devices
            )
            machine = replace(one.machine, devices=smaller)
            found = self.plan(model, replace(one, machine=machine), devices, wishes)
            if found is None or not found.fits or not is_whole(found):
                return None
            held = held_by(found, machine).devices
            return found if all(held.get(name) for name in devices) else None

        held = held_by(plan, one.machine).devices
        if all(held.get(name) for name in devices):
            return plan
        weights = sum(pool.sum_bytes("weights") for pool in plan.memory.pools if pool.id != HOST_POOL)
        free = sum(device.free_bytes or 0 for device in one.machine.devices if device.id in devices)
        first = min(SQUEEZED, max(1, -(-weights * SQUEEZED // free))) if free else 1  # with less, it is whole nowhere
        for wishes in (options, {name: value for name, value in options.items() if name != "prefer"}):
            # what takes one device alone has less of each, until that is not enough
            for parts in range(first, SQUEEZED + 1):
                if (found := of(parts, wishes)) is not None:
                    return found
        self.problems[model.name] = f"it does not take {len(devices)} devices"
        return None

    def _with_small_caches(
        self, model: FleetModel, one: FleetMachine, devices: Sequence[str], options: Mapping[str, Any], plan: Plan
    ) -> Plan:
        pool = plan.memory.pool(HOST_POOL)
        free = one.machine.host.available_bytes
        least = pool.start_bytes + pool.sum_bytes("reserve") + HOST_SPARE_BYTES
        if free is None or least >= free:
            return plan
        smaller = replace(one.machine, host=replace(one.machine.host, available_bytes=least))
        found = self.plan(model, replace(one, machine=smaller), devices, options)
        return found if found is not None and found.fits else plan

    def ways(self, model: FleetModel, one: FleetMachine, level: int) -> list[Way]:
        """The ways to run a model on a machine, up to a level; of devices that are alike, on the first."""
        if (fixed := self._fixed(model, one)) is not None:
            way = self._way(model, one, fixed)
            return [] if way is None else [replace(way, is_fixed=True)]
        ways: list[Way] = []
        for n, some in _sets_of_devices(one.machine, model.n_devices):
            if level == FULL_SPEED and any(way.is_whole and len(way.devices) < n for way in ways):
                break
            way = self._way(model, one, some)
            if way is not None and (way.is_whole or level >= IN_PART):
                ways.append(way)
                ways += self._in_part(model, one, some) if level >= IN_PART else ()
        return ways

    def _fixed(self, model: FleetModel, one: FleetMachine) -> tuple[str, ...] | None:
        """The devices that a model's own flags or variables name; `None`: the fleet chooses."""
        if not model.engine_args and not model.environ:
            return None
        devices = visible(one.machine, model).devices
        if devices != one.machine.devices:
            return tuple(device.id for device in devices)
        names = tuple(device.id for device in devices)
        if len(names) < 2:
            return None
        every = self._made(model, one.machine, {**model.options, "device": names})
        if every is None:
            plan = self._made(model, one.machine, model.options)
            return None if plan is None else tuple(held_by(plan, one.machine).devices)
        held = tuple(held_by(every, one.machine).devices)
        if len(held) in (0, len(names)):
            return None
        others = tuple(sorted(names, key=lambda name: (name in held, names.index(name)))[: len(held)])
        # those that it takes of all are named, if it takes no other ones
        return held if self._made(model, one.machine, {**model.options, "device": others}) is None else None

    def _way(self, model: FleetModel, one: FleetMachine, devices: tuple[str, ...]) -> Way | None:
        plan = self.least(model, one, devices)
        if plan is None:
            return None
        held = held_by(plan, one.machine)
        return Way(plan=plan, held=held, devices=devices, is_whole=is_whole(plan))

    def _in_part(self, model: FleetModel, one: FleetMachine, devices: tuple[str, ...]) -> Iterator[Way]:
        """The same with less of the devices, and more in RAM."""
        for quarters in PARTS:
            smaller = tuple(
                replace(device, free_bytes=device.free_bytes * quarters // 4)
                if device.id in devices and device.free_bytes is not None
                else device
                for device in one.machine.devices
            )
            way = self._way(model, replace(one, machine=replace(one.machine, devices=smaller)), devices)
            if way is not None and not way.is_whole:
                yield way

    # -- shapes --------------------------------------------------------------------------------------------

    def shapes(self, model: FleetModel, machines: Sequence[FleetMachine], level: int) -> list[Shape]:
        """The shapes of a model on each kind of machine, with costs of 0 for the fastest of them.

        The cost is what is lost of the best rate: halvings of it, times the priority, in thousandths.
        """
        found: list[tuple[int, FleetMachine, Way]] = []
        for kind, one in enumerate(machines):
            found += [(kind, one, way) for way in self.ways(model, one, level)]
        best = max((_rate(way.plan) for _, _, way in found), default=0.0)
        return [_shape(kind, one, way, _cost(way.plan, best, model.priority)) for kind, one, way in found]


def _shape(kind: int, one: FleetMachine, way: Way, cost: int) -> Shape:
    classes = dict(zip((device.id for device in one.machine.devices), classes_of(one.machine), strict=True))
    takes: dict[int, Take] = {}
    for name in way.devices:
        own = classes[name]
        before = takes.get(own, Take(own, 0, 0, 0))
        takes[own] = Take(
            own,
            before.n_devices + 1,
            max(before.n_bytes, way.held.devices.get(name, 0)),
            max(before.margin_bytes, way.held.margins.get(name, 0)),
        )
    names = [device.id for device in one.machine.devices]
    return Shape(
        kind,
        tuple(takes.values()),
        way.held.host_bytes,
        way.held.margins.get(HOST_POOL, 0),
        cost,
        way,
        tuple(names.index(name) for name in way.devices) if way.is_fixed else None,
    )


def visible(machine: Machine, model: FleetModel) -> Machine:
    """The machine as a process with the variables of a model's command sees it."""
    chosen = {name: value for name, value in model.environ.items() if name.endswith(HIDES)}
    if not chosen:
        return machine
    from autofit.hardware.visible import described

    return described(machine, chosen)


def kind_of(machine: Machine) -> Kind:
    """A machine for the search; free memory that nobody knows is endless there."""
    free = machine.host.available_bytes
    return Kind(
        classes=classes_of(machine),
        free_bytes=tuple(ENDLESS if one.free_bytes is None else one.free_bytes for one in machine.devices),
        host_bytes=ENDLESS if free is None else free,
    )


def classes_of(machine: Machine) -> tuple[int, ...]:
    """The class of each device: those of one class are alike, links included."""
    keys: list[object] = []
    for device in machine.devices:
        links = sorted((link.kind, link.bytes_per_s or 0) for link in machine.links if device.id in (link.a, link.b))
        is_even = len(links) in (0, len(machine.devices) - 1) and len(set(links)) <= 1
        alike = replace(
            device,
            id="",
            index=0,
            uuid=None,
            pool=HOST_POOL if device.pool == HOST_POOL else "own",
            held_by=(),
            notes=(),
        )
        keys.append((alike, tuple(links[:1]), None if is_even else device.id))
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return tuple(numbers[key] for key in keys)


def _sets_of_devices(machine: Machine, n_wanted: int | None) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Sets of devices, the smallest first; of those alike always the first ones. A machine without any has one."""
    if not machine.devices:
        if not n_wanted:
            yield 0, ()
        return
    own: dict[int, list[int]] = {}
    for i, number in enumerate(classes_of(machine)):
        own.setdefault(number, []).append(i)
    sizes = range(1, len(machine.devices) + 1) if n_wanted is None else [n_wanted]
    for n in sizes:
        for counts in islice(_counts(n, [len(some) for some in own.values()]), MAX_SETS_OF_DEVICES):
            chosen = sorted(i for some, count in zip(own.values(), counts, strict=True) for i in some[:count])
            yield n, tuple(machine.devices[i].id for i in chosen)


def _counts(n: int, most: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All ways to take `n` of classes that have so many each."""
    if not most:
        if n == 0:
            yield ()
        return
    for first in range(min(n, most[0]), max(0, n - sum(most[1:])) - 1, -1):
        for rest in _counts(n - first, most[1:]):
            yield first, *rest


def held_by(plan: Plan, machine: Machine) -> Held:
    """What the process of a plan holds at most."""
    claims = host().backend(plan.backend).claims(plan, machine)
    devices: dict[str, int] = {}
    margins: dict[str, int] = {}
    host_bytes = 0
    for pool in plan.memory.pools:
        n_bytes = max(claims.get(pool.id, 0), pool.used_bytes)
        reserve = pool.sum_bytes("reserve")
        margins[pool.id] = reserve
        if pool.id == HOST_POOL:
            host_bytes = n_bytes
        else:
            devices[pool.id] = n_bytes
        for limit in pool.limits:
            devices[limit.id] = limit.used_bytes + n_bytes - pool.used_bytes
            margins[limit.id] = _limit_margin(limit, machine)
    return Held(devices, host_bytes, margins)


def _limit_margin(limit: DeviceLimit, machine: Machine) -> int:
    free = next((one.free_bytes for one in machine.devices if one.id == limit.id), None)
    return 0 if free is None else max(0, free - limit.limit_bytes)


def is_whole(plan: Plan) -> bool:
    """Whether no weights stay in RAM that a device could hold."""
    return not any(found.code == IN_RAM for found in plan.findings)


def pool_of(plan: Plan, name: str) -> PoolUse | None:
    return next((pool for pool in plan.memory.pools if pool.id == name), None)


def _rate(plan: Plan) -> float:
    if plan.speed is None:
        return 0.0
    return plan.speed.decode_tokens_per_s if plan.speed.decodes else plan.speed.prefill_tokens_per_s or 0.0


def _cost(plan: Plan, best: float, priority: int) -> int:
    rate = _rate(plan)
    lost = math.log2(best / rate) if rate > 0 and best > rate else 0.0
    if rate <= 0 and best > 0:
        lost = 30.0
    return round(HALVING * lost) * (1 + priority) + (0 if is_whole(plan) else 1)


def _least_options(model: FleetModel) -> Iterator[dict[str, Any]]:
    """Options with which a plan takes little, as far as the model's own leave it open; the plainest last."""
    given = dict(model.options)
    context = str(given.get("context", "auto")).strip().lower()
    least = {**given, "prefer": given.get("prefer") or "memory"}
    if context in ("auto", "max", "0", "none"):
        shorter = {name: value for name, value in least.items() if name != "context"}
        shorter["max_context"] = _least_tokens(given)
        yield shorter
    yield least
    if least != given:
        yield given


def _least_tokens(given: Mapping[str, Any]) -> str:
    from autofit.domain.units import parse_tokens

    def tokens(name: str) -> int | None:
        value = given.get(name)
        return None if value is None else parse_tokens(str(value))

    low, high = tokens("min_context"), tokens("max_context")
    return str(max(low or 0, min(LEAST_TOKENS, high or LEAST_TOKENS)))


def _wish_key(model: FleetModel, options: Mapping[str, Any]) -> object:
    return (
        model.backend,
        model.reference,
        model.program,
        model.engine_args,
        tuple(sorted(model.environ.items())),
        tuple(sorted((name, str(value)) for name, value in options.items())),
    )


def machine_key(one: FleetMachine) -> object:
    """What tells machines apart that a plan is made for; those alike have the same."""
    machine = one.machine
    return (
        one.margin,
        replace(machine.host, notes=()),
        tuple((one.id, _figures(one)) for one in machine.devices),
        machine.links,
        machine.origin,
    )


def with_whole_ram(one: FleetMachine) -> FleetMachine:
    """A machine with free RAM in whole units, rounded down: nodes of one type differ by a few pages."""
    host = one.machine.host
    if host.available_bytes is None:
        return one
    whole = host.available_bytes // RAM_UNIT_BYTES * RAM_UNIT_BYTES
    total = None if host.total_bytes is None else host.total_bytes // RAM_UNIT_BYTES * RAM_UNIT_BYTES
    return replace(one, machine=replace(one.machine, host=replace(host, available_bytes=whole, total_bytes=total)))


def _figures(device: Device) -> object:
    return replace(device, uuid=None, held_by=(), notes=())
