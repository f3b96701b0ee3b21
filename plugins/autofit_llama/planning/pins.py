"""What the user has fixed, and what that leaves open.

Everything after `--`, in a wrapped command or in `LLAMA_ARG_*` is a constraint: kept as it was written,
and refused where two of them (or one and a wish) cannot both hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from shlex import join
from typing import Any

from autofit.domain.machine import Device, Machine
from autofit.domain.plan import Decision, Finding
from autofit.domain.request import Request
from autofit.domain.text import printable
from autofit.domain.units import format_bytes
from autofit.domain.values import dataclass, replace
from autofit.errors import UsageError
from autofit.planning.decisions import argument, remark, why_kept
from autofit.planning.devices import choose

from autofit_llama.command.model_files import model_of
from autofit_llama.command.options import PYTHON_SERVER, SECRET, is_flag
from autofit_llama.command.parse import Command, settings_of
from autofit_llama.command.reading import Reading
from autofit_llama.command.settings import LlamaSettings
from autofit_llama.command.values import AUTO_LAYERS
from autofit_llama.command.write import render
from autofit_llama.engine.naming import find_version
from autofit_llama.engine.versions import Version
from autofit_llama.launch.process import devices_here, engine_devices
from autofit_llama.model.context import MAX_SEQUENCES
from autofit_llama.model.hparams import HParams
from autofit_llama.planning.search import Bounds
from autofit_llama.planning.topics import topic_of

_FLAGS = {
    "n_ctx": "-c", "n_gpu_layers": "-ngl", "tensor_split": "-ts", "overrides": "-ot", "n_parallel": "-np",
    "n_ubatch": "-ub", "n_batch": "-b", "type_k": "-ctk", "type_v": "-ctv", "devices": "-dev",
}  # fmt: skip
NAMED_BY_DEVICE = 9703  #: the first recorded build that calls memory behind a server `RPC0[HOST:PORT]`
_MOVES_FFN = frozenset(("cpu_moe", "n_cpu_moe", "n_cpu_ffn"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """The user's own flags: what they say, and how they were written."""

    reading: Reading
    settings: LlamaSettings
    version: Version
    findings: tuple[Finding, ...]

    tokens: tuple[str, ...]  #: the flags as they were written, without the program
    request: Request  #: says of each token where it comes from

    @property
    def is_python(self) -> bool:
        """Whether the program is llama-cpp-python's server: one sequence, whole layers, flags of its own."""
        return self.reading.program == PYTHON_SERVER

    def word(self, name: str) -> str:
        """The flag of a setting, as messages write it."""
        return f"--{name}" if self.is_python else _FLAGS[name]

    def written(self, settings: LlamaSettings) -> tuple[str, ...]:
        """The flags of the program that say `settings`."""
        return render(settings, version=self.version, program=self.reading.program)

    def decisions(self) -> Iterator[Decision]:
        """One for each flag, in order, those of variables first: a command says all that it was planned with."""
        for key, replaced in self.reading.unwritten("file"):
            value = "" if key.option.key in SECRET else join(key.written()[1:])
            because = "overridden by a later value" if replaced else f"set in {key.path}"
            yield remark(key.spelling, value, "settings file", because, topic_of(key.option.key))
        for variable, replaced in self.reading.unwritten("env"):
            if replaced or variable.option.key in (*SECRET, "model"):
                because = "overridden by an argument" if replaced else "set in the environment"
                yield remark(variable.spelling, "", "environment", because, topic_of(variable.option.key))
            else:
                setting, *values = variable.written()
                because, topic = f"{variable.spelling} is set", topic_of(variable.option.key)
                yield argument(setting, values, "environment", because, topic=topic)
        flags = iter([flag for flag in self.reading.flags if flag.origin == "argv"])
        flag, at = next(flags, None), 0
        while at < len(self.tokens):
            token = self.tokens[at]
            spelled = token.replace("_", "-") if token.startswith("--") else token
            if flag is not None and flag.spelling in (spelled, token):
                n, origin = flag.n_words or 1 + flag.option.n_values, self.request.arg_origin(at)
                because, topic = why_kept(origin), topic_of(flag.option.key)
                yield argument(token, self.tokens[at + 1 : at + n], origin, because, topic=topic)
                flag, at = next(flags, None), at + n
            else:
                end = at + 1
                while end < len(self.tokens) and not is_flag(self.tokens[end]):
                    end += 1
                yield argument(
                    token,
                    self.tokens[at + 1 : end],
                    self.request.arg_origin(at),
                    "unknown to autofit, passed through; its memory is not counted",
                )
                at = end


