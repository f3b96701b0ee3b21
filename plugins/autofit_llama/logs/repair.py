"""Why a run of llama.cpp ran out of memory, and the smallest change with which it would not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import combinations, product

from autofit.backend import Backend
from autofit.domain.machine import Device, Machine
from autofit.domain.model import ModelSpec
from autofit.domain.observed import Failure, Observed
from autofit.domain.plan import Plan
from autofit.domain.repair import Change, Repair
from autofit.domain.request import Request
from autofit.domain.units import GIB, MIB, format_bytes
from autofit.domain.values import NamedTuple, replace
from autofit.errors import AutofitError, UsageError

from autofit_llama.command.settings import LlamaSettings
from autofit_llama.engine.naming import find_version
from autofit_llama.engine.versions import Version
from autofit_llama.logs.command import command_of, with_flags
from autofit_llama.logs.devices import with_own_context
from autofit_llama.logs.explain import advice_of, cause_of, missing_of
from autofit_llama.logs.model import rebuild
from autofit_llama.model.load import read_hparams

CONTEXT_STEP = 1024
LEAST_TOKENS = 1024
SMALL_BYTES = 64 * MIB
"""Differences up to this are what allocators round."""
FIT_TARGET_MIB = 1024
MOST_TOGETHER = 3  #: answers of several changes that are shown
SPLITS = 8
"""Splits of layers over devices that are tried."""
RUN_TIME_BYTES = 256 * MIB
"""What a device had too little of at least, where it ran short while running: the log does not say how much."""


class Case(NamedTuple):
    """A command on a machine that is known to be too small for it."""

    backend: Backend
    argv: tuple[str, ...]
    model: ModelSpec
    machine: Machine
    request: Request
    version: Version
    at_start: bool = False  #: what memory grows to later is left out: of RAM the log tells what the start found

    def holds(self, plan: Plan | None) -> bool:
        """Whether a command fits, as far as it is judged here."""
        return plan is not None and (plan.memory.starts if self.at_start else plan.fits)

    def check(self, flags: Sequence[str] = ()) -> Plan | None:
        """The command with these flags; `None`: the engine has no such flag, or refuses it."""
        try:
            argv = with_flags(self.argv, flags, self.version) if flags else self.argv
            parsed = self.backend.parse(argv, self.request.engine_env, version=self.request.engine_version)
            return self.backend.check(parsed, self.model, self.machine, replace(self.request, nearest=False))
        except AutofitError:
            return None


def repair(
    backend: Backend, observed: Observed, argv: Sequence[str], machine: Machine, request: Request,
    model: ModelSpec | None,
) -> Repair:  # fmt: skip
    """The answer to a log: `argv` is the command if it is known, `model` the model if its file is at hand."""
    version = (
        find_version(observed.version)[0] if request.engine_version is None else find_version(request.engine_version)[0]
    )
    request = replace(request, engine_version=request.engine_version or observed.version)
    failure = observed.failure
    basis: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    if model is None:
        rebuilt, missing = rebuild(observed)
        if rebuilt is not None:
            model, error = rebuilt.model, rebuilt.error_bytes
            told = (
                "agree with the log" if rebuilt.exact else f"were {format_bytes(abs(error))} off and are scaled to it"
            )
            basis = (f"the model is rebuilt from the log: {rebuilt.how}; its sizes {told}",)
    is_command = bool(argv)
    words = tuple(argv) or command_of(observed, version)
    cause, advice = cause_of(observed), advice_of(observed)
    resident = observed.facts.get("killed.resident_bytes")
    says_ram = machine.host.available_bytes is not None or isinstance(resident, int)
    if failure is not None and failure.cause == "RAM" and not says_ram:
        advice += ("the log does not say how much RAM there is: --ram SIZE does",)
    if failure is not None and failure.cause == "RAM" and words:
        spared = tuple(_on_host(observed, words, version))
        if spared:
            return Repair(cause=cause, changes=spared, advice=advice, basis=basis, is_command=is_command)
    on_host = failure is not None and failure.cause == "RAM" and (failure.requested_bytes is not None or says_ram)
    if failure is None or not failure.is_memory or model is None or not (machine.devices or on_host):
        lines = missing_of(observed, missing)
        return Repair(cause=cause, advice=advice, missing=lines, basis=basis, is_command=is_command)
    machine = replace(machine, devices=tuple(map(with_own_context, machine.devices)))
    case = Case(backend, words, model, machine, request, version, at_start=on_host and failure.stage != "ready")
    case, lacks, note = (_bounded_host if on_host else _bounded)(case, observed, failure)
    found = tuple(changes(case, lacks))
    return Repair(
        cause=cause,
        changes=found,
        advice=advice,
        missing=() if found else missing_of(observed, missing),
        basis=(*basis, *note),
        is_command=is_command,
        lacks_bytes=lacks,
    )


def _bounded(case: Case, observed: Observed, failure: Failure) -> tuple[Case, int | None, tuple[str, ...]]:
    """The case on a machine that has no more than the failure shows, so that what failed does not fit there."""
    place = failure.place
    device = next((one for one in case.machine.devices if one.id == place), None)
    if device is None:
        return case, None, ()
    notes: list[str] = []
    if failure.requested_bytes is not None and failure.cause != "limit":
        predicted = _predicted(case, device)
        held = sum(part.n_bytes for part in observed.parts if part.place == place and part.group != "breakdown")
        most = held + failure.requested_bytes - 1 + sum(predicted.get(kind, 0) for kind in ("runtime", "reserve"))
        if device.free_bytes is None or device.free_bytes > most:
            device = replace(device, free_bytes=most)
            notes.append(f"{place} has less than {format_bytes(most)} for this process: the failed allocation shows it")
        more = failure.requested_bytes - predicted.get(failure.kind or "", failure.requested_bytes)
        if more > SMALL_BYTES and failure.kind != "weights":
            device = replace(device, free_bytes=max(0, (device.free_bytes or 0) - more))
            notes.append(
                f"what failed is {format_bytes(more)} larger than its figures; as much is kept free on {place}"
            )
    if device.free_bytes is None and device.total_bytes is not None:
        device = replace(device, free_bytes=device.total_bytes)
    case = _with(case, device)
    room = _room(case, device)
    if room is not None and room >= 0 and failure.cause != "limit":
        # it should have fitted: there is something that the figures do not have, and it is larger than the room
        more = room + (1 if failure.requested_bytes else RUN_TIME_BYTES)
        device = replace(device, free_bytes=max(0, (device.free_bytes or 0) - more))
        notes.append(
            f"{format_bytes(more)} more are kept free on {place}: by its figures the command would have fitted"
        )
        case, room = _with(case, device), -1
    return case, None if room is None else max(0, -room), tuple(notes)


def _bounded_host(case: Case, observed: Observed, failure: Failure) -> tuple[Case, int | None, tuple[str, ...]]:
    """The same for RAM: it has less than what was held there, read from mapped files apart, and what failed; or than
    what the process had when the kernel killed it."""
    host, resident = case.machine.host, observed.facts.get("killed.resident_bytes")
    if failure.requested_bytes is not None:
        most: int | None = _held_in_ram(case, observed, failure) + failure.requested_bytes - 1
    else:
        most = resident if isinstance(resident, int) else None
    free = min(n for n in (host.available_bytes, most) if n is not None)
    case = case._replace(machine=replace(case.machine, host=replace(host, available_bytes=free)))
    notes = [f"RAM has less than {format_bytes(free)} for this process"]
    room = _room_in_ram(case)
    if failure.requested_bytes is None and room is not None and room >= 0:
        more = room + RUN_TIME_BYTES
        host = replace(host, available_bytes=max(0, free - more))
        case = case._replace(machine=replace(case.machine, host=host))
        notes.append(f"{format_bytes(more)} more are kept free: by its figures the command would have fitted")
        room = _room_in_ram(case)
    return case, None if room is None else max(0, -room), tuple(notes)


def _held_in_ram(case: Case, observed: Observed, failure: Failure) -> int:
    """What was reported of RAM before an allocation failed, and what is not reported."""
    held = sum(part.n_bytes for part in observed.parts if part.is_host and not part.mapped)
    plan = case.check()
    beside = ("runtime", "weights") if failure.kind != "weights" else ("runtime",)
    items = () if plan is None else plan.memory.pools[-1].items
    return held + sum(item.n_bytes for item in items if item.kind in beside and not item.when)


def _room_in_ram(case: Case) -> int | None:
    """What the command leaves of RAM, as far as it is judged here; negative: it lacks that."""
    plan = case.check()
    if plan is None:
        return None
    pool = plan.memory.pools[-1]
    return -pool.start_shortfall_bytes if case.at_start else pool.room_bytes


def _room(case: Case, device: Device) -> int | None:
    """What the command leaves of a device's pool; negative: it lacks that."""
    plan = case.check()
    pools = () if plan is None else plan.memory.pools
    return next((pool.room_bytes for pool in pools if pool.id == device.pool), None)


