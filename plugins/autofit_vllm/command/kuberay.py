"""A RayService of KubeRay: the application of Ray Serve LLM, and the cluster that runs it, a pod for each machine.

Source: KubeRay 1.7 (ray-operator/apis/ray/v1/rayservice_types.go, raycluster_types.go; controllers/ray/common/pod.go:
`ray start`, /dev/shm and the number of GPUs are its own), the images of Ray 2.60 (docker/ray-llm).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autofit.errors import UsageError
from autofit.render.container import Container, commented, container_of
from autofit.render.kubernetes import environment_of, resources_of, volumes_of
from autofit.render.yaml import dump

from autofit_vllm.command.ray import application

if TYPE_CHECKING:
    from autofit.domain.plan import Plan

RAY = "2.60.0"
IMAGE = f"rayproject/ray-llm:{RAY}-py312-cu130"
BRINGS = "0.29.0"  #: the release of vLLM in that image (python/deplocks/llm/rayllm_py312_cu130.lock)
HEAD = {"requests": {"memory": "8Gi"}, "limits": {"memory": "8Gi"}}  #: of a pod that has the cluster's state and no GPU
#: ports of a head, by the names that KubeRay makes its services of
_PORTS = {"gcs": 6379, "dashboard": 8265, "client": 10001, "serve": 8000}


def render(plan: Plan) -> str:
    """The service, with as many pods with GPUs as machines were planned for, each with all that the plan takes there.

    Raises:
        UsageError: a setting that Ray has for itself, or another release of vLLM than Ray's image brings.
    """
    whole = application(plan)
    if plan.engine_version != BRINGS:
        raise UsageError(
            f"Ray {RAY}'s image brings vLLM {BRINGS}, and the plan is for {plan.engine_version}",
            hint=f"plan for it: --engine-version {BRINGS}",
        )
    container = container_of(plan, plan.nodes[0] if plan.nodes else None)._replace(image=IMAGE)
    if container.api != "cuda":
        raise UsageError("Ray's image is for NVIDIA GPUs")
    count = len(plan.nodes) or 1
    ports = [{"name": name, "containerPort": port} for name, port in _PORTS.items()]
    head = {"name": "ray-head", "image": IMAGE, "resources": HEAD, "ports": ports}
    worker = {"name": "ray-worker", "image": IMAGE, "resources": resources_of(container)}
    cluster = {
        "rayVersion": RAY,
        "headGroupSpec": {"rayStartParams": {"num-gpus": "0"}, "template": _template(head, container)},
        "workerGroupSpecs": [
            {
                "groupName": "gpus",
                "replicas": count,
                "minReplicas": count,
                "maxReplicas": count,
                "rayStartParams": {},
                "template": _template(worker, container),
            }
        ],
    }
    service = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": container.name},
        "spec": {"serveConfigV2": dump(_in_pods(whole, container)), "rayClusterConfig": cluster},
    }
    return commented(plan, dump(service))


def _template(one: dict[str, Any], container: Container) -> dict[str, Any]:
    """A pod with the folders of models: the head reads the model's configuration too."""
    volumes, mounts = volumes_of(container)
    if container.environ:
        one["env"] = environment_of(container)
    if mounts:
        one["volumeMounts"] = mounts
    return {"spec": {"containers": [one], **({"volumes": volumes} if volumes else {})}}


def _in_pods(value: Any, container: Container) -> Any:
    """The application with paths as its pods have them."""
    if isinstance(value, dict):
        return {key: _in_pods(item, container) for key, item in value.items()}
    if isinstance(value, list):
        return [_in_pods(item, container) for item in value]
    if isinstance(value, str):
        for source, target in container.mounts:
            if value == source or value.startswith(f"{source}/"):
                return target + value[len(source) :]
    return value
