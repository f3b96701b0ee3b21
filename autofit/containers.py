"""A container that a command starts, opened: the engine's command in it, with the paths that the host has for it.

What an image starts is asked of its engine's backend; of an image that none knows, of `--entrypoint` or the words
behind it; and where these do not say it, of the runner (`docker image inspect`), which starts nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from autofit.backend import Backend, Contained, ParsedCommand
from autofit.domain.machine import Device, Machine
from autofit.domain.names import is_elsewhere, parse_bare
from autofit.domain.plan import Plan
from autofit.domain.text import printable
from autofit.domain.values import dataclass, field, replace
from autofit.errors import UsageError
from autofit.files import read_bounded
from autofit.hardware.installed import Engine
from autofit.host import host
from autofit.planning.devices import choose
from autofit.text.containers import Container, Gpus, container_of, env_file
from autofit.text.launchers import SHELLS, unwrap

MAX_ENV_BYTES = 1 << 18
SECONDS = 5.0
_LABEL = "org.opencontainers.image.version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """What runs in a container: `argv` is a command of the engine, with paths of the host where it sees them.

    `environ` are its variables, all of them that are known; `label` is the version that its image says of itself.
    """

    container: Container
    argv: tuple[str, ...]
    environ: Mapping[str, str]
    apis: frozenset[str] | None
    directory: str | None
    label: str | None = None

    def reference(self, model: str) -> str:
        """Where the host has the model that the command names.

        Raises:
            UsageError: in nothing that the container is given.
        """
        if is_elsewhere(model) or re.match(r"[a-z]+:", model) or self.container.is_outside(model):
            return model
        if (outside := self.container.outside(model)) != model:  # as a variable of the container names it
            return outside
        if not model.startswith("/"):
            path = f"{(self.directory or '').rstrip('/')}/{model.removeprefix('./')}"
            outside = self.container.outside(path)
            if outside != path or parse_bare(model) is not None:
                return outside if outside != path else model
            model = path if self.directory else model
        held = self.container.holding(model)
        where = "inside the container, and no folder of this machine" if held is None else f"in {held.name}"
        raise UsageError(
            f"{printable(model, 200)} is {where}", hint=_mount(printable(model.rpartition("/")[0] or "/", 200))
        )

    def command(self, command: ParsedCommand) -> ParsedCommand:
        """The command with the places where the host has its models."""
        companions = {role: self.reference(name) for role, name in command.companions.items()}
        model = None if command.model is None else self.reference(command.model)
        return replace(command, model=model, companions=companions)

    def machine(self, machine: Machine) -> Machine:
        """The machine as the command sees it: the GPUs that it is given, and the memory that it is held to.

        Raises:
            UsageError: a GPU that is not there.
        """
        return seen_by(self.container, machine, self.apis)

    def filled(self, plan: Plan) -> tuple[str, ...]:
        """The command that starts the container, with what a plan adds to the engine's behind all its words."""
        added = [word for one in plan.decisions if one.origin != "wrapped command" for word in one.argv]
        own = {name: value for name, value in plan.env.items() if self.environ.get(name) != value}
        variables = [word for name, value in sorted(own.items()) for word in ("-e", f"{name}={value}")]
        box = self.container
        return (*box.prefix[:-1], *variables, box.prefix[-1], *box.words, *map(box.inside, added))

    def engine(self, backend: Backend) -> Engine:
        """Which version of the engine the image holds: its tag, then what the image says of itself."""
        image = self.container.image.partition("@")[0]
        shown = printable(image, 120)
        version = backend.version_in(image)
        if version is not None:
            return Engine(version, f"as the tag of {shown} says")
        version = None if self.label is None else backend.version_in(self.label)
        if version is not None:
            return Engine(version, f"as the label of {shown} says")
        return Engine(None, f"since {shown} does not say which it holds")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Image:
    """What a runner knows of an image that lies on this machine."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    directory: str | None = None
    label: str | None = None


def opened(argv: tuple[str, ...], around: Mapping[str, str], *, may_ask: bool) -> Inside | None:
    """What a command that starts a container starts in it; `None`: it starts none.

    `around` are the variables that it may hand on; `may_ask`: the runner may be asked about the image.

    Raises:
        UsageError: it is not understood, or what it starts is no engine's command.
    """
    container = container_of(argv)
    if container is None:
        return None
    for path in container.env_files:
        container = replace(container, assigned=(*_env_file(path), *container.assigned))
    backend = host().backend_of_image(container.image)
    found = (
        None if backend is None else backend.in_image(container.image, container.words, entrypoint=container.entrypoint)
    )
    image = _Image()
    names_version = backend is not None and backend.version_in(container.image.partition("@")[0]) is not None
    if may_ask and not (found is not None and names_version):
        image = inspected(container, around) or image
    if found is None:
        found = _of_image(container, image)
    return _inside(container, found, image, around)


def _of_image(container: Container, image: _Image) -> Contained:
    """What an image starts that no backend knows.

    Raises:
        UsageError: nothing says it.
    """
    entrypoint = image.entrypoint if container.entrypoint is None else container.entrypoint
    words = (*entrypoint, *(container.words or (() if container.entrypoint is not None else image.command)))
    if not words:
        raise UsageError(
            f"nothing says what the image {printable(container.image, 120)} starts",
            hint="write its program behind it, or --entrypoint PROGRAM before it",
        )
    return Contained(argv=words)


def _inside(container: Container, found: Contained, image: _Image, around: Mapping[str, str]) -> Inside:
    environ = {**image.environ, **container.variables(around)}
    wrapped = unwrap(found.argv)
    program = wrapped.argv[0].rpartition("/")[2] if wrapped.argv else ""
    if program in SHELLS:
        raise UsageError(
            f"the container starts a shell, {printable(program, 20)}, whose command is not read",
            hint="write the engine's command behind the image itself",
        )
    if program.startswith("-") or not program:
        raise UsageError(
            f"{printable(container.image, 120)}: it is not known which program of it takes "
            f"{printable(program, 60) or 'no word at all'}",
            hint="write --entrypoint PROGRAM before the image",
        )
    environ = wrapped.variables(environ)
    environ.pop("NVIDIA_VISIBLE_DEVICES", None)  # the runtime's, which has followed it
    chosen = next((name for name in environ if name.endswith("_VISIBLE_DEVICES")), None)
    if chosen is not None and container.nvidia is not None and (container.nvidia.words or container.nvidia.count):
        raise UsageError(
            f"{chosen} chooses among the GPUs that the container is given by name or number",
            hint="choose once: --gpus all with the variable, or --gpus without it",
        )
    return Inside(
        container=container,
        argv=tuple(container.outside(word) for word in wrapped.argv),
        environ=environ,
        apis=found.apis,
        directory=container.directory or image.directory or found.directory,
        label=image.label,
    )


def _mount(folder: str) -> str:
    """How a container is given a folder of models."""
    given = f"/path/of/models:{folder}"
    return (
        f"mount the folder that holds it: -v {given}, in a file under volumes; or --map {folder}=/path/of/models here"
    )


def _env_file(path: str) -> tuple[tuple[str, str | None], ...]:
    try:
        data = read_bounded(path, MAX_ENV_BYTES)
    except OSError as error:
        raise UsageError(f"--env-file {printable(path, 200)}: {error.strerror or error}") from error
    return env_file(data.decode("utf-8", "surrogateescape"))


def inspected(container: Container, around: Mapping[str, str]) -> _Image | None:
    """What the runner says of the image, without pulling or starting it; `None`: no answer, or none of use."""
    from autofit.hardware.output import run_both
    from autofit.hardware.programs import ToolError, find_program

    program = find_program(container.runner, around)
    if program is None:
        return None
    command = [program, "image", "inspect", "--format", "{{json .Config}}", container.image]
    try:
        found = json.loads(run_both(command, SECONDS)[0])
    except (ToolError, ValueError, RecursionError):
        return None
    return _read(found) if isinstance(found, dict) else None


def _read(config: Mapping[str, Any]) -> _Image:
    """The parts of an image's configuration that are what they should be."""
    labels = config.get("Labels")
    label = labels.get(_LABEL) if isinstance(labels, dict) else None
    directory = config.get("WorkingDir")
    pairs = (word.partition("=") for word in _words(config.get("Env")))
    return _Image(
        entrypoint=_words(config.get("Entrypoint")),
        command=_words(config.get("Cmd")),
        environ={name: value for name, _, value in pairs},
        directory=directory if isinstance(directory, str) and directory else None,
        label=label[:200] if isinstance(label, str) else None,
    )


