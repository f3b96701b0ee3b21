"""Command lines as vLLM's own parser and configuration classes took them: the same refused, the rest resolved alike."""

from __future__ import annotations

import gzip
import json
from typing import Any

import autofit
import pytest
from autofit.domain.units import GIB
from autofit.errors import EngineRefusalError, UsageError

from support.vllm_truth import DATA

ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in gzip.decompress((DATA / "command_lines.jsonl.gz").read_bytes()).splitlines()
]
CARDS = {name: autofit.load_machine(name, name, ram="64GiB") for name in {row["gpu"] for row in ROWS}}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['model']} {' '.join(row['args'])[:80]}")
def test_a_command_line(row: dict[str, Any]) -> None:
    command = ["vllm", "serve", str(DATA / "configs" / row["model"]), *row["args"]]
    cards = CARDS[row["gpu"]]
    if "refused" in row:
        with pytest.raises((EngineRefusalError, UsageError)):
            autofit.check(command, cards, available_kv_bytes=1024 * GIB)
        return
    found = autofit.check(command, cards, available_kv_bytes=1024 * GIB).engine_report
    captured: Any = found["cudagraph_capture_sizes"]
    assert {**found, "n_captured": len(captured)}.items() >= row["config"].items()


def test_there_are_enough_of_both_kinds() -> None:
    refused = sum("refused" in row for row in ROWS)
    assert refused > 100 and len(ROWS) - refused > 150
