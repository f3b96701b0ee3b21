"""What each node starts, taken by vLLM's own parser and parallel configuration: every rank is on one node."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import autofit
import pytest

from support import DATA

PYTHON = os.environ.get("AUTOFIT_VLLM_PYTHON")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not PYTHON, reason="AUTOFIT_VLLM_PYTHON names no Python with vLLM"),
]


@pytest.mark.parametrize(("config", "n_nodes"), [("deepseek-v3", 2), ("deepseek-v3", 3), ("llama3-70b", 2)])
def test_ranks_are_where_they_are_planned(config: str, n_nodes: int) -> None:
    assert PYTHON is not None
    engine = ("--nnodes", str(n_nodes), "-tp", "8", "-pp", str(n_nodes))
    on = [f"{n_nodes}xgcp-a3-highgpu-8g"]
    plan = autofit.plan("vllm", str(DATA / "vllm/configs" / config), on=on, engine_args=engine, context="8k")
    assert plan.fits and len(plan.nodes) == n_nodes
    lines = "".join(json.dumps(list(node.commands[-1][2:])) + "\n" for node in plan.nodes)
    script = Path(__file__).with_name("vllm_nodes.py")
    done = subprocess.run([PYTHON, str(script)], input=lines, capture_output=True, text=True, timeout=300)
    found = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert len(found) == n_nodes, done.stderr[-2000:]
    assert [one["node_rank"] for one in found] == list(range(n_nodes))
    assert [bool(one["headless"]) for one in found] == [False, *[True] * (n_nodes - 1)]
    assert {one["master_addr"] for one in found} == {"HEAD_ADDRESS"}
    assert [one["ranks"] for one in found] == [[8 * at, 8 * (at + 1)] for at in range(n_nodes)]
    pools = [pool.id for pool in plan.memory.pools if pool.id != "host"]
    assert [name.startswith(f"node{at}/") for at in range(1, n_nodes) for name in pools[8 * at : 8 * (at + 1)]] == [
        True
    ] * (8 * (n_nodes - 1))
