"""A LeaderWorkerSet of Kubernetes: one plan on several machines, a pod on each.

Source: LWS v0.10 (api/leaderworkerset/v1/leaderworkerset_types.go: LeaderWorkerTemplate, LWS_LEADER_ADDRESS,
LWS_WORKER_INDEX; pkg/utils/pod/pod_utils.go: the variables of each container).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from autofit.domain.plan import NodeCommand, Plan
from autofit.errors import UsageError
from autofit.render.container import Container, commented, container_of, engines_of
from autofit.render.kubernetes import escaped, pod_of, service_of
from autofit.render.yaml import dump

_ROLE = "role"
_ADDRESS, _INDEX = "LWS_LEADER_ADDRESS", "LWS_WORKER_INDEX"


def render(plan: Plan) -> str:
    """The set with one group, and a Service for its first pod.

    Raises:
        UsageError: the plan is for one machine, or a machine starts more than the engine, or is unlike the others; no
            image is known.
    """
    head, *workers = _nodes(plan)
    container = container_of(plan, head)
    labels = {"app": container.name}
    first, others = {**labels, _ROLE: "leader"}, {**labels, _ROLE: "worker"}
    template = {
        "size": len(plan.nodes),
        "restartPolicy": "RecreateGroupOnPodRestart",  # the others cannot go on without one
        "leaderTemplate": {"metadata": {"labels": first}, "spec": _pod(container, head, ())},
        "workerTemplate": {"metadata": {"labels": others}, "spec": _pod_of_workers(plan, workers)},
    }
    whole = {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": container.name, "labels": labels},
        "spec": {
            "replicas": 1,
            "rolloutStrategy": {
                "type": "RollingUpdate",
                "rollingUpdateConfiguration": {"maxUnavailable": 1, "maxSurge": 0},  # two would need the GPUs twice
            },
            "leaderWorkerTemplate": template,
        },
    }
    return commented(plan, dump(whole, service_of(container, first)))


def _nodes(plan: Plan) -> tuple[NodeCommand, ...]:
    """The machines of a plan, each of which starts the engine and nothing else.

    Raises:
        UsageError
    """
    if not plan.nodes:
        raise UsageError(
            "the plan is for one machine, and a LeaderWorkerSet is for several", hint="--format kubernetes is for one"
        )
    nodes = engines_of(plan, "a LeaderWorkerSet")
    if nodes[0].role != "head":
        raise UsageError(
            "a LeaderWorkerSet is one copy on several machines, and the plan is for several copies",
            hint="--format compose starts them, --format json has the commands of each",
        )
    return nodes


def _pod_of_workers(plan: Plan, workers: Sequence[NodeCommand]) -> dict[str, Any]:
    """The pod of all machines but the first: one of them, with its place where only that differs.

    Raises:
        UsageError: they differ in more.
    """
    containers = [container_of(plan, node) for node in workers]
    every = list(zip(*(container.words for container in containers), strict=False))
    head = container_of(plan, plan.nodes[0]).words
    places = {
        at
        for at, (words, its) in enumerate(zip(every, head, strict=False))
        if its == "0" and words == tuple(str(place) for place in range(1, len(workers) + 1))
    }
    same = {(*(w for at, w in enumerate(one.words) if at not in places), one.n_gpus) for one in containers}
    if len(same) > 1 or len({tuple(node.env.items()) for node in workers}) > 1:
        raise UsageError(
            "a LeaderWorkerSet has one pod for all machines but the first, and these differ",
            hint="--format json has the commands of each",
        )
    return _pod(containers[0], workers[0], places, answers=False)


def _pod(container: Container, node: NodeCommand, places: Collection[int], *, answers: bool = True) -> dict[str, Any]:
    """A pod whose words at `places` are the machine's own, and that finds the first by what LWS tells it."""
    args = [
        f"$({_INDEX})" if at in places else f"$({_ADDRESS})" if word == node.head_address else escaped(word)
        for at, word in enumerate(container.words)
    ]
    return pod_of(container, args=args, answers=answers)
