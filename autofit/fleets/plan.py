"""From a fleet to its plan: estimates, places, what is left shared out, and the proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from autofit.domain.fleet import Fleet, FleetMachine, FleetModel, FleetPlan, FleetPool, Placement, PoolShare, Proof
from autofit.domain.machine import HOST_POOL, Device, Machine
from autofit.domain.plan import Plan
from autofit.domain.values import dataclass, field, replace
from autofit.errors import PluginError
from autofit.fleets.estimates import (
    FULL_SPEED,
    HALVING,
    IN_PART,
    MORE_DEVICES,
    Estimates,
    Held,
    Way,
    held_by,
    is_whole,
    kind_of,
    machine_key,
    with_whole_ram,
)
from autofit.fleets.problem import Outcome, Place, Problem, Shape
from autofit.fleets.search import solve
from autofit.fleets.together import Copy, Together
from autofit.host import host

if TYPE_CHECKING:
    from autofit.settings.layers import Surroundings

MAX_SHARED = 64  #: copies; in larger fleets each keeps the least that it takes
MAX_SHARED_TWICE = 24  #: copies that are offered what the others have left once more
LEAST_GAIN_BYTES = 64 << 20  #: less is not worth another plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A fleet with its copies, and its machines by kind."""

    fleet: Fleet
    copies: tuple[FleetModel, ...]  #: the model of each copy
    together: Together
    kinds: tuple[FleetMachine, ...]  #: a machine of each kind
    machines: tuple[int, ...]  #: the kind of each machine


@dataclass(slots=True)
class Placed:
    """A copy on its devices, with what it holds there; its plan is the estimate's until a better one is made."""

    machine: int
    devices: tuple[str, ...]
    held: Held
    plan: Plan


@dataclass(slots=True)
class Searched:
    """What the search has found, and at which level; `shapes` are those of each model."""

    outcome: Outcome
    shapes: list[tuple[Shape, ...]] = field(default_factory=list)
    level: int = FULL_SPEED


def plan_fleet(fleet: Fleet, settings: Surroundings | None = None) -> FleetPlan:
    """The plan of a fleet. One that does not fit says what is missing, and has the models that could stay.

    Raises:
        ModelError, HardwareError, UsageError, PluginError
    """
    task = task_of(fleet)
    estimates = Estimates(settings=settings)
    searched = search(task, estimates)
    if searched.outcome.places is not None:
        return finished(task, estimates, searched.outcome, "best" if searched.outcome.is_proven else "fits")
    from autofit.fleets.nearest import refused

    return refused(task, estimates, searched)


def task_of(fleet: Fleet) -> Task:
    """Copies of models, and machines by kind."""
    models: list[FleetModel] = []
    copies: list[Copy] = []
    bits = {phase: 1 << bit for bit, phase in enumerate(fleet.phases)}
    for number, model in enumerate(fleet.models):
        phases = sum(bits[phase] for phase in dict.fromkeys(model.phases)) or sum(bits.values()) or 1
        for i in range(model.replicas):
            name = model.name if model.replicas == 1 else f"{model.name}-{i + 1}"
            models.append(model)
            copies.append(Copy(name=name, model=number, group=model.group, phases=phases))
    kinds: dict[object, int] = {}
    firsts: list[FleetMachine] = []
    machines = []
    for one in fleet.machines:
        alike = with_whole_ram(one)
        key = machine_key(alike)
        if key not in kinds:
            kinds[key] = len(firsts)
            firsts.append(alike)
        machines.append(kinds[key])
    return Task(
        fleet=fleet,
        copies=tuple(models),
        together=Together(copies=tuple(copies)),
        kinds=tuple(firsts),
        machines=tuple(machines),
    )


# -- places ---------------------------------------------------------------------------------------------------


def search(task: Task, estimates: Estimates, *, max_tried: int | None = None) -> Searched:
    """Places for all copies, with shapes of more and more levels until they fit."""
    searched = Searched(Outcome(places=None, cost=0, is_proven=True, n_tried=0))
    n_tried = 0
    for level in (FULL_SPEED, MORE_DEVICES):
        for small in (False, True):
            if small and not _is_ram_short(task, searched.shapes):
                continue
            estimates.small_caches = small
            searched.shapes = shapes_of(task, estimates, level)
            searched.level = level
            found = solved(task, searched.shapes, max_tried=max_tried)
            n_tried += found.n_tried
            searched.outcome = replace(found, n_tried=n_tried)
            if found.places is not None:
                return searched
    return searched


