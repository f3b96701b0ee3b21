"""What llama.cpp's own `--fit` makes of a command: a replay of common/fit.cpp (llama.cpp b11311).

The engine measures with dry runs (`common_get_device_memory_data`), here the caller does with `measure`. All else is
the engine's: which settings it may change, in what order, how it rounds, and when it gives up. It gives up late: the
context it has shortened by then stays short (`cparams` is changed in place), and the program loads with that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from autofit.domain.values import NamedTuple, dataclass, replace

from autofit_llama.command.values import AUTO_LAYERS
from autofit_llama.engine.vocabulary import Override, SplitMode

CONTEXT_STEP = 256  #: tokens of one stream that a shortened context is rounded down to
MAX_OVERRIDES = 4096  #: llama_max_tensor_buft_overrides

_U32 = (1 << 32) - 1
#: what of a layer goes elsewhere; names of the enumeration `common_layer_fraction_t`, less its prefix
_Overflow = Literal["ATTN", "UP", "GATE", "MOE"]
_PATTERNS: dict[_Overflow, str] = {
    "ATTN": r"blk\.{}\.ffn_(gate|up|gate_up|down).*",
    "UP": r"blk\.{}\.ffn_(gate|gate_up|down).*",
    "GATE": r"blk\.{}\.ffn_down.*",
    "MOE": r"blk\.{}\.ffn_(up|down|gate_up|gate)_(ch|)exps",
}
_ALL_EXPERTS = Override(kind="pattern", pattern=r"blk\.\d+\.ffn_(up|down|gate_up|gate)_(ch|)exps")


@dataclass(frozen=True, slots=True, kw_only=True)
class FitTask:
    """What the program hands to `common_fit_params`.

    `n_ctx` 0 is open. `n_ctx_min` is `--fit-ctx`, `None` after `-c 0`, which keeps the whole context. `n_layer` counts
    draft layers only where these are loaded. `free_bytes` are those the engine sees, its own context on each device
    taken off; `host_total_bytes` is RAM, all of it, which counts without a device alone.
    """

    n_ctx: int
    n_ctx_min: int | None
    n_ctx_train: int
    n_streams: int
    n_layer: int
    n_expert: int
    free_bytes: tuple[int, ...]
    margin_bytes: tuple[int, ...]
    host_total_bytes: int
    buffer_names: tuple[str, ...]
    n_gpu_layers: int = AUTO_LAYERS
    tensor_split: tuple[float, ...] = ()
    overrides: tuple[Override, ...] = ()
    split_mode: SplitMode = "layer"


@dataclass(frozen=True, slots=True, kw_only=True)
class FitChoice:
    """The arguments that `--fit` decides about, as it tries them and as it leaves them."""

    n_ctx: int
    n_gpu_layers: int
    tensor_split: tuple[float, ...]
    overrides: tuple[Override, ...]


def arguments_of(choice: FitChoice) -> tuple[str, ...]:
    """`choice` as llama-fit-params prints it (tools/fit-params/fit-params.cpp)."""
    argv = ["-c", str(choice.n_ctx), "-ngl", str(choice.n_gpu_layers)]
    split = [str(int(part)) for part in choice.tensor_split]
    while len(split) > 1 and split[-1] == "0":
        split.pop()
    if len(split) > 1:
        argv += ["-ts", ",".join(split)]
    overrides = [f"{one.pattern}={one.buffer}" for one in choice.overrides if one.kind == "pattern"]
    return (*argv, "-ot", ",".join(overrides)) if overrides else tuple(argv)


class Measured(NamedTuple):
    """Bytes of one dry run: model, context and compute together per device and on the host; and the model's alone."""

    device_bytes: tuple[int, ...]
    model_bytes: tuple[int, ...]
    host_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """`choice` is what is loaded. `gave_up` is the engine's reason where it could not reach its target."""

    choice: FitChoice
    gave_up: str | None = None


Measure = Callable[[FitChoice], Measured]


class _GivesUpError(Exception):
    pass


class _Layers(NamedTuple):
    """Layers of one device; the last `n_part` of them lack `overflow` (the first of these) or their experts."""

    n_layer: int = 0
    n_part: int = 0
    overflow: _Overflow = "MOE"

    @property
    def n_full(self) -> int:
        return (self.n_layer - self.n_part) & _U32

    def plus(self, n_layer: int, n_part: int) -> _Layers:
        """Counts are unsigned in the engine, and wrap."""
        return self._replace(n_layer=(self.n_layer + n_layer) & _U32, n_part=(self.n_part + n_part) & _U32)


_Split = tuple[_Layers, ...]


