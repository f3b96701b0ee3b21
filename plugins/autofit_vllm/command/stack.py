"""Values for the Helm chart of the vLLM production stack.

Source: the chart vllm-stack 0.1.12 (values.yaml, values.schema.json, templates/deployment-vllm-multi.yaml), and Helm
4.2.3 (pkg/chart/v2/loader/load.go:LoadValues).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from autofit.errors import UsageError
from autofit.render.container import SHARED_MEMORY_BYTES, Container, commented, container_of
from autofit.render.kubernetes import STARTUP, environment_of, escaped, resources_of, volumes_of
from autofit.render.yaml import dump

from autofit_vllm.command.config import given
from autofit_vllm.command.flags import flag_of, takes_list
from autofit_vllm.engine.versions import find_engine

if TYPE_CHECKING:
    from autofit.domain.plan import Plan

#: settings that the chart has names of its own for
_NAMED = {
    "max_model_len": "maxModelLen",
    "dtype": "dtype",
    "max_num_seqs": "maxNumSeqs",
    "gpu_memory_utilization": "gpuMemoryUtilization",
}
#: whole numbers from here on are floating point to Helm, and `quote` writes them as 1.048576e+06, which vLLM refuses
_FIRST_ROUNDED = 1_000_000
#: flags that the chart writes itself
_CHARTS = frozenset(("model", "host", "port", "enable_prefix_caching", "tensor_parallel_size", "revision"))
_SERVER = frozenset(("headless", "api_server_count"))


def render(plan: Plan) -> str:
    """`servingEngineSpec` with one model: what the chart has a name for by that, the rest as `extraArgs`.

    Raises:
        UsageError: no image is known, or the plan is for several machines.
    """
    container = container_of(plan)
    values = given(plan, container.words)
    repository, _, tag = container.image.rpartition(":")
    model: dict[str, Any] = {
        "name": container.name,
        "repository": repository,
        "tag": tag,
        "modelURL": escaped(values["model"]),
        "replicaCount": 1,
        "resources": resources_of(container),
        "vllmConfig": _settings(plan, values, container),
    }
    if "revision" in values:
        model["modelRevision"] = escaped(values["revision"])
    if container.shares_memory:
        model["shmSize"] = f"{SHARED_MEMORY_BYTES >> 20}Mi"
    if container.environ:
        model["env"] = environment_of(container)
    volumes, mounts = volumes_of(container)
    if volumes:
        model |= {"extraVolumes": volumes, "extraVolumeMounts": mounts}
    health = {"httpGet": {"path": "/health", "port": container.port}}
    spec: dict[str, Any] = {
        "modelSpec": [model],
        "containerPort": container.port,
        "startupProbe": {**health, **STARTUP},
        "livenessProbe": {**health, "periodSeconds": 10, "failureThreshold": 6},
        "readinessProbe": {**health, "periodSeconds": 5},
        "strategy": {"type": "Recreate"},  # two at once would need the GPU twice
    }
    if container.api != "cuda":
        spec["runtimeClassName"] = ""  # the chart's own is NVIDIA's
    return commented(plan, dump({"servingEngineSpec": spec}))


def _settings(plan: Plan, values: dict[str, Any], container: Container) -> dict[str, Any]:
    """`vllmConfig`: without the word about the cache of prefixes the chart would switch it off."""
    found: dict[str, Any] = {"enablePrefixCaching": values.get("enable_prefix_caching", True)}
    named = {ours: theirs for ours, theirs in _NAMED.items() if ours in values and not _is_rounded(values[ours])}
    found |= {theirs: values[ours] for ours, theirs in named.items()}
    if container.shares_memory or values.get("tensor_parallel_size", 1) > 1:  # which is when it mounts /dev/shm
        found["tensorParallelSize"] = values.get("tensor_parallel_size", 1)
    rest = [name for name in values if name not in named and name not in _CHARTS]
    words = [escaped(word) for name in rest for word in _words(plan, name, values[name])]
    if words:
        found["extraArgs"] = words
    return found


def _is_rounded(value: object) -> bool:
    return isinstance(value, int) and abs(value) >= _FIRST_ROUNDED


def _words(plan: Plan, name: str, value: Any) -> list[str]:
    """A setting as the command line has it.

    Raises:
        UsageError: what such a pod is not for.
    """
    flag = flag_of(name)
    if name in _SERVER:
        raise UsageError(f"{flag}: the production stack has one server to a pod", hint=f"leave {flag} out")
    if value is True:
        return [flag]
    if value is False:
        return [f"--no-{flag[2:]}"]
    if isinstance(value, dict):
        return [flag, json.dumps(value)]
    if isinstance(value, list):
        if takes_list(name, find_engine(plan.engine_version)):
            return [flag, *map(str, value)]
        if name == "device_ids":
            return [flag, ",".join(map(str, value))]
        return [word for one in value for word in (flag, str(one))]
    return [flag, str(value)]
