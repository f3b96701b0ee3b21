"""KV lines of public start-up logs, recomputed. A log rounds the memory to 0.01 GiB: every block count
within that interval is tried, and one must give the logged tokens exactly."""

from __future__ import annotations

import json
import statistics
from typing import Any

import pytest

from autofit_vllm.memory.kv import capacity, plan_kv
from support import DATA, vllm_models, vllm_truth

LOGS = json.loads((DATA / "vllm" / "boot_logs.json").read_text(encoding="utf-8"))
MODELS = {"qwen3.6-27b": vllm_models.qwen3_6_27b, "qwen3-8b": vllm_models.qwen3_8b}


@pytest.mark.parametrize("log", LOGS, ids=lambda log: f"{log['what']} {log['tokens']}")
def test_logged_tokens_are_exact(log: dict[str, Any]) -> None:
    model = MODELS[log["model"]]()
    config = vllm_models.config(model, log["gpu"], *log["args"])
    plan = plan_kv(model, config)
    per_block = plan.bytes_per_block[0]
    if "blocks" in log:
        counts = range(log["blocks"], log["blocks"] + 1)
    else:
        low, high = ((log["available_gib"] + half) * vllm_models.GIB for half in (-0.005, 0.005))
        counts = range(int(low) // per_block, int(high) // per_block + 1)
    assert len(counts) <= 24, "the interval would hit by chance"
    results = {capacity(plan, n, log["max_model_len"]).n_tokens: n for n in counts}
    assert log["tokens"] in results
    if "concurrency" in log:
        reached = capacity(plan, results[log["tokens"]], log["max_model_len"])
        assert round(reached.max_concurrency, 2) == log["concurrency"]


def test_kv_memory_from_the_gpu_alone() -> None:
    """Within 5 % in the median, 10 % at worst."""
    errors = [abs(vllm_truth.predicted_kv_gib(boot) / boot["kv_gib"] - 1.0) for boot in vllm_truth.boots()]
    assert statistics.median(errors) <= 0.05
    assert max(errors) <= 0.10
