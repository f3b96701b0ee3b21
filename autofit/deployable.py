"""What it takes to start a plan elsewhere: which of its words are paths, an image, the devices that it opens."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from autofit.domain.plan import Deployment
from autofit.domain.words import holds

if TYPE_CHECKING:
    from autofit.backend import Backend
    from autofit.domain.machine import Device, Machine
    from autofit.domain.plan import Plan


def deployment(plan: Plan, backend: Backend, machine: Machine, references: Iterable[str]) -> Deployment:
    """How the plan is deployed; `references` are what its command may say for files."""
    known = dict.fromkeys(text for text in references if any(holds(word, text) for word in plan.argv))
    files = dict.fromkeys((*(text for text in known if _exists(text)), *_files(plan.argv, backend.file_flags)))
    devices = _used(plan, machine)
    apis = sorted({device.api for device in devices})
    image = None if len(apis) > 1 else backend.image(plan.engine_version, next(iter(apis), None))
    alone = _alone(plan, backend, machine, devices) if apis == ["cuda"] else None
    ids, argv = alone or ((), plan.argv)
    words = None if image is None else _behind(backend, image, argv)
    kind = [device for device in machine.devices if device.api in apis]
    return Deployment(
        program=backend.program_in(plan.argv),
        references=tuple(known),
        paths=tuple(files),
        image=None if words is None else image,
        words=words or (),
        api=" and ".join(apis) or None,
        n_devices=len(ids) or max((kind.index(device) + 1 for device in devices), default=0),
        device_ids=ids,
        has_workers=backend.has_workers,
        port=_port(plan.argv) or backend.port,
    )


def _used(plan: Plan, machine: Machine) -> list[Device]:
    """The devices of this machine that the plan takes memory of."""
    used = {pool.id for pool in plan.memory.pools if pool.start_bytes}
    used |= {limit.id for pool in plan.memory.pools for limit in pool.limits if limit.start_bytes}
    return [device for device in machine.devices if device.id in used]


def _alone(
    plan: Plan, backend: Backend, machine: Machine, devices: Sequence[Device]
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Which GPUs a container is given, and the command that finds them there; `None`: the first ones, as many as the
    command names places of."""
    found = backend.alone(plan.argv, plan.engine_version)
    if found is None:
        return None
    kind = [device for device in machine.devices if device.api == "cuda"]
    named, argv = found
    if not {kind.index(device) for device in devices} <= set(named) or list(named) == list(range(len(named))):
        return None
    return tuple(map(str, named)), argv


def _files(argv: Sequence[str], flags: Iterable[str]) -> Iterator[str]:
    """Paths of this machine that stand behind these flags, also as `NAME=PATH` and in lists."""
    known, reads = frozenset(flags), False
    for word in argv:
        flag, equals, value = word.partition("=")
        if word.startswith("-"):
            reads = flag in known
            parts = [value] if reads and equals else []
        else:
            parts = re.split("[,=]", word) if reads else []
        yield from (part for part in parts if part and _exists(part))


def _exists(path: str) -> bool:
    try:
        return os.path.exists(path)  # noqa: PTH110
    except ValueError:  # a zero byte
        return False


def _behind(backend: Backend, image: str, argv: tuple[str, ...]) -> tuple[str, ...] | None:
    """The words behind an image with which it starts the command; `None`: it starts another program."""
    for n in range(1, 3):
        found = backend.in_image(image, argv[n:])
        if found is not None and found.argv == argv:
            return argv[n:]
    return None


def _port(argv: Sequence[str]) -> int | None:
    """The port that the command says, by itself or behind `=`."""
    for word, after in zip(argv, (*argv[1:], ""), strict=True):
        text = after if word == "--port" else word.removeprefix("--port=") if word.startswith("--port=") else ""
        if text.isascii() and text.isdigit() and 0 < int(text[:6]) < 65536:
            return int(text)
    return None
