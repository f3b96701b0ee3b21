"""Recorded rows of older releases of vLLM, and the same rows predicted."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autofit.errors import EngineRefusalError, UnsupportedModelError, UsageError

from support import DATA, vllm_truth

ROWS = DATA / "vllm" / "versions" / "rows.jsonl.gz"
WEIGHTS_TOLERANCE = 1e-6
#: names of a row's configuration, and of the report
RESOLVED = {
    "max_model_len": "max_model_len",
    "max_num_seqs": "max_num_seqs",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "gpu_memory_utilization": "gpu_memory_utilization",
    "dtype": "dtype",
    "kv_cache_dtype": "kv_cache_dtype",
    "cudagraph_mode": "cudagraph_mode",
    "n_capture": "n_capture_sizes",
}


def rows(path: Path = ROWS) -> Iterator[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def label(row: dict[str, Any]) -> str:
    return f"{row['version']} {vllm_truth.label(row)}"


def judge(row: dict[str, Any]) -> dict[str, Any]:
    """What differs, by kind; empty where autofit says what the release said."""
    report = vllm_truth.predict(row, engine_version=row["version"])
    words = vllm_truth.refusal(row)
    if words is not None:
        return {"refused": _refused(report, words)}
    if isinstance(report, Exception):
        return {"refused": f"refused: {report}"}
    vllm = row["vllm"]
    resolved = {name: value for name, value in vllm["config"].items() if name in RESOLVED}
    if resolved["cudagraph_mode"] == "NONE":
        resolved.pop("n_capture", None)  # sizes of graphs that are not captured
    resolved["dtype"] = resolved["dtype"].removeprefix("torch.")
    resolved |= {name: vllm["result"][name] for name in ("max_model_len",) if name in vllm["result"]}
    derived = {**report, "n_capture_sizes": len(report["cudagraph_capture_sizes"])}
    got = {name: derived[RESOLVED[name]] for name in resolved}
    cache = {
        "block_size": vllm["block_size"],
        "bytes_per_block": vllm["bytes_per_block"],
        "n_groups": len(vllm["groups"]),
        **{name: value for name, value in vllm["result"].items() if name != "max_model_len"},
    }
    kept = {**report, "n_groups": len(report["kv_cache_groups"])}
    pairs = zip(report["weights_bytes_per_rank"], vllm_truth.weights(row), strict=True)
    return {
        "resolved": _differing(got, resolved),
        "cache": _differing({name: kept[name] for name in cache}, cache),
        "weights": [mine - real for mine, real in pairs if abs(mine / real - 1) > WEIGHTS_TOLERANCE],
    }


def _refused(report: Any, words: str) -> str:
    if not isinstance(report, (EngineRefusalError, UnsupportedModelError, UsageError)):
        return f"not refused: {words[:80]}"
    estimate = words.partition("estimated maximum model length is ")[2].partition(".")[0]
    if estimate and f"estimated maximum model length is {estimate}." not in str(report):
        return f"{estimate} tokens fit by vLLM: {report}"
    return ""


def _differing(got: dict[str, Any], want: dict[str, Any]) -> dict[str, Any]:
    return {name: (got[name], want[name]) for name in want if got[name] != want[name]}


def weights_bytes(row: dict[str, Any]) -> int:
    return max(vllm_truth.weights(row))


def request_bytes(row: dict[str, Any]) -> float:
    """Cache of one request of the full length."""
    vllm, result = row["vllm"], row["vllm"]["result"]
    return float(result["num_gpu_blocks"] * max(vllm["bytes_per_block"]) / result["max_concurrency"])


def moved_fraction(before: dict[str, Any], after: dict[str, Any]) -> float:
    """By how much of a GPU's memory weights and one full request grew from one release to the other."""
    total = vllm_truth.gpu_bytes(after["gpu"])
    return sum(each(after) - each(before) for each in (weights_bytes, request_bytes)) / total
