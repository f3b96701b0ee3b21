"""A fleet that does not fit: what is missing, who stays, and the nearest changes with which it would fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

from autofit.domain.fleet import Change, Fleet, FleetModel, FleetPlan, Proof
from autofit.domain.text import printable
from autofit.domain.units import format_bytes, parse_tokens
from autofit.domain.values import replace
from autofit.errors import UsageError
from autofit.fleets.estimates import Estimates
from autofit.fleets.plan import Searched, Task, finished, problem_of, search, task_of
from autofit.fleets.problem import Problem, Shape
from autofit.fleets.search import solve

MAX_TRIED = 3000  #: places that are looked at for one change
MAX_CHANGED = 24  #: models of a fleet of which changes are tried one by one
LEAST_LOWERED = 2048  #: tokens
SWAPPED = "swapped"  #: the group of models that take turns since they do not fit together


def refused(task: Task, estimates: Estimates, searched: Searched) -> FleetPlan:
    """The plan of those that stay, with what the whole fleet lacks."""
    fleet = task.fleet
    if fleet.when_full == "swap" and (turns := swapped(fleet, estimates)) is not None:
        return turns
    kept, left_out = staying(fleet, estimates)
    proof: Proof = "impossible" if searched.outcome.is_proven else "not found"
    lacks, sentence = _shortfall(task, estimates, searched)
    if kept is None:
        found = FleetPlan(fits=False, placements=(), pools=(), proof=proof, n_tried=0, fleet=fleet, left_out=left_out)
    else:
        own = task_of(kept)
        outcome = search(own, estimates, max_tried=MAX_TRIED).outcome
        found = replace(finished(own, estimates, outcome, "fits", left_out=left_out), fleet=fleet)
    return replace(
        found,
        proof=proof,
        n_tried=searched.outcome.n_tried,
        gap_fraction=0.0,
        shortfall_bytes=lacks,
        shortfall=sentence,
        changes=tuple(_changes(task, estimates, left_out, lacks)),
    )


def _fits(fleet: Fleet, estimates: Estimates) -> bool:
    return bool(fleet.models) and search(task_of(fleet), estimates, max_tried=MAX_TRIED).outcome.places is not None


def _without(fleet: Fleet, names: Sequence[str]) -> Fleet:
    return replace(fleet, models=tuple(model for model in fleet.models if model.name not in names))


def _with(fleet: Fleet, changed: FleetModel) -> Fleet:
    return replace(fleet, models=tuple(changed if one.name == changed.name else one for one in fleet.models))


def _by_priority(fleet: Fleet) -> list[FleetModel]:
    """Those that go first come first: of equal priorities, the last written."""
    numbers = {model.name: number for number, model in enumerate(fleet.models)}
    return sorted(fleet.models, key=lambda model: (model.priority, -numbers[model.name]))


# -- who stays ------------------------------------------------------------------------------------------------


def staying(fleet: Fleet, estimates: Estimates) -> tuple[Fleet | None, tuple[str, ...]]:
    """The fleet of those that stay, and the names of the others: one of the lowest priority that is enough, else the
    fewest of the lowest."""
    ranked = _by_priority(fleet)
    if len(ranked) <= MAX_CHANGED:
        for model in ranked if len(ranked) > 1 else ():
            kept = _without(fleet, [model.name])
            if _fits(kept, estimates):
                return kept, (model.name,)
    low, high = 1, len(ranked)
    while low < high:
        middle = (low + high) // 2
        if _fits(_without(fleet, [one.name for one in ranked[:middle]]), estimates):
            high = middle
        else:
            low = middle + 1
    gone = [one.name for one in ranked[:low]]
    kept = _without(fleet, gone)
    if not _fits(kept, estimates):
        return None, tuple(one.name for one in fleet.models)
    for model in ranked[:low]:  # whoever still has a place comes back, the highest priority first
        if len(ranked) > MAX_CHANGED:
            break
        again = [name for name in gone if name != model.name]
        if model.name in gone and _fits(_without(fleet, again), estimates):
            kept, gone = _without(fleet, again), again
    return kept, tuple(name for name in (one.name for one in fleet.models) if name in gone)


def swapped(fleet: Fleet, estimates: Estimates) -> FleetPlan | None:
    """The plan with some models taking turns that are in no group: two of the lowest priorities, else the fewest."""
    turns = _turns(fleet, estimates)
    if turns is None:
        return None
    names, changed = turns
    task = task_of(changed)
    found = search(task, estimates)
    if found.outcome.places is None:
        return None
    said = f'{" and ".join(map(printable, names))} take turns: all at once do not fit (when-full = "swap")'
    plan = finished(task, estimates, found.outcome, "best" if found.outcome.is_proven else "fits")
    return replace(plan, findings=(*plan.findings, said))


def _turns(fleet: Fleet, estimates: Estimates) -> tuple[tuple[str, ...], Fleet] | None:
    free = [model for model in _by_priority(fleet) if model.group is None]
    tried: Iterator[Sequence[FleetModel]] = iter(())
    if len(free) <= MAX_CHANGED:
        pairs = combinations(free, 2)
        tried = iter(sorted(pairs, key=lambda pair: pair[0].priority + pair[1].priority))
    for some in (*tried, *(free[:n] for n in range(3, min(len(free), MAX_CHANGED) + 1))):
        names = {model.name for model in some}
        changed = replace(
            fleet,
            models=tuple(replace(one, group=_group(fleet)) if one.name in names else one for one in fleet.models),
        )
        if _fits(changed, estimates):
            return tuple(one.name for one in fleet.models if one.name in names), changed
    return None


def _group(fleet: Fleet) -> str:
    taken = {model.group for model in fleet.models}
    return next(name for n in range(1, 10_000) if (name := SWAPPED + ("" if n == 1 else f"-{n}")) not in taken)


# -- changes --------------------------------------------------------------------------------------------------


def _changes(task: Task, estimates: Estimates, left_out: Sequence[str], lacks: int | None) -> Iterator[Change]:
    fleet = task.fleet
    if 0 < len(left_out) < len(fleet.models):
        names = ", ".join(map(printable, left_out))
        yield Change(kind="leave out", models=tuple(left_out), message=f"without {names} the rest fits")
    if (fewer := _fewer(fleet, estimates)) is not None:
        yield fewer
    if len(fleet.models) <= MAX_CHANGED:
        of_each: tuple[Callable[[Fleet, Estimates], Change | None], ...] = (_lowered, _in_ram, _moved, _in_turns)
        yield from (change for of in of_each if (change := of(fleet, estimates)) is not None)
    if lacks:
        message = f"with {format_bytes(lacks)} ({lacks} bytes) more in each pool of each machine all would fit"
        yield Change(kind="add memory", models=(), message=message)


def _lowered(fleet: Fleet, estimates: Estimates) -> Change | None:
    """The longest shorter context of one model, the lowest priority first, in halves."""
    for model in _by_priority(fleet):
        for name in ("context", "min_context"):
            tokens = _tokens(model.options.get(name))
            while tokens is not None and tokens // 2 >= LEAST_LOWERED:
                tokens //= 2
                changed = _with(fleet, replace(model, options={**model.options, name: str(tokens)}))
                if _fits(changed, estimates):
                    flag = name.replace("_", "-")
                    message = f"with {flag} = {tokens} for {printable(model.name)} all would fit"
                    return Change(kind="lower", models=(model.name,), message=message)
    return None


def _fewer(fleet: Fleet, estimates: Estimates) -> Change | None:
    """The most copies of one model that there is a place for, the lowest priority first."""
    for model in _by_priority(fleet):
        low, high = 0, model.replicas  # so many have a place, and so many have not
        while low + 1 < high:
            middle = (low + high) // 2
            if _fits(_with(fleet, replace(model, replicas=middle)), estimates):
                low = middle
            else:
                high = middle
        if low:
            message = f"with replicas = {low} for {printable(model.name)} all would fit"
            return Change(kind="fewer copies", models=(model.name,), message=message)
    return None


def _in_ram(fleet: Fleet, estimates: Estimates) -> Change | None:
    """A model with layers in RAM, the lowest priority first."""
    for model in _by_priority(fleet):
        changed = _with(fleet, replace(model, layers_in_ram=True))
        if not model.layers_in_ram and _fits(changed, estimates):
            message = f"with layers-in-ram = true for {printable(model.name)}, which is slower then, all would fit"
            return Change(kind="layers in RAM", models=(model.name,), message=message)
    return None


def _tokens(value: Any) -> int | None:
    try:
        return None if value is None else parse_tokens(str(value))
    except UsageError:
        return None


def _moved(fleet: Fleet, estimates: Estimates) -> Change | None:
    """A model that may be on some machines alone, and would have a place on another."""
    for model in _by_priority(fleet):
        if model.machines and _fits(_with(fleet, replace(model, machines=())), estimates):
            message = f"with {printable(model.name)} on other machines than {', '.join(model.machines)} all would fit"
            return Change(kind="move", models=(model.name,), message=printable(message, 400))
    return None


def _in_turns(fleet: Fleet, estimates: Estimates) -> Change | None:
    found = _turns(fleet, estimates)
    if found is None:
        return None
    names = " and ".join(map(printable, found[0]))
    return Change(kind="swap", models=found[0], message=f"with {names} in one group, which take turns, all would fit")


# -- what is missing --------------------------------------------------------------------------------------------


def _shortfall(task: Task, estimates: Estimates, searched: Searched) -> tuple[int | None, str]:
    """Bytes that each pool lacks for the whole fleet, and the fact in a sentence."""
    for model, shapes in zip(task.fleet.models, searched.shapes, strict=False):
        if not shapes:
            return None, _alone(task, estimates, model)
    n = len(task.copies)
    what = f"{n} copies" if n != len(task.fleet.models) else f"{n} models"
    machines = "1 machine" if len(task.machines) == 1 else f"{len(task.machines)} machines"
    kind = "" if searched.outcome.is_proven else " (not proven: the search ended first)"
    if n > MAX_CHANGED:
        return None, f"{what} do not fit on {machines}{kind}"
    lacks = _lacking(problem_of(task, searched.shapes))
    if lacks is None:
        return None, f"{what} do not fit on {machines}{kind}"
    return lacks, f"does not fit: each pool needs {format_bytes(lacks)} ({lacks} bytes) more for {what}{kind}"


def _alone(task: Task, estimates: Estimates, model: FleetModel) -> str:
    """Why a model has no place even where nothing else is."""
    allowed = [one for one in task.fleet.machines if not model.machines or one.name in model.machines]
    most = max((len(one.machine.devices) for one in allowed), default=0)
    if model.n_devices is not None and model.n_devices > most:
        return f"{printable(model.name)} takes {model.n_devices} devices, and its machines have {most} at most"
    for one in allowed:
        plan = estimates.plan(model, one, tuple(device.id for device in one.machine.devices), model.options)
        if plan is not None and not plan.fits:
            first = next((found.message for found in plan.findings if found.severity == "error"), "memory is short")
            said = first.removeprefix("does not fit: ")
            return f"{printable(model.name)} does not fit even alone on {printable(one.name)}: {printable(said, 300)}"
    if model.name in estimates.problems:
        return f"{printable(model.name)}: {printable(estimates.problems[model.name], 300)}"
    return f"{printable(model.name)} has no place even where nothing else is"


def _lacking(problem: Problem) -> int | None:
    """The least bytes that every pool would need more of, to the byte as far as the search proves it."""
    largest = max((_largest(shape) for shapes in problem.shapes for shape in shapes), default=0)

    def fits(more: int) -> bool:
        kinds = tuple(
            replace(kind, free_bytes=tuple(n + more for n in kind.free_bytes), host_bytes=kind.host_bytes + more)
            for kind in problem.kinds
        )
        return solve(replace(problem, kinds=kinds), max_tried=MAX_TRIED).places is not None

    low, high = 0, largest * len(problem.shapes)
    if not fits(high):
        return None
    while low + 1 < high:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle
    return high


def _largest(shape: Shape) -> int:
    return max(shape.host_bytes, *(take.n_bytes + take.margin_bytes for take in shape.takes), 0)
