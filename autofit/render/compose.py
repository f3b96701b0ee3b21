"""A Compose file with one service. Source: the Compose specification of 2025-09 (services, GPU reservations)."""

from __future__ import annotations

from typing import Any

from autofit.domain.plan import Plan
from autofit.render.container import SHARED_MEMORY_BYTES, Container, commented, container_of
from autofit.render.yaml import dump


def render(plan: Plan) -> str:
    """`services:` with the image, its command, folders of models, GPUs and the port.

    Raises:
        UsageError: no image is known.
    """
    container = container_of(plan)
    service: dict[str, Any] = {
        "image": container.image,
        "command": [_escaped(word) for word in container.words],
        "ports": [f"{container.port}:{container.port}"],
    }
    if container.environ:
        service["environment"] = {name: _escaped(value) for name, value in container.environ.items()}
    if container.mounts:
        service["volumes"] = [
            {"type": "bind", "source": _escaped(source), "target": target, "read_only": True}
            for source, target in container.mounts
        ]
    if container.shares_memory:
        service["shm_size"] = SHARED_MEMORY_BYTES
    service |= _devices(container)
    service["restart"] = "unless-stopped"
    return commented(plan, dump({"services": {container.name: service}}))


def _devices(container: Container) -> dict[str, Any]:
    """GPUs of NVIDIA by reservation, those of others by their files."""
    if not container.n_gpus:
        return {}
    if container.api != "cuda":
        files = ["/dev/kfd", "/dev/dri"] if container.api == "rocm" else ["/dev/dri"]
        return {"devices": files, "group_add": ["video"]}
    which: dict[str, Any] = (
        {"device_ids": list(container.device_ids)} if container.device_ids else {"count": container.n_gpus}
    )
    device = {"driver": "nvidia", **which, "capabilities": ["gpu"]}
    return {"deploy": {"resources": {"reservations": {"devices": [device]}}}}


def _escaped(text: str) -> str:
    return text.replace("$", "$$")
