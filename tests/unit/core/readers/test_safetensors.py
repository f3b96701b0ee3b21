"""safetensors: files, shards, indexes, configurations, and what is said about broken ones."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from autofit.errors import AutofitError, CorruptModelError, ModelNotFoundError
from autofit.readers.safetensors import MAX_HEADER_BYTES, read_safetensors

from support import safetensor_files as sf

# -- sound ones -----------------------------------------------------------------------------------------


def test_one_file(tmp_path: Path) -> None:
    path = sf.write_tensors(tmp_path / "m.safetensors", {"b": ("F32", (2, 3)), "a": ("F4", (4,)), "e": ("I64", (0, 7))})
    model = read_safetensors(path)
    start = path.stat().st_size - 26
    assert [tuple(tensor) for tensor in model.tensors] == [
        ("b", "F32", (2, 3), 24, 0, start),
        ("a", "F4", (4,), 2, 0, start + 24),
        ("e", "I64", (0, 7), 0, 0, start + 26),
    ]
    assert (model.format, model.architecture, model.metadata) == ("safetensors", "unknown", {})


@pytest.mark.parametrize("reference", ["", "model.safetensors.index.json", "model-00002-of-00003.safetensors"])
def test_directory_index_and_any_shard_are_the_same_model(tmp_path: Path, reference: str) -> None:
    whole = read_safetensors(sf.write_model(tmp_path / "whole"))
    directory = sf.write_model(tmp_path / "split", n_shards=3)
    model = read_safetensors(directory / reference)
    assert {t[:4] for t in model.tensors} == {t[:4] for t in whole.tensors}
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [Path(file.path).name for file in model.files] == names
    assert model.layers == whole.layers
    assert (model.name, model.architecture) == ("split", "LlamaForCausalLM")
    assert (model.hidden_elements, model.n_vocab, model.context_train_tokens) == (64, 100, 2048)


def test_the_number_of_shards_may_have_six_digits(tmp_path: Path) -> None:
    """As DeepSeek-V3's files are called."""
    for number in (1, 2):
        tensors = {f"model.layers.{number}.a": ("F32", (2, 3))}
        sf.write_tensors(tmp_path / f"model-0000{number}-of-000002.safetensors", tensors)
    assert len(read_safetensors(tmp_path / "model-00002-of-000002.safetensors").tensors) == 2


def test_a_configuration_alone(tmp_path: Path) -> None:
    path = sf.write_model(tmp_path) / "config.json"
    model = read_safetensors(path)
    assert (model.format, model.tensors, len(model.layers)) == ("config", (), 2)
    assert model.files[0].path == str(path)
    assert (model.layers[0].n_heads, model.layers[0].n_kv_heads, model.layers[0].key_dim) == (4, 2, 16)


def test_files_beside_the_configuration(tmp_path: Path) -> None:
    sf.write_model(tmp_path, config={**sf.CONFIG, "quantize_config": "kept"})
    for stem in ("quantize_config", "hf_quant_config", "generation_config"):
        (tmp_path / f"{stem}.json").write_text(json.dumps({"from": stem}))
    metadata = read_safetensors(tmp_path).metadata
    assert metadata["quantize_config"] == "kept"
    assert metadata["hf_quant_config"] == {"from": "hf_quant_config"}
    assert metadata["generation_config"] == {"from": "generation_config"}


def test_the_notes_of_a_header(tmp_path: Path) -> None:
    path = sf.write_tensors(tmp_path / "m.safetensors", {"a": ("F32", (1,))}, notes={"format": "pt"})
    assert read_safetensors(path).metadata == {"__metadata__": {"format": "pt"}}


def test_the_index_decides_where_two_shards_have_a_tensor(tmp_path: Path) -> None:
    index = sf.write_sharded(tmp_path, sf.llama(), 2)
    names = json.loads(index.read_text())["weight_map"]
    first = [name for name, file in names.items() if "00001" in file]
    sf.write_tensors(tmp_path / "model-00002-of-00002.safetensors", dict.fromkeys(names, ("F32", (1,))))
    model = read_safetensors(index)
    assert {t.name for t in model.tensors if t.file_index == 0} == set(first)
    assert len(model.tensors) == len(names)


def test_layers_have_their_bytes(tmp_path: Path) -> None:
    model = read_safetensors(sf.write_model(tmp_path, n_embd=64, n_ff=128))
    for layer in model.layers:
        assert (layer.attention_bytes, layer.feed_forward_bytes) == (4 * 64 * 64 * 2, 3 * 64 * 128 * 2)
        assert (layer.other_bytes, layer.mixer, layer.feed_forward, layer.stack) == (128, "full", "dense", "")


