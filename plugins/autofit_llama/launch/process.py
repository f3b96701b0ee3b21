"""From what a program asks for to what runs where: the engine's devices by name and order, and its companions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from autofit.domain.machine import HOST_POOL, Device, Machine
from autofit.domain.model import ModelSpec, TensorInfo
from autofit.domain.text import printable
from autofit.domain.units import MIB
from autofit.domain.values import replace
from autofit.errors import EngineRefusalError, HardwareError

from autofit_llama.command.options import PYTHON_SERVER
from autofit_llama.launch.defaults import Draft, Launch, buffer_names, check_launch, check_stands_alone
from autofit_llama.memory.estimate import Companion, Python, Run, Server, size
from autofit_llama.memory.layout import LoadParams, ParsedModel
from autofit_llama.model.context import ContextParams
from autofit_llama.model.hparams import HParams
from autofit_llama.model.resolve import resolve_context

#: ggml's names of its backends: CUDA0, ROCm1, RPC0 ...
NAMES = {
    "cuda": "CUDA",
    "rocm": "ROCm",
    "vulkan": "Vulkan",
    "sycl": "SYCL",
    "cann": "CANN",
    "rpc": "RPC",
    "metal": "MTL",
}


RPC_PORT = 50052  #: of a server, unless it is told another (tools/rpc/rpc-server.cpp:rpc_server_params)


def engine_devices(machine: Machine, *, merged: bool = False) -> tuple[tuple[str, Device], ...]:
    """The devices as llama.cpp lists them: RPC first, then GPUs; integrated ones only where there is no other.

    `merged`, into one device by `-sm tensor`: all of them, RPC last, for that is registered last.

    Source: src/llama.cpp:llama_prepare_model_devices.
    """
    counts: dict[str, int] = {}
    named = []
    for device in machine.devices:
        prefix = NAMES[device.api]
        named.append((f"{prefix}{counts.get(prefix, 0)}", device))
        counts[prefix] = counts.get(prefix, 0) + 1
    remote = [pair for pair in named if pair[1].api == "rpc"]
    discrete = [pair for pair in named if pair[1].api != "rpc" and not pair[1].integrated]
    integrated = [pair for pair in named if pair[1].api != "rpc" and pair[1].integrated]
    if merged:
        return (*(pair for pair in named if pair[1].api != "rpc"), *remote)
    return (*remote, *(discrete or integrated))


def devices_here(names: Iterable[str], unknown: str) -> str:
    """What to name instead of a device that is not there, and how cards that Vulkan drives are planned for."""
    known = tuple(names)
    hint = f"devices here: {', '.join(known) or 'none'}"
    by_vulkan = unknown.startswith(NAMES["vulkan"]) and not any(name.startswith(NAMES["vulkan"]) for name in known)
    return f"{hint}; --on CARD@vulkan plans for one that Vulkan drives" if by_vulkan and known else hint


def server_of(machine: Machine, device: Device) -> str | None:
    """The server (HOST:PORT) that lends a device; one whose address nobody knows is called by its node's name."""
    node = next((node for node in machine.nodes if node.name == device.node), None)
    if device.api != "rpc" or node is None:
        return None
    return node.address or f"{node.name}:{RPC_PORT}"


def servers_of(machine: Machine, devices: Iterable[Device]) -> tuple[str, ...]:
    """The servers of these devices, as `--rpc` names them: in the order of the devices."""
    found = (server_of(machine, device) for device in devices)
    return tuple(dict.fromkeys(server for server in found if server is not None))


def buffers_of(named: Sequence[tuple[str, Device]], machine: Machine, rpc: Sequence[str] = ()) -> tuple[str, ...]:
    """How `-ot` names the memory of each device; `rpc` are the servers of devices that no node is known of.

    Source: ggml-rpc.cpp:ggml_backend_rpc_buffer_type, which counts the devices of each server.
    """
    names = list(buffer_names([name for name, _ in named], rpc))
    for at, (_, device) in enumerate(named):
        server = server_of(machine, device)
        if server is not None:
            own = [other.id for other in machine.devices if other.node == device.node]
            names[at] = f"RPC{own.index(device.id)}[{server}]"
    return tuple(names)


