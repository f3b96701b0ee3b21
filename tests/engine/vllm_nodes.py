"""Runs inside an environment with vLLM: reads argument lists of nodes as JSON lines, writes what vLLM's own parser and
`ParallelConfig` make of each: which ranks are on the node, and how it hands over its cache."""

from __future__ import annotations

import json
import sys

from vllm.config import ParallelConfig
from vllm_parser import make_parser

NAMES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "nnodes", "node_rank", "master_addr")


def main() -> None:
    parser = make_parser()
    for line in sys.stdin:
        values = vars(parser.parse_args(json.loads(line)))
        sizes = {name: values[name] for name in NAMES}
        found = ParallelConfig(**sizes, distributed_executor_backend="mp")
        first = found.node_rank_within_dp * found.local_world_size
        ranks = [first, first + found.local_world_size]
        kv = values["kv_transfer_config"]
        handed = None if kv is None else [kv.kv_connector, kv.kv_role, kv.is_kv_producer, kv.is_kv_consumer]
        print(
            "ANSWER " + json.dumps({**sizes, "headless": values["headless"], "ranks": ranks, "kv": handed}), flush=True
        )


if __name__ == "__main__":
    main()
