"""`-sm tensor` against recorded runs of the engine: what each device holds, and what fails, for every architecture."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from autofit.domain.machine import Device, Host, Machine
from autofit.domain.units import GIB, MIB
from autofit.errors import EngineRefusalError

from autofit_llama.command.parse import settings_of
from autofit_llama.command.reading import read
from autofit_llama.launch.defaults import launch_of
from autofit_llama.launch.process import run_of
from autofit_llama.memory.estimate import device_rules, size
from autofit_llama.memory.layout import MemoryLayout, ParsedModel, lay_out
from support.descriptors import DATA, spec

Row = Mapping[str, Any]
ROWS: list[Row] = [
    json.loads(line) for line in gzip.decompress((DATA / "tensor_runs.jsonl.gz").read_bytes()).splitlines()
]
PARTS = 4


@cache
def sized(part: str, model: str) -> ParsedModel:
    return size(spec(part, model))


def laid_out(row: Row) -> MemoryLayout:
    cards = tuple(
        Device(id=f"GPU{i}", index=i, name="card", api="cuda", total_bytes=mib * MIB, free_bytes=mib * MIB)
        for i, mib in enumerate(row["free_mib"])
    )
    model = sized(row["part"], row["model"])
    reading = read([row["program"], "-m", "model.gguf", *row["args"]])
    launch = launch_of(settings_of(reading), reading.program)
    machine = Machine(host=Host(total_bytes=256 * GIB, available_bytes=256 * GIB), devices=cards)
    run = run_of(launch, model.model, machine, sized=model)
    return lay_out(model, device_rules(run.devices, run.arguments), run.arguments)


def judge(row: Row) -> str | None:
    """What differs, or `None`."""
    try:
        layout = laid_out(row)
    except EngineRefusalError as error:
        return None if "refused" in row else f"refused: {error}"
    if "refused" in row:
        return f"not refused: {row['refused']}"
    plan, compute = layout.weight_plan, layout.compute
    held = zip(plan.device_bytes, layout.cache_device_bytes, compute.device_bytes, strict=True)
    found = [*held, (plan.host_all_bytes, layout.cache_host_bytes, compute.host_bytes)]
    expected = [tuple(figures) for figures in (*row["devices"], row["host"])]
    if found != expected:
        return f"{found} is not {expected}"
    # What lies there once a prompt has been read: the same, and buffers for the sums. Prompts that a model is
    # trained for may be shorter than the micro-batch that is planned with.
    more = {total - sum(figures) for total, figures in zip(row.get("allocated", ()), row["devices"], strict=False)}
    return f"sums take {more}, not {layout.partial_bytes}" if any(n > layout.partial_bytes for n in more) else None


@pytest.mark.slow_but("0")
@pytest.mark.parametrize("part", range(PARTS))
def test_each_device_holds_what_the_engine_puts_there(part: int) -> None:
    judged = ((row, judge(row)) for row in ROWS[part::PARTS])
    assert [f"{row['model']} {' '.join(row['args'])}: {wrong}" for row, wrong in judged if wrong] == []


@pytest.mark.slow
def test_rows_say_something() -> None:
    """Cuts that differ between devices, a device with nothing, refusals, and sums that are met exactly."""
    taken = [row for row in ROWS if "refused" not in row]
    assert len({row["model"] for row in taken}) > 100
    assert any(len({tuple(device) for device in row["devices"]}) == len(row["devices"]) > 2 for row in taken)
    assert sum("not implemented" in row.get("refused", "") for row in ROWS) > 50
    exact = [
        row
        for row in taken
        if {total - sum(d) for total, d in zip(row.get("allocated", ()), row["devices"], strict=False)}
        == {laid_out(row).partial_bytes}
    ]
    assert len(exact) > 50