def _with(case: Case, device: Device) -> Case:
    devices = tuple(device if one.id == device.id else one for one in case.machine.devices)
    return case._replace(machine=replace(case.machine, devices=devices))


def _predicted(case: Case, device: Device) -> dict[str, int]:
    """Bytes of each kind on a device, as plans count them, where there is room for all."""
    plan = case._replace(machine=replace(case.machine, devices=_roomy(case.machine.devices))).check()
    items = () if plan is None else next((pool.items for pool in plan.memory.pools if pool.id == device.pool), ())
    found: dict[str, int] = {}
    for item in items:
        found[item.kind] = found.get(item.kind, 0) + item.n_bytes
    return found


def _roomy(devices: Sequence[Device]) -> tuple[Device, ...]:
    return tuple(replace(one, free_bytes=1 << 44, total_bytes=1 << 44) for one in devices)


def _on_host(observed: Observed, argv: tuple[str, ...], version: Version) -> Iterator[Change]:
    """What spares RAM, where RAM ran out: most of what takes it is a choice."""
    failure = observed.failure
    assert failure is not None
    is_repacked = failure.place == "CPU_REPACK" or any(part.place == "CPU_REPACK" for part in observed.parts)
    tried: list[tuple[tuple[str, ...], str]] = []
    if is_repacked:
        tried.append(
            (("--no-repack",), "weights stay mapped from the file as they are: prompts are read slower on the CPU")
        )
    words = set(argv)
    if words & {"--no-mmap", "--mlock"} or "-lm" in words:
        tried.append((("-lm", "mmap"), "weights are mapped from the file, and pages of it may be dropped"))
    if failure.stage == "ready":
        tried.append((("-cram", "0"), "no prompt cache in RAM (8 GiB by default)"))
    for flags, because in tried:
        try:
            yield Change(flags=flags, argv=with_flags(argv, flags, version), because=because)
        except UsageError:
            continue


