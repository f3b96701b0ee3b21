"""Memory and rate against the context: a model's plans, or one command, at one context after another."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autofit.domain.curve import Curve, Point
from autofit.domain.text import printable
from autofit.domain.units import format_bytes
from autofit.domain.values import replace
from autofit.errors import AutofitError, UsageError
from autofit.host import host
from autofit.machines import machine_of
from autofit.pipeline import check, plan_of, stated_options, with_engine
from autofit.planning.picks import kv_of
from autofit.references import find
from autofit.settings.layers import HERE

if TYPE_CHECKING:
    from autofit.domain.machine import Machine
    from autofit.domain.plan import Plan
    from autofit.settings.layers import Options, Surroundings

LEAST_CONTEXT = 4096
MOST_POINTS = 10
Said = Callable[[int], object]


def nothing_said(n: int) -> None:
    """Progress that nobody follows."""


def contexts(longest: int) -> list[int]:
    """Lengths that are compared: the longest, halved again and again."""
    found = {longest}
    while len(found) < MOST_POINTS and longest // 2 >= LEAST_CONTEXT:
        longest //= 2
        found.add(longest)
    return sorted(found)


def curve_of_model(
    reference: str,
    given: Mapping[str, Any],
    *,
    backend: str | None = None,
    engine_args: Sequence[str] = (),
    settings: Surroundings | None = HERE,
    machine: Machine | None = None,
    details: bool = False,
    said: Said = nothing_said,
) -> Curve:
    """A model's own plan, and its plans at other contexts. `given` are options as for `plan()`; all else is kept.

    `details`: what else there is to choose is looked for, of the plan that is asked for.

    Raises:
        UsageError, ModelError, HardwareError, EngineRefusalError: as for `plan()`, of the plan that is asked for.
    """
    model, _ = find(reference)
    name = backend or serving(model.format)
    options = stated_options(name, given, settings)
    if machine is None:
        options = with_engine(name, options, settings)
        machine = machine_of(options, None if settings is None else settings.variables)

    def planned(asked: Options, details: bool = False) -> Plan:
        return plan_of(name, reference, machine, asked, settings, engine_args=engine_args, details=details)

    chosen = planned(options, details)

    def at(n: int) -> Plan:
        changed = {"context": n, "min_context": None, "max_context": None, "mean_tokens": _mean(options, n)}
        return planned(replace(options, values={**options.values, **changed}))

    longest = max(model.context_train_tokens or 0, chosen.context_tokens or 0, options.get("context") or 0)
    lengths = [n for n in contexts(longest) if n != chosen.context_tokens] if longest else []
    return Curve(title=printable(model.name, 80), chosen=chosen, points=_points(chosen, lengths, at, said))


def _mean(options: Options, n: int) -> int | None:
    mean = options.get("mean_tokens")
    return None if mean is None else min(mean, n)


def serving(form: str) -> str:
    """The first backend that serves models of this format.

    Raises:
        UsageError: there is none.
    """
    for name in host().backends():
        if form in host().backend(name).formats:
            return name
    raise UsageError(f"no engine that is planned for serves {printable(form, 40)}", hint="name one with --backend")


def curve_of_command(
    argv: Sequence[str],
    machine: Machine | None = None,
    *,
    model: str | None = None,
    said: Said = nothing_said,
    **options: Any,
) -> Curve:
    """A command as it stands, and the same with other contexts. Options as for `check()`.

    Raises:
        UsageError, EngineRefusalError: as for `check()`, of the command as it stands.
    """
    chosen = check(argv, machine, model=model, **options)
    flag, shortest = host().backend(chosen.backend).context_flag(chosen.argv), chosen.context_tokens

    def at(n: int) -> Plan:
        return check([*argv, flag, str(n)], machine, model=model, **options)

    lengths: list[int] = []
    if flag and shortest:
        reference = model or host().backend_of_program(chosen.argv).parse(chosen.argv).model
        trained = find(reference).model.context_train_tokens if reference else None
        lengths = contexts(max(trained or 0, shortest))
    title = printable(os.path.basename(chosen.argv[0]), 80)  # noqa: PTH119 - a program's name
    return Curve(title=title, chosen=chosen, points=_points(chosen, lengths, at, said))


def _points(chosen: Plan, lengths: Sequence[int], at: Callable[[int], Plan], said: Said) -> tuple[Point, ...]:
    """The points in order; where a length comes to another, as several slots' do, it is shown there."""
    found = {} if chosen.context_tokens is None else {chosen.context_tokens: _point(chosen.context_tokens, chosen)}
    for done, n in enumerate(lengths):
        said(done)
        try:
            plan = at(n)
        except AutofitError as error:
            found.setdefault(n, Point(context_tokens=n, plan=None, because=error.message))
            continue
        reached = plan.context_tokens or n
        found.setdefault(reached, _point(reached, plan))
    return tuple(found[n] for n in sorted(found))


def _point(n: int, plan: Plan) -> Point:
    lacks = max((pool.shortfall_bytes for pool in plan.memory.pools), default=0)
    first = next((one.message for one in plan.findings if one.severity == "error"), "it does not fit")
    because = "" if plan.fits else f"{format_bytes(lacks)} are missing" if lacks > 0 else first
    return Point(context_tokens=n, plan=plan, because=because, kv=kv_of(plan, host().backend(plan.backend).kv_types))
