"""Recorded rows of vLLM's own planner, and the same rows predicted."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import autofit
from autofit.errors import AutofitError, EngineRefusalError, UnsupportedModelError

import support
from support.vllm_models import PROFILES

DATA = support.DATA / "vllm"
GIB = 1 << 30


def rows(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def label(row: dict[str, Any]) -> str:
    return " ".join([row["model"], row["gpu"], *row["args"]])


def refusal(row: dict[str, Any]) -> str | None:
    """The engine's words, if it refused the arguments or the memory."""
    if "error" in row:
        return str(row["error"])
    error = row["vllm"].get("result", {}).get("error")
    return None if error is None else str(error)


@cache
def _machine(gpu: str, n: int) -> Any:
    return autofit.load_machine(*[PROFILES[gpu]] * n)


def gpu_bytes(gpu: str) -> int:
    """Memory of a row's GPU."""
    return int(_machine(gpu, 1).devices[0].total_bytes)


def _world_size(args: list[str]) -> int:
    """Ranks of all replicas; the flags of the rows are spelled like this."""
    sizes = {"-tp": 1, "-pp": 1, "-dp": 1}
    for flag, value in pairwise(args):
        if flag in sizes:
            sizes[flag] = int(value)
    return sizes["-tp"] * sizes["-pp"] * sizes["-dp"]


def predict(row: dict[str, Any], engine_version: str | None = None) -> dict[str, Any] | AutofitError:
    """autofit's report for the same command, or its refusal."""
    env = dict(arg.split("=", 1) for arg in row["args"] if arg.startswith("VLLM_"))
    args = [arg for arg in row["args"] if not arg.startswith("VLLM_")]
    directory = str(DATA / "configs" / row["model"])
    try:
        plan = autofit.check(
            ["vllm", "serve", directory, "--load-format", "dummy", *args],
            _machine(row["gpu"], _world_size(args)),
            environ=env,
            available_kv_bytes=int(row["available_kv_gib"] * GIB),
            engine_version=engine_version,
        )
    except (EngineRefusalError, UnsupportedModelError) as error:
        return error
    return dict(plan.engine_report)


def expected(row: dict[str, Any]) -> dict[str, Any]:
    """What vLLM itself resolved, by the names of the report."""
    vllm, resolved = row["vllm"], row["vllm"]["config"]
    result = {
        "block_size": vllm["block_size"],
        "bytes_per_block": vllm["bytes_per_block"],
        "max_num_seqs": resolved["max_num_seqs"],
        "max_num_batched_tokens": resolved["max_num_batched_tokens"],
        "max_in_flight_tokens": resolved["max_in_flight_tokens"],
        "dtype": resolved["dtype"].removeprefix("torch."),
        "kv_cache_dtype": resolved["kv_cache_dtype"],
        "n_groups": len(vllm["groups"]),
        "cudagraph_mode": resolved["cudagraph_mode"],
        "n_capture_sizes": resolved["n_capture"],
    }
    planned = vllm.get("result", {})
    return {**result, **{key: value for key, value in planned.items() if key != "error"}}


def predicted(report: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """The same keys of a report."""
    derived = {
        "n_groups": len(report["kv_cache_groups"]),
        "n_capture_sizes": len(report["cudagraph_capture_sizes"]),
    }
    return {key: {**report, **derived}[key] for key in like}


def boots() -> list[dict[str, Any]]:
    """Starts on real GPUs, with the KV memory that their logs report."""
    found: list[dict[str, Any]] = json.loads((DATA / "boots.json").read_text(encoding="utf-8"))
    return found


def predicted_kv_gib(boot: dict[str, Any]) -> float:
    """KV memory from the GPU and the flags alone."""
    args = boot["args"].split()
    plan = autofit.check(
        ["vllm", "serve", str(DATA / "configs" / boot["model"]), *args],
        _machine(boot["gpu"], _world_size(args)),
        environ={"VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS": "1" if boot["deducted"] else "0"},
    )
    return float(min(plan.engine_report["available_kv_cache_bytes"])) / GIB  # type: ignore[call-overload]


def weights(row: dict[str, Any]) -> list[int]:
    return [rank["param_bytes"] for rank in row["vllm"]["ranks"]]