# -- the changes ------------------------------------------------------------------------------------------


def changes(case: Case, lacks: int | None) -> Iterator[Change]:
    """Changes that are enough, each alone, else the fewest together; what costs least first."""
    if case.check() is not None:
        for _, change in sorted(_alone(case) or _together(case), key=lambda pair: pair[0]):
            yield replace(change, frees_bytes=lacks)


def _alone(case: Case) -> list[tuple[int, Change]]:
    """Changes that are enough, with their ranks."""
    plan = case.check()
    if plan is None:
        return []
    parsed = case.backend.parse(case.argv, case.request.engine_env, version=case.request.engine_version)
    pinned: LlamaSettings = parsed.settings.settings
    return list(_each(case, pinned, plan.context_tokens or 0))


def _together(case: Case) -> list[tuple[int, Change]]:
    """Changes that are enough with others, as few as can be; the best with each of them."""
    firsts = list(_firsts(case))
    everything = [steps[-1] for steps in firsts]
    if not firsts or _enough_with(case, everything) is None:
        return []
    for n in range(1, len(firsts) + 1):
        found = [one for some in combinations(firsts, n) if (one := _first_enough(case, some)) is not None]
        if found:
            return found[:MOST_TOGETHER]
    return []


def _first_enough(case: Case, some: Sequence[Sequence[_Step]]) -> tuple[int, Change] | None:
    """The first choice among these steps with which one more change is enough."""
    if _enough_with(case, [steps[-1] for steps in some]) is None:  # less is not enough either
        return None
    return next((one for steps in product(*some) if (one := _enough_with(case, steps)) is not None), None)


