"""Keyword arguments for `llama_cpp.Llama`: a program of its own, with its own room."""

from __future__ import annotations

import autofit
import pytest
from autofit.domain.dtypes import GGML_TYPES
from autofit.domain.plan import Plan
from autofit.domain.request import Request

from autofit_llama.backend import LlamaBackend
from autofit_llama.command.settings import LlamaSettings
from autofit_llama.launch.defaults import launch_of
from autofit_llama.launch.process import run_of
from autofit_llama.memory.estimate import estimate, size
from support.descriptors import spec

MODELS = ["llama-3.1-8b-Q4_K_M", "qwen3-30b-a3b-Q4_K_M", "gpt-oss-120b-MXFP4_MOE", "gemma-3-4b-Q4_K_M"]
MACHINES = [["rtx-3060-12gb"], ["rtx-3060-12gb", "rtx-3060-12gb"], ["rtx-3090"], ["cpu"]]


def plan(model: str, on: list[str], *argv: str) -> Plan:
    backend, request = LlamaBackend(), Request(engine_args=argv, alternatives=False)
    machine = autofit.load_machine(*on, ram="128GiB")
    return backend.plan(backend.command(request), spec("models", model), machine, request)


@pytest.mark.slow_cases(
    "qwen3-30b-a3b-Q4_K_M-rtx-3060-12gb", "gpt-oss-120b-MXFP4_MOE-rtx-3060-12gb+*", "gpt-oss-120b-MXFP4_MOE-rtx-3090"
)
@pytest.mark.parametrize("on", MACHINES, ids="+".join)
@pytest.mark.parametrize("model", MODELS)
def test_a_plan_that_fits_has_keyword_arguments_that_fit(model: str, on: list[str]) -> None:
    found = plan(model, on)
    assert found.fits
    given = dict(found.kwargs)
    assert given, found.decisions
    names = {number: one.name for number, one in GGML_TYPES.items()}
    settings = LlamaSettings(
        n_ctx=given["n_ctx"],
        n_batch=given["n_batch"],
        n_ubatch=given["n_ubatch"],
        n_gpu_layers=given["n_gpu_layers"],
        flash_attn="on" if given["flash_attn"] else "off",
        swa_full=given["swa_full"],
        type_k=names[given.get("type_k", 1)],
        type_v=names[given.get("type_v", 1)],
        tensor_split=tuple(given["tensor_split"]) if "tensor_split" in given else None,
        split_mode=["none", "layer"][given["split_mode"]] if "split_mode" in given else None,
        main_gpu=given.get("main_gpu"),
    )
    machine, sized = autofit.load_machine(*on, ram="128GiB"), size(spec("models", model))
    run = run_of(launch_of(settings, "llama-cpp-python"), spec("models", model), machine, sized=sized)
    layout = estimate(run, machine)
    assert layout.memory.fits
    assert layout.layout.context.n_outputs_max == given["n_batch"]  # logits of a whole batch
    scores = 4 * sized.hparams.n_vocab * given["n_batch"]
    assert (layout.memory.pool("host").room_bytes or 0) >= scores


def test_several_slots_are_one_sequence_of_the_same_length() -> None:
    found = plan("llama-3.1-8b-Q4_K_M", ["rtx-3090"], "-np", "4", "-c", "32768")
    assert found.kwargs["n_ctx"] == 8192
    assert "n_seq_max" not in found.kwargs


def test_what_the_class_cannot_say() -> None:
    found = plan("llama-3.1-8b-Q4_K_M", ["rtx-3090"], "-lm", "dio")
    assert found.fits
    assert not found.kwargs
    assert any(decision.setting == "kwargs" for decision in found.decisions)
