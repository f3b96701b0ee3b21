"""`--fit` of one command on one machine: the engine's dry runs are autofit's own estimates."""

from __future__ import annotations

from collections.abc import Sequence
from operator import add

from autofit.domain.machine import Device, Machine
from autofit.domain.model import ModelSpec
from autofit.domain.units import MIB
from autofit.domain.values import replace
from autofit.errors import EngineRefusalError

from autofit_llama.engine.vocabulary import MAX_DEVICES
from autofit_llama.launch.defaults import Launch
from autofit_llama.launch.fit import FitChoice, FitTask, Fitted, Measured, fit
from autofit_llama.launch.process import engine_devices, run_of
from autofit_llama.memory import runtime
from autofit_llama.memory.estimate import Run, device_rules, projector_items
from autofit_llama.memory.layout import MemoryLayout, ParsedModel, lay_out
from autofit_llama.model.resolve import resolve_context


def fit_launch(launch: Launch, model: ModelSpec, machine: Machine, sized: ParsedModel) -> Fitted:
    """What `--fit` makes of `launch` on this machine.

    Raises:
        EngineRefusalError: the engine would refuse the command as it stands.
    """
    run = run_of(launch, model, machine, sized=sized)
    return fit(_task(launch, run, machine), _Dry(launch, run).measure)


def fitted_launch(launch: Launch, choice: FitChoice) -> Launch:
    """`launch` with the arguments that `--fit` has chosen."""
    return replace(
        launch,
        context=replace(launch.context, n_ctx=choice.n_ctx),
        n_gpu_layers=choice.n_gpu_layers,
        tensor_split=choice.tensor_split,
        overrides=choice.overrides,
    )


def _task(launch: Launch, run: Run, machine: Machine) -> FitTask:
    hp, context = run.sized.hparams, launch.context
    targets = [mib * MIB for mib in launch.fit_target_mib]
    targets += [targets[0] if len(targets) == 1 else 1024 * MIB] * (MAX_DEVICES - len(targets))
    registered = [device.id for _, device in engine_devices(machine, merged=True)]
    if run.projector_device in registered:  # added by its number among all devices (server-context.cpp:load_model)
        projector = sum(item.n_bytes for item in projector_items(run, device_rules(run.devices, run.arguments)))
        targets[registered.index(run.projector_device)] += projector
    return FitTask(
        n_ctx=context.n_ctx,
        n_ctx_min=None if launch.keep_context else launch.fit_ctx,
        n_ctx_train=hp.n_ctx_train,
        n_streams=1 if context.kv_unified else max(1, context.n_seq_max),
        n_layer=hp.n_layer + (hp.n_layer_nextn if launch.load_mtp else 0),
        n_expert=hp.n_expert,
        free_bytes=tuple(_free_bytes(device, machine) for device in run.devices),
        margin_bytes=tuple(targets),
        host_total_bytes=machine.host.total_bytes or machine.host.available_bytes or 0,
        buffer_names=run.arguments.buffer_names,
        n_gpu_layers=launch.n_gpu_layers,
        tensor_split=launch.tensor_split,
        overrides=launch.overrides,
        split_mode=launch.split_mode,
    )


def _free_bytes(device: Device, machine: Machine) -> int:
    """What the engine sees free: its own context on the device is made by then, and nothing else."""
    free = device.free_bytes if device.free_bytes is not None else machine.host.available_bytes or 0
    return max(0, free - runtime.context_bytes(device))


class _Dry:
    """Dry runs of one command with other arguments."""

    def __init__(self, launch: Launch, run: Run) -> None:
        self.launch, self.run = launch, run
        self.rules = device_rules(run.devices, run.arguments)
        self.extra: tuple[int, Measured] | None = None

    def measure(self, choice: FitChoice) -> Measured:
        """One dry run of the model, with that of a draft model or head at the same context added."""
        arguments = self.run.arguments
        splits = choice.tensor_split[: len(self.rules)]
        main = lay_out(
            self.run.sized,
            self.rules,
            replace(
                arguments,
                context=replace(arguments.context, n_ctx=choice.n_ctx),
                n_gpu_layers=choice.n_gpu_layers,
                splits=splits if any(splits) else arguments.splits,
                overrides=choice.overrides,
                mmap=False,
            ),
        )
        found = _measured(main)
        if self.extra is None or self.extra[0] != choice.n_ctx:
            self.extra = choice.n_ctx, self._measure_extra(choice.n_ctx)
        return _sum(found, self.extra[1])

    def _measure_extra(self, n_ctx: int) -> Measured:
        """The second context, laid out by the arguments of the command; it may fail, and then does not count."""
        nothing = (0,) * len(self.rules)
        draft = self.launch.draft
        if draft is None or not self.launch.fit_counts_draft:
            return Measured(nothing, nothing, 0)
        context = replace(self.run.arguments.context, n_ctx=n_ctx)
        try:
            asked = draft.context(context, resolve_context(self.run.sized.hparams, context))
            if self.run.mtp is not None:
                layout = lay_out(self.run.sized, self.rules, replace(self.run.mtp, context=asked, mmap=False))
                found = _measured(layout)
                own = tuple(a - b for a, b in zip(found.device_bytes, found.model_bytes, strict=True))
                return Measured(own, nothing, found.host_bytes - layout.weight_plan.host_all_bytes)
            found = Measured(nothing, nothing, 0)
            for one in self.run.drafts:
                layout = lay_out(
                    one.sized,
                    device_rules(one.devices, one.arguments),
                    replace(one.arguments, context=asked, mmap=False),
                )
                found = _on(self.run.devices, one.devices, _measured(layout))
            return found
        except EngineRefusalError:
            return Measured(nothing, nothing, 0)


def _sum(a: Measured, b: Measured) -> Measured:
    return Measured(
        tuple(map(add, a.device_bytes, b.device_bytes)),
        tuple(map(add, a.model_bytes, b.model_bytes)),
        a.host_bytes + b.host_bytes,
    )


def _on(devices: Sequence[Device], own: Sequence[Device], found: Measured) -> Measured:
    """Figures of `own` devices as figures of `devices`; one that is not among these does not count."""
    used = {device.id: n for device, n in zip(own, found.device_bytes, strict=True)}
    model = {device.id: n for device, n in zip(own, found.model_bytes, strict=True)}
    return Measured(
        tuple(used.get(device.id, 0) for device in devices),
        tuple(model.get(device.id, 0) for device in devices),
        found.host_bytes,
    )


def _measured(layout: MemoryLayout) -> Measured:
    plan = layout.weight_plan
    parts = zip(plan.device_bytes, layout.cache_device_bytes, layout.compute.device_bytes, strict=True)
    host = plan.host_bytes + plan.pinned_bytes + layout.cache_host_bytes + layout.compute.host_bytes
    return Measured(tuple(map(sum, parts)), plan.device_bytes, host)
