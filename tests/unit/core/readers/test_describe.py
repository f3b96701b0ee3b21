"""A description of a GGUF model: read again it is the model, but for prose and its path."""

from __future__ import annotations

from pathlib import Path

import autofit
import pytest
from autofit.domain.values import replace
from autofit.errors import ModelError
from autofit.readers.description import MAX_PACKED_BYTES, describe, read_description

from support import ggufs
from support.descriptors import DATA
from support.safetensor_files import write_model


def again(model: autofit.ModelSpec, folder: Path) -> autofit.ModelSpec:
    path = folder / "model.json.gz"
    path.write_bytes(describe(model))
    return read_description(path)


def test_a_file_that_is_described_is_the_same_model(tmp_path: Path) -> None:
    metadata = {"tokenizer.chat_template": "{{ prose }}" * 100, "llama.rope.factors": ggufs.Typed("f32", [0.1, 1e-7])}
    path = ggufs.write_llama(tmp_path / "model.gguf", n_expert=4, metadata=metadata)
    model = autofit.read_model(path)
    described = again(model, tmp_path)
    prose = {key: value for key, value in model.metadata.items() if key != "tokenizer.chat_template"}
    assert described == replace(
        model,
        name=described.name,
        metadata=prose,
        metadata_types={key: kind for key, kind in model.metadata_types.items() if key in prose},
        files=(replace(model.files[0], path="model.gguf"),),
    )
    assert len(describe(model)) < MAX_PACKED_BYTES


@pytest.mark.parametrize("name", ["llama-3.1-8b-Q4_K_M", "gpt-oss-120b-MXFP4_MOE", "gemma-3-4b-Q4_K_M"])
def test_descriptions_of_descriptions_are_the_same(name: str, tmp_path: Path) -> None:
    model = read_description(DATA / "models" / f"{name}.json.gz")
    described = again(model, tmp_path)
    assert described.tensors == model.tensors
    assert described.layers == model.layers
    assert described.files[0].size_bytes == model.files[0].size_bytes


def test_what_is_no_one_file_is_not_described(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    paths = ggufs.write_split(tmp_path / "shards", "model", ggufs.llama(), 2)
    with pytest.raises(ModelError, match="only a GGUF model in one file"):
        describe(autofit.read_model(paths[0]))
    with pytest.raises(ModelError, match="only a GGUF model in one file"):
        describe(autofit.read_model(write_model(tmp_path / "checkpoint")))
