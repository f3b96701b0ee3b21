"""llama.cpp's own `--fit`, replayed with autofit's estimates: the arguments that llama-fit-params printed.

A row of `fit_runs.jsonl.gz` (llama.cpp b11311): the model's description, free MiB of each device, the target to leave
free, the arguments given, and those chosen. `rpc` are servers, where the choice names one.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from typing import Any

import autofit
import pytest

from support.descriptors import DATA, spec

ROWS: list[Mapping[str, Any]] = [
    json.loads(line) for line in gzip.decompress((DATA / "fit_runs.jsonl.gz").read_bytes()).decode().splitlines()
]


@pytest.mark.slow_cases("llama-4-scout*", "qwen3-next*", "gpt-oss-120b*", "deepseek-v2*", "mixtral*")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['model']}-{row['api']}")
def test_the_replay_chooses_what_the_engine_chose(row: Mapping[str, Any]) -> None:
    machine = autofit.load_machine(*(f"generic-{row['api']}:{mib}MiB" for mib in row["free_mib"]), ram="2048GiB")
    servers = ["--rpc", ",".join(row["rpc"])] if "rpc" in row else []
    argv = ["llama-fit-params", "-m", "model.gguf", "-fitt", str(row["margin_mib"]), *servers, *row["args"]]
    report = autofit.check(argv, machine, model=spec("models", row["model"]), settings=None).engine_report
    assert report["fit"] == {"arguments": row["chosen"], "gave_up": None}
