"""A real Ray cluster of several nodes on this machine, whose GPUs only count, takes the placement that is planned."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support import DATA, ROOT

VARIABLE = "AUTOFIT_RAY_PYTHON"  #: a Python with ray and what autofit needs: .ci/ray.sh makes one
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"{VARIABLE} names no Python with Ray"),
]


def planned(config: str, n_nodes: int, n_gpus: int, *more: str) -> dict[str, Any]:
    words = [str(DATA / "vllm/configs" / config), str(n_nodes), str(n_gpus), *more]
    script = Path(__file__).with_name("ray_cluster.py")
    done = subprocess.run(
        [os.environ[VARIABLE], str(script), *words],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("found ")), None)
    assert line is not None, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(line.removeprefix("found "))
    return found


def test_ray_places_the_ranks_where_they_are_planned() -> None:
    found = planned("deepseek-v3", 3, 8)
    assert found["rc"] == 0, found["stderr"]
    plan, report = found["plan"], found["plan"]["engine_report"]
    assert (report["tensor_parallel_size"], report["pipeline_parallel_size"]) == (8, 2)
    assert plan["argv"][plan["argv"].index("--distributed-executor-backend") + 1] == "ray"
    assert "--nnodes" not in plan["argv"] and plan["nodes"] == []
    planned_on = {pool["id"].rpartition("/")[0] for pool in plan["pools"] if pool["id"] != "host"}
    assert found["placed"] == [8, 8] and len(planned_on) == 2
    assert any(one["code"] == "idle-nodes" for one in plan["findings"])


def test_gpus_that_others_hold_are_told() -> None:
    found = planned("llama3-8b", 1, 4, "held")
    assert found["rc"] == 0, found["stderr"]
    assert "2 of 4 GPUs of the Ray cluster are held by others" in found["stderr"]
