"""Command lines as vLLM's own parser and configuration classes took them: the same refused, the rest resolved alike."""

from __future__ import annotations

import gzip
import json
from typing import Any

import autofit
import pytest
from autofit.domain.units import GIB
from autofit.errors import EngineRefusalError, UsageError

from vllm_truth import DATA

ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in gzip.decompress((DATA / "command_lines.jsonl.gz").read_bytes()).splitlines()
]
MODEL = str(DATA / "configs" / "qwen3-0.6b")
CARDS = autofit.load_machine("rtx-4090", "rtx-4090", ram="64GiB")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row["args"])[:80])
def test_a_command_line(row: dict[str, Any]) -> None:
    command = ["vllm", "serve", MODEL, *row["args"]]
    if "refused" in row:
        with pytest.raises((EngineRefusalError, UsageError)):
            autofit.check(command, CARDS, available_kv_bytes=1024 * GIB)
        return
    found = autofit.check(command, CARDS, available_kv_bytes=1024 * GIB).engine_report
    captured: Any = found["cudagraph_capture_sizes"]
    assert {**found, "n_captured": len(captured)}.items() >= row["config"].items()


def test_there_are_enough_of_both_kinds() -> None:
    refused = sum("refused" in row for row in ROWS)
    assert refused > 100 and len(ROWS) - refused > 150
