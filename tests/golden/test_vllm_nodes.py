"""Commands over several nodes, recorded from vLLM itself: which ranks are where, and each byte of their parameters."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import autofit
import pytest
from autofit.errors import EngineRefusalError

from support import vllm_truth
from support.vllm_models import PROFILES

EVERY = list(vllm_truth.rows("nodes"))
ROWS = [row for row in EVERY if "error" not in row["vllm"]]
SPREAD = [row for row in ROWS if "nodes" in row["vllm"]]


def checked(row: dict[str, Any]) -> Any:
    """The plan of a row's command, on as many machines with as many GPUs as it has ranks on each."""
    each = len(row["vllm"]["nodes"][0]["ranks"])
    return autofit.check(
        ["vllm", "serve", str(vllm_truth.DATA / "configs" / row["model"]), "--load-format", "dummy", *row["args"]],
        on=[PROFILES[row["gpu"]]] * each,
        nodes=len(row["vllm"]["nodes"]),
        ram="1TiB",
        available_kv_bytes=int(row["available_kv_gib"] * vllm_truth.GIB),
    )


@pytest.mark.parametrize("row", ROWS, ids=vllm_truth.label)
def test_what_it_resolves_and_lays_out(row: dict[str, Any]) -> None:
    report = vllm_truth.predict(row)
    assert not isinstance(report, Exception), report
    want = vllm_truth.expected(row)
    assert vllm_truth.predicted(report, want) == want
    assert report["weights_bytes_per_rank"] == vllm_truth.weights(row)


@pytest.mark.parametrize("row", SPREAD, ids=vllm_truth.label)
def test_each_rank_is_on_its_node_with_its_bytes(row: dict[str, Any]) -> None:
    """Of ranks of one stage the one with most counts for all: experts that do not divide are one more on some."""
    plan = checked(row)
    pools = [pool.id for pool in plan.memory.pools if pool.id != "host"]
    n_stages = plan.engine_report["pipeline_parallel_size"]
    per_stage = plan.engine_report["tensor_parallel_size"]
    most = [0] * n_stages
    for node, recorded in enumerate(row["vllm"]["nodes"]):
        for rank in recorded["ranks"]:
            at = rank["replica"] * n_stages * per_stage + rank["rank"]
            assert pools[at].startswith(f"node{node}/") == (node > 0), (pools[at], rank)
            stage = rank["rank"] // per_stage
            most[stage] = max(most[stage], rank["param_bytes"])
    assert plan.engine_report["weights_bytes_per_rank"] == most
    assert len(pools) == sum(len(one["ranks"]) for one in row["vllm"]["nodes"])


@pytest.mark.parametrize("row", [row for row in EVERY if row not in ROWS], ids=vllm_truth.label)
def test_what_it_refuses(row: dict[str, Any]) -> None:
    assert isinstance(vllm_truth.predict(row), EngineRefusalError)


def test_all_ways_to_share_a_model_are_recorded() -> None:
    ways = {flag for row in SPREAD for flag, _ in pairwise([*row["args"], ""])}
    assert {"-tp", "-pp", "-dp", "-ep"} <= ways and len(SPREAD) >= 6
    ranks = [rank["param_bytes"] for row in SPREAD for node in row["vllm"]["nodes"] for rank in node["ranks"]]
    assert len(ranks) > 60 and min(ranks) > 1 << 30
