"""The tensors that a checkpoint of a model holds, under the names that it was published with: unfused, one per
expert, tied heads left out; and folders of checkpoints without weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autofit.domain.model import ModelSpec, TensorInfo

from autofit_vllm.architectures import build_from_config
from autofit_vllm.modules.model import Experts, Linear, Module, Plain, VllmModel, Vocabulary
from support import DATA

TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
SIZES = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "F8_E4M3": 1}


def tensor(name: str, shape: tuple[int, ...], kind: str = "BF16") -> TensorInfo:
    return TensorInfo(name, kind, shape, math.prod(shape) * SIZES[kind], 0, 0)


def tensors_of(model: VllmModel, prefix: str = "") -> Iterator[TensorInfo]:
    """Every tensor of an unquantized checkpoint of this model."""
    seen: set[str] = set()
    for module in model.modules:
        if module.name not in seen:
            seen.add(module.name)
            for name, shape, dtype in _parts(module):
                yield tensor(prefix + name, shape, TYPES[dtype or model.dtype])


def _parts(module: Module) -> Iterator[tuple[str, tuple[int, ...], str | None]]:
    if isinstance(module, Linear):
        names = module.shards
        sizes = [module.out_size] if len(names) == 1 else [part.size for part in module.parts]
        for name, size in zip(names, sizes, strict=True):
            yield f"{name}.weight", (size, module.in_size), module.dtype
            if module.bias:
                yield f"{name}.bias", (size,), module.dtype
    elif isinstance(module, Vocabulary):
        if module.tied_to is None:
            yield f"{module.name}.weight", (module.rows, module.columns), module.dtype
            if module.bias:
                yield f"{module.name}.bias", (module.rows,), module.dtype
    elif isinstance(module, Experts):
        gate, up, down = module.names
        hidden, width = module.hidden_size, module.intermediate_size
        for index in range(module.count):
            for name in (gate, up) if module.gated else (up,):
                yield f"{module.name}.{index}.{name}.weight", (width, hidden), None
                if module.bias:
                    yield f"{module.name}.{index}.{name}.bias", (width,), None
            yield f"{module.name}.{index}.{down}.weight", (hidden, width), None
            if module.bias:
                yield f"{module.name}.{index}.{down}.bias", (hidden,), None
    elif isinstance(module, Plain):
        yield module.name, module.shape, module.dtype


def spec(config: Mapping[str, Any], tensors: Iterator[TensorInfo] | tuple[TensorInfo, ...] = ()) -> ModelSpec:
    return ModelSpec(
        name="model",
        format="safetensors" if tensors else "config",
        architecture=str((config.get("architectures") or [""])[0]),
        files=(),
        tensors=tuple(tensors),
        layers=(),
        metadata=config,
    )


def checkpoint(config: Mapping[str, Any], **options: Any) -> ModelSpec:
    """A checkpoint just as its configuration describes it."""
    return spec(config, tensors_of(build_from_config(config), **options))


def write_mixtral_checkpoints(folder: Path) -> None:
    """Folders of Mixtral-8x7B with a `config.json` alone: as published, in AWQ (groups of 128) and in GPTQ (a scale for
    each column, ordered by activation)."""
    published = json.loads((DATA / "vllm/configs/mixtral-8x7b/config.json").read_text(encoding="utf-8"))
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
    awq["modules_to_not_convert"] = ["gate"]
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": True, "sym": True}
    name = "Mixtral-8x7B-Instruct-v0.1"
    for folder_name, changes in {
        name: {},
        f"{name}-AWQ": {"torch_dtype": "float16", "quantization_config": awq},
        f"{name}-GPTQ": {"quantization_config": gptq},
    }.items():
        (folder / folder_name).mkdir()
        text = json.dumps({**published, **changes})
        (folder / folder_name / "config.json").write_text(text, encoding="utf-8")


#: what Kimi K2 has other than DeepSeek V3, whose architecture it is
_KIMI_K2 = {
    "model_type": "kimi_k2", "max_position_embeddings": 131072, "n_group": 1, "topk_group": 1, "n_routed_experts": 384,
    "num_attention_heads": 64, "num_key_value_heads": 64, "first_k_dense_replace": 1, "vocab_size": 163840,
    "num_nextn_predict_layers": 0, "routed_scaling_factor": 2.827, "rope_theta": 50000.0,
}  # fmt: skip


def write_large_configs(folder: Path) -> None:
    """Folders with the configurations of DeepSeek V3 and of Kimi K2."""
    deepseek = json.loads((DATA / "vllm/configs/deepseek-v3/config.json").read_text(encoding="utf-8"))
    for name, changes in (("DeepSeek-V3", {}), ("Kimi-K2", _KIMI_K2)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({**deepseek, **changes}), encoding="utf-8")
