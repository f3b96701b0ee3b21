"""Plans for random models, machines, wishes and pins, each fed to the engine's own dry run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autofit_llama.backend import LlamaBackend
from dryrun import VARIABLE, dry_run, engine_folder
from plan_cases import Case, cases, write

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(engine_folder() is None, reason=f"{VARIABLE} names no llama.cpp"),
]
KINDS = ("model", "context", "compute")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("case", list(cases(32, seed=11)), ids=lambda case: case.label)
def test_the_engine_takes_what_was_planned_to_the_byte(case: Case, folder: Path) -> None:
    path = write(case, folder)
    plan = LlamaBackend().plan(case.model, case.machine, replace(case.request, model_reference=str(path)))
    real = dry_run(plan.argv, case.free_mib, api=case.api)
    told = plan.engine_report
    devices = [tuple(device[f"{kind}_bytes"] for kind in KINDS) for device in told["devices"]]
    if not any(finding.code == "bounded-compute" for finding in plan.findings):
        assert devices == [tuple(device[kind] for kind in KINDS) for device in real.devices]
        assert tuple(told["host"][f"{kind}_bytes"] for kind in KINDS) == tuple(real.host[kind] for kind in KINDS)
    assert real.n_ctx == told["n_ctx"]
    if plan.fits:
        margin = case.request.margins[0].n_bytes
        for i, device in enumerate(real.devices):
            assert real.device_bytes(i) + margin <= device["free"]