def fit(task: FitTask, measure: Measure) -> Fitted:
    """The arguments that the engine loads with, once `--fit` has had its say.

    Source: common/fit.cpp:common_params_fit_impl (its steps 1 to 4).
    """
    start = FitChoice(
        n_ctx=task.n_ctx,
        n_gpu_layers=task.n_gpu_layers,
        tensor_split=task.tensor_split,
        overrides=task.overrides,
    )
    if task.split_mode == "tensor":
        return Fitted(choice=start, gave_up="--fit does not support -sm tensor")
    longest = min(task.n_ctx_train * task.n_streams, _U32)
    choice = start if task.n_ctx else replace(start, n_ctx=longest)
    full = measure(choice)
    if _keeps_margins(task, full):
        return Fitted(choice=choice)
    try:
        choice, enough = _shorten(task, choice, full, longest, measure)
        if enough:
            return Fitted(choice=choice)
        _check_open(task)
        return Fitted(choice=_Filling(task, choice, measure).fill())
    except _GivesUpError as reason:
        return Fitted(choice=choice, gave_up=str(reason))


def _keeps_margins(task: FitTask, full: Measured) -> bool:
    if not task.free_bytes:
        return task.host_total_bytes - full.host_bytes >= task.margin_bytes[0]
    triples = zip(task.free_bytes, full.device_bytes, task.margin_bytes, strict=False)
    return all(free - used >= margin for free, used, margin in triples)


def _shorten(
    task: FitTask, choice: FitChoice, full: Measured, longest: int, measure: Measure
) -> tuple[FitChoice, bool]:
    """Step 2: a shorter context, and whether that is all there is to do.

    Between the shortest and the longest context memory is taken to be linear; with several devices some is kept, as
    layers are whole.
    """
    n = len(task.free_bytes)
    target = (sum(task.free_bytes) if n else task.host_total_bytes) - sum(task.margin_bytes[: max(n, 1)])
    used = sum(full.device_bytes) if n else full.host_bytes
    shortest = _U32 if task.n_ctx_min is None else min(task.n_ctx_min * task.n_streams, _U32)
    if target >= used or task.n_ctx or longest <= shortest:
        return choice, False
    if n > 1:
        layers = min(task.n_gpu_layers & _U32, task.n_layer)
        per_layer = _quotient(sum(full.model_bytes), layers)
        target -= _quotient((n + 1) * per_layer, 2 if task.n_expert == 0 else 6)
    choice = replace(choice, n_ctx=shortest)
    least = measure(choice)
    used_least = sum(least.device_bytes) if n else least.host_bytes
    if target <= used_least:
        return choice, False
    n_ctx = shortest + _quotient((longest - shortest) * (target - used_least), used - used_least)
    n_ctx -= n_ctx % (CONTEXT_STEP * task.n_streams)
    return replace(choice, n_ctx=max(n_ctx, shortest)), n <= 1


def _check_open(task: FitTask) -> None:
    """What the engine changes only where nobody else has."""
    if not task.free_bytes:
        raise _GivesUpError("the model does not fit in RAM even with the shortest context")
    if task.n_gpu_layers != AUTO_LAYERS:
        raise _GivesUpError("-ngl is set")
    if len(task.free_bytes) > 1:
        if any(task.tensor_split[: len(task.free_bytes)]):
            raise _GivesUpError("-ts is set")
        if task.split_mode == "row":
            raise _GivesUpError("--fit does not support -sm row")
    if task.overrides:
        raise _GivesUpError("-ot, -cmoe, -ncmoe or -ncffn is set")


