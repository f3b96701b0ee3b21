"""Which of a machine's GPUs vLLM will use."""

from __future__ import annotations

from collections.abc import Sequence

from autofit.domain.machine import HOST_POOL, Device, Host, Machine
from autofit.domain.values import replace
from autofit.errors import EngineRefusalError, HardwareError, UsageError
from autofit.planning.devices import choose

from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.config.engine import Gpu

MAX_NODES = 1024  #: machines of `--nnodes`


def select_devices(machine: Machine, settings: VllmSettings, wanted: Sequence[str] = ()) -> tuple[Device, ...]:
    """The CUDA devices that the engine will use, in its order: those it sees, `--device-ids` of them. `wanted`
    names the only ones that may be.

    Raises:
        HardwareError: none.
        UsageError: a wanted one that is none of them, or not among `--device-ids`.
        EngineRefusalError: device ids that vLLM refuses.
    """
    devices = [within(device, machine.host) for device in machine.devices if device.api == "cuda"]
    allowed = {device.id for device in choose(devices, wanted, where="here that vLLM runs on")}
    visible = settings.env.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and machine.origin != "detected":  # detection has followed it
        devices = _visible(devices, visible)
    if settings.device_ids:
        devices = _by_id(devices, settings.device_ids)
        outside = next((device for device in devices if wanted and device.id not in allowed), None)
        if outside is not None:
            given = ",".join(map(str, settings.device_ids))
            raise UsageError(
                f"--device-ids {given} takes {outside.id}, which is not among the devices of --device",
                hint="leave one of them out",
            )
    elif wanted:
        kept = [device for device in devices if device.id in allowed]
        if devices and not kept:
            raise UsageError(
                f"CUDA_VISIBLE_DEVICES={visible} hides {', '.join(wanted)[:60]}, which --device names",
                hint="unset the variable, or leave --device out",
            )
        devices = kept
    if not devices:
        others = ", ".join(sorted({device.name for device in machine.devices}))
        found = (finding for finding in machine.findings if "NVIDIA" in finding or "CUDA" in finding)
        hint = "name hardware with --on rtx-4090; vLLM's CPU build is checked with VLLM_CPU_KVCACHE_SPACE set"
        raise HardwareError(
            "vLLM is planned for NVIDIA GPUs, and there is none" + (f" among {others}" if others else ""),
            hint=next(found, hint),
        )
    Gpu.of(devices[0])
    return tuple(devices)


def n_machines(settings: VllmSettings, n_local: int) -> int:
    """Machines over which the ranks are spread: those of `--nnodes`, or as many as Ray fills that have `n_local` GPUs
    each (v1/executor/ray_utils.py: one bundle of a GPU per rank, packed)."""
    by_ray = "ray" in (settings.distributed_executor_backend, settings.data_parallel_backend)
    if settings.nnodes > 1 or not by_ray or not n_local:
        return settings.nnodes
    replicas = settings.data_parallel_size if settings.data_parallel_backend == "ray" else 1
    ranks = settings.tensor_parallel_size * settings.pipeline_parallel_size * replicas
    least = -(-ranks // n_local)
    return next((n for n in range(least, min(ranks, MAX_NODES) + 1) if ranks % n == 0), least)


def across_nodes(devices: Sequence[Device], n_nodes: int) -> tuple[Device, ...]:
    """The devices of `--nnodes` machines like this one, node by node.

    Raises:
        EngineRefusalError: more machines than anybody starts vLLM on.
    """
    if n_nodes > MAX_NODES:
        raise EngineRefusalError(f"--nnodes {n_nodes}: at most {MAX_NODES} machines are planned for")
    others = (
        replace(device, id=f"node{node}/{device.id}", node=f"node{node}")
        for node in range(1, n_nodes)
        for device in devices
    )
    return (*devices, *others)


def count_nodes(devices: Sequence[Device]) -> int:
    """Machines that `devices` are of: ids of all but the first name theirs (`across_nodes`)."""
    return len({device.id.partition("/")[0] if "/" in device.id else "" for device in devices}) or 1


def within(device: Device, host: Host) -> Device:
    """A device that draws on RAM has no more than is available there
    (utils/mem_utils.py:MemorySnapshot.measure)."""
    available = host.available_bytes
    if device.pool != HOST_POOL or available is None:
        return device
    return replace(device, free_bytes=min(available, device.free_bytes or available))


def _visible(devices: Sequence[Device], variable: str) -> list[Device]:
    """In the order of CUDA_VISIBLE_DEVICES."""
    from autofit.hardware.visible import select

    chosen = select("CUDA_VISIBLE_DEVICES", variable, [device.uuid for device in devices]).chosen
    return [devices[at] for at in chosen]


def _by_id(devices: Sequence[Device], ids: Sequence[int | str]) -> list[Device]:
    """Those of `--device-ids`: positions, or UUIDs (engine/arg_utils.py:_resolve_device_ids)."""
    shown = ",".join(map(str, ids))[:60]
    if len(set(ids)) != len(ids):
        raise EngineRefusalError(f"--device-ids must not contain duplicates: {shown}")
    if len({type(id) for id in ids}) > 1:
        raise EngineRefusalError(f"--device-ids must not mix integer IDs and UUIDs: {shown}")
    found = [next((d for at, d in enumerate(devices) if at == id or (d.uuid and d.uuid == id)), None) for id in ids]
    known = [device for device in found if device is not None]
    if len(known) != len(ids):
        raise EngineRefusalError(f"--device-ids {shown}: not all of these devices are visible ({len(devices)} are)")
    return known
