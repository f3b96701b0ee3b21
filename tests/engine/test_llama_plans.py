"""Plans for random models, machines, wishes and pins, each fed to the engine's own dry run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from autofit.errors import EngineRefusalError

from autofit_llama.backend import LlamaBackend
from support.dryrun import VARIABLE, EngineRefusal, allocated_bytes, dry_run, engine_folder
from support.plan_cases import Case, cases, write

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
    plan = LlamaBackend().plan(
        LlamaBackend().command(replace(case.request, model_reference=str(path))),
        case.model,
        case.machine,
        replace(case.request, model_reference=str(path)),
    )
    real = dry_run(plan.argv, case.free_mib, api=case.api)
    told = plan.engine_report
    devices = [tuple(device[f"{kind}_bytes"] for kind in KINDS) for device in told["devices"]]
    if not any(finding.code == "bounded-compute" for finding in plan.findings):
        assert devices == [tuple(device[kind] for kind in KINDS) for device in real.devices]
        assert tuple(told["host"][f"{kind}_bytes"] for kind in KINDS) == tuple(real.host[kind] for kind in KINDS)
    assert real.n_ctx == told["n_ctx"]
    if plan.fits:
        margin = case.request.margin[0].n_bytes
        for i, device in enumerate(real.devices):
            assert real.device_bytes(i) + margin <= device["free"]


def tensor_cases() -> Iterator[Case]:
    """Of the same jobs those with several CUDA devices, which then share every tensor."""
    for case in cases(160, seed=77):
        pins = case.request.engine_args
        if case.api == "cuda" and len(case.free_mib) > 1 and not {"-sm", "-fa"} & set(pins):
            yield replace(case, request=replace(case.request, engine_args=(*pins, "-sm", "tensor")))


@pytest.mark.parametrize("case", list(tensor_cases()), ids=lambda case: case.label)
def test_devices_that_share_tensors_hold_what_was_planned(case: Case, folder: Path) -> None:
    path = write(case, folder)
    try:
        plan = LlamaBackend().plan(
            LlamaBackend().command(replace(case.request, model_reference=str(path))),
            case.model,
            case.machine,
            replace(case.request, model_reference=str(path)),
        )
    except EngineRefusalError as refusal:
        command = ["llama-server", "-m", str(path), *case.request.engine_args]
        if "aborts" not in refusal.message:
            with pytest.raises(EngineRefusal, match=r"not implemented for architecture"):
                dry_run(command, case.free_mib)
        elif case.part == "archs":
            with pytest.raises(EngineRefusal, match=r"ggml-backend-meta.cpp"):
                allocated_bytes(command, case.free_mib)
        return
    real = dry_run(plan.argv, case.free_mib)
    told = plan.engine_report
    devices = [tuple(device[f"{kind}_bytes"] for kind in KINDS) for device in told["devices"]]
    assert devices == [tuple(device[kind] for kind in KINDS) for device in real.devices]
    assert tuple(told["host"][f"{kind}_bytes"] for kind in KINDS) == tuple(real.host[kind] for kind in KINDS)
    if plan.fits:
        margin = case.request.margin[0].n_bytes
        free = [case.free_mib[int(str(device["name"]).removeprefix("CUDA"))] << 20 for device in real.devices]
        assert all(sum(device) + margin <= room for device, room in zip(devices, free, strict=True))
    if case.part == "archs" and plan.fits:
        try:
            allocated_bytes(plan.argv, case.free_mib)  # and a prompt goes through
        except EngineRefusal as error:
            assert "n_outputs_max" in str(error)  # a model that reads whole texts