def test_routed_experts(tmp_path: Path) -> None:
    """Four blocks of DeepSeek-V3: 256 experts of three projections with their scales each."""
    tensors: dict[str, Any] = {}
    for block in range(3, 7):
        for expert in range(256):
            for part in ("gate", "up", "down"):
                name = f"model.layers.{block}.mlp.experts.{expert}.{part}_proj.weight"
                tensors[name] = ("F8_E4M3", (2048, 7168))
                tensors[f"{name}_scale_inv"] = ("F32", (16, 56))
    model = read_safetensors(sf.write_sharded(tmp_path, tensors, 16))
    assert len(model.tensors) == 4 * 256 * 6
    assert {layer.expert_bytes for layer in model.layers} == {256 * 3 * (2048 * 7168 + 16 * 56 * 4)}
    assert [layer.index for layer in model.layers] == [3, 4, 5, 6]


# -- broken ones ----------------------------------------------------------------------------------------


def refused(path: Path, cause: str) -> AutofitError:
    with pytest.raises(AutofitError) as caught:
        read_safetensors(path)
    error = caught.value
    assert cause in error.message, error.message
    assert error.exit_code == 1
    assert (error.message + (error.hint or "")).isprintable()
    return error


def corrupt(path: Path, cause: str) -> int | None:
    error = refused(path, cause)
    assert isinstance(error, CorruptModelError)
    return error.offset_bytes


@pytest.mark.parametrize(
    ("data", "cause", "at"),
    [
        (b"", "starts with 8 bytes of length, this one has 0", 0),
        (bytes(5), "this one has 5", 0),
        (b"\xff" * 8, "the header has 18446744073709551615 bytes; at most", 0),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), "bytes; at most 100000000 are accepted", 0),
        ((100).to_bytes(8, "little") + b"{}", "a header of 100 bytes, but 2 are left", 8),
        ((4).to_bytes(8, "little") + b"[1] ", "not safetensors: no JSON object starts here", 8),
        ((8).to_bytes(8, "little") + b'{"a":tru', "broken JSON: expecting value", 13),
        ((8).to_bytes(8, "little") + b'{"\xff\xff\xff\xff"}', "not UTF-8", 10),
        ((9).to_bytes(8, "little") + '{"é":nul}'.encode()[:9], "broken JSON", 14),
    ],
)
def test_broken_headers(tmp_path: Path, data: bytes, cause: str, at: int) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    assert corrupt(path, cause) == at


@pytest.mark.parametrize("text", [b'{"a":' * 200_000, b'{"a":[' + b"[" * 300_000])
def test_deep_nesting(tmp_path: Path, text: bytes) -> None:
    corrupt(sf.write(tmp_path / "m.safetensors", text), "JSON nested too deeply")


def test_a_number_of_absurd_length(tmp_path: Path) -> None:
    corrupt(
        sf.write(tmp_path / "m.safetensors", b'{"a":' + b"9" * 10_000 + b"}"),
        "a JSON number has too many digits",
    )


def test_more_items_than_any_model_has(tmp_path: Path) -> None:
    corrupt(
        sf.write(tmp_path / "m.safetensors", b'{"a":[' + b"0," * (3 << 20) + b"0]}"),
        "items; no model file has that many",
    )


GOOD = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"dtype": "F5"}, "has the unknown type F5"),
        ({"dtype": 3}, "has the unknown type 3"),
        ({"dtype": []}, "has the unknown type []"),
        ({"shape": [2, -2]}, "has no valid shape: [2, -2]"),
        ({"shape": [-2, -2]}, "has no valid shape"),
        ({"shape": [2.0, 2]}, "has no valid shape"),
        ({"shape": [True, 4]}, "has no valid shape"),
        ({"shape": "22"}, "has no valid shape: 22"),
        ({"shape": None}, "has no valid shape"),
        ({"shape": [1 << 62, 1 << 62]}, "takes"),
        ({"shape": [3, 2]}, "(F32 [3, 2]) takes 24 bytes, its data_offsets say 16"),
        ({"dtype": "F4", "shape": [33]}, "takes no whole number of bytes"),
        ({"data_offsets": [0, 8, 16]}, "has no valid data_offsets"),
        ({"data_offsets": [16, 0]}, "has no valid data_offsets: [16, 0]"),
        ({"data_offsets": [-16, 0]}, "has no valid data_offsets"),
        ({"data_offsets": ["0", 16]}, "has no valid data_offsets"),
        ({"data_offsets": 16}, "has no valid data_offsets"),
        ({"data_offsets": [8, 24]}, "leaves a gap of 8 bytes before it"),
    ],
)
def test_lies_about_a_tensor(tmp_path: Path, change: dict[str, Any], cause: str) -> None:
    entries = {"a": {**GOOD, **change}}
    refused(sf.write(tmp_path / "m.safetensors", json.dumps(entries).encode(), 24), cause)


