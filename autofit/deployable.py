"""What it takes to start a plan elsewhere: which of its words are paths, an image, the devices that it opens."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from autofit.domain.plan import Deployment

if TYPE_CHECKING:
    from autofit.backend import Backend
    from autofit.domain.machine import Machine
    from autofit.domain.plan import Plan


def deployment(plan: Plan, backend: Backend, machine: Machine, references: Iterable[str]) -> Deployment:
    """How the plan is deployed; `references` are what its command may say for files."""
    known = set(references)
    named = tuple(dict.fromkeys(word for word in plan.argv if word in known))
    used = {pool.id for pool in plan.memory.pools if pool.start_bytes}
    used |= {limit.id for pool in plan.memory.pools for limit in pool.limits if limit.start_bytes}
    devices = [device for device in machine.devices if device.id in used]
    apis = {device.api for device in devices}
    api = next(iter(apis)) if len(apis) == 1 else None
    image = None if len(apis) > 1 else backend.image(plan.engine_version, api)
    words = None if image is None else _behind(backend, image, plan.argv)
    return Deployment(
        program=backend.program_in(plan.argv),
        references=named,
        paths=tuple(word for word in named if os.path.exists(word)),  # noqa: PTH110
        image=None if words is None else image,
        words=words or (),
        api=api,
        n_devices=max((machine.devices.index(device) + 1 for device in devices), default=0),
        has_workers=backend.has_workers,
        port=_port(plan.argv) or backend.port,
    )


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
