"""The nodes of a running Ray cluster, asked by a process of its own: a cluster that hangs costs its time-out alone."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from autofit.domain.machine import Machine
from autofit.domain.text import printable
from autofit.domain.values import replace
from autofit.errors import HardwareError
from autofit.hardware.nodes import MAX_GPUS, Member, OfCards, join
from autofit.hardware.output import run_both
from autofit.hardware.programs import ToolError, ToolTimeoutError

SCHEME = "ray://"
SECONDS = 60.0
MAX_BYTES = 4 << 20
#: names that Ray has for accelerators (ray.util.accelerators), and cards: of those in two sizes the smaller one
CARDS = {
    "V100": "v100-16gb", "T4": "t4", "L4": "l4", "L40S": "l40s", "A10G": "a10g", "A100": "a100-40gb",
    "A100-40G": "a100-40gb", "A100-80G": "a100-80gb", "H100": "h100-80gb", "H200": "h200", "B200": "b200", "H20": "h20",
}  # fmt: skip
_ASK = """
import json, sys
import ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False, configure_logging=False)
nodes = [{"name": n.get("NodeName"), "address": n.get("NodeManagerAddress"), "alive": bool(n.get("Alive")),
          "resources": dict(n.get("Resources") or {})} for n in ray.nodes()]
free = ray.available_resources().get("GPU", 0.0)
print("autofit-nodes " + json.dumps({"nodes": nodes, "free": free}))
ray.shutdown()
"""


def ray_machine(wanted: str, of_cards: OfCards) -> Machine:
    """The machines of the cluster that `ray://auto` or `ray://HOST:PORT` names; `=CARD` behind it says what GPUs are.

    Raises:
        HardwareError: Ray is not installed, does not answer, or says of no node which GPUs it has.
    """
    address, _, card = wanted.removeprefix(SCHEME).partition("=")
    told = _asked("auto" if address in ("", "auto") else f"{SCHEME}{address}")
    members, findings, total = [], [], 0
    nodes = told.get("nodes")
    for at, node in enumerate(nodes if isinstance(nodes, list) else ()):
        if not isinstance(node, Mapping):
            continue
        resources = node.get("resources")
        resources = resources if isinstance(resources, Mapping) else {}
        name = printable(str(node.get("name") or f"node{at}"), 60)
        count = _number(resources.get("GPU"))
        if not node.get("alive"):
            findings.append(f"node {name} of the Ray cluster is not alive")
        if not node.get("alive") or not count:
            continue
        total += count
        own = card or _card_of(resources, name)
        memory = _number(resources.get("memory")) or None
        place = printable(str(node.get("address") or ""), 60) or None
        members.append(Member(name, of_cards(own, min(count, MAX_GPUS), memory), place))
    if not members:
        raise HardwareError("no node of the Ray cluster has GPUs", hint="ray start --num-gpus N says how many")
    free = _number(told.get("free"))
    if free < total:
        findings.append(f"{total - free} of {total} GPUs of the Ray cluster are held by others, which end first")
    found = join(members, "ray")
    return replace(found, findings=(*found.findings, *findings))


def _card_of(resources: Mapping[str, Any], node: str) -> str:
    names = [name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")]
    known = next((CARDS[name] for name in names if name in CARDS), None)
    if known is None:
        shown = printable(", ".join(names), 60) or "no accelerator_type"
        raise HardwareError(
            f"node {node} of the Ray cluster: which GPUs it has is not known ({shown})",
            hint="state the card: --on ray://auto=h100-80gb",
        )
    return known


def _number(value: object) -> int:
    return int(value) if isinstance(value, (int, float)) and 0 <= value < 1 << 60 else 0


def _asked(address: str) -> Mapping[str, Any]:
    import importlib.util

    if importlib.util.find_spec("ray") is None:
        raise HardwareError("Ray is not installed here", hint="pip install ray, or describe the nodes: --on NAME")
    quiet = {"RAY_DEDUP_LOGS": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    environ, cause = {**os.environ, **quiet}, "no answer"
    try:
        # -P: not a `ray.py` of the current directory
        stdout, _ = run_both(
            [sys.executable, "-P", "-c", _ASK, address], SECONDS, environ=environ, limit_bytes=MAX_BYTES
        )
    except ToolTimeoutError:
        raise HardwareError(
            f"the Ray cluster at {printable(address, 60)} does not answer in {SECONDS:.0f} s",
            hint="`ray status` says whether it runs; --on NAME describes its nodes without asking",
        ) from None
    except ToolError as error:
        stdout, cause = "", str(error).rpartition(": ")[2]
    for line in stdout.splitlines():
        if line.startswith("autofit-nodes "):
            found: Any = json.loads(line.removeprefix("autofit-nodes "))
            return found if isinstance(found, Mapping) else {}
    raise HardwareError(
        f"the Ray cluster at {printable(address, 60)} is not reached: {printable(cause, 160)}",
        hint="start one with `ray start --head`, or name its address: --on ray://HOST:10001",
    )
