"""`autofit inspect`: the same facts as text and as JSON, nothing of a file raw on the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from autofit.cli.inspect import groups, ranges
from autofit.cli.main import main
from autofit.readers import read_model

from support import ggufs
from support import safetensor_files as sf
from support.ggufs import Gguf, Tensor


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ggufs.write_llama(tmp_path / "m.gguf", n_layer=3, n_expert=4, n_head_kv=2)
    assert main(["inspect", str(path)]) == 0
    model = read_model(path)
    out = capsys.readouterr().out
    assert out.startswith("tiny\n  architecture  llama (gguf)\n")
    assert f"weights       {model.weights_bytes:,} bytes" in out
    assert f"{len(model.tensors)}  {model.weights_bytes:,}" in out
    assert "0-2         3  attention, 8 heads, 2 of K/V (64 wide); 4 experts, 2 used" in out
    assert str(path) in out


def test_json_has_every_byte_and_every_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ggufs.write_llama(tmp_path / "m.gguf", n_layer=3)
    assert main(["inspect", str(path), "--format", "json", "--tensors"]) == 0
    document = json.loads(capsys.readouterr().out)
    model = read_model(path)
    assert (document["schema"], document["role"], document["architecture"]) == (1, "model", "llama")
    assert document["weights_bytes"] == model.weights_bytes == sum(g["bytes"] for g in document["groups"])
    assert document["parameters"] == model.n_parameters
    assert sum(g["tensors"] for g in document["groups"]) == len(model.tensors) == len(document["tensors"])
    assert [layer["index"] for layer in document["layers"]] == [0, 1, 2]
    assert document["tensors"][0]["name"] == "token_embd.weight"


def test_every_tensor_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ggufs.write_llama(tmp_path / "m.gguf")
    main(["inspect", str(path)])
    assert "blk.0.attn_q.weight" not in capsys.readouterr().out
    main(["inspect", str(path), "--tensors"])
    out = capsys.readouterr().out
    assert all(tensor.name in out for tensor in read_model(path).tensors)


def test_a_configuration_has_layers_but_no_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(sf.write_model(tmp_path) / "config.json")]) == 0
    out = capsys.readouterr().out
    assert "no tensors, a configuration alone" in out
    assert "0-1         2  attention, 4 heads, 2 of K/V (16 wide); dense feed-forward\n" in out
    assert "bytes" not in out


def test_a_window_whose_layers_the_file_does_not_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {"llama.attention.sliding_window": 1024}
    main(["inspect", str(ggufs.write_llama(tmp_path / "m.gguf", metadata=keys))])
    note = "window        1,024 tokens; the engine decides which layers use it"
    assert note in capsys.readouterr().out
    for config, is_said in (
        ({"sliding_window": 1024}, True),
        ({"use_sliding_window": False, "sliding_window": 1024}, False),
    ):
        main(["inspect", str(sf.write_model(tmp_path, config={**sf.CONFIG, **config}) / "config.json")])
        assert (note in capsys.readouterr().out) is is_said


def test_a_companion_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = [Tensor("v.blk.0.attn_q.weight", (32, 32)), Tensor("mm.0.weight", (32, 32))]
    path = Gguf(metadata={"general.architecture": "clip"}, tensors=tensors).write(tmp_path / "p.gguf")
    main(["inspect", str(path)])
    out = capsys.readouterr().out
    assert "clip (gguf, mmproj)" in out
    assert "v 0" in out


@pytest.mark.parametrize("flags", [[], ["--tensors"], ["--format", "json", "--tensors"]])
def test_nothing_of_a_file_reaches_the_terminal_raw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    evil = "\x1b]52;c;eA==\x07\x9b31m\u202e"
    keys = {"general.architecture": "a" + evil, "general.name": evil + "\nname"}
    path = Gguf(metadata=keys, tensors=[Tensor(evil, (4,)), Tensor("blk.0.attn_" + evil, (4,))]).write(
        tmp_path / f"{evil}.gguf"
    )
    assert main(["inspect", str(path), *flags]) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.split("\n"))


def test_errors_are_one_line_and_a_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(20))
    assert main(["inspect", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"autofit: {path}: byte 4: ")
    assert len(captured.err.splitlines()) <= 2


def test_the_heaviest_group_comes_first(tmp_path: Path) -> None:
    found = groups(read_model(ggufs.write_llama(tmp_path / "m.gguf", n_expert=8)))
    assert next(iter(found)) == ("experts", "q4_K")
    assert sum(n_bytes for _, n_bytes in found.values()) == read_model(tmp_path / "m.gguf").weights_bytes


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([], ""),
        ([5], "5"),
        ([0, 1, 2], "0-2"),
        ([0, 2, 3, 4, 9], "0, 2-4, 9"),
        (list(range(0, 60, 2)), "0, 2, 4, 6, 8, 10, 12, 14, 16, 18, ..."),
    ],
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text
