"""What each node starts, taken by vLLM's own parser and parallel configuration: every rank is on one node."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import autofit
import pytest

from support import DATA

PYTHON = os.environ.get("AUTOFIT_VLLM_PYTHON")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not PYTHON, reason="AUTOFIT_VLLM_PYTHON names no Python with vLLM"),
]


def parsed(plan: autofit.Plan) -> list[dict[str, Any]]:
    """What vLLM makes of the command of each node."""
    assert PYTHON is not None
    commands = [node.commands[-1] for node in plan.nodes if node.role != "router"]
    lines = "".join(json.dumps(list(words[2:])) + "\n" for words in commands)
    script = Path(__file__).with_name("vllm_nodes.py")
    done = subprocess.run([PYTHON, str(script)], input=lines, capture_output=True, text=True, timeout=300)
    found = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert len(found) == len(commands), done.stderr[-2000:]
    return found


@pytest.mark.parametrize(("config", "n_nodes"), [("deepseek-v3", 2), ("deepseek-v3", 3), ("llama3-70b", 2)])
def test_ranks_are_where_they_are_planned(config: str, n_nodes: int) -> None:
    engine = ("--nnodes", str(n_nodes), "-tp", "8", "-pp", str(n_nodes))
    on = [f"{n_nodes}xgcp-a3-highgpu-8g"]
    plan = autofit.plan("vllm", str(DATA / "vllm/configs" / config), on=on, engine_args=engine, context="8k")
    assert plan.fits and len(plan.nodes) == n_nodes
    found = parsed(plan)
    assert [one["node_rank"] for one in found] == list(range(n_nodes))
    assert [bool(one["headless"]) for one in found] == [False, *[True] * (n_nodes - 1)]
    assert {one["master_addr"] for one in found} == {"HEAD_ADDRESS"}
    assert [one["ranks"] for one in found] == [[8 * at, 8 * (at + 1)] for at in range(n_nodes)]
    pools = [pool.id for pool in plan.memory.pools if pool.id != "host"]
    assert [name.startswith(f"node{at}/") for at in range(1, n_nodes) for name in pools[8 * at : 8 * (at + 1)]] == [
        True
    ] * (8 * (n_nodes - 1))


def test_instances_hand_over_their_cache_as_they_are_planned() -> None:
    plan = autofit.plan(
        "vllm", str(DATA / "vllm/configs/qwen3-8b"), on=["3xgcp-a3-highgpu-8g"], disaggregate="3000:500", link="400Gbit"
    )
    roles = [node.role for node in plan.nodes if node.role != "router"]
    handed = {
        "prefill": ["NixlConnector", "kv_producer", True, False],
        "decode": ["NixlConnector", "kv_consumer", False, True],
    }
    assert [one["kv"] for one in parsed(plan)] == [handed[role] for role in roles] and set(roles) == set(handed)
