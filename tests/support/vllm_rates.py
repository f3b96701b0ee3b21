"""Public runs of vLLM with many sequences at a time, and what the plugin tells of them."""

from __future__ import annotations

import csv
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import autofit
from autofit.domain.machine import Machine
from autofit.domain.model import ModelSpec
from autofit.domain.plan import Speed
from autofit.speed import Roofline

from autofit_vllm.backend import VllmBackend
from autofit_vllm.config.devices import select_devices
from autofit_vllm.config.resolve import resolve
from autofit_vllm.memory.kv import plan_kv
from autofit_vllm.planning.efficiencies import EFFICIENCIES
from autofit_vllm.planning.evaluation import Evaluation, evaluate, gpu_of, ranks_of
from autofit_vllm.planning.forms import forms
from autofit_vllm.planning.inputs import read_quantization, read_vllm_model, weigh
from autofit_vllm.planning.speed import speed_of
from support import DATA

FILE = DATA / "vllm" / "batch_rates.csv"
FORMS = {"": "original", "fp8": "FP8", "w8a8": "W8A8", "w8a16": "GPTQ-Int8", "w4a16": "W4A16"}


class Run(NamedTuple):
    """One row: `step_ms` from one token of a sequence to its next, with `n_sequences` that hold `n_filled` each."""

    card: str
    count: int
    model: str
    form: str
    version: str
    kind: str
    n_sequences: int
    n_filled: int
    step_ms: float
    source: str

    @property
    def label(self) -> str:
        what = f"{self.count} x {self.card} {self.model} {self.form or 'BF16'}"
        return f"{what}, {self.n_sequences} x {self.n_filled} tokens, {self.version}"


def runs(path: Path = FILE) -> list[Run]:
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Run(
                **{
                    **row,
                    **{name: int(row[name]) for name in ("count", "n_sequences", "n_filled")},
                    "step_ms": float(row["step_ms"]),
                }
            )
            for row in csv.DictReader(file)
        ]


@functools.cache
def _form(model: str, form: str) -> ModelSpec:
    original = autofit.read_model(DATA / "vllm" / "configs" / model)
    if not form:
        return original
    found = next(each for each in forms(original) if each.name == FORMS[form])
    assert found.model is not None, found.refusal
    return found.model


@functools.cache
def _evaluated(card: str, count: int, model: str, form: str) -> tuple[Evaluation, Machine]:
    """The command of such runs, whose cache is what it is: rates depend on what is in it."""
    machine = autofit.load_machine(f"{count}x{card}" if count > 1 else card, ram="1TiB")
    spec = _form(model, form)
    words = ["vllm", "serve", "m", "-tp", str(count), "--max-model-len", "4096", "--max-num-batched-tokens", "2048"]
    settings = VllmBackend().parse(words, {}).settings
    built, devices = read_vllm_model(spec, settings), select_devices(machine, settings)
    gpu = gpu_of(devices)
    quantization = read_quantization(built, spec, settings, gpu)
    config = resolve(settings, built, gpu, quantization=quantization, n_gpus=count)
    found = evaluate(
        settings=settings,
        config=config,
        model=built,
        ranks=ranks_of(devices, config),
        weights=weigh(built, config, settings, quantization),
        kv=plan_kv(built, config),
        available_kv_bytes=1 << 40,
    )
    return found, machine


def speed_of_run(run: Run) -> Speed:
    evaluation, machine = _evaluated(run.card, run.count, run.model, run.form)
    roofline = Roofline(machine, EFFICIENCIES)
    speed = speed_of(evaluation, roofline, n_sequences=run.n_sequences, n_filled=run.n_filled)
    assert speed is not None
    return speed


def spread(runs: Sequence[Run]) -> list[float]:
    """Measured over told, run by run."""
    return [1000 / run.step_ms / speed_of_run(run).decode_tokens_per_s for run in runs]