def _enough_with(case: Case, steps: Sequence[_Step]) -> tuple[int, Change] | None:
    """These steps, alone or with one more change that makes them enough."""
    flags = tuple(word for step in steps for word in step.flags)
    plan = case.check(flags)
    if plan is None:
        return None
    argv, because = with_flags(case.argv, flags, case.version), tuple(step.because for step in steps)
    if case.holds(plan):
        return 0, Change(flags=flags, argv=argv, because="; ".join(because), plan=plan)
    others = [(rank, last) for rank, last in _alone(case._replace(argv=argv)) if last.flags[0] not in flags]
    if not others:
        return None
    rank, last = min(others, key=lambda pair: pair[0])
    return rank, replace(last, flags=(*flags, *last.flags), because="; ".join((*because, last.because)))


class _Step(NamedTuple):
    flags: tuple[str, ...]
    because: str


def _firsts(case: Case) -> Iterator[Sequence[_Step]]:
    """What may be changed beside something else, each in its degrees, the least first."""
    pinned, hp, plan = set(case.argv), read_hparams(case.model), case.check()
    if case.machine.host.available_bytes is not None and not pinned & {"-cram", "--cache-ram"}:
        yield [_Step(("-cram", "0"), "no prompt cache in RAM (8 GiB by default)")]
    if not pinned & {"-ub", "--ubatch-size"}:
        yield [_Step(("-ub", "128"), "prompts are read in smaller pieces, slower")]
    n_ctx = (plan and plan.context_tokens) or 0
    shorter = [n_ctx >> k for k in range(1, 8) if n_ctx >> k >= LEAST_TOKENS]
    if shorter:
        yield [_Step(("-c", str(n)), f"a context of {n} tokens instead of {n_ctx}") for n in shorter]
    if not pinned & {"-ctk", "-ctv", "--cache-type-k", "--cache-type-v"}:
        flash = () if pinned & {"-fa", "--flash-attn"} else ("-fa", "on")
        yield [_Step((*flash, "-ctk", "q8_0", "-ctv", "q8_0"), "little precision of the KV cache")]
    if hp.n_expert and not case.at_start and not pinned & {"-ncmoe", "--n-cpu-moe", "-cmoe"}:
        yield [_Step(("-ncmoe", str(hp.n_layer_all)), "the experts stay in RAM, which slows decoding")]


