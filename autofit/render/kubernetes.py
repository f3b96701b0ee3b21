"""A Deployment and a Service of Kubernetes, and the parts that objects of other controllers have in common with it.

Source: the API of Kubernetes 1.34 (apps/v1, core/v1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autofit.domain.fleet import FleetFile, FleetPlan, Placement
from autofit.domain.plan import Plan
from autofit.errors import UsageError
from autofit.render.container import MIB, SHARED_MEMORY_BYTES, Container, commented, container_of
from autofit.render.fleet_parts import contained, health_of, listed, machines_of, names_of, waits_for
from autofit.render.yaml import dump

_RESOURCES = {"cuda": "nvidia.com/gpu", "rocm": "amd.com/gpu", "sycl": "gpu.intel.com/xe"}
STARTUP = {"periodSeconds": 10, "failureThreshold": 360}  #: of the probe: an hour to load


def render(plan: Plan) -> str:
    """The two objects, with requests and limits of RAM and GPUs, /dev/shm, and probes of `/health`.

    Raises:
        UsageError: no image is known.
    """
    container = container_of(plan)
    return commented(plan, dump(*_objects(container, pod_of(container))))


def render_fleet(fleet: FleetPlan) -> tuple[FleetFile, ...]:
    """Two objects for each copy, on the node that is called like its machine; those that are not in the first set have
    no replicas. GPUs of which one is for several pods are chosen by variable and not asked of the scheduler.

    Raises:
        UsageError: no image is known for an engine, or pods would share GPUs that are not NVIDIA's.
    """
    objects = [one for placement in fleet.placements for one in _of_fleet(fleet, placement)]
    head = "# made by autofit: a node is called like its machine (kubernetes.io/hostname)"
    return (FleetFile("fleet.yaml", "\n".join([head, *_remarks(fleet), dump(*objects)])),)


def _remarks(fleet: FleetPlan) -> Iterator[str]:
    shared = [name for name in machines_of(fleet) if _is_shared(fleet, name)]
    if shared:
        yield (
            f"# on {listed(shared)} pods choose GPUs by NVIDIA_VISIBLE_DEVICES: let nothing else ask for "
            "nvidia.com/gpu there"
        )
    names = names_of(fleet)
    for one in fleet.placements:
        if one.name not in fleet.first_set:
            yield f"# {names[one.name]}: first scale {listed([names[n] for n in one.evicts if n in names])} to 0"


def _of_fleet(fleet: FleetPlan, one: Placement) -> tuple[dict[str, Any], dict[str, Any]]:
    names = names_of(fleet)
    container = contained(one, names[one.name])
    is_shared = bool(one.devices) and _is_shared(fleet, one.machine)
    if is_shared:
        if container.api != "cuda":
            raise UsageError(
                f"{one.name}: pods that share GPUs of {container.api or 'several kinds'} have no manifest",
                hint="take --format systemd, or devices of its own",
            )
        chosen = {"NVIDIA_VISIBLE_DEVICES": ",".join(container.device_ids)}
        container = container._replace(environ={**container.environ, **chosen}, n_gpus=0)
    pod = pod_of(container)
    if is_shared:
        pod["runtimeClassName"] = "nvidia"
    pod["nodeSelector"] = {"kubernetes.io/hostname": one.machine}
    before = [other for other in waits_for(fleet, one) if other.name in fleet.first_set]
    if before:
        pod["initContainers"] = [_waiting(container, names[other.name], other) for other in before]
    return _objects(container, pod, replicas=1 if one.name in fleet.first_set else 0)


def _waiting(container: Container, name: str, other: Placement) -> dict[str, Any]:
    """Ends when the service of another copy answers."""
    return {
        "name": f"after-{name}"[:63].rstrip("-"),
        "image": container.image,
        "command": ["sh", "-c", f"until curl -fsS -o /dev/null {health_of(other, name)}; do sleep 2; done"],
    }


def _is_shared(fleet: FleetPlan, machine: str) -> bool:
    """Whether the scheduler cannot choose the GPUs: several copies are on one, or they are not all alike."""
    ids = [device.id for one in fleet.on(machine) for device in one.devices]
    (own,) = (one.machine.devices for one in fleet.fleet.machines if one.name == machine)
    return len(ids) > len(set(ids)) or len({(device.name, device.total_bytes) for device in own}) > 1


def _objects(container: Container, pod: dict[str, Any], *, replicas: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    labels = {"app": container.name}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": container.name, "labels": labels},
        "spec": {
            "replicas": replicas,
            "strategy": {"type": "Recreate"},  # two at once would need the GPU twice
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    return deployment, service_of(container, labels)


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
    """A word in which the cluster fills in no variable, and takes `$$` for no escape (k8s.io/kubernetes,
    third_party/forked/golang/expansion/expand.go:tryReadVariableName)."""
    return text.replace("$", "$$") if "$(" in text or "$$" in text else text