def shapes_of(task: Task, estimates: Estimates, level: int) -> list[tuple[Shape, ...]]:
    """The shapes of each model; one that is whole nowhere may lie in RAM in part."""
    found = []
    for model in task.fleet.models:
        shapes = estimates.shapes(model, task.kinds, IN_PART if model.layers_in_ram else level)
        if not shapes and level < IN_PART:
            shapes = estimates.shapes(model, task.kinds, IN_PART)
        found.append(tuple(shapes))
    return found


def problem_of(task: Task, shapes: Sequence[tuple[Shape, ...]]) -> Problem:
    """The places of a task, for the search."""
    names = [one.name for one in task.fleet.machines]
    forbidden = {
        i: frozenset(n for n, name in enumerate(names) if name not in model.machines)
        for i, model in enumerate(task.copies)
        if model.machines
    }
    return Problem(
        kinds=tuple(kind_of(one.machine) for one in task.kinds),
        machines=task.machines,
        shapes=tuple(shapes[copy.model] for copy in task.together.copies),
        together=task.together,
        forbidden=forbidden,
    )


def solved(task: Task, shapes: Sequence[tuple[Shape, ...]], *, max_tried: int | None = None) -> Outcome:
    problem = problem_of(task, shapes)
    return solve(problem) if max_tried is None else solve(problem, max_tried=max_tried)


def _is_ram_short(task: Task, shapes: Sequence[Sequence[Shape]]) -> bool:
    """Whether RAM may be why nothing was found."""
    if any(not some for some in shapes):
        return True
    free = [one.machine.host.available_bytes for one in task.kinds]
    wanted = sum(max(shape.host_bytes for shape in shapes[copy.model]) for copy in task.together.copies)
    return any(n is not None and wanted > n for n in free)


# -- plans ----------------------------------------------------------------------------------------------------


def finished(
    task: Task, estimates: Estimates, outcome: Outcome, proof: Proof, *, left_out: Sequence[str] = ()
) -> FleetPlan:
    """The plan of places: each copy planned on its own devices, with what the others leave; and the proof."""
    assert outcome.places is not None
    board = _Shared(task, estimates, [_placed(task, place) for place in outcome.places])
    board.plan_all()
    pools = board.pools()
    short = [pool for pool in pools if (pool.room_bytes or 0) < 0]
    if short:
        raise PluginError(
            f"{short[0].machine}: {short[0].id} would be over its budget by {-(short[0].room_bytes or 0)} bytes: an "
            "engine's plans do not add up"
        )
    placements = board.placements()
    copies = task.together.copies
    unknown = tuple(
        f"free memory of {pool.name} ({pool.machine}: {pool.id}) is unknown and not checked"
        for pool in pools
        if pool.free_bytes is None
    )
    return FleetPlan(
        fits=not left_out,
        placements=placements,
        pools=pools,
        proof=proof,
        n_tried=outcome.n_tried,
        gap_fraction=_gap(task, outcome),
        fleet=task.fleet,
        sets=tuple(tuple(copies[i].name for i in some) for some in task.together.sets()),
        left_out=tuple(left_out),
        order=_order(placements),
        findings=(*task.fleet.findings, *unknown),
    )


def _gap(task: Task, outcome: Outcome) -> float:
    """By how much models may be faster elsewhere at most, by the search's bound: the mean of their rates as factors,
    weighed by priority."""
    weight = sum(1 + model.priority for model in task.copies)
    return round(2 ** ((outcome.cost - outcome.least_cost) / HALVING / weight) - 1, 6)


def _placed(task: Task, place: Place) -> Placed:
    """A copy on the devices of a place; those of a class take what the fullest of them does in the estimate."""
    way = place.shape.key
    assert isinstance(way, Way)
    machine = task.fleet.machines[place.machine].machine
    kind = kind_of(machine)
    by_class = {take.device_class: take for take in place.shape.takes}
    takes = {machine.devices[i].id: by_class[kind.classes[i]] for i in place.devices}
    held = Held(
        devices={name: take.n_bytes for name, take in takes.items()},
        host_bytes=place.shape.host_bytes,
        margins={
            **{name: take.margin_bytes for name, take in takes.items()},
            HOST_POOL: place.shape.host_margin_bytes,
        },
    )
    names = tuple(device.id for device in machine.devices if device.id in takes)
    return Placed(machine=place.machine, devices=names, held=held, plan=way.plan)


