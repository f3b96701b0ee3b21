"""An answer to a log that somebody pastes: which allocation failed, why, and what to change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autofit.domain.text import printable
from autofit.domain.values import dataclass, replace
from autofit.errors import AutofitError, UsageError
from autofit.host import blamed, host

if TYPE_CHECKING:
    from autofit.backend import Backend
    from autofit.domain.machine import Device, Machine
    from autofit.domain.model import ModelSpec
    from autofit.domain.observed import Observed
    from autofit.domain.ram import Ram
    from autofit.domain.repair import Repair
    from autofit.logs.watch import Watch

MAX_LOG_BYTES = 1 << 30
LEAST_LINES = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A log, read, and what to change. `argv` is its command; empty where nobody knows it."""

    backend: str
    observed: Observed
    machine: Machine
    argv: tuple[str, ...]
    repair: Repair


def read_log(pieces: Iterable[bytes], backend: str | None = None) -> tuple[Backend, Observed]:
    """What a log says, by the backend that understands most of its lines.

    Raises:
        UsageError: no engine wrote it, or it is longer than `MAX_LOG_BYTES`.
    """
    readers: list[tuple[Backend, Watch]] = []
    for name in host().backends():
        if backend is not None and name != backend:
            continue
        one = host().backend(name)
        with blamed(name):
            reader = one.watch()
        if reader is not None:
            readers.append((one, reader))
    n_bytes = 0
    for piece in pieces:
        n_bytes += len(piece)
        if n_bytes > MAX_LOG_BYTES:
            raise UsageError(
                f"the log is longer than {MAX_LOG_BYTES >> 30} GiB", hint="give its last part, from a start on"
            )
        for _, reader in readers:
            reader.feed(piece)
    found = [(one, reader.close()) for one, reader in readers]
    best = max(found, key=lambda pair: pair[1].n_lines, default=None)
    if best is None or best[1].n_lines < LEAST_LINES:
        engines = ", ".join(one.engine for one, _ in found) or "any engine"
        raise UsageError(
            f"this is no log of {engines}: not one line of it is theirs",
            hint="give the whole output of the engine, stderr included: COMMAND 2>&1 | tee log",
        )
    return best


def fix(
    log: Iterable[bytes],
    argv: Sequence[str] = (),
    *,
    model: ModelSpec | None = None,
    ram: Ram | None = None,
    on: Sequence[str] = (),
    engine_version: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Answer:
    """Why the run of this log ran out of memory, and what to change in `argv`, its command.

    Without `argv` the command is looked for in the log; without `model` the model is rebuilt from it.

    Raises:
        UsageError: no engine wrote the log, or the command is not of that engine.
    """
    from autofit.domain.request import Request

    wanted = host().backend_of_program(tuple(argv)).name if argv else None
    backend, observed = read_log(log, wanted)
    machine = machine_of(backend, observed, ram, on)
    words = tuple(argv) or observed.command
    request = Request(engine_version=engine_version, engine_env=dict(environ or {}), alternatives=False, explain=False)
    with blamed(backend.name):
        repair = backend.repair(observed, words, machine, request, model)
    if repair is None:
        raise UsageError(f"{backend.engine}: its backend has no answers to logs", hint="see `autofit plugins`")
    return Answer(backend=backend.name, observed=observed, machine=machine, argv=words, repair=repair)


def machine_of(backend: Backend, observed: Observed, ram: Ram | None = None, on: Sequence[str] = ()) -> Machine:
    """The machine of a log: its devices, with what profiles know of them by name, and RAM as stated.

    `on` names profiles for what the log does not say of its devices, in their order.
    """
    from autofit.domain.machine import Host, Machine
    from autofit.hardware import load_machine

    with blamed(backend.name):
        told = tuple(backend.devices_in(observed))
    if on:
        stated = load_machine(*on, profile_dirs=host().profile_dirs())
        if not told:
            places = {pool: place for place, pool in backend.places(stated).items()}
            told = tuple(
                replace(one, id=places.get(one.id, one.id), pool=places.get(one.pool, one.pool))
                for one in stated.devices
            )
        told = tuple(
            _filled(one, card) for one, card in zip(told, (*stated.devices, *told[len(stated.devices) :]), strict=False)
        )
    n_bytes = None if ram is None else ram.stated_bytes
    devices = tuple(_with_profile(device) for device in told)
    return Machine(host=Host(total_bytes=n_bytes, available_bytes=n_bytes), devices=devices, origin="a log")


#: figures of a card that a log does not have
_FIGURES = (
    "n_sm",
    "bandwidth_bytes_per_s",
    "fp16_flops_per_s",
    "link_bytes_per_s",
    "compute_capability",
    "vendor",
    "gfx",
)


def _with_profile(device: Device) -> Device:
    """The device with its profile's figures, where one has its name and about its memory."""
    from autofit.hardware import load_machine
    from autofit.hardware.catalog import profile_of

    profile = profile_of(device.name, device.total_bytes, extra_dirs=host().profile_dirs())
    if profile is None:
        return device
    try:
        known = load_machine(profile.id, profile_dirs=host().profile_dirs()).devices
    except AutofitError:
        return device
    if len(known) != 1:
        return device
    return _filled(replace(device, profile=profile.id), known[0])


def _filled(device: Device, card: Device) -> Device:
    """The device with the figures of a card for what nobody has told of it."""
    more: dict[str, Any] = {name: getattr(card, name) for name in _FIGURES if getattr(device, name, None) is None}
    total = device.total_bytes if device.total_bytes is not None else card.usable_bytes
    return replace(device, total_bytes=total, **more)


def in_words(answer: Answer) -> list[str]:
    """The answer for people, a line each, the command apart."""
    repair, observed = answer.repair, answer.observed
    lines = [f"cause: {printable(repair.cause, 400)}"]
    if observed.version:
        lines[0:0] = [f"engine: {observed.engine} {printable(observed.version, 60)}"]
    lines += [f"also: {printable(text, 300)}" for text in repair.advice]
    for n, change in enumerate(repair.changes):
        flags = printable(" ".join(change.flags), 200)
        lines.append(f"{'change' if n == 0 else 'or'}: {flags} ({printable(change.because, 200)})")
    lines += [f"basis: {printable(text, 300)}" for text in repair.basis]
    if not repair.is_command and repair.changes:
        lines.append("the command is rebuilt from the log: name your own with -- COMMAND")
    lines += [f"the log lacks: {printable(text, 300)}" for text in repair.missing]
    return lines