def _words(value: object) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(word, str) for word in value):
        return ()
    return tuple(value)


def seen_by(container: Container, machine: Machine, apis: Collection[str] | None) -> Machine:
    """The machine as a program in the container sees it; `apis` are those that its image computes with, `None`: any.

    Raises:
        UsageError: a GPU that is not there.
    """
    notes: list[str] = []
    devices = _given(container, machine)
    if machine.devices and not devices and (apis is None or apis):
        notes.append(
            "the container is given no GPU: --gpus all gives it NVIDIA's, --device /dev/kfd --device /dev/dri others"
        )
    if apis is not None:
        driven = tuple(_driven(device, apis) for device in devices)
        if devices and not any(driven):
            kinds = ", ".join(sorted(apis)) or "the CPU alone"
            notes.append(f"its image computes with {kinds}: it uses no GPU of this machine")
        devices = tuple(device for device in driven if device is not None)
    host = machine.host
    limit = container.memory_bytes
    if limit is not None:
        free = limit if host.available_bytes is None else min(limit, host.available_bytes)
        host = replace(host, available_bytes=free)
    return replace(machine, devices=devices, host=host, findings=(*machine.findings, *notes))


def _given(container: Container, machine: Machine) -> tuple[Device, ...]:
    """The devices that it is given, in the order of the machine."""
    nvidia = [device for device in machine.devices if _is_nvidia(device)]
    others = [device for device in machine.devices if not _is_nvidia(device)]
    kept = {device.id for device in (*_of(container.nvidia, nvidia), *_of(container.others, others))}
    return tuple(device for device in machine.devices if device.id in kept)


def _of(gpus: Gpus | None, devices: list[Device]) -> tuple[Device, ...]:
    if gpus is None:
        return ()
    if gpus.count is not None:
        if gpus.count > len(devices):
            raise UsageError(
                f"--gpus {gpus.count}: there are {len(devices)} GPUs of NVIDIA", hint="write --gpus all, or fewer"
            )
        return tuple(devices[: gpus.count])
    return choose(devices, gpus.words, where="for the container")


def _is_nvidia(device: Device) -> bool:
    return device.api == "cuda" or device.vendor == "nvidia"


def _driven(device: Device, apis: Collection[str]) -> Device | None:
    if device.api in apis:
        return device
    return replace(device, api="vulkan") if "vulkan" in apis and device.api in ("cuda", "rocm", "sycl") else None