def read_pins(command: Command, request: Request) -> Pins:
    """What a parsed command pins, but for what an option of autofit's replaces.

    Raises:
        UsageError: a version that autofit does not know.
    """
    version, findings = find_version(request.engine_version)
    reading = command.reading
    # What is wished stands in the command, which the engine takes before its variables and files.
    wished = {"ctx-size": request.context is not None, "parallel": request.parallel is not None}
    kept = tuple(flag for flag in reading.flags if flag.origin == "argv" or not wished.get(flag.option.key))
    settings = command.settings
    if len(kept) < len(reading.flags):
        reading = replace(reading, flags=kept)
        settings = settings_of(reading)
    model = reading.given("model")
    if model is not None and model.origin != "argv":
        settings = replace(settings, model=None)  # the model that is planned for takes its place
    return Pins(
        reading=reading,
        settings=settings,
        version=version,
        findings=findings,
        tokens=tuple(command.argv[len(reading.words) :]),
        request=request,
    )


def check_pins(pins: Pins, request: Request, machine: Machine, hp: HParams) -> None:
    """Refuse pins that contradict each other, a wish, or the machine.

    Raises:
        UsageError: which two, in one line.
    """
    given = pins.settings
    if pins.is_python and request.parallel not in (None, 1):
        raise UsageError(
            f"--parallel {request.parallel}: llama_cpp.server serves one sequence", hint="use llama-server"
        )
    for name, wish, word in (
        ("n_parallel", request.parallel, "--parallel"),
        ("n_ctx", request.context or None, "--context"),
    ):
        value = getattr(given, name)
        if value is None or wish is None:
            continue
        wanted = wish * _slots(given, request) if name == "n_ctx" else wish
        if value != wanted:
            raise UsageError(
                f"{pins.word(name)} {value} contradicts {word} {wish}",
                hint="leave one of them out" + ("" if pins.is_python else "; -c counts all sequences"),
            )
    if given.n_parallel is not None and not -1 <= given.n_parallel <= MAX_SEQUENCES:
        raise UsageError(f"-np {given.n_parallel}: llama.cpp takes 1 to {MAX_SEQUENCES} sequences")
    if given.n_ctx is not None and given.n_ctx < 0:
        raise UsageError(f"-c {given.n_ctx}: the context must be a number of tokens, or 0 for the trained context")
    _check_limits(pins, request)
    _check_model(pins, request)
    _check_cache_types(pins, request)
    if given.devices is not None and request.device:
        raise UsageError("-dev contradicts --device", hint="leave one of them out")
    n_devices = len(devices_of(pins, request, machine))
    if given.tensor_split is not None and len(given.tensor_split) != n_devices:
        numbers = f"{pins.word('tensor_split')} has {_count(len(given.tensor_split), 'number')}"
        raise UsageError(
            f"{numbers} for {_count(n_devices, 'device')}",
            hint="give one for each device, in the engine's order",
        )
    if given.kv_unified_per_slot is not None and given.n_ctx is not None:
        raise UsageError("--kv-unified-per-slot contradicts -c", hint="leave one of them out")
    if hp.n_expert == 0:
        wrong = next((o for o in given.overrides if o.kind in ("cpu_moe", "n_cpu_moe")), None)
        if wrong is not None and (wrong.kind == "cpu_moe" or wrong.n_blocks):
            word = "-cmoe" if wrong.kind == "cpu_moe" else f"-ncmoe {wrong.n_blocks}"
            raise UsageError(
                f"{word}: this model has no experts", hint="-ncffn N keeps dense feed-forward weights in RAM"
            )


def _check_limits(pins: Pins, request: Request) -> None:
    given, word = pins.settings, pins.word("n_ctx")
    if not given.n_ctx:
        return
    each = given.n_ctx if given.kv_unified else given.n_ctx // _slots(given, request)
    low, high = request.min_context, request.max_context
    if low is not None and each < low:
        raise UsageError(f"{word} {given.n_ctx} leaves a sequence {each} tokens, less than --min-context {low}")
    if high is not None and each > high:
        raise UsageError(f"{word} {given.n_ctx} gives a sequence {each} tokens, more than --max-context {high}")


def _check_model(pins: Pins, request: Request) -> None:
    """A command that loads another model than the one that was measured would be a plan for neither."""
    for key in ("hf-repo", "model-url", "docker-repo"):
        elsewhere = pins.reading.given(key)
        if elsewhere is not None and elsewhere.origin != "argv":
            raise UsageError(
                f"{elsewhere.spelling}{f' of {elsewhere.path}' if elsewhere.path else ''} makes llama.cpp load another "
                f"model, whatever -m says: {printable(str(elsewhere.value), 80)}",
                hint="unset it",
            )
    elsewhere = next(filter(None, map(pins.reading.given, ("hf-repo", "model-url", "docker-repo"))), None)
    if elsewhere is not None and request.model_reference not in (None, model_of(pins.settings)):
        raise UsageError(
            f"{elsewhere.spelling} {printable(str(elsewhere.value), 80)} contradicts the model that is planned for, "
            f"{printable(str(request.model_reference), 80)}",
            hint="name the model once",
        )
    flag = pins.reading.given("model")
    if flag is None or flag.origin != "argv" or request.model_reference is None:
        return
    if str(flag.value) != request.model_reference:
        raise UsageError(
            f"{flag.spelling} {printable(str(flag.value), 80)} contradicts the model that is planned for, "
            f"{printable(request.model_reference, 80)}",
            hint="name the model once",
        )


