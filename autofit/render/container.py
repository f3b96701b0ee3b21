"""What all formats of containers say: the image, what stands behind it, what the container sees and is given."""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from typing import NamedTuple

from autofit.domain.machine import HOST_POOL
from autofit.domain.plan import Deployment, NodeCommand, Plan
from autofit.domain.text import printable
from autofit.domain.units import format_bytes
from autofit.domain.words import renamed
from autofit.errors import UsageError

MODELS = "/models"
SHARED_MEMORY_BYTES = 2 << 30  #: of /dev/shm where several processes share tensors; a container has 64 MiB
MIB = 1 << 20
LEAST_SPARE_BYTES = 256 * MIB
_CHOOSES = "_VISIBLE_DEVICES"  #: ends of variables that choose devices


class Container(NamedTuple):
    """A container that starts the plan. `mounts` are folders of the host and where they are seen, read only."""

    name: str
    image: str
    words: tuple[str, ...]
    environ: dict[str, str]
    mounts: tuple[tuple[str, str], ...]
    n_gpus: int
    device_ids: tuple[str, ...]  #: which of the host's, where a variable of the plan chooses
    ram_bytes: int | None
    shares_memory: bool
    api: str | None
    port: int


def container_of(plan: Plan, node: NodeCommand | None = None) -> Container:
    """The container of a plan, or of one of its machines.

    Raises:
        UsageError: no image of the engine is known for its version and devices, the format cannot say a word, or the
            plan is for several machines and none of them is chosen.
    """
    if node is None:
        check_one_machine(plan)
    deployed = deployment_of(plan)
    if deployed.image is None:
        on = f" on {deployed.api} devices" if deployed.api else ""
        raise UsageError(
            f"no container image of {plan.backend} {plan.engine_version or ''}{on} is known",
            hint="take --format shell or systemd, and an image of your own",
        )
    mounts, moved = _mounts(deployed.paths)
    environ = plan.env if node is None else node.env
    words = deployed.words if node is None else node.commands[-1][len(plan.argv) - len(deployed.words) :]
    chosen = next((value for name, value in environ.items() if name.endswith(_CHOOSES)), "")
    visible = tuple(filter(None, chosen.split(",")))
    device_ids = tuple(visible[int(at)] for at in deployed.device_ids if int(at) < len(visible)) or visible
    device_ids = device_ids or deployed.device_ids
    n_gpus = len(device_ids) or (deployed.n_devices if node is None else node.n_devices)
    return Container(
        name=plan.backend,
        image=deployed.image,
        words=tuple(checked(renamed(word, moved)) for word in words),
        environ={name: value for name, value in sorted(environ.items()) if not name.endswith(_CHOOSES)},
        mounts=mounts,
        n_gpus=n_gpus,
        device_ids=device_ids,
        ram_bytes=_ram_bytes(plan),
        shares_memory=deployed.has_workers and n_gpus > 1,
        api=deployed.api,
        port=deployed.port,
    )


def check_one_machine(plan: Plan) -> None:
    """Refuse what one machine alone cannot start.

    Raises:
        UsageError
    """
    if plan.nodes:
        raise UsageError(
            f"the plan is for {len(plan.nodes)} machines, and this format is for one",
            hint="--format json has the commands of each; compose starts them, lws in Kubernetes, kuberay by Ray",
        )


def engines_of(plan: Plan, what: str) -> tuple[NodeCommand, ...]:
    """The machines of a plan but for a router's, each of which starts the engine and nothing else.

    Raises:
        UsageError: one starts another program too.
    """
    nodes = tuple(node for node in plan.nodes if node.role != "router")
    if any(len(node.commands) != 1 or node.commands[0][:1] != plan.argv[:1] for node in nodes):
        raise UsageError(
            f"{what} starts the engine alone, and this plan another program too",
            hint="--format json has the commands of each machine; --format ray-serve and kuberay are for Ray",
        )
    return nodes


def deployment_of(plan: Plan) -> Deployment:
    """How a plan is deployed.

    Raises:
        UsageError: the plan is of a command that was checked.
    """
    if plan.deployment is None:
        raise UsageError("this format is for plans, not for commands that are checked", hint=f"autofit {plan.backend}")
    return plan.deployment


def heading(plan: Plan) -> list[str]:
    """Lines of a comment: what made this, for which engine, and what it takes."""
    rows = ["made by autofit" + (f" for {plan.engine_source}" if plan.engine_source else "")]
    for pool in plan.memory.pools:
        free = f" of {format_bytes(pool.free_bytes)} free" if pool.free_bytes is not None else ""
        rows.append(f"{pool.id} {pool.name}: {format_bytes(pool.used_bytes)} used{free}")
    if plan.context_tokens:
        rows.append(f"context {plan.context_tokens} tokens")
    if not plan.fits:
        rows.append("DOES NOT FIT")
    return [printable(row, 200) for row in rows]


def commented(plan: Plan, body: str) -> str:
    """A text behind the heading, in formats whose comments begin with `#`."""
    return "\n".join([*(f"# {row}" for row in heading(plan)), body.rstrip("\n")])


def checked(word: str) -> str:
    """A word that a text format can hold.

    Raises:
        UsageError: bytes that are no text, or control characters.
    """
    if not word.isprintable():
        raise UsageError(
            f"{printable(word, 80)}: cannot be written in this format", hint="--format json gives it exactly"
        )
    return word


def at_home(words: Sequence[str], paths: Sequence[str]) -> list[str]:
    """The words of a command with their paths absolute."""
    whole = {path: os.path.abspath(path) for path in paths}  # noqa: PTH100 - as it is, links and all
    return [renamed(word, whole) for word in words]


def _mounts(paths: tuple[str, ...]) -> tuple[tuple[tuple[str, str], ...], dict[str, str]]:
    """Folders to mount, and the words that stand for paths in them."""
    folders: dict[str, str] = {}
    moved: dict[str, str] = {}
    for path in paths:
        whole = os.path.abspath(path)  # noqa: PTH100 - as it is, links and all
        folder = whole if os.path.isdir(path) else os.path.dirname(whole)  # noqa: PTH112, PTH120
        target = folders.setdefault(folder, MODELS if not folders else f"{MODELS}-{len(folders) + 1}")
        moved[path] = target if folder == whole else f"{target}/{os.path.basename(whole)}"  # noqa: PTH119
    return tuple((checked(folder), target) for folder, target in folders.items()), moved


def _ram_bytes(plan: Plan) -> int | None:
    """What the host's memory must hold, in whole MiB: a pod is ended for the first byte beyond its limit, so that what
    is not exact of the plan's RAM has room."""
    used = sum(pool.used_bytes for pool in plan.memory.pools if pool.id == HOST_POOL)
    whole = used + max(used // 32, LEAST_SPARE_BYTES)
    return -(-whole // MIB) * MIB if used else None
