"""Recorded starts of real engines (`tools/accuracy/engine_runs.py`): what they reported is what is predicted."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from autofit.backend import Backend
from autofit.domain.observed import Observed, Stage
from autofit.host import host

from support.engine_runs import LLAMA_RUNS, VLLM_RUNS, figures, read_rows

ROWS = {row["name"]: row for row in read_rows()}
STAGES = get_args(Stage)
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


@pytest.mark.parametrize("name", ["llama.cpp llama-moe RPC x 2", "vLLM qwen3"])
def test_a_log_that_is_cut_off_says_nothing_that_the_whole_does_not(name: str) -> None:
    """At any byte: fewer parts, of the sizes that they have, and no failure; a figure is whole or not there."""
    row = ROWS[name]
    backend = host().backend(row["engine"])
    data = row["log"].encode()
    whole = observed(backend, data)
    assert whole.is_ready and whole.failure is None
    known = {(one.group, one.place, one.label): one for one in whole.parts}
    stages = []
    for n in range(0, len(data), 331):
        cut = observed(backend, data[:n])
        assert cut.failure is None and not cut.recovered
        assert all(known[one.group, one.place, one.label].n_bytes >= one.n_bytes for one in cut.parts), n
        stages.append(STAGES.index(cut.stage))
    assert stages == sorted(stages) and len(set(stages)) >= 3


def observed(backend: Backend, data: bytes) -> Observed:
    watch = backend.watch()
    assert watch is not None
    watch.feed(data)
    return watch.close()
