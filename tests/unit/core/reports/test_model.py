"""A model's way into a report and back: the same figures, without texts of its authors."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from autofit.domain.model import ModelSpec, StringArray
from autofit.readers import read_model
from autofit.readers.safetensors import read_safetensors
from autofit.reports.model import model_from_dict, model_to_dict

from support import DATA, TINY
from support.descriptors import names, spec


def through_json(model: ModelSpec) -> ModelSpec:
    return model_from_dict(json.loads(json.dumps(model_to_dict(model))))


@pytest.mark.parametrize("name", names("models"))
def test_every_recorded_header_comes_back(name: str) -> None:
    model = spec("models", name)
    back = through_json(model)
    assert (back.tensors, back.layers, back.n_vocab) == (model.tensors, model.layers, model.n_vocab)
    assert [file.size_bytes for file in back.files] == [file.size_bytes for file in model.files]
    figures = {key: value for key, value in model.metadata.items() if isinstance(value, (int, float, StringArray))}
    assert figures.items() <= dict(back.metadata).items()


@pytest.mark.parametrize("path", sorted((DATA / "vllm" / "configs").iterdir()), ids=lambda path: path.name)
def test_every_recorded_configuration_comes_back(path: Path) -> None:
    model = read_safetensors(path / "config.json")
    back = through_json(model)
    assert (back.layers, back.hidden_elements) == (model.layers, model.hidden_elements)
    ours, theirs = dict(back.metadata), dict(model.metadata)
    for config in (ours, theirs):
        config.pop("_name_or_path", None)
    assert _figures(ours) == _figures(theirs)


def _figures(value: Any) -> Any:
    """Numbers with the keys that lead to them."""
    if isinstance(value, dict):
        return {key: found for key, item in value.items() if (found := _figures(item)) not in (None, {}, [])}
    if isinstance(value, (list, tuple)):
        return [found for item in value if (found := _figures(item)) not in (None, {}, [])]
    return value if isinstance(value, (int, float)) else None


def test_texts_of_authors_stay_behind() -> None:
    model = spec("models", names("models")[0])
    secret = "written by Jane Doe, jane@example.org"
    told = {
        "general.author": secret,
        "general.tags": (secret,),
        "tokenizer.chat_template": secret,
        "quantize.imatrix.file": "/home/jane/imatrix.dat",
        "some.note": "x" * 5000,
    }
    text = json.dumps(model_to_dict(_with(model, told)))
    for part in ("Jane", "jane", "xxxxx"):
        assert part not in text


def test_files_are_called_by_shard_and_suffix_alone() -> None:
    model = read_model(TINY)
    assert [name for name, _ in model_to_dict(model)["files"]] == ["model.gguf"]


def _with(model: ModelSpec, metadata: dict[str, object]) -> ModelSpec:
    from dataclasses import replace

    return replace(model, metadata={**model.metadata, **metadata})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "exe"),
        (("tensors", 0, 3), -1),
        (("tensors", 0, 3), 1 << 80),
        (("tensors", 0, 3), 1.5),
        (("tensors", 0, 4), 7),
        (("tensors", 0, 2), [1] * 9),
        (("tensors", 0), ["a"]),
        (("tensors",), [["t", "f32", [1], 4, 0, 0]] * ((1 << 18) + 1)),
        (("layers", 0, "mixer"), "magic"),
        (("layers", 0, "n_heads"), "many"),
        (("layers", 0, "n_experts"), True),
        (("layers", 0, "unknown"), 1),
        (("files", 0, 1), None),
        (("architecture",), 3),
        (("n_vocab",), "x"),
        (("metadata",), []),
        (("companions",), {"mmproj": {}}),
    ],
)
def test_what_is_no_model_is_refused(path: tuple[Any, ...], value: object) -> None:
    data = copy.deepcopy(json.loads(json.dumps(model_to_dict(read_model(TINY)))))
    at: Any = data
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        model_from_dict(data)
