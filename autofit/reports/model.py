"""A model as JSON values and back: every tensor and every figure of the header, no weights and no prose."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from autofit.domain.model import FeedForwardKind, LayerSpec, Mixer, ModelFile, ModelSpec, StringArray, TensorInfo
from autofit.domain.patterns import lazy_pattern
from autofit.domain.values import MISSING, fields
from autofit.reports.scrub import scrub_json

MAX_TENSORS = 1 << 18
MAX_LAYERS = 1 << 14
_FORMATS = ("gguf", "safetensors", "config")
_FIGURES = ("hidden_elements", "n_vocab", "context_train_tokens")
_LAYER = {field.name: field for field in fields(LayerSpec)}
_SHARD = lazy_pattern(r"-\d{5}-of-\d{5,6}(?=\.)")
_PROSE = lazy_pattern(r"general\.(?!architecture$|type$)|tokenizer\.chat_template|_name_or_path$")


def model_to_dict(model: ModelSpec) -> dict[str, Any]:
    """The model as JSON values. What names its files, its authors or its texts is left out."""
    return {
        "format": model.format,
        "architecture": model.architecture,
        **{name: getattr(model, name) for name in _FIGURES},
        "files": [[_file_name(file.path), file.size_bytes] for file in model.files],
        "metadata": {
            key: _to_json(value)
            for key, value in model.metadata.items()
            if isinstance(value, (int, float)) or not _PROSE.match(key)
        },
        "layers": [_layer_to_dict(layer) for layer in model.layers],
        "tensors": [[t.name, t.type, t.shape, t.n_bytes, t.file_index, t.offset_bytes] for t in model.tensors],
        "companions": {role: model_to_dict(other) for role, other in model.companions.items()},
    }


def model_from_dict(data: Mapping[str, Any], *, depth: int = 0) -> ModelSpec:
    """The model that `model_to_dict` described.

    Raises:
        ValueError, KeyError, TypeError: it is no such description.
    """
    if data["format"] not in _FORMATS or depth > 1 or len(data["tensors"]) > MAX_TENSORS:
        raise ValueError("not a model")
    if len(data["layers"]) > MAX_LAYERS or len(data["companions"]) > 64:
        raise ValueError("too many layers or companions")
    files = tuple(ModelFile(path=_text(path), size_bytes=_count(size)) for path, size in data["files"])
    tensors = tuple(_tensor(entry, len(files)) for entry in data["tensors"])
    metadata = {key: _from_json(value, data["format"] == "gguf") for key, value in data["metadata"].items()}
    return ModelSpec(
        name=_text(data["architecture"]),
        format=data["format"],
        architecture=_text(data["architecture"]),
        files=files,
        tensors=tensors,
        layers=tuple(_layer_from_dict(layer) for layer in data["layers"]),
        metadata=metadata,
        companions={_text(role): model_from_dict(other, depth=depth + 1) for role, other in data["companions"].items()},
        hidden_elements=_figure(data["hidden_elements"]),
        n_vocab=_figure(data["n_vocab"]),
        context_train_tokens=_figure(data["context_train_tokens"]),
    )


def _figure(value: Any) -> int | None:
    return None if value is None else _count(value)


def _file_name(path: str) -> str:
    """`model.gguf`, or `model-00001-of-00003.gguf`: engines go by shard numbers and by the suffix."""
    shard = _SHARD.search(path)
    kind = "consolidated" if re.search(r"(^|[/\\])consolidated[^/\\]*$", path) else "model"
    suffix = next((end for end in (".gguf", ".safetensors", ".json") if path.endswith(end)), "")
    return f"{kind}{shard[0] if shard else ''}{suffix}"


def _to_json(value: object) -> Any:
    if isinstance(value, StringArray):
        return {"$array": value.element_type, "count": value.count}
    return scrub_json(value)


def _from_json(value: Any, is_tuple: bool) -> Any:
    if isinstance(value, dict) and "$array" in value:
        return StringArray(count=_count(value["count"]), element_type=_text(value["$array"]))
    return tuple(value) if is_tuple and isinstance(value, list) else value


def _layer_to_dict(layer: LayerSpec) -> dict[str, Any]:
    values = {name: getattr(layer, name) for name in _LAYER}
    return {name: value for name, value in values.items() if value != _LAYER[name].default}


def _layer_from_dict(data: Mapping[str, Any]) -> LayerSpec:
    if data["mixer"] not in get_args(Mixer) or data["feed_forward"] not in get_args(FeedForwardKind):
        raise ValueError("not a layer")
    for name, value in data.items():
        default = _LAYER[name].default
        if name not in ("mixer", "feed_forward", "stack", "also_recurrent") and value is not default:
            _count(value)
        elif default is not MISSING and type(value) is not type(default):
            raise ValueError(f"{name} is not {type(default).__name__}")
    return LayerSpec(**data)


def _tensor(entry: list[Any], n_files: int) -> TensorInfo:
    name, kind, shape, n_bytes, file_index, offset = entry
    if not 0 <= file_index < n_files or len(shape) > 8:
        raise ValueError("not a tensor")
    return TensorInfo(
        _text(name), _text(kind), tuple(map(_count, shape)), _count(n_bytes), _count(file_index), _count(offset)
    )


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 1 << 12:
        raise ValueError("not a text")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("not a count")
    return value
