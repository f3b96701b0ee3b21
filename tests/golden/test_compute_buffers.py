"""Compute buffers of every architecture that has a graph, against the engine's own dry runs: to the byte."""

from __future__ import annotations

import random
from collections import defaultdict

import autofit
import pytest

from autofit_llama.backend import LlamaBackend
from autofit_llama.graph.buffers import compute_buffers
from autofit_llama.graph.model import GraphModel
from autofit_llama.memory.layout import MemoryLayout, lay_out
from support import recorded
from support.commands import tiny_rows
from support.descriptors import spec

N_PER_ARCH = 8


def _sample() -> dict[str, list[recorded.Row]]:
    """A few rows of each architecture."""
    by_arch: dict[str, list[recorded.Row]] = defaultdict(list)
    for row in recorded.rows():
        if "devices" in row:
            by_arch[recorded.arch(row)].append(row)
    rng = random.Random(20261121)
    return {arch: rng.sample(rows, min(N_PER_ARCH, len(rows))) for arch, rows in by_arch.items()}


SAMPLE = _sample()


@pytest.mark.parametrize("arch", sorted(SAMPLE))
def test_compute_buffers_are_those_of_the_engine(arch: str) -> None:
    for row in SAMPLE[arch]:
        layout = _lay_out(row)
        found = [*layout.compute.device_bytes, layout.compute.host_bytes]
        expected = [*(device[2] for device in row["devices"]), row["host"][2]]
        assert found == expected, row


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_commands_for_tiny_models_of_every_architecture(part: int) -> None:
    """As a user gives them: single tensors moved about, draft heads, odd numbers of tokens."""
    backend = LlamaBackend()
    for row in tiny_rows()[part::4]:
        if "devices" in row:
            machine = autofit.load_machine(*(f"generic-cuda:{mib}MiB" for mib in row["free_mib"]), ram="64GiB")
            command = backend.parse([row["program"], *row["args"]])
            report = backend.check(command, spec("tiny", row["model"]), machine).engine_report
            found = [pool["compute_bytes"] for pool in (*report["devices"], report["host"])]
            assert found == [pool[2] for pool in (*row["devices"], row["host"])], row


def test_flash_attention_resolves_as_the_engine_says() -> None:
    """With `auto` the engine says what became of it only by the bytes; `on` and `off` it repeats."""
    for arch in SAMPLE:
        for row in SAMPLE[arch]:
            if row["flash_attn"] != "auto":
                assert _lay_out(row).compute.flash_attn == (row["flash_attn"] == "enabled"), row


@pytest.mark.slow
def test_leaving_out_repeating_blocks_changes_nothing() -> None:
    """The shortened graph against the whole one, on full-size models."""
    rng = random.Random(7)
    big = [row for rows in SAMPLE.values() for row in rows if row["part"] == "models"]
    for row in rng.sample(big, 30):
        layout = _lay_out(row)
        whole = compute_buffers(
            _graph_model(row, layout),
            (recorded.RULES[row["api"]],) * len(row["free_mib"]),
            pipeline=layout.compute.n_copies > 1,
            dry_run=True,
            shorten=False,
        )
        assert whole.device_bytes == layout.compute.device_bytes, row
        assert whole.host_bytes == layout.compute.host_bytes, row


def _lay_out(row: recorded.Row) -> MemoryLayout:
    sized = recorded.sized(row["part"], row["model"])
    devices = (recorded.RULES[row["api"]],) * len(row["free_mib"])
    return lay_out(sized, devices, recorded.arguments(row), dry_run=True)


def _graph_model(row: recorded.Row, layout: MemoryLayout) -> GraphModel:
    arguments = recorded.arguments(row)
    return GraphModel(
        hparams=layout.hparams,
        context=layout.context,
        tensors=recorded.sized(row["part"], row["model"]).tensors,
        layer_dev=(*layout.placement.blocks, layout.placement.output),
        homes=layout.weight_plan.homes,
        copies=layout.weight_plan.copies,
        full_offload=not 0 <= arguments.n_gpu_layers <= layout.hparams.n_layer_all,
    )
