"""Weights of a stage: modules that are alike are weighed once, and weigh what each of them does."""

from __future__ import annotations

import pytest

from autofit_vllm.architectures import build_from_config
from autofit_vllm.memory.weights import rank_tensors, weights_per_rank
from autofit_vllm.modules.model import Parallel
from autofit_vllm.quantization import quantization_for
from support.vllm_recorded import config

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


@pytest.mark.parametrize("parallel", [Parallel(), Parallel(pp=3), Parallel(pp=2, dp=2, expert_parallel=True)])
@pytest.mark.parametrize("ignored", [[], ["model.layers.3.self_attn.o_proj", "model.layers.5.mlp.experts"]])
@pytest.mark.parametrize("requested", [None, "fp8"])
def test_a_stage_weighs_what_its_tensors_do(parallel: Parallel, ignored: list[str], requested: str | None) -> None:
    model = build_from_config(config("deepseek-v2-lite"))
    raw = None if requested else {**FP8, "ignored_layers": ignored}
    quantization = quantization_for(raw, capability=(9, 0), requested=requested)
    for stage in weights_per_rank(model, parallel, dtype="bfloat16", quantization=quantization):
        tensors = list(rank_tensors(model, parallel, stage.stage, dtype="bfloat16", quantization=quantization))
        assert stage.parameter_bytes == sum(tensor.n_bytes for tensor in tensors)
        assert stage.expert_bytes == sum(tensor.n_bytes for tensor in tensors if tensor.kind == "experts")
        assert stage.embedding_bytes == sum(tensor.n_bytes for tensor in tensors if tensor.kind == "vocabulary")


def test_layers_that_are_quantized_otherwise_are_weighed_otherwise() -> None:
    model = build_from_config(config("deepseek-v2-lite"))

    def n_bytes(ignored: list[str]) -> int:
        quantization = quantization_for({**FP8, "ignored_layers": ignored}, capability=(9, 0))
        (stage,) = weights_per_rank(model, Parallel(), dtype="bfloat16", quantization=quantization)
        return stage.parameter_bytes

    weight, scale = 2048 * 2048, 16 * 16 * 4
    assert n_bytes(["model.layers.3.self_attn.o_proj"]) - n_bytes([]) == weight - scale