def choose_devices(launch: Launch, machine: Machine) -> tuple[tuple[str, Device], ...]:
    """The devices that `-dev` names, in its order, or all.

    Raises:
        EngineRefusalError: a name that the engine does not know.
    """
    every = engine_devices(machine, merged=launch.split_mode == "tensor")
    chosen = every
    if launch.devices is not None:
        by_name = {name: (name, device) for name, device in every}
        by_name |= {name: (name, device) for name, device in _all_named(machine) if name not in by_name}
        unknown = [name for name in launch.devices if name not in by_name]
        if unknown:
            raise EngineRefusalError(
                f"llama.cpp refuses: invalid device: {unknown[0][:40]!r}",
                hint=devices_here(by_name, unknown[0]),
            )
        chosen = tuple(by_name[name] for name in launch.devices)
    return chosen


def _placed_on(launch: Launch, hp: HParams, named: tuple[tuple[str, Device], ...]) -> tuple[tuple[str, Device], ...]:
    """The devices that get layers: one of them with `-sm none`, none with a negative `-mg`."""
    check_launch(launch, hp, tuple(device.api for _, device in named))
    if launch.split_mode != "none" or not named:
        return named
    return (named[launch.main_gpu],) if launch.main_gpu >= 0 else ()


def _all_named(machine: Machine) -> tuple[tuple[str, Device], ...]:
    return engine_devices(
        replace(machine, devices=tuple(replace(device, integrated=False) for device in machine.devices))
    )


def run_of(launch: Launch, model: ModelSpec, machine: Machine, *, sized: ParsedModel | None = None) -> Run:
    """The process that `launch` starts for `model` on `machine`.

    Raises:
        EngineRefusalError: the engine would refuse.
        HardwareError: what a device has free is not known.
    """
    sized = sized if sized is not None else size(model)
    check_stands_alone(sized.hparams, sized.tensors.keys())
    named = _placed_on(launch, sized.hparams, choose_devices(launch, machine))
    devices = tuple(device for _, device in named)
    _check_known(launch, named, machine)
    _check_companions(model, sized.hparams, sized.tensors)
    arguments = _arguments(launch, named, machine)
    mtp = None
    drafts: tuple[Companion, ...] = ()
    if launch.draft is not None:
        resolved = resolve_context(sized.hparams, arguments.context)
        context = launch.draft.context(arguments.context, resolved)
        if launch.draft.mtp and not launch.draft.has_model:
            mtp = replace(arguments, context=context, expert_cache_bytes=0)
        elif "draft" in model.companions:
            drafts = (_draft(launch, launch.draft, model.companions["draft"], context, machine),)
    projector = model.companions.get("mmproj")
    return Run(
        sized=sized,
        devices=devices,
        arguments=arguments,
        server=_server(launch) if launch.is_server else None,
        mtp=mtp,
        drafts=drafts,
        projector=projector,
        projector_device=_projector_device(launch, named) if projector is not None else HOST_POOL,
        adapters=_by_role(model, "lora"),
        has_control_vector=bool(_by_role(model, "control-vector")),
        locked=launch.locks_memory,
        python=_python(launch),
    )


def _check_known(launch: Launch, named: Sequence[tuple[str, Device]], machine: Machine) -> None:
    """Refuse memory of an unknown size: nothing could be said to fit into it."""
    for name, device in named:
        if device.free_bytes is None and device.pool != HOST_POOL:
            raise HardwareError(f"the free memory of {name} is unknown", hint="state it: --on NAME:SIZE")
    n_remote = sum(device.api == "rpc" for device in machine.devices)
    if launch.devices is None and len(launch.rpc) > n_remote:
        server = printable(launch.rpc[n_remote], 60)
        raise HardwareError(
            f"the free memory of the device behind --rpc {server} is unknown",
            hint="state it, one for each server: --on generic-rpc:24GiB",
        )