class _Filling:
    """Steps 3 and 4: which layers, and which of their tensors, each device holds."""

    def __init__(self, task: FitTask, choice: FitChoice, measure: Measure) -> None:
        self.task, self.choice, self.measure = task, choice, measure
        self.n = len(task.free_bytes)
        self.targets = [free - margin for free, margin in zip(task.free_bytes, task.margin_bytes, strict=False)]
        self.overflow_to = ["CPU"] * self.n  #: where the first partial layer of a device leaves its rest
        self.layers: _Split = (_Layers(),) * self.n
        self.used: tuple[int, ...] = ()

    def fill(self) -> FitChoice:
        surplus = 0
        if self.task.n_expert:
            dense = self.measure(replace(self.choice, overrides=(_ALL_EXPERTS,)))
            surplus = sum(self.targets) - sum(dense.device_bytes)
        self.used = self._memory(self.layers)
        for device in reversed(range(self.n)):
            self._fill_back(device)
        if self.task.n_expert and surplus > 0:
            self._convert()
        return self._choice(self.layers, self.overflow_to)

    def _fill_back(self, device: int) -> None:
        """Layers for one device, from the last one on: all that are left, or as many as false position finds."""
        left = self.task.n_layer + 1 - sum(layers.n_layer for layers in self.layers[device + 1 :])
        if left <= 0:
            return
        last = device == self.n - 1
        high = self._with(self.layers, device, n_layer=left, n_part=(left - last) if self.task.n_expert else 0)
        used_high = self._memory(high)
        if used_high[device] <= self.targets[device]:
            self.layers, self.used = high, used_high
            return
        while (delta := high[device].n_layer - self.layers[device].n_layer) > 1:
            step = self._step(delta, device, used_high)
            n_part = 0
            if self.task.n_expert:  # the output layer is never partial
                n_part = step - 1 if last and self.layers[device].n_part == 0 else step
            test = self._plus(self.layers, device, step, n_part)
            used = self._memory(test)
            if used[device] <= self.targets[device]:
                self.layers, self.used = test, used
            else:
                high, used_high = test, used

    def _step(self, delta: int, device: int, used_high: Sequence[int]) -> int:
        """Where a line between too few and too many layers meets the target."""
        missing, slope = self.targets[device] - self.used[device], used_high[device] - self.used[device]
        return min(max(_quotient(delta * missing, slope) & _U32, 1), delta - 1)

    def _convert(self) -> None:
        """Step 4: layers without experts at the back become whole ones at the front, device by device."""
        dense = self.n
        while dense > 0 and self.layers[dense - 1].n_layer > 0:
            dense -= 1
        device = 0
        while device <= dense < self.n:
            dense = self._fill_front(device, dense)
            if self.layers[dense].n_layer > (0 if device < self.n - 1 else 1):
                dense = self._fill_part(device, dense)
            device += 1

    def _fill_front(self, device: int, dense: int) -> int:
        """As many whole layers as the device takes; the first device that has layers without experts after that."""
        high = self.layers
        for other in range(dense, self.n):
            move = high[other].n_layer - (other == self.n - 1)
            high = self._plus(high, device, move, 0)
            high = self._with(high, other, n_layer=high[other].n_layer - move, n_part=0)
        used_high = self._memory(high)
        if used_high[device] <= self.targets[device]:
            self.layers, self.used = high, used_high
            return self.n - 1
        while (delta := high[device].n_full - self.layers[device].n_full) > 1:
            step = self._step(delta, device, used_high)
            test, at, converted = self.layers, dense, 0
            while at < self.n:
                n = min(step - converted, test[at].n_part)
                test = self._plus(self._plus(test, at, -n, -n), device, n, 0)
                converted += n
                if test[at].n_part > 0:
                    break
                at += 1
            used = self._memory(test)
            if used[device] <= self.targets[device]:
                self.layers, self.used, dense = test, used, at
            else:
                high, used_high = test, used
        return dense

    def _fill_part(self, device: int, dense: int) -> int:
        """A part of one more layer: attention and up, with gate too, or attention alone."""
        moved = self._plus(self._plus(self.layers, dense, -1, -1), device, 1, 1)
        after = dense + (moved[dense].n_part == 0)
        to = list(self.overflow_to)
        if device < self.n - 1:
            to[device] = self.task.buffer_names[device + 1]
        if not self._take_part(device, moved, "UP", to):
            to_attn = self._take_part(device, moved, "ATTN", to)
            return after if to_attn else dense
        self._take_part(device, moved, "GATE", to)
        return after

    def _take_part(self, device: int, moved: _Split, overflow: _Overflow, to: list[str]) -> bool:
        test = tuple(layers._replace(overflow=overflow) if i == device else layers for i, layers in enumerate(moved))
        used = self._memory(test, to)
        if not all(used[i] < self.targets[i] for i in (device, device + 1) if i < self.n):
            return False
        self.layers, self.used, self.overflow_to = test, used, to
        return True

    def _memory(self, layers: _Split, overflow_to: Sequence[str] | None = None) -> tuple[int, ...]:
        return self.measure(self._choice(layers, self.overflow_to if overflow_to is None else overflow_to)).device_bytes

    def _choice(self, layers: _Split, overflow_to: Sequence[str]) -> FitChoice:
        """As arguments (common/fit.cpp:set_ngl_tensor_split_tbo)."""
        n_gpu_layers = sum(one.n_layer for one in layers)
        overrides: list[Override] = []
        il = self.task.n_layer + 1 - n_gpu_layers
        for one, to in zip(layers, overflow_to, strict=True):
            il = (il + one.n_full) & _U32
            for i in range(il, (il + one.n_part) & _U32):
                if len(overrides) + 1 >= MAX_OVERRIDES:
                    raise _GivesUpError(f"more than {MAX_OVERRIDES - 1} tensor overrides would be needed")
                kind: _Overflow = one.overflow if i == il else "MOE"
                pattern, buffer = _PATTERNS[kind].format(i), to if i == il else "CPU"
                overrides.append(Override(kind="pattern", pattern=pattern, buffer=buffer))
            il = (il + one.n_part) & _U32
        return replace(
            self.choice,
            n_gpu_layers=n_gpu_layers,
            tensor_split=tuple(float(one.n_layer) for one in layers) if self.n > 1 else self.choice.tensor_split,
            overrides=tuple(overrides),
        )

    @staticmethod
    def _with(layers: _Split, device: int, **changes: int) -> _Split:
        return tuple(one._replace(**changes) if i == device else one for i, one in enumerate(layers))  # type: ignore[arg-type]

    @staticmethod
    def _plus(layers: _Split, device: int, n_layer: int, n_part: int) -> _Split:
        return tuple(one.plus(n_layer, n_part) if i == device else one for i, one in enumerate(layers))


def _quotient(a: int, b: int) -> int:
    """Integer division as C does it: toward zero.

    Raises:
        _GivesUpError: by zero, which ends the engine.
    """
    if b == 0:
        raise _GivesUpError("llama.cpp divides by zero where more layers take no more memory")
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