def _check_cache_types(pins: Pins, request: Request) -> None:
    if request.kv is None or request.kv == "auto":
        return
    for value, name in ((pins.settings.type_k, "type_k"), (pins.settings.type_v, "type_v")):
        if value not in (None, request.kv):
            raise UsageError(f"{pins.word(name)} {value} contradicts --kv {request.kv}", hint="leave one of them out")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def check_margins(margins: Mapping[str, int], machine: Machine, *, is_asked: bool) -> None:
    """Refuse a margin that leaves nothing. `is_asked`: it is the user's, not the default.

    Raises:
        UsageError: it is as large as what the device has.
    """
    for device in machine.devices:
        room = device.total_bytes if device.total_bytes is not None else device.free_bytes
        margin = margins.get(device.id, 0)
        if room is not None and margin >= room > 0:
            has = f"{device.id} has {format_bytes(room)} in all"
            if is_asked:
                raise UsageError(
                    f"--margin {format_bytes(margin)} leaves nothing: {has}",
                    hint="write less: --margin 1GiB, or 8%; one for each device: --margin 1GiB,2GiB",
                )
            raise UsageError(
                f"{has}, no more than what is kept free for other programs ({format_bytes(margin)})",
                hint="name its real size, or keep less free: --margin 0",
            )


def _slots(given: LlamaSettings, request: Request) -> int:
    if given.n_parallel is not None and given.n_parallel > 0:
        return given.n_parallel
    return request.parallel or 1


def devices_of(pins: Pins, request: Request, machine: Machine) -> tuple[Device, ...]:
    """The devices that the search may use: the listed ones, or the one of `-sm none -mg N`.

    Raises:
        UsageError: a word that means none of them.
    """
    listed, given = listed_devices(pins, request, machine), pins.settings
    if given.split_mode != "none" or not listed:
        return listed
    main = given.main_gpu or 0
    if main >= len(listed):
        raise UsageError(f"-mg {main}: there {'is' if len(listed) == 1 else 'are'} {_count(len(listed), 'device')}")
    return (listed[main],) if main >= 0 else ()


def listed_devices(pins: Pins, request: Request, machine: Machine) -> tuple[Device, ...]:
    """Those of `-dev` in its order, those wished for, or the engine's own choice.

    Raises:
        UsageError: a word that means none of them.
    """
    given = pins.settings
    every = engine_devices(machine, merged=given.split_mode == "tensor")
    if given.devices is not None:
        by_name = dict(every)
        unknown = next((name for name in given.devices if name not in by_name), None)
        if unknown is not None:
            raise UsageError(f"-dev {unknown[:40]}: no such device here", hint=devices_here(by_name, unknown))
        return tuple(by_name[name] for name in given.devices)
    devices = tuple(device for _, device in every)
    return choose(devices, request.device, {device.id: name for name, device in every})


def bounds_of(pins: Pins, devices: Sequence[Device], n_blocks: int) -> Bounds:
    """What the pins leave to the search, for a model of `n_blocks` blocks and an output layer."""
    given, n = pins.settings, n_blocks + 1
    heads: Sequence[int] = range(n + 1) if devices else (n,)
    if devices and given.n_gpu_layers is not None:
        heads = (0 if given.n_gpu_layers <= AUTO_LAYERS else max(0, n - given.n_gpu_layers),)
    moves = pins.is_python or any(override.kind in _MOVES_FFN for override in given.overrides)
    return Bounds(
        heads=heads,
        n_cpu_ffn=(0, 0) if moves else (0, n),
        order=None if given.devices is None and not pins.is_python else tuple(device.id for device in devices),
        split=given.tensor_split if len(devices) > 1 else None,  # one device takes every row, whatever its number
        parts=not moves,
        # A buffer of a remote device is named by its server's address, in builds since this one.
        overflow=not pins.is_python
        and all(device.api != "rpc" or (device.node and pins.version.build >= NAMED_BY_DEVICE) for device in devices),
    )


def relaxed(pins: Pins, name: str) -> Pins:
    """The same pins without one of them, to find the nearest value that can hold."""
    changes: dict[str, Any] = {name: () if name == "overrides" else None}
    return replace(pins, settings=replace(pins.settings, **changes))
