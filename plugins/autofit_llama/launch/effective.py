"""What the engine makes of a command: its `--fit` first, then what it tries again when memory runs out at start."""

from __future__ import annotations

from collections.abc import Sequence

from autofit.domain.machine import HOST_POOL, Machine
from autofit.domain.model import ModelSpec
from autofit.domain.request import Margin
from autofit.domain.values import dataclass, replace

from autofit_llama.engine.versions import Change
from autofit_llama.launch.defaults import Launch
from autofit_llama.launch.fit import Fitted
from autofit_llama.launch.process import run_of
from autofit_llama.memory import runtime
from autofit_llama.memory.estimate import Estimate, Run, allocated_compute, estimate
from autofit_llama.memory.layout import ParsedModel

RETRIES = Change(
    without=6816,
    has=7698,
    source="src/llama-context.cpp:sched_reserve, retrying; ggml-org/llama.cpp#16725 ends there",
    name="a second try without pipeline parallelism",
    larger=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """One command as it runs.

    `asked` is the command with the program's defaults, `launch` what is loaded; `fitted` what `--fit` came to, `None`
    where it is off. `overlap_lacks_bytes`: what was missing for micro-batches to overlap on several devices, which the
    engine then does without.
    """

    asked: Launch
    launch: Launch
    run: Run
    found: Estimate
    fitted: Fitted | None = None
    overlap_lacks_bytes: int = 0


def effective(
    launch: Launch, model: ModelSpec, machine: Machine, sized: ParsedModel, margins: Sequence[tuple[str, Margin]]
) -> Effective:
    """What becomes of `launch`; `margins` are by device id.

    Raises:
        EngineRefusalError: the engine would refuse it.
        HardwareError: what a device has free is not known.
    """
    asked, fitted = launch, None
    if launch.fits_itself:
        from autofit_llama.launch.fitted import fit_launch, fitted_launch  # few commands need it

        fitted = fit_launch(launch, model, machine, sized)
        if launch.loads:
            launch = fitted_launch(launch, fitted.choice)
    kept = dict(margins)
    run = run_of(launch, model, machine, sized=sized)
    of_devices = [kept[device.id] for device in run.devices]
    found = estimate(run, machine, of_devices)
    lacks = _overlap_lacks(run, found, machine)
    if lacks > 0 and not run.arguments.context.version.follows(RETRIES):
        lacks = 0
    if lacks > 0:
        plain = replace(run, arguments=replace(run.arguments, pipeline=False))
        again = estimate(plain, machine, of_devices)
        if again.memory.starts:  # else it is refused with what was asked for
            run, found = plain, again
        else:
            lacks = 0
    return Effective(asked=asked, launch=launch, run=run, found=found, fitted=fitted, overlap_lacks_bytes=max(lacks, 0))


def _overlap_lacks(run: Run, found: Estimate, machine: Machine) -> int:
    """Bytes missing where the compute buffers of overlapping micro-batches are allocated, 0 or less if none are.

    Weights and caches are there by then, and the engine's context on each device; nothing else is.

    Source: src/llama-context.cpp:sched_reserve ("retrying without pipeline parallelism").
    """
    layout = found.layout
    if layout.compute.n_copies == 1 or found.memory.fits:
        return 0
    compute, _ = allocated_compute(run)
    lacks = []
    for i, device in enumerate(run.devices):
        free = machine.host.available_bytes if device.free_bytes is None else device.free_bytes
        if free is not None and device.pool != HOST_POOL:
            taken = layout.weight_plan.device_bytes[i] + layout.cache_device_bytes[i] + compute[i]
            lacks.append(taken + runtime.context_bytes(device) - free)
    return max(lacks, default=0)
