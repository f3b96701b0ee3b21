"""Recorded starts of real engines (`tools/accuracy/engine_runs.py`): what they reported is what is predicted."""

from __future__ import annotations

from typing import Any

import pytest

from support.engine_runs import LLAMA_RUNS, VLLM_RUNS, figures, read_rows

ROWS = {row["name"]: row for row in read_rows()}
#: parts that are predicted higher than they were: the engine's own dry run, which is followed, counts more there
HIGHER = {("llama.cpp phimoe-moe RPC x 2", "RPC1 compute")}


def test_all_runs_are_recorded() -> None:
    assert ROWS.keys() == {run.name for run in (*LLAMA_RUNS, *VLLM_RUNS)}
    assert len(LLAMA_RUNS) >= 30 and len(VLLM_RUNS) >= 6


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_what_was_reported_is_what_is_predicted(row: dict[str, Any]) -> None:
    found = figures(row)
    if row["engine"] == "llama":
        remote = row["argv"][row["argv"].index("--rpc") + 1].split(",") if "--rpc" in row["argv"] else []
        assert {one.what.split()[0] for one in found} == {"host", *(f"RPC{i}" for i in range(len(remote)))}
    for one in found:
        if (row["name"], one.what) in HIGHER:
            assert one.over < 0
        else:
            assert one.over == 0, one
