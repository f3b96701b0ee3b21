"""What would fit on one machine: the model at other contexts, with other KV types, in other quantizations.

Each row varies one thing and is the engine's own plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from autofit.domain.machine import HOST_POOL
from autofit.domain.units import format_bytes
from autofit.domain.values import dataclass, replace
from autofit.errors import AutofitError
from autofit.host import blamed, host
from autofit.machines import machine_of
from autofit.pipeline import with_engine
from autofit.planning.offers import at_full_speed
from autofit.quant_choice import Row, recommend
from autofit.quants import Sizing, planned
from autofit.solve.front import dominates

if TYPE_CHECKING:
    from autofit.advice.forms import Form
    from autofit.advice.subject import Subject
    from autofit.domain.machine import Machine
    from autofit.domain.plan import Plan
    from autofit.domain.quantization import Quantization

MAX_CONTEXTS = 6
LEAST_CONTEXT = 4096
MAX_LARGER = 1  #: quantizations that are shown of those whose weights are larger than the devices' memory
MAX_FORMS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One thing that differs (`varies`: context, kv or quantization), its value, and the plan; `because`: why none.

    `command` is empty for a quantization, of which there is no file yet. `on_front`, of those that are there: no other
    one is as good in memory, rate and quality.
    """

    varies: str
    value: str
    context_tokens: int | None  #: that is asked for
    plan: Plan | None
    command: tuple[str, ...] = ()
    because: str = ""
    weights_bytes: int | None = None
    on_front: bool | None = None

    @property
    def device_bytes(self) -> int:
        """What it takes of the devices, or of RAM where there are none."""
        pools = () if self.plan is None else self.plan.memory.pools
        return sum(pool.used_bytes for pool in [pool for pool in pools if pool.id != HOST_POOL] or pools)

    @property
    def tokens_per_s(self) -> float:
        """With the context full; 0 where that is not known."""
        speed = None if self.plan is None else self.plan.speed
        return speed.decode_tokens_per_s if speed is not None and speed.decodes else 0.0

    @property
    def fits(self) -> bool:
        return self.plan is not None and self.plan.verdict == "fits" and self.plan.fits

    @property
    def full_speed(self) -> bool:
        return self.plan is not None and self.fits and at_full_speed(self.plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variants:
    """What varies, of one model: of several quantizations, of the one that is taken, and `because` of what."""

    subject: Subject
    rows: tuple[Variant, ...]
    name: str = ""
    because: str = ""


def variants(forms: Sequence[Form], machine: Machine | None = None, on: Sequence[str] = ()) -> Variants:
    """The variants of a model on `machine`, which `on` names; on this machine where none is given.

    Of several quantizations each is planned for, and the others are of the one to take (`quant_choice.recommend`).

    Raises:
        AutofitError: the engine does not run the model there at all.
    """
    subject = forms[0].subject
    if machine is None:
        for form in forms:
            form.subject.options = with_engine(form.subject.backend, form.subject.options, form.subject.settings)
        machine = machine_of(subject.options, None if subject.settings is None else subject.settings.variables)
    ram = subject.ram if on else None
    subject.plan(machine)  # a refusal of the machine is one of all rows
    if not forms[0].name:
        return Variants(subject=subject, rows=(*_of_one(subject, machine, on, ram), *_quantizations(subject, machine)))
    rows = [_row(form, machine) for form in forms]
    wanted = subject.options
    taken, because = recommend(rows, prefer=wanted.get("prefer"), min_tokens_per_s=wanted.get("min_tps"))
    chosen = next((form for form, row in zip(forms, rows, strict=True) if row is taken), forms[0])
    known = _existing(forms, rows, on, ram)
    return Variants(
        subject=chosen.subject,
        rows=(*_of_one(chosen.subject, machine, on, ram), *known),
        name=chosen.name if taken is not None else "",
        because=because,
    )


def _of_one(subject: Subject, machine: Machine, on: Sequence[str], ram: str | None) -> list[Variant]:
    """Contexts, and types of the cache."""
    found = list(_contexts(subject, machine, on, ram))
    short = next((one for one in found if not one.full_speed), found[-1])
    return [*found, *_kv_types(subject, machine, on, ram, short.context_tokens)]


def _row(form: Form, machine: Machine) -> Row:
    plan, because = _tried(form.subject, machine)
    return Row(backend=form.subject.backend, quantization=form.quantization, plan=plan, because=because)


def _existing(forms: Sequence[Form], rows: Sequence[Row], on: Sequence[str], ram: str | None) -> list[Variant]:
    """Quantizations of which there is a file, the largest first."""
    found = [
        Variant(
            varies="quantization",
            value=form.name,
            context_tokens=form.subject.context_tokens,
            plan=row.plan,
            command=form.subject.command(on, ram),
            because=row.because,
            weights_bytes=form.quantization.weights_bytes,
        )
        for form, row in zip(forms, rows, strict=True)
    ]
    scores = [
        (-one.device_bytes, one.tokens_per_s, form.quality) if one.fits else None
        for one, form in zip(found, forms, strict=True)
    ]
    front = [score is not None and not any(other and dominates(other, score) for other in scores) for score in scores]
    marked = [replace(one, on_front=each) for one, each in zip(found, front, strict=True)]
    return sorted(marked, key=lambda one: -(one.weights_bytes or 0))


def contexts(trained_tokens: int | None, asked_tokens: int | None) -> list[int]:
    """The contexts that are compared: what the model was trained for, halved again and again, and what is asked for."""
    longest = trained_tokens or asked_tokens or LEAST_CONTEXT
    found = {longest}
    while len(found) < MAX_CONTEXTS and longest // 2 >= LEAST_CONTEXT:
        longest //= 2
        found.add(longest)
    return sorted(found | ({asked_tokens} if asked_tokens else set()))


def _contexts(subject: Subject, machine: Machine, on: Sequence[str], ram: str | None) -> Iterator[Variant]:
    for tokens in contexts(subject.model.context_train_tokens, subject.context_tokens):
        plan, because = _tried(subject, machine, context=tokens)
        command = subject.command(on, ram, context=tokens)
        yield Variant(
            varies="context",
            value=f"{tokens:,}",
            context_tokens=tokens,
            plan=plan,
            command=command,
            because=because,
        )


def _kv_types(
    subject: Subject, machine: Machine, on: Sequence[str], ram: str | None, tokens: int | None
) -> Iterator[Variant]:
    """Each type of the cache at one context: the first that is not at full speed with the type that is chosen."""
    for kv in host().backend(subject.backend).kv_types:
        plan, because = _tried(subject, machine, context=tokens, kv=kv)
        command = subject.command(on, ram, context=tokens, kv=kv)
        yield Variant(varies="kv", value=kv, context_tokens=tokens, plan=plan, command=command, because=because)


def _tried(subject: Subject, machine: Machine, **changed: object) -> tuple[Plan | None, str]:
    try:
        plan = subject.plan(machine, **changed)
    except AutofitError as error:
        return None, error.message
    if plan.fits:
        return plan, ""
    lack = max((pool.shortfall_bytes for pool in plan.memory.pools), default=0)
    first = next((found.message for found in plan.findings if found.severity == "error"), "")
    return plan, f"{format_bytes(lack)} are missing" if lack > 0 else first


def _quantizations(subject: Subject, machine: Machine) -> Iterator[Variant]:
    """The largest forms that the devices could hold, and the next larger."""
    with blamed(subject.backend):
        try:
            forms = host().backend(subject.backend).quantizations(subject.model)
        except AutofitError:
            return  # nothing is known to be made of it
    sizing = Sizing.of(host().adjust_machine(machine, subject.backend), subject.model)
    for form in chosen_forms(forms, sizing.device_bytes if sizing.device_bytes is not None else sizing.all_bytes):
        row = planned(subject.backend, form, machine, subject.options, subject.settings, sizing)
        yield Variant(
            varies="quantization",
            value=form.name,
            context_tokens=subject.context_tokens,
            plan=row.plan,
            because=row.because,
            weights_bytes=form.weights_bytes,
        )


def chosen_forms(forms: Sequence[Quantization], room_bytes: int | None) -> list[Quantization]:
    """Of the forms that can be made, the largest that have room, and before them the smallest that has none."""
    made = [form for form in forms if form.model is not None and not (form.same_as or form.only_for or form.at_hand)]
    made.sort(key=lambda form: -(form.weights_bytes or 0))
    held = [form for form in made if room_bytes is None or (form.weights_bytes or 0) <= room_bytes]
    larger = made[: len(made) - len(held)]
    return [*larger[len(larger) - MAX_LARGER :], *held][:MAX_FORMS]
