"""Packed checkpoints, read from their headers, weigh what vLLM's layers of the same form hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import autofit
import pytest

from autofit_vllm.modules.dtypes import dtype_bytes
from autofit_vllm.modules.model import Linear, Parallel, Part
from autofit_vllm.modules.sharding import linear_shape
from autofit_vllm.quantization import quantization_for
from autofit_vllm.quantization.published import published_forms
from support import safetensor_files as sf

ROWS, COLUMNS = 11008, 4096
Tensors = dict[str, tuple[str, Sequence[int]]]
#: the tensors of one linear layer as the tools write them
FILES: dict[str, Tensors] = {
    "FP8": {"weight": ("F8_E4M3", (ROWS, COLUMNS)), "weight_scale_inv": ("F32", (86, 32))},
    "FP8-dynamic": {"weight": ("F8_E4M3", (ROWS, COLUMNS)), "weight_scale": ("BF16", (ROWS, 1))},
    "W8A8": {"weight": ("I8", (ROWS, COLUMNS)), "weight_scale": ("BF16", (ROWS, 1))},
    "GPTQ-Int8": {
        "qweight": ("I32", (COLUMNS // 4, ROWS)), "qzeros": ("I32", (32, ROWS // 4)),
        "scales": ("F16", (32, ROWS)), "g_idx": ("I32", (COLUMNS,)),
    },
    "GPTQ-Int4": {
        "qweight": ("I32", (COLUMNS // 8, ROWS)), "qzeros": ("I32", (32, ROWS // 8)),
        "scales": ("F16", (32, ROWS)), "g_idx": ("I32", (COLUMNS,)),
    },
    "AWQ": {
        "qweight": ("I32", (COLUMNS, ROWS // 8)), "qzeros": ("I32", (32, ROWS // 8)), "scales": ("F16", (32, ROWS)),
    },
    "W4A16": {
        "weight_packed": ("I32", (ROWS, COLUMNS // 8)), "weight_scale": ("BF16", (ROWS, 32)),
        "weight_shape": ("I64", (2,)),
    },
    "NVFP4": {
        "weight_packed": ("U8", (ROWS, COLUMNS // 2)), "weight_scale": ("F8_E4M3", (ROWS, COLUMNS // 16)),
        "weight_global_scale": ("F32", (1,)), "input_global_scale": ("F32", (1,)),
    },
    "MXFP4": {"weight_packed": ("U8", (ROWS, COLUMNS // 2)), "weight_scale": ("U8", (ROWS, COLUMNS // 32))},
}  # fmt: skip
#: what vLLM keeps in other bytes than the file: scales of channels in F32; no order of columns that is the usual one
KEPT: dict[str, dict[str, int | None]] = {
    "FP8-dynamic": {"weight_scale": 4 * ROWS},
    "W8A8": {"weight_scale": 4 * ROWS},
    "GPTQ-Int8": {"g_idx": None},
    "GPTQ-Int4": {"g_idx": None},
}


@pytest.mark.parametrize("form", FILES)
def test_a_header_weighs_what_the_layer_holds(tmp_path: Path, form: str) -> None:
    sf.write_tensors(tmp_path / "model.safetensors", {f"layer.{name}": value for name, value in FILES[form].items()})
    (tmp_path / "config.json").write_text('{"architectures": ["Any"], "model_type": "any"}')
    read = autofit.read_model(tmp_path)
    assert {tensor.name.partition(".")[2]: (tensor.type, tensor.shape) for tensor in read.tensors} == FILES[form]
    sizes = {tensor.name.partition(".")[2]: tensor.n_bytes for tensor in read.tensors}
    assert {**sizes, **{name: n for name, n in KEPT.get(form, {}).items() if n}} == {
        **_layer(form),
        **{name: sizes[name] for name, n in KEPT.get(form, {}).items() if n is None},
    }


def test_every_published_form_is_compared() -> None:
    assert set(FILES) == {form.name for form in published_forms(())}


def _layer(form: str) -> dict[str, int]:
    """Bytes of the parameters that vLLM creates for the layer, by their names."""
    config = next(published.config for published in published_forms(()) if published.name == form)
    linear = Linear(name="layer", stage=0, kind="column", in_size=COLUMNS, parts=(Part("layer", ROWS),))
    quantization = quantization_for(config, capability=(10, 0), quantized_layers=("layer",))
    shape = linear_shape(linear, Parallel(), "bfloat16", quantization.name)
    return {
        tensor.suffix: math.prod(tensor.shape) * dtype_bytes(tensor.dtype)
        for tensor in quantization.linear(linear).linear(shape)
    }