class _Shared:
    """Copies on their machines, and what is left for each of them beside the others."""

    def __init__(self, task: Task, estimates: Estimates, placed: list[Placed]) -> None:
        self.task = task
        self.estimates = estimates
        self.placed = placed
        self.done: set[int] = set()
        self.on: dict[int, list[int]] = {}
        for i, one in enumerate(placed):
            self.on.setdefault(one.machine, []).append(i)

    def plan_all(self) -> None:
        """Plan every copy with its share of what is left, by priority; then what is left still, to the first."""
        by_priority = sorted(range(len(self.placed)), key=lambda i: (-self.task.copies[i].priority, i))
        if len(by_priority) > MAX_SHARED:
            for i in by_priority:
                self._keep_least(i)
            return
        for i in by_priority:
            self._plan(i, is_last=False)
            self.done.add(i)
        if len(by_priority) <= MAX_SHARED_TWICE:
            for i in by_priority:
                self._plan(i, is_last=True)

    def held(self, machine: int, pool: str) -> dict[int, int]:
        """What copies hold of a device or of the host, by copy."""
        found = {}
        for i in self.on.get(machine, ()):
            held = self.placed[i].held
            n_bytes = held.host_bytes if pool == HOST_POOL else held.devices.get(pool, 0)
            if n_bytes:
                found[i] = n_bytes
        return found

    def margin(self, machine: int, pool: str) -> int:
        """The margin of a pool, counted once: the largest of those who hold some of it."""
        holders = self.held(machine, pool)
        return max((self.placed[i].held.margins.get(pool, 0) for i in holders), default=0)

    def _left(self, i: int, pool: str, free_bytes: int, *, is_last: bool) -> int:
        """Free bytes to plan a copy with: what it holds, its share of what is left, and its own margin."""
        one = self.placed[i]
        held = self.held(one.machine, pool)
        own = held.get(i, 0)
        others = self.task.together.beside(i, held)
        spare = free_bytes - self.margin(one.machine, pool) - others - own
        if not is_last:
            weight = 1 + self.task.copies[i].priority
            waiting = [j for j in held if j != i and j not in self.done and j not in self.evicted(i)]
            spare = spare * weight // (weight + sum(1 + self.task.copies[j].priority for j in waiting))
        return own + max(0, spare) + one.held.margins.get(pool, 0)

    def evicted(self, i: int) -> set[int]:
        return set(self.task.together.evicted(i))

    def _machine(self, i: int, *, is_last: bool) -> Machine:
        """The machine with what is left for a copy."""
        one = self.placed[i]
        machine = self.task.fleet.machines[one.machine].machine
        devices = []
        for device in machine.devices:
            if device.id in one.devices and device.free_bytes is not None:
                left = self._left(i, device.id, device.free_bytes, is_last=is_last)
                device = replace(device, free_bytes=min(device.free_bytes, left))
            devices.append(device)
        on_host, free = machine.host, machine.host.available_bytes
        if free is not None:
            left = min(free, self._left(i, HOST_POOL, free, is_last=is_last))
            on_host = replace(on_host, available_bytes=left)
        return replace(machine, host=on_host, devices=tuple(devices))

    def _plan(self, i: int, *, is_last: bool) -> None:
        """Plan a copy with what is left for it; its estimate stays where that comes to nothing better."""
        one, model = self.placed[i], self.task.copies[i]
        here = self.task.fleet.machines[one.machine]
        machine = self._machine(i, is_last=is_last)
        if is_last and not self._gains(one, machine):
            return
        plan = self.estimates.plan(model, replace(here, machine=machine), one.devices, model.options)
        if plan is None or not plan.fits or not self._is_better(plan, one, machine):
            if is_last:
                return
            plan = self.estimates.least(model, replace(here, machine=machine), one.devices)
            if plan is None or not self._is_within(plan, machine):
                self._keep_least(i)
                return
        one.plan = plan
        one.held = _of_devices(held_by(plan, machine), one.devices)

    def _keep_least(self, i: int) -> None:
        """The least plan on a copy's own devices, as the search has counted it."""
        one = self.placed[i]
        here = self.task.kinds[self.task.machines[one.machine]]
        plan = self.estimates.least(self.task.copies[i], here, one.devices)
        if plan is not None:
            one.plan = plan
            one.held = _of_devices(held_by(plan, here.machine), one.devices)

    def _gains(self, one: Placed, machine: Machine) -> bool:
        """Whether the machine has more for a copy than its plan was made with."""
        free = {pool.id: pool.free_bytes for pool in one.plan.memory.pools}
        return any(
            device.free_bytes - (free.get(device.id) or 0) >= LEAST_GAIN_BYTES
            for device in machine.devices
            if device.id in one.devices and device.free_bytes is not None and device.pool != HOST_POOL
        )

    def _is_better(self, plan: Plan, one: Placed, machine: Machine) -> bool:
        before = one.plan
        if is_whole(before) and not is_whole(plan):
            return False
        if (plan.context_tokens or 0) < (before.context_tokens or 0):
            return False
        return self._is_within(plan, machine) and set(held_by(plan, machine).devices) <= {*one.devices}

    def _is_within(self, plan: Plan, machine: Machine) -> bool:
        """Whether all that a process of the plan may hold is there."""
        held = held_by(plan, machine)
        free = {device.id: device.free_bytes for device in machine.devices}
        for name, n_bytes in held.devices.items():
            most = free.get(name)
            if most is not None and n_bytes + held.margins.get(name, 0) > most:
                return False
        on_host = machine.host.available_bytes
        return on_host is None or held.host_bytes + held.margins.get(HOST_POOL, 0) <= on_host

    # -- what comes out ----------------------------------------------------------------------------------------

    def pools(self) -> tuple[FleetPool, ...]:
        """Every pool of every machine with what it holds; the host last."""
        found = []
        for number, one in enumerate(self.task.fleet.machines):
            for device in one.machine.devices:
                name, total = device.name, device.usable_bytes
                found.append(self._pool(number, one.name, device.id, name, total, device.free_bytes))
            on_host = one.machine.host
            is_shared = any(device.pool == HOST_POOL for device in one.machine.devices)
            name = "unified memory" if is_shared else "RAM"
            found.append(self._pool(number, one.name, HOST_POOL, name, on_host.total_bytes, on_host.available_bytes))
        return tuple(found)

    def _pool(
        self, machine: int, machine_name: str, pool: str, name: str, total_bytes: int | None, free_bytes: int | None
    ) -> FleetPool:
        copies = self.task.together.copies
        held = self.held(machine, pool)
        peak, running = self.task.together.peak(held)
        return FleetPool(
            machine=machine_name,
            id=pool,
            name=name,
            total_bytes=total_bytes,
            free_bytes=free_bytes,
            margin_bytes=self.margin(machine, pool),
            peak_bytes=peak,
            together=tuple(copies[i].name for i in running),
            shares=tuple(
                PoolShare(name=copies[i].name, claim_bytes=n, used_bytes=_used(self.placed[i].plan, pool))
                for i, n in held.items()
            ),
        )

    def placements(self) -> tuple[Placement, ...]:
        from autofit.fleets.ports import with_ports

        copies = self.task.together.copies
        names = [one.name for one in self.task.fleet.machines]
        plans = with_ports(
            self.task.copies,
            [one.machine for one in self.placed],
            [one.plan for one in self.placed],
            self.task.together,
        )
        found = []
        for i, (one, model, (plan, port)) in enumerate(zip(self.placed, self.task.copies, plans, strict=True)):
            machine = self.task.fleet.machines[one.machine].machine
            claims: dict[str, int] = {**one.held.devices, HOST_POOL: one.held.host_bytes}
            found.append(
                Placement(
                    name=copies[i].name,
                    model=model,
                    machine=names[one.machine],
                    devices=tuple(device for device in machine.devices if _holds(device, one)),
                    plan=replace(plan, env={**model.environ, **plan.env}),
                    claims=claims,
                    port=port,
                    measures=host().backend(model.backend).measures_at_start,
                    evicts=tuple(copies[j].name for j in self.task.together.evicted(i)),
                )
            )
        return tuple(found)


def _holds(device: Device, one: Placed) -> bool:
    return device.id in one.devices and bool(one.held.devices.get(device.id))


def _of_devices(held: Held, devices: Sequence[str]) -> Held:
    return replace_devices(held, {name: n for name, n in held.devices.items() if name in devices})


def replace_devices(held: Held, devices: Mapping[str, int]) -> Held:
    return Held(devices, held.host_bytes, held.margins)


def _used(plan: Plan, pool_id: str) -> int:
    for pool in plan.memory.pools:
        if pool.id == pool_id:
            return pool.used_bytes
        for limit in pool.limits:
            if limit.id == pool_id:
                return limit.used_bytes
    return 0


def _order(placements: Sequence[Placement]) -> tuple[str, ...]:
    """Engines that measure free memory come first, one after the other; then the others, by priority."""
    ranked = sorted(placements, key=lambda one: (not one.measures, -one.model.priority))
    return tuple(one.name for one in ranked)
