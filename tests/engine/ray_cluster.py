"""Run by a Python that has Ray: a cluster of nodes on this machine with GPUs that only count, and what autofit plans
for it. Prints one line of JSON: the plan, and on how many GPUs of which node Ray places its ranks.

    python ray_cluster.py CONFIG N_NODES N_GPUS [held]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, placement_group_table

GIB = 1 << 30


def main(config: str, n_nodes: int, n_gpus: int, *more: str) -> None:
    options = {"num_cpus": 1, "num_gpus": n_gpus, "memory": 900 * GIB, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "resources": {"accelerator_type:H100": 1}})
    for _ in range(n_nodes - 1):
        cluster.add_node(**options, resources={"accelerator_type:H100": 1})
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    held = placement_group([{"GPU": 2}]) if "held" in more else None
    if held is not None:
        ray.get(held.ready(), timeout=120)
    command = [sys.executable, "-m", "autofit", "vllm", config, "--on", "ray://auto", "--format", "json"]
    environ = {**os.environ, "RAY_ADDRESS": cluster.address}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    found = {"rc": done.returncode, "stderr": done.stderr[-2000:]}
    if done.returncode == 0 and held is None:
        found["plan"] = plan = json.loads(done.stdout)
        report = plan["engine_report"]
        n_ranks = report["tensor_parallel_size"] * report["pipeline_parallel_size"] * report["data_parallel_size"]
        group = placement_group([{"GPU": 1}] * n_ranks, strategy="PACK")  # vllm/v1/executor/ray_utils.py
        ray.get(group.ready(), timeout=120)
        nodes = placement_group_table(group)["bundles_to_node_id"].values()
        found["placed"] = sorted(Counter(nodes).values())
    print("found " + json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