def _check_companions(model: ModelSpec, hp: HParams, tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse files that are not what they are given as (tools/mtmd/clip.cpp, src/llama-adapter.cpp)."""
    if not model.companions:
        return
    from autofit_llama.memory.adapters import check_control_vectors, check_lora

    for role, other in model.companions.items():
        if role == "mmproj" and other.architecture != "clip":
            raise EngineRefusalError(
                f"llama.cpp refuses: {printable(other.name)} is not a projector but {printable(other.architecture)}",
                hint="--mmproj takes the mmproj file that comes with a model",
            )
        if role.startswith("lora"):
            check_lora(other, hp, tensors)
    check_control_vectors(_by_role(model, "control-vector"), hp)


def _by_role(model: ModelSpec, role: str) -> tuple[ModelSpec, ...]:
    return tuple(other for name, other in sorted(model.companions.items()) if name.startswith(role))


def _arguments(launch: Launch, named: Sequence[tuple[str, Device]], machine: Machine) -> LoadParams:
    devices = [device for _, device in named]
    names = buffers_of(named, machine, launch.rpc)
    context, sliced = launch.context, launch.split_mode == "tensor"
    if sliced:
        context = replace(context, flash_attn="on" if context.flash_attn == "auto" else context.flash_attn)
        _check_buffers(launch, names)
    return LoadParams(
        context=context,
        n_gpu_layers=launch.n_gpu_layers,
        splits=launch.tensor_split[: len(named)] if sliced else _splits(launch.tensor_split, named, machine),
        overrides=launch.overrides,
        expert_cache_bytes=launch.moe_cache_mib * MIB,
        buffer_names=() if sliced else names,
        by_layer=launch.split_mode == "layer",
        sliced=sliced,
        repack=launch.repack and machine.host.has_repack is not False,
        no_host=launch.no_host,
        mmap=launch.maps_file(not any(device.api == "cuda" and device.pool == HOST_POOL for device in devices)),
        load_mtp=launch.load_mtp,
        lazy_mode=launch.lazy_mode,
    )


def _check_buffers(launch: Launch, names: Sequence[str]) -> None:
    """Refuse `-ot` to one device of those that `-sm tensor` hides: nothing then runs what lies there."""
    for override in launch.overrides:
        if override.kind == "pattern" and override.buffer in names:
            raise EngineRefusalError(
                f"llama.cpp aborts: -sm tensor cannot use tensors that -ot puts on {override.buffer} alone",
                hint="with -sm tensor, -ot may put tensors on CPU only",
            )


def _splits(tensor_split: Sequence[float], named: Sequence[tuple[str, Device]], machine: Machine) -> tuple[float, ...]:
    """`-ts`, or what every device has free: a process that takes memory meanwhile moves the layers."""
    split = tuple(tensor_split)[: len(named)]
    if any(split) or len(named) < 2:
        return split if any(split) else (1.0,) * len(named)
    return tuple(float(_free_bytes(device, machine)) for _, device in named)


def _free_bytes(device: Device, machine: Machine) -> int:
    free = machine.host.available_bytes if device.free_bytes is None else device.free_bytes
    if free is None:
        raise HardwareError(f"the free memory of {device.id} is unknown", hint="state it: --ram SIZE")
    return free


def _server(launch: Launch) -> Server:
    return Server(
        prompt_cache_bytes=None if launch.cache_ram_mib < 0 else launch.cache_ram_mib * MIB,
        n_checkpoints=max(0, launch.n_checkpoints),
        checkpoint_min_step=launch.checkpoint_min_step,
    )


def _python(launch: Launch) -> Python | None:
    if launch.program != PYTHON_SERVER:
        return None
    return Python(keeps_logits=launch.keeps_logits, prompt_cache_bytes=launch.cache_ram_mib * MIB)


def _draft(launch: Launch, draft: Draft, model: ModelSpec, context: ContextParams, machine: Machine) -> Companion:
    own = replace(
        launch,
        n_gpu_layers=draft.n_gpu_layers,
        devices=draft.devices if draft.devices is not None else launch.devices,
        overrides=draft.overrides,
        split_mode=draft.split_mode,
        context=context,
        load_mtp=draft.mtp,
        draft=None,
    )
    sized = size(model)
    named = _placed_on(own, sized.hparams, choose_devices(own, machine))
    return Companion(
        sized=sized, devices=tuple(device for _, device in named), arguments=_arguments(own, named, machine)
    )


def _projector_device(launch: Launch, named: Sequence[tuple[str, Device]]) -> str:
    """`-mmdev`, else the first GPU, else the host (tools/mtmd/clip.cpp)."""
    if not launch.mmproj_offload:
        return HOST_POOL
    for name, device in named:
        if launch.mmproj_device in (None, name):
            return device.id
    if launch.mmproj_device is not None:
        raise EngineRefusalError(
            f"llama.cpp refuses: invalid device: {launch.mmproj_device[:40]!r}",
            hint=devices_here([name for name, _ in named], launch.mmproj_device),
        )
    return HOST_POOL
