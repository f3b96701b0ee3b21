"""What llama.cpp prints of a model while it loads it, for a model that is described in the tests' data.

Source: src/llama-model-loader.cpp:llama_model_loader, src/llama-model.cpp:print_info.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from autofit.domain.dtypes import GGML_TYPES
from autofit.domain.model import ModelSpec
from autofit.readers.description import read_description

from autofit_llama.model.load import read_hparams

_NAMES = {
    0: "u8",
    1: "i8",
    2: "u16",
    3: "i16",
    4: "u32",
    5: "i32",
    6: "f32",
    7: "bool",
    10: "u64",
    11: "i64",
    12: "f64",
}
_CUT = 40


def loader_lines(path: Path, *, ftype: int | None = None) -> tuple[str, ModelSpec]:
    """The lines, and the model. `ftype` is `general.file_type`, where the description has none."""
    described = json.loads(gzip.decompress(path.read_bytes()))
    model = read_description(path)
    keys = list(described["kv"])
    if ftype is not None and "general.file_type" not in {k: v for k, _, v in keys}:
        keys.append(("general.file_type", 4, ftype))
    lines = [
        (
            f"llama_model_loader: loaded meta data with {len(keys)} key-value pairs and {len(described['tensors'])} tensors from "
            f"/models/{path.name.removesuffix('.json.gz')}.gguf (version GGUF V3 (latest))"
        ),
        "llama_model_loader: Dumping metadata keys/values. Note: KV overrides do not apply in this output.",
    ]
    for i, (key, kind, value) in enumerate(keys):
        name, text = _value(kind, value)
        lines.append(
            f"llama_model_loader: - kv {i:3d}: {key:>42} {name:<16} = {text[: _CUT - 3] + '...' if len(text) > _CUT else text}"
        )
    counts = Counter(GGML_TYPES[kind].name for _, _, kind, _ in described["tensors"])
    lines += [f"llama_model_loader: - type {name:>4}: {n:4d} tensors" for name, n in sorted(counts.items())]
    n_bytes, hp = model.weights_bytes, read_hparams(model)
    lines.append(f"print_info: file size   = {n_bytes / 2**30:.2f} GiB ({8 * n_bytes / model.n_parameters:.2f} BPW)")
    shown = {
        "arch": hp.arch,
        "n_ctx_train": hp.n_ctx_train,
        "n_embd": hp.n_embd,
        "n_layer": hp.n_layer,
        "n_layer_all": hp.n_layer_all,
        "n_head": _each(hp.n_head),
        "n_head_kv": _each(hp.n_head_kv),
        "n_swa": hp.n_swa,
        "n_ff": _each(hp.n_ff),
        "n_expert": hp.n_expert,
        "model params": f"{model.n_parameters * 1e-9:.2f} B",
        "n_vocab": hp.n_vocab,
    }
    lines += [f"print_info: {name:<21} = {value}" for name, value in shown.items()]
    return "\n".join(lines) + "\n", model


def _value(kind: int | str, value: Any) -> tuple[str, str]:
    if kind == "str":
        return "str", str(value).replace("\n", "\\n")
    if isinstance(kind, int):
        return _NAMES[kind], _scalar(kind, value)
    element = kind.removeprefix("array:")
    if element == "str":
        return f"arr[str,{value['count']}]", '["!", "\\"", "#", "$", "%", "&", "\'", ...'
    number = int(element)
    count = value["count"] if isinstance(value, dict) else len(value)
    text = "1, 1, 1" if isinstance(value, dict) else ", ".join(_scalar(number, one) for one in value)
    return f"arr[{_NAMES[number]},{count}]", f"[{text}]"


def _scalar(kind: int, value: Any) -> str:
    if kind == 7:
        return "true" if value else "false"
    return f"{value:f}" if kind in (6, 12) else str(value)


def _each(values: Iterable[int]) -> str:
    found = list(values)
    return str(found[0]) if len(set(found)) == 1 else f"[{', '.join(map(str, found))}]"
