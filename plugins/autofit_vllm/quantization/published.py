"""The forms in which checkpoints are published: the `quantization_config` that the usual tools write.

Each quantizes every linear layer but the output head, routers and encoders of other inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autofit.domain.values import NamedTuple

GROUP = 128


class PublishedForm(NamedTuple):
    """`bits` of a weight, without scales; forms of as many bits stand for each other."""

    name: str
    bits: int
    config: Mapping[str, Any]
    made_by: str


def published_forms(left_out: Sequence[str]) -> tuple[PublishedForm, ...]:
    """The forms of a model of whose modules `left_out` are the prefixes of those that are never quantized."""
    ignore = ["lm_head", *(f"re:.*{name}.*" for name in left_out)]
    skipped = ["lm_head", *left_out]
    integers = {"num_bits": 8, "type": "int", "symmetric": True}
    floats = {"num_bits": 8, "type": "float", "symmetric": True}
    per_token = {"strategy": "token", "dynamic": True}
    packed = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    fp4 = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}
    mx4 = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "group", "group_size": 32}
    channel = {"strategy": "channel"}

    def compressed(form: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None) -> dict[str, Any]:
        group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
        return {
            "quant_method": "compressed-tensors",
            "format": form,
            "config_groups": {"group_0": group},
            "ignore": ignore,
        }

    fp8_blocks = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
    gptq = {"quant_method": "gptq", "group_size": GROUP, "desc_act": False, "sym": True}
    awq = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    compressor = "llm-compressor"
    return (
        PublishedForm("FP8", 8, {**fp8_blocks, "modules_to_not_convert": skipped}, "the model's own authors"),
        PublishedForm(
            "FP8-dynamic", 8, compressed("float-quantized", floats | channel, floats | per_token), compressor
        ),
        PublishedForm("W8A8", 8, compressed("int-quantized", integers | channel, integers | per_token), compressor),
        PublishedForm("GPTQ-Int8", 8, {**gptq, "bits": 8}, "GPTQModel"),
        PublishedForm(
            "NVFP4", 4, compressed("nvfp4-pack-quantized", fp4, {**fp4, "dynamic": "local"}), f"{compressor}, ModelOpt"
        ),
        PublishedForm("MXFP4", 4, compressed("mxfp4-pack-quantized", mx4, None), compressor),
        PublishedForm("W4A16", 4, compressed("pack-quantized", packed, None), compressor),
        PublishedForm("AWQ", 4, {**awq, "modules_to_not_convert": list(left_out) or None}, "AutoAWQ"),
        PublishedForm("GPTQ-Int4", 4, {**gptq, "bits": 4}, "GPTQModel"),
    )


#: words after `--quantization` that quantize an original while it is loaded: (name, word, bits)
WHILE_LOADING = (("FP8 while loading", "fp8", 8),)
