"""Containers of Kubernetes manifests, each as the `docker run` that it comes to.

Every list of `containers` counts, of whatever kind of object. Source: the API of Kubernetes 1.34 (Container,
EnvVar and the expansion of `$(NAME)` in third_party/forked/golang/expansion).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal

from autofit.deployments.container import Container, written
from autofit.deployments.written import UNKNOWN, IsEngine, Written, check_measure
from autofit.text.yaml import Node

_VARIABLE = re.compile(r"\$\$|\$\(([-A-Za-z_.][-A-Za-z0-9_.]*)\)")
#: apimachinery, pkg/api/resource: a number and a unit of 1000 or of 1024
_QUANTITY = re.compile(r"([0-9]{1,24}(?:\.[0-9]{1,9})?(?:[eE][0-9]{1,2})?)(m|k|[MGTPE]|[KMGTPE]i|)")
_UNITS = {
    "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18,
    "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60,
}  # fmt: skip
_GPU = re.compile(r"nvidia\.com/(?:gpu|mig-.*)|amd\.com/gpu|gpu\.intel\.com/.*")


def commands(
    document: Node, is_engine: IsEngine, directory: str | None, volumes: tuple[str, ...] = ()
) -> tuple[Written, ...]:
    """The commands of engines that the containers of a manifest start; `volumes` is what each sees besides."""
    found: list[Written] = []
    given = _of_group(document)
    for pod in _pods(document, set()):
        paths = {
            volume.get("name").text: volume.get("hostPath", "path").text
            for volume in pod.get("volumes").items
            if volume.get("hostPath", "path").text
        }
        for container in pod.get("containers").items:
            mounted = tuple(
                f"{paths[mount.get('name').text]}:{mount.get('mountPath').text}"
                for mount in container.get("volumeMounts").items
                if mount.get("name").text in paths and mount.get("mountPath").text
            )
            read = _container(container, (*mounted, *volumes), given)
            if read is not None:
                found += written(read, is_engine, directory)
                check_measure(read.line, len(found))
    return tuple(found)


def _pods(node: Node, seen: set[int]) -> Iterator[Node]:
    """Every mapping with containers, in the order of the file."""
    if id(node.value) in seen:
        return
    seen.add(id(node.value))
    if node.get("containers").items:
        yield node
    for child in (*node.items, *node.pairs.values()):
        if isinstance(child.value, (list, dict)):
            yield from _pods(child, seen)


def _of_group(document: Node) -> dict[str, str]:
    """What a LeaderWorkerSet tells its containers, as its second pod has it: their memory is that of the first
    (LWS v0.10, pkg/utils/pod/pod_utils.go)."""
    if document.get("kind").text != "LeaderWorkerSet":
        return {}
    size = document.get("spec", "leaderWorkerTemplate", "size").text or "1"
    return {"LWS_LEADER_ADDRESS": "leader", "LWS_GROUP_SIZE": size, "LWS_WORKER_INDEX": "1"}


def _container(node: Node, volumes: tuple[str, ...], given: Mapping[str, str]) -> Container | None:
    image = node.get("image").text
    if not image:
        return None
    environ = dict(given)
    for item in node.get("env").items:
        name, value = item.get("name").text, item.get("value").text
        if name:
            environ[name] = UNKNOWN if item.get("valueFrom").value else _expanded(value or "", environ)
    entrypoint, command = node.get("command"), node.get("args")
    written_words = (*entrypoint.texts, *command.texts)
    named = [match[1] for word in written_words for match in _VARIABLE.finditer(word) if match[1]]
    left = next((name for name in named if UNKNOWN in environ.get(name, "")), None)
    gpus, devices = _devices(node)
    return Container(
        line=(command if command.line else entrypoint if entrypoint.line else node).line,
        image=image,
        command=tuple(_expanded(word, environ) for word in command.texts),
        entrypoint=tuple(_expanded(word, environ) for word in entrypoint.texts) or None,
        environ=environ,
        volumes=volumes,
        gpus=gpus,
        devices=devices,
        directory=node.get("workingDir").text,
        memory=_memory(node.get("resources", "limits", "memory").text or ""),
        unknown=None if left is None else f"$({left}) has its value in the cluster alone",
    )


def _expanded(text: str, environ: Mapping[str, str]) -> str:
    """A text with `$(NAME)` filled in; of a name that is not there it stays."""
    return _VARIABLE.sub(lambda match: environ.get(match[1], match[0]) if match[1] else "$", text)


def _memory(text: str) -> str | None:
    """A limit of memory in bytes; `None`: there is none, or nothing that the API takes for one."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return None
    unit = _UNITS.get(match[2], 1)
    n_bytes = int(Decimal(match[1]) * (Decimal(unit) if match[2] != "m" else Decimal("0.001")))
    return f"{n_bytes}b" if 0 < n_bytes < 10**15 else None


def _devices(node: Node) -> tuple[str | None, tuple[str, ...]]:
    """`--gpus` for GPUs of NVIDIA, `--device` for those of others."""
    resources = {**node.get("resources", "requests").pairs, **node.get("resources", "limits").pairs}
    given = {
        name: value.text for name, value in resources.items() if _GPU.fullmatch(name) and value.text not in (None, "0")
    }
    nvidia = next((count for name, count in given.items() if name.startswith("nvidia.com/")), None)
    return nvidia, ("/dev/dri",) if any(not name.startswith("nvidia.com/") for name in given) else ()
