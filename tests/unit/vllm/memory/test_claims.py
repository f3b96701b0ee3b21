"""What a process of vLLM may hold of a GPU: its whole share, and what it takes outside of it."""

from __future__ import annotations

import math
from typing import Any

import autofit
from autofit.domain.plan import Plan
from autofit.host import host

from support import DATA

MODEL = str(DATA / "vllm/configs/qwen3-0.6b")
MACHINE = autofit.load_machine("2x rtx-3090", ram="64GiB")


def plan(*engine_args: str, **options: Any) -> tuple[Plan, int]:
    """A plan, and what it claims of the first GPU."""
    found = autofit.plan("vllm", MODEL, MACHINE, settings=None, engine_args=engine_args, device="GPU0", **options)
    return found, host().backend("vllm").claims(found, MACHINE)["GPU0"]


def of(found: Plan, *labels: str) -> int:
    return sum(item.n_bytes for item in found.memory.pool("GPU0").items if item.label.endswith(labels))


def share(found: Plan) -> int:
    at = found.argv.index("--gpu-memory-utilization")
    return math.ceil((found.memory.pool("GPU0").total_bytes or 0) * float(found.argv[at + 1]))


def test_the_share_counts_and_what_comes_before_and_after_it() -> None:
    for options in ({}, {"prefer": "memory", "context": "4k"}, {"margin": "4GiB"}):
        found, claim = plan(**options)
        before, after = of(found, "CUDA context"), of(found, "block tables", "slack of graph capture")
        assert before and after
        assert claim == share(found) + before + after
        pool = found.memory.pool("GPU0")
        assert pool.used_bytes <= claim <= (pool.budget_bytes or 0)


def test_a_cache_of_a_stated_size_counts_as_it_is_but_the_start_asks_for_the_share() -> None:
    words = ("--kv-cache-memory-bytes", str(2 << 30), "--gpu-memory-utilization")
    small, claim = plan(*words, "0.05", context="4k")
    assert claim == small.memory.pool("GPU0").used_bytes
    large, claim = plan(*words, "0.9", context="4k")
    assert claim == share(large) + of(large, "CUDA context") > large.memory.pool("GPU0").used_bytes


def test_graphs_come_on_top_where_they_are_not_deducted() -> None:
    new, claim = plan(context="4k")
    old, older = plan("--gpu-memory-utilization", "0.5", context="4k", engine_version="0.19.0")
    assert of(old, "CUDA graphs") and of(new, "CUDA graphs")
    assert older >= share(old) + of(old, "CUDA context", "CUDA graphs")
    assert claim < share(new) + of(new, "CUDA context", "CUDA graphs") + of(new, "block tables", "capture")


def test_ram_counts_as_it_is_planned() -> None:
    found, _ = plan(context="4k")
    assert host().backend("vllm").claims(found, MACHINE)["host"] == found.memory.pool("host").used_bytes