def _each(case: Case, pinned: LlamaSettings, n_ctx: int) -> Iterator[tuple[int, Change]]:
    hp = read_hparams(case.model)
    if not case.at_start:
        yield from _fit_target(case, pinned)
    if (pinned.n_parallel or -1) < 0 and any((*hp.is_swa, *hp.is_recr)):
        yield from _try(case, 1, ("-np", "1"), "one conversation at a time instead of 4")
    yield from _other_split(case, pinned)
    size = pinned.n_ubatch or 512
    while size > 128:
        size = 1 << (size - 1).bit_length() - 1  # the next power of two below
        smaller = list(
            _try(case, 2 if size >= 512 else 5, ("-ub", str(size)), "prompts are read in smaller pieces, slower")
        )
        yield from smaller
        if smaller:
            break
    is_asked = bool(pinned.n_ctx)
    least = case.check(("-c", str(LEAST_TOKENS)))
    if n_ctx > LEAST_TOKENS and case.holds(least):
        best = _most(lambda n: case.holds(case.check(("-c", str(n * CONTEXT_STEP)))), n_ctx // CONTEXT_STEP)
        if best:
            flags, tokens = ("-c", str(best * CONTEXT_STEP)), best * CONTEXT_STEP
            rank = 3 if not is_asked and tokens >= 4096 else 6 if tokens >= 4096 else 9
            yield from _try(case, rank, flags, f"a context of {tokens} tokens instead of {n_ctx}")
    if pinned.type_k in (None, "f16", "bf16") and pinned.type_v in (None, "f16", "bf16"):
        for rank, kind, cost in (
            (4, "q8_0", "little precision of the KV cache"),
            (8, "q4_0", "precision of the KV cache"),
        ):
            quantized = (*(() if pinned.flash_attn == "on" else ("-fa", "on")), "-ctk", kind, "-ctv", kind)
            done = [*_try(case, rank, quantized, f"{cost}; needs flash attention")]
            # it was a switch for years
            done = done or [*_try(case, rank, tuple(word for word in quantized if word != "on"), cost)]
            yield from done
            if done:
                break
    if hp.n_expert and not case.at_start:
        best = _fewest(lambda n: case.holds(case.check(("-ncmoe", str(n)))), hp.n_layer_all)
        if best:
            yield from _try(
                case, 5, ("-ncmoe", str(best)), f"the experts of {best} layers stay in RAM, which slows decoding"
            )
    best = None if case.at_start else _most(lambda n: case.holds(case.check(("-ngl", str(n)))), hp.n_layer_all)
    if best is not None:
        stay = hp.n_layer_all + 1 - best
        yield from _try(case, 8, ("-ngl", str(best)), f"{_layers(stay)} in RAM, which slows everything")


def _layers(n: int) -> str:
    return "1 layer stays" if n == 1 else f"{n} layers stay"


def _fit_target(case: Case, pinned: LlamaSettings) -> Iterator[tuple[int, Change]]:
    """Where the engine fits itself to what is free, it may be told to leave more."""
    if pinned.fit is False or pinned.n_gpu_layers not in (None, -1) or pinned.overrides or pinned.tensor_split:
        return
    now = max(pinned.fit_target_mib or (FIT_TARGET_MIB,))
    flags = ("-fitt", str(now + FIT_TARGET_MIB))
    with suppress(UsageError):
        argv = with_flags(case.argv, flags, case.version)
        because = f"--fit leaves {now + FIT_TARGET_MIB} MiB of each device instead of {now}, for what comes after it"
        yield 0, Change(flags=flags, argv=argv, because=because)


def _other_split(case: Case, pinned: LlamaSettings) -> Iterator[tuple[int, Change]]:
    """Layers by what each device has free, in GiB, and fewer for a device that it is still too many for.

    Where the engine fits itself (`--fit`, no layers given), it splits them itself.
    """
    devices = case.machine.devices
    fits_itself = pinned.fit is not False and pinned.n_gpu_layers in (None, -1) and not pinned.tensor_split
    if case.at_start or len(devices) < 2 or fits_itself or pinned.split_mode not in (None, "layer"):
        return
    if any(device.free_bytes is None for device in devices):
        return
    shares = [(device.free_bytes or 0) // GIB for device in devices]
    for _ in range(SPLITS):
        flags = ("-ts", ",".join(map(str, shares)))
        plan = case.check(flags)
        if plan is None:
            return
        if case.holds(plan):
            yield from _try(case, 1, flags, "layers are dealt out by what each GPU has free")
            return
        short = {pool.id for pool in plan.memory.pools if (pool.room_bytes or 0) < 0}
        shares = [max(0, n - (device.pool in short)) for n, device in zip(shares, devices, strict=True)]
        if not any(shares) or all(device.pool in short for device in devices):
            return


def _try(case: Case, rank: int, flags: tuple[str, ...], because: str) -> Iterator[tuple[int, Change]]:
    plan = case.check(flags)
    if case.holds(plan):
        yield rank, Change(flags=flags, argv=with_flags(case.argv, flags, case.version), because=because, plan=plan)


def _most(fits: Callable[[int], bool], top: int) -> int | None:
    """The largest count up to `top` with which it fits, if more never takes less; `None`: with none."""
    low, high = 0, top
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low if fits(low) else None


def _fewest(fits: Callable[[int], bool], top: int) -> int | None:
    """The smallest count from 1 to `top` with which it fits, if more never takes more; `None`: with none."""
    if not fits(top):
        return None
    low, high = 1, top
    while low < high:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle + 1
    return low
