"""How close the vLLM plugin comes to vLLM's own planner, row by row: a table by model.

    python tools/accuracy/vllm_memory.py [ROWS.jsonl[.gz] ...]

Rows are those of tests/data/vllm (the default), or others of the same form; a row's model is a directory
below tests/data/vllm/configs, or the path of one. The exit code is 1 if a row differs."""

from __future__ import annotations

import gzip
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from support import vllm_truth


@dataclass
class Tally:
    """What happened to the rows of one model."""

    n_rows: int = 0
    n_cache_equal: int = 0
    n_batch_equal: int = 0
    n_weights_equal: int = 0
    n_planned: int = 0
    n_refused: int = 0
    n_refused_alike: int = 0
    worst: float = 0.0
    wrong: list[str] = field(default_factory=list)


BATCH = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_in_flight_tokens",
    "dtype",
    "cudagraph_mode",
    "n_capture_sizes",
)


def read(path: str) -> Iterator[dict[str, Any]]:
    opened = gzip.open if path.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def judge(row: dict[str, Any], tally: Tally) -> None:
    tally.n_rows += 1
    report = vllm_truth.predict(row)
    refused = vllm_truth.refusal(row) is not None
    if refused or isinstance(report, Exception):
        tally.n_refused += refused
        if refused and isinstance(report, Exception):
            tally.n_refused_alike += 1
        else:
            tally.wrong.append(f"{vllm_truth.label(row)}: {report if not refused else 'not refused'}"[:160])
        return
    tally.n_planned += 1
    want = vllm_truth.expected(row)
    got = vllm_truth.predicted(report, want)
    different = [name for name in want if got[name] != want[name]]
    tally.n_batch_equal += not any(name in BATCH for name in different)
    tally.n_cache_equal += not any(name not in BATCH for name in different)
    errors = [
        mine / real - 1.0 for mine, real in zip(report["weights_bytes_per_rank"], vllm_truth.weights(row), strict=True)
    ]
    tally.n_weights_equal += not any(errors)
    tally.worst = max([tally.worst, *errors], key=abs)
    if different or max(map(abs, errors)) > 0.005:
        details = {name: (got[name], want[name]) for name in different}
        tally.wrong.append(f"{vllm_truth.label(row)}: {details or errors}"[:240])


def main(paths: list[str]) -> None:
    data = vllm_truth.DATA
    paths = paths or [str(data / "truth.jsonl.gz"), str(data / "flags.jsonl.gz")]
    tallies: dict[str, Tally] = {}
    start = time.perf_counter()
    for path in paths:
        for row in read(path):
            judge(row, tallies.setdefault(row["model"], Tally()))
    seconds = time.perf_counter() - start
    print(f"{'model':24} {'rows':>5} {'cache =':>9} {'batch =':>9} {'weights =':>10} {'worst':>9} {'refused':>9}")
    total = Tally()
    for name, tally in sorted(tallies.items()):
        show(name, tally)
        for key in (
            "n_rows",
            "n_cache_equal",
            "n_batch_equal",
            "n_weights_equal",
            "n_planned",
            "n_refused",
            "n_refused_alike",
        ):
            setattr(total, key, getattr(total, key) + getattr(tally, key))
        total.worst = max(total.worst, tally.worst, key=abs)
        total.wrong += tally.wrong
    show("all", total)
    print(f"\n{total.n_rows} rows in {seconds:.1f} s, {1000 * seconds / max(1, total.n_rows):.0f} ms each")
    for line in total.wrong:
        print("  different:", line)
    show_boots()
    sys.exit(1 if total.wrong else 0)


def show_boots() -> None:
    """KV memory from the GPU alone against the logs of real starts."""
    errors = []
    print(f"\n{'start of a real GPU':44} {'predicted':>10} {'logged':>8}")
    for boot in vllm_truth.boots():
        gib = vllm_truth.predicted_kv_gib(boot)
        errors.append(abs(gib / boot["kv_gib"] - 1.0))
        print(f"{boot['what']:44} {gib:6.2f} GiB {boot['kv_gib']:8.2f} {gib / boot['kv_gib'] - 1.0:+8.1%}")
    print(f"median {statistics.median(errors):.1%}, worst {max(errors):.1%}")


def show(name: str, tally: Tally) -> None:
    of = f"/{tally.n_planned}"
    print(
        f"{name:24} {tally.n_rows:5} {tally.n_cache_equal:6}{of:3} {tally.n_batch_equal:6}{of:3} "
        f"{tally.n_weights_equal:7}{of:3} {tally.worst:+9.3%} {tally.n_refused_alike:6}/{tally.n_refused:<2}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
