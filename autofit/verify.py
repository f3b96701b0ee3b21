"""A plan beside what the engine itself says: its dry run, or the log of a boot, part by part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from autofit.domain.text import printable
from autofit.domain.units import MIB, format_bytes
from autofit.domain.values import dataclass, replace
from autofit.errors import UsageError
from autofit.fix import machine_of, read_log
from autofit.hardware.output import run_both
from autofit.hardware.programs import ToolError
from autofit.host import blamed, host
from autofit.planning.compare import Difference, compare

if TYPE_CHECKING:
    from autofit.domain.machine import Device, Machine
    from autofit.domain.model import ModelSpec
    from autofit.domain.observed import Observed
    from autofit.domain.plan import Plan

TOLERANCE_FRACTION = 0.01
LEAST_TOLERANCE_BYTES = 16 * MIB
MAX_OUTPUT_BYTES = 1 << 24
DRY_RUN_SECONDS = 300
NOTHING: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """A number that the engine reported, and its prediction: tokens of a KV cache."""

    what: str
    predicted: int
    reported: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The parts of a plan that the engine reported. `source` says where its figures come from."""

    backend: str
    source: str
    plan: Plan
    observed: Observed
    differences: tuple[Difference, ...]
    basis: tuple[str, ...] = ()
    counts: tuple[Count, ...] = ()

    @property
    def too_many(self) -> tuple[Count, ...]:
        """Numbers of which the engine has less than was predicted, beyond the tolerance."""
        return tuple(one for one in self.counts if one.reported < one.predicted * (1 - TOLERANCE_FRACTION))

    @property
    def too_low(self) -> tuple[Difference, ...]:
        """Parts of which the engine took more than was predicted, beyond the tolerance."""
        return tuple(one for one in self.differences if one.over_bytes > tolerance_bytes(one))


def tolerance_bytes(difference: Difference) -> int:
    """What a part may be above its prediction: 1 % of it or 16 MiB, beside what the log rounds off."""
    return max(int(difference.predicted_bytes * TOLERANCE_FRACTION), LEAST_TOLERANCE_BYTES)


