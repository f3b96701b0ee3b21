"""The models that autofit ships: a description is the real header, and the tiny one is a real file."""

from __future__ import annotations

import gzip
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
from autofit.errors import CorruptModelError
from autofit.readers import read_model
from autofit.readers.description import MAX_BYTES, read_description
from autofit.sources import resolve
from autofit.sources.examples import example_names

from support import DATA, ROOT, ggufs

RECORDED = DATA / "llama" / "models"
DESCRIBED = [name for name in example_names() if name != "tiny"]


@pytest.mark.slow
@pytest.mark.parametrize("name", DESCRIBED)
def test_a_description_is_what_the_real_header_says(name: str, tmp_path: Path) -> None:
    path = Path(resolve(f"example:{name}").paths[0])
    described = read_model(path)
    model = ggufs.from_description(json.loads(gzip.decompress(path.read_bytes())))
    real = read_model(model.write(tmp_path / described.files[0].path))
    # its words are synthetic, so the header of the written file has another length: all offsets shift by it
    shift = described.tensors[0].offset_bytes - real.tensors[0].offset_bytes
    shifted = tuple(t._replace(offset_bytes=t.offset_bytes + shift) for t in real.tensors)
    size = real.files[0].size_bytes + shift
    header = described.files[0].header_bytes
    files = (replace(real.files[0], path=described.files[0].path, size_bytes=size, header_bytes=header),)
    assert described == replace(real, tensors=shifted, files=files)


def test_their_sizes() -> None:
    """Against the published models: parameters, and bytes as llama.cpp's dry run reports them."""
    models = {name: read_model(resolve(f"example:{name}")) for name in DESCRIBED}
    assert models["mixtral-8x7b-q4_k_m"].n_parameters == models["mixtral-8x7b-f16"].n_parameters == 46_702_792_704
    assert models["mixtral-8x22b-q3_k_m"].n_parameters == models["mixtral-8x22b-q4_k_m"].n_parameters == 140_620_634_112
    assert models["llama-3.1-8b-q4_k_m"].n_parameters == 8_030_261_312
    assert round(models["mixtral-8x22b-q3_k_m"].weights_bytes / 2**20) == 64_654
    assert models["mixtral-8x7b-f16"].layers[0].n_experts == 8


@pytest.mark.parametrize("stem", ["mixtral-8x7b", "mixtral-8x22b", "llama-3.1-8b"])
def test_q4_k_m_has_the_types_of_the_recorded_file(stem: str) -> None:
    recorded = json.loads(gzip.decompress((RECORDED / f"{stem}-Q4_K_M.json.gz").read_bytes()))
    shipped = json.loads(gzip.decompress(Path(resolve(f"example:{stem}-q4_k_m").paths[0]).read_bytes()))
    assert shipped["tensors"] == recorded["tensors"]
    assert shipped["kv"] == [entry for entry in recorded["kv"] if entry[0] != "tokenizer.chat_template"]


def test_the_tiny_model_is_what_its_script_makes(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("tiny", ROOT / "tools" / "gen" / "tiny.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    shipped = Path(resolve("example:tiny").paths[0]).read_bytes()
    assert script.write(tmp_path / "tiny.gguf").read_bytes() == shipped
    assert len(shipped) < 1 << 20


def write(tmp_path: Path, document: object) -> Path:
    path = tmp_path / "m.json.gz"
    path.write_bytes(gzip.compress(document if isinstance(document, bytes) else json.dumps(document).encode()))
    return path


@pytest.mark.parametrize(
    ("document", "cause"),
    [
        ({}, "not a model description"),
        ([], "not a model description"),
        ({"kv": 3}, "not a model description"),
        ({"kv": [["a", "array:99", {"count": 1}]], "tensors": []}, "not a model description"),
        (b"{", "broken JSON"),
        (b" " * (MAX_BYTES + 1), "bytes unpacked"),
    ],
)
def test_broken_descriptions(tmp_path: Path, document: object, cause: str) -> None:
    with pytest.raises(CorruptModelError, match=cause):
        read_description(write(tmp_path, document))


def test_broken_gzip(tmp_path: Path) -> None:
    path = tmp_path / "m.json.gz"
    path.write_bytes(b"no gzip")
    with pytest.raises(CorruptModelError, match="not gzip"):
        read_description(path)
    whole = write(tmp_path, {}).read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(CorruptModelError, match="ends too early"):
        read_description(path)