@pytest.mark.parametrize("entry", [None, 3, [], "x", {}, {"dtype": "F32", "shape": [1]}])
def test_an_entry_that_is_no_tensor(tmp_path: Path, entry: object) -> None:
    corrupt(sf.write(tmp_path / "m.safetensors", json.dumps({"a": entry}).encode()), "tensor a lacks")


def test_overlapping_and_out_of_range_offsets(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    two = {"a": GOOD, "b": {**GOOD, "data_offsets": [8, 24]}}
    assert corrupt(sf.write(path, two), "tensor b overlaps the one before it") == path.stat().st_size - 16
    assert read_safetensors(sf.write(path, {"a": GOOD}, 15)).missing_bytes == 1
    corrupt(sf.write(path, {"a": GOOD}, 20), "4 bytes after the last tensor")
    far = {"dtype": "U8", "shape": [1 << 60], "data_offsets": [0, 1 << 60]}
    assert read_safetensors(sf.write(path, {"a": far}, 16)).missing_bytes == (1 << 60) - 16


def test_a_name_twice(tmp_path: Path) -> None:
    entry = json.dumps(GOOD)
    corrupt(sf.write(tmp_path / "m.safetensors", f'{{"a":{entry},"a":{entry}}}'.encode(), 16), "a is there twice")
    # a tensor may be called so: the quick test must not take it for a second one
    odd = {"data_offsets": GOOD}
    assert read_safetensors(sf.write(tmp_path / "n.safetensors", odd)).tensors[0].name == "data_offsets"


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = sf.write_sharded(tmp_path, sf.llama(), 3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    for reference in (index, tmp_path, tmp_path / "model-00001-of-00003.safetensors"):
        error = refused(reference, "model-00002-of-00003.safetensors: missing, one of 3 shards")
        assert isinstance(error, ModelNotFoundError)


def test_a_shard_without_its_tensor(tmp_path: Path) -> None:
    index = sf.write_sharded(tmp_path, sf.llama(), 2)
    document = json.loads(index.read_text())
    document["weight_map"]["extra"] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps(document))
    corrupt(index, "model-00002-of-00002.safetensors: no tensor extra, which the index says is here")


def test_a_tensor_in_two_files_without_an_index(tmp_path: Path) -> None:
    for number in (1, 2):
        sf.write_tensors(tmp_path / f"model-0000{number}-of-00002.safetensors", {"a": ("F32", (1,))})
    corrupt(tmp_path, "tensor a is in another file too")


@pytest.mark.parametrize(
    "document",
    [{}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 3}}, [], {"weight_map": {"a": None}}],
)
def test_an_index_without_a_map(tmp_path: Path, document: object) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps(document))
    corrupt(index, "no weight_map")


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "a\0.safetensors", ""])
def test_an_index_must_not_lead_elsewhere(tmp_path: Path, name: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    corrupt(index, "names a file outside this directory")


def test_a_broken_configuration(tmp_path: Path) -> None:
    sf.write_model(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": 64,}')
    corrupt(tmp_path, "config.json: byte")
    (tmp_path / "config.json").write_text("[]")
    corrupt(tmp_path, "not a JSON object")


@pytest.mark.parametrize("key", list(sf.CONFIG))
@pytest.mark.parametrize("value", [None, -1, 0, 1e99, "x", [], {}, [None], 1 << 80])
def test_a_configuration_of_nonsense_is_survived(tmp_path: Path, key: str, value: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**sf.CONFIG, key: value}))
    model = read_safetensors(tmp_path / "config.json")
    assert len(model.layers) <= 4096


def test_a_huge_json_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.touch()
    os.truncate(path, 1 << 40)
    refused(path, "the file has 1099511627776 bytes; at most")


def test_an_index_without_all_of_its_shards_is_the_configuration_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    alone = read_safetensors(tmp_path)
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for metadata, total in (({}, 0), ({"total_size": 12}, 12), ({"total_size": -1}, 0), ({"total_size": 1e9}, 0)):
        index = {"metadata": metadata, "weight_map": weight_map}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        (tmp_path / "model-00001-of-00002.safetensors").unlink(missing_ok=True)
        assert read_safetensors(tmp_path) == replace(alone, missing_bytes=total, n_missing_files=2)
        (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
        assert read_safetensors(tmp_path) == replace(alone, missing_bytes=total, n_missing_files=1)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"model-00002-of-00002\.safetensors: missing, one of 2 shards"):
        read_safetensors(tmp_path)