def verify_log(
    log: Iterable[bytes],
    argv: Sequence[str] = (),
    *,
    model: ModelSpec | None = None,
    engine_version: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Verified:
    """The plan of a log's command, on the log's devices, beside what the log reports.

    Raises:
        UsageError: no engine wrote it, it names no command or model and none is given, or it reports no memory.
    """
    wanted = host().backend_of_program(tuple(argv)).name if argv else None
    backend, observed = read_log(log, wanted)
    words, basis = tuple(argv) or observed.command, NOTHING
    with blamed(backend.name):
        if not words:
            words = tuple(backend.command_in(observed))
        if model is None:
            model, basis = backend.model_in(observed)
    if not words or model is None:
        what = "the log tells no command" if not words else f"the log tells no model{_lacks(basis)}"
        raise UsageError(what, hint="name both: autofit verify MODEL --log FILE -- ENGINE COMMAND")
    machine = machine_of(backend, observed)
    plan = _checked(words, model, machine, engine_version or observed.version, environ)
    return _verified(backend.name, "the log", plan, observed, backend.places(machine), basis)


def verify_dry_run(
    model: ModelSpec, argv: Sequence[str], machine: Machine, *, environ: Mapping[str, str],
    engine_version: str | None = None,
) -> Verified:  # fmt: skip
    """The plan of a command beside the dry run of the engine that is installed.

    Raises:
        UsageError: the engine has no dry run, it is not installed, or it fails.
    """
    backend = host().backend_of_program(tuple(argv))
    with blamed(backend.name):
        words = tuple(backend.dry_run(argv, environ))
    if not words:
        raise UsageError(
            f"{backend.engine} has no dry run that could be asked here",
            hint="compare with the log of a boot: autofit verify MODEL --log FILE",
        )
    text = _output(words, environ)
    with blamed(backend.name):
        observed = backend.read_dry_run(text)
    plan = _checked(words, model, machine, engine_version, environ)
    return _verified(backend.name, words[0], plan, observed, backend.places(machine), ())


def learn(verified: Verified, machine: Machine, environ: Mapping[str, str]) -> int:
    """Count the log of a boot on this machine, where it took more than was predicted; returns on how many devices.

    A log that is given twice counts twice, and may be of another machine than its reader thinks: so it never says that
    less was taken.

    Raises:
        UsageError: the devices of the log are not this machine's.
    """
    from autofit.calibration.apply import record

    backend = host().backend(verified.backend)
    with blamed(backend.name):
        told = backend.devices_in(verified.observed)
    here = _devices_here(told, machine.devices)
    if not here:
        names = ", ".join(printable(one.name, 60) for one in told) or "none"
        raise UsageError(
            f"nothing is learnt: the log's devices are not this machine's ({names})",
            hint="a start on this machine: autofit run --watch -- ENGINE COMMAND",
        )
    moved = [replace(one, pool=here[one.pool]) for one in verified.differences if one.pool in here]
    return record(backend.name, machine, verified.observed, moved, backend.calibrates, environ, only_more=True)


def _devices_here(told: Sequence[Device], here: Sequence[Device]) -> dict[str, str]:
    """Pools of a log's devices -> those of this machine's, where every one of them is here, by API, name and size."""
    left, found = list(here), dict[str, str]()
    for device in told:
        same = next((one for one in left if _is_same(device, one)), None)
        if same is None:
            return {}
        left.remove(same)
        found[device.pool] = same.pool
    return found


def _is_same(told: Device, here: Device) -> bool:
    sizes = told.total_bytes, here.total_bytes
    alike = None in sizes or abs(sizes[0] - sizes[1]) <= sizes[1] // 16  # type: ignore[operator]
    return told.api == here.api and told.name == here.name and told.integrated == here.integrated and alike


def _lacks(lines: Sequence[str]) -> str:
    return f"; it lacks: {printable('; '.join(lines), 300)}" if lines else ""


def _checked(
    argv: Sequence[str], model: ModelSpec, machine: Machine, version: str | None, environ: Mapping[str, str] | None
) -> Plan:
    from autofit.pipeline import check

    return check(argv, machine, model=model, environ=environ, settings=None, engine_version=version)


def _verified(
    backend: str, source: str, plan: Plan, observed: Observed, places: Mapping[str, str], basis: tuple[str, ...]
) -> Verified:
    differences = compare(plan.memory, observed, places)
    counts = _counts(host().backend(backend).counts, plan, observed)
    if not differences and not counts:
        raise UsageError(
            f"{source} reports no memory that a plan has",
            hint="take the whole log of a boot, from its first line, with -v where the engine has it",
        )
    return Verified(
        backend=backend,
        source=source,
        plan=plan,
        observed=observed,
        differences=differences,
        basis=basis,
        counts=counts,
    )


def _counts(told: Mapping[str, tuple[str, str]], plan: Plan, observed: Observed) -> tuple[Count, ...]:
    pairs = {what: (plan.engine_report.get(key), observed.facts.get(fact)) for what, (fact, key) in told.items()}
    return tuple(
        Count(what=what, predicted=one, reported=other)
        for what, (one, other) in pairs.items()
        if isinstance(one, int) and isinstance(other, int)
    )


def _output(words: Sequence[str], environ: Mapping[str, str]) -> str:
    """What a dry run prints, of the program that the search for tools finds, and bounded as theirs.

    Raises:
        UsageError: it cannot be started, takes too long, prints too much, or fails.
    """
    try:
        return "\n".join(run_both(words, DRY_RUN_SECONDS, environ=environ, limit_bytes=MAX_OUTPUT_BYTES))
    except ToolError as error:
        raise UsageError(printable(str(error), 400), hint="is the engine installed, and in PATH?") from error


def in_words(verified: Verified) -> list[str]:
    """A line for each part: predicted, reported, difference."""
    lines = [f"{'pool':12} {'part':9} {'predicted':>12} {'reported':>12}  difference"]
    for one in verified.differences:
        over = one.over_bytes
        what = "same" if not over else f"{'+' if over > 0 else '-'}{format_bytes(abs(over))} ({over} bytes)"
        predicted, reported = format_bytes(one.predicted_bytes), format_bytes(one.reported_bytes)
        lines.append(f"{printable(one.pool, 12):12} {one.kind:9} {predicted:>12} {reported:>12}  {what}")
    for count in verified.counts:
        more = count.reported - count.predicted
        figures = f"{count.predicted:>12,} {count.reported:>12,}  {f'{more:+,}' if more else 'same'}"
        lines.append(f"{printable(count.what, 22):22} {figures}")
    return lines
