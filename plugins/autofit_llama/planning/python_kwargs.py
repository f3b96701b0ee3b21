"""The launch for `llama_cpp.Llama(**kwargs)`: a search of its own, as that class is another program.

Its defaults are not llama-server's: no layer on a device, 512 tokens, whole sliding-window caches, no flash attention;
it has no `-ot`, serves one sequence, and keeps logits of a whole batch, on the device and again as `scores` on the
host. So everything is said, and what the plan of the server has no room for is looked for again: a smaller batch first,
then fewer layers on the devices, then a shorter context.

Source: llama_cpp/llama.py:Llama.__init__ (llama-cpp-python 0.3.36).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from autofit.domain.machine import HOST_POOL, Machine
from autofit.domain.model import ModelSpec
from autofit.domain.names import is_elsewhere
from autofit.domain.request import Margin
from autofit.domain.values import replace
from autofit.errors import EngineRefusalError, UsageError

from autofit_llama.command.python_class import python_arguments
from autofit_llama.command.settings import LlamaSettings
from autofit_llama.launch.defaults import launch_of
from autofit_llama.launch.process import engine_devices, run_of
from autofit_llama.memory.estimate import Estimate, Run, estimate

LARGEST_BATCH, LEAST_BATCH, LEAST_CONTEXT = 512, 32, 512
_NOT_ITS: dict[str, Any] = dict.fromkeys(
    (
        "fit",
        "fit_target_mib",
        "fit_ctx",
        "n_parallel",
        "kv_unified",
        "cache_ram_mib",
        "n_checkpoints",
        "checkpoint_min_step",
    )
)


def python_kwargs(
    model: ModelSpec,
    settings: LlamaSettings,
    run: Run,
    found: Estimate,
    machine: Machine,
    margins: Mapping[str, Margin],
) -> tuple[Mapping[str, object], str | None]:
    """The keyword arguments, or none and the reason why the class cannot say this."""
    if not found.memory.fits:
        return {}, None
    if is_elsewhere(model.files[0].path) and not settings.model:
        return {}, "no keyword arguments: llama_cpp.Llama takes a path, and the model is not on this disk"
    context = found.layout.context
    said = replace(
        settings,
        **_NOT_ITS,
        model=settings.model or model.files[0].path,
        n_ctx=context.n_ctx_seq,
        overrides=(),
        flash_attn="on" if found.layout.compute.flash_attn else "off",
        swa_full=settings.swa_full or False,
        devices=None,
    )
    try:
        said = _on_devices(said, settings, run, machine)
        python_arguments(said)
        wider = _Python(model, run, machine, margins)
        for one in _tries(said, wider, most_rows=min(context.n_ubatch, LARGEST_BATCH)):
            return dict(python_arguments(one)), None
    except UsageError as error:
        return {}, f"no keyword arguments: {error.message}"
    return {}, "llama_cpp.Llama keeps the logits of a whole batch, and they do not fit"


def _on_devices(said: LlamaSettings, settings: LlamaSettings, run: Run, machine: Machine) -> LlamaSettings:
    """The devices of the plan, for a class that takes all of them, one, or a share of each in the engine's order.

    Raises:
        UsageError: it cannot say them.
    """
    sliced = run.arguments.sliced
    names = [device.id for _, device in engine_devices(machine, merged=sliced)]
    used = [device.id for device in run.devices]
    if used == names or settings.devices is None:
        return said
    if sliced:
        raise UsageError(
            "llama_cpp.Llama cannot leave out devices with -sm tensor", hint="use -sm layer, or all devices"
        )
    if not used:
        return replace(said, n_gpu_layers=0)
    if len(used) == 1:
        return replace(said, split_mode="none", main_gpu=names.index(used[0]), tensor_split=None)
    if used != [name for name in names if name in used] or settings.tensor_split is None:
        raise UsageError(
            "llama_cpp.Llama cannot change the order of devices",
            hint="name them in the engine's order, or use llama-server",
        )
    rows = dict(zip(used, settings.tensor_split, strict=True))
    return replace(said, tensor_split=tuple(rows.get(name, 0.0) for name in names))


class _Python:
    """What `llama_cpp.Llama` takes with some settings, on one machine."""

    def __init__(self, model: ModelSpec, run: Run, machine: Machine, margins: Mapping[str, Margin]) -> None:
        self.model, self.sized, self.machine, self.margins = model, run.sized, machine, margins

    def fits(self, settings: LlamaSettings) -> bool:
        try:
            launch = launch_of(settings, "llama-cpp-python")
            run = run_of(launch, self.model, self.machine, sized=self.sized)
            found = estimate(run, self.machine, [self.margins.get(device.id, Margin()) for device in run.devices])
        except EngineRefusalError:
            return False
        room = found.memory.pool(HOST_POOL).room_bytes
        scores = 4 * found.layout.hparams.n_vocab * found.layout.context.n_batch
        return found.memory.fits and (room is None or room >= scores)


def _tries(said: LlamaSettings, program: _Python, *, most_rows: int) -> Iterator[LlamaSettings]:
    """Settings that fit, the nearest to the plan first."""
    rows = most_rows
    while rows >= LEAST_BATCH:
        one = replace(said, n_batch=rows, n_ubatch=rows)
        if program.fits(one):
            yield one
            return
        rows //= 2
    n_ctx, most = said.n_ctx or LEAST_CONTEXT, program.sized.hparams.n_layer_all + 1
    while n_ctx >= LEAST_CONTEXT:
        rows = min(most_rows, LARGEST_BATCH)  # what lies in RAM is copied to a device once for each of them
        one = replace(said, n_ctx=n_ctx, n_batch=rows, n_ubatch=rows)
        if one.tensor_split is not None and all(one.tensor_split):  # a split of other layers
            one = replace(one, tensor_split=None)
        low, high = 0, most if said.n_gpu_layers is None or said.n_gpu_layers < 0 else said.n_gpu_layers
        if program.fits(replace(one, n_gpu_layers=0)):
            while low < high:  # the most layers that fit
                middle = (low + high + 1) // 2
                low, high = (middle, high) if program.fits(replace(one, n_gpu_layers=middle)) else (low, middle - 1)
            yield replace(one, n_gpu_layers=low)
            return
        n_ctx //= 2
