"""A Deployment and a Service of Kubernetes, and the parts that objects of other controllers have in common with it.

Source: the API of Kubernetes 1.34 (apps/v1, core/v1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autofit.domain.plan import Plan
from autofit.render.container import MIB, SHARED_MEMORY_BYTES, Container, commented, container_of
from autofit.render.yaml import dump

_RESOURCES = {"cuda": "nvidia.com/gpu", "rocm": "amd.com/gpu", "sycl": "gpu.intel.com/xe"}
STARTUP = {"periodSeconds": 10, "failureThreshold": 360}  #: of the probe: an hour to load


def render(plan: Plan) -> str:
    """The two objects, with requests and limits of RAM and GPUs, /dev/shm, and probes of `/health`.

    Raises:
        UsageError: no image is known.
    """
    container = container_of(plan)
    labels = {"app": container.name}
    pod = {"metadata": {"labels": labels}, "spec": pod_of(container)}
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
    return commented(plan, dump(deployment, service_of(container, labels)))


def service_of(container: Container, selector: Mapping[str, str]) -> dict[str, Any]:
    """A Service of the container's name for the pods that `selector` finds."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": container.name, "labels": {"app": container.name}},
        "spec": {"selector": dict(selector), "ports": [{"port": container.port, "targetPort": container.port}]},
    }


def pod_of(
    container: Container, name: str | None = None, args: Sequence[str] | None = None, *, answers: bool = True
) -> dict[str, Any]:
    """The specification of a pod with this container, called `name`. In `args`, in place of the container's words,
    `$(NAME)` names a variable of the cluster. `answers`: it has the port of the server, and is asked for its health.
    """
    one: dict[str, Any] = {
        "name": name or container.name,
        "image": container.image,
        "args": [escaped(word) for word in container.words] if args is None else list(args),
    }
    if answers:
        one["ports"] = [{"containerPort": container.port}]
    one["resources"] = resources_of(container)
    if answers:
        health = {"httpGet": {"path": "/health", "port": container.port}}
        one["startupProbe"] = {**health, **STARTUP}
        one["livenessProbe"] = {**health, "periodSeconds": 10, "failureThreshold": 6}
        one["readinessProbe"] = {**health, "periodSeconds": 5}
    if container.environ:
        one["env"] = environment_of(container)
    volumes, mounts = volumes_of(container)
    if container.shares_memory:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": str(SHARED_MEMORY_BYTES)}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108 - of a container
    if mounts:
        one["volumeMounts"] = mounts
    return {"containers": [one], **({"volumes": volumes} if volumes else {})}


def volumes_of(container: Container) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The folders of models as volumes of a pod, and where its container has them."""
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    for n, (source, target) in enumerate(container.mounts, 1):
        volumes.append({"name": f"models-{n}", "hostPath": {"path": source, "type": "Directory"}})
        mounts.append({"name": f"models-{n}", "mountPath": target, "readOnly": True})
    return volumes, mounts


def environment_of(container: Container) -> list[dict[str, str]]:
    """The plan's variables as a container has them."""
    return [{"name": name, "value": escaped(value)} for name, value in container.environ.items()]


def resources_of(container: Container) -> dict[str, Any]:
    """RAM and GPUs, the same as requests and as limits, so that nothing else is given what was planned for."""
    given: dict[str, str] = {}
    if container.ram_bytes is not None:
        shared = SHARED_MEMORY_BYTES if container.shares_memory else 0  # counts as the pod's memory
        given["memory"] = f"{(container.ram_bytes + shared) // MIB}Mi"
    if container.n_gpus and container.api in _RESOURCES:
        given[_RESOURCES[container.api]] = str(container.n_gpus)
    return {"requests": given, "limits": dict(given)}


def escaped(text: str) -> str:
    """A word in which the cluster fills in no variable."""
    return text.replace("$(", "$$(")
