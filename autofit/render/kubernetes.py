"""A Deployment and a Service of Kubernetes. Source: the API of Kubernetes 1.34 (apps/v1, core/v1)."""

from __future__ import annotations

from typing import Any

from autofit.domain.plan import Plan
from autofit.render.container import MIB, SHARED_MEMORY_BYTES, Container, commented, container_of
from autofit.render.yaml import dump

_RESOURCES = {"cuda": "nvidia.com/gpu", "rocm": "amd.com/gpu", "sycl": "gpu.intel.com/xe"}


def render(plan: Plan) -> str:
    """The two objects, with requests and limits of RAM and GPUs, /dev/shm, and probes of `/health`.

    Raises:
        UsageError: no image is known.
    """
    container = container_of(plan)
    labels = {"app": container.name}
    pod = {"metadata": {"labels": labels}, "spec": _pod(container)}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": container.name, "labels": labels},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},  # two at once would need the GPU twice
            "selector": {"matchLabels": labels},
            "template": pod,
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": container.name, "labels": labels},
        "spec": {"selector": labels, "ports": [{"port": container.port, "targetPort": container.port}]},
    }
    return commented(plan, dump(deployment, service))


def _pod(container: Container) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [
        {"name": f"models-{n}", "hostPath": {"path": source, "type": "Directory"}}
        for n, (source, _) in enumerate(container.mounts, 1)
    ]
    mounts = [
        {"name": f"models-{n}", "mountPath": target, "readOnly": True}
        for n, (_, target) in enumerate(container.mounts, 1)
    ]
    if container.shares_memory:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": str(SHARED_MEMORY_BYTES)}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108 - of a container
    health = {"httpGet": {"path": "/health", "port": container.port}}
    one: dict[str, Any] = {
        "name": container.name,
        "image": container.image,
        "args": [_escaped(word) for word in container.words],
        "ports": [{"containerPort": container.port}],
        "resources": _resources(container),
        "startupProbe": {**health, "periodSeconds": 10, "failureThreshold": 360},  # an hour to load
        "livenessProbe": {**health, "periodSeconds": 10, "failureThreshold": 6},
        "readinessProbe": {**health, "periodSeconds": 5},
    }
    if container.environ:
        one["env"] = [{"name": name, "value": _escaped(value)} for name, value in container.environ.items()]
    if mounts:
        one["volumeMounts"] = mounts
    return {"containers": [one], **({"volumes": volumes} if volumes else {})}


def _resources(container: Container) -> dict[str, Any]:
    """RAM and GPUs, the same as requests and as limits, so that nothing else is given what was planned for."""
    given: dict[str, str] = {}
    if container.ram_bytes is not None:
        shared = SHARED_MEMORY_BYTES if container.shares_memory else 0  # counts as the pod's memory
        given["memory"] = f"{(container.ram_bytes + shared) // MIB}Mi"
    if container.n_gpus and container.api in _RESOURCES:
        given[_RESOURCES[container.api]] = str(container.n_gpus)
    return {"requests": given, "limits": dict(given)}


def _escaped(text: str) -> str:
    return text.replace("$(", "$$(")
