"""`read_model`: which reader for which path, directories, companions, and what is no model at all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from autofit.domain.model import ModelFiles
from autofit.errors import AutofitError, ModelError, ModelNotFoundError, UsageError
from autofit.readers import group_of, read_model, role_of

from support import ggufs
from support import safetensor_files as sf
from support.ggufs import Gguf

MMPROJ = {"general.architecture": "clip", "general.type": "mmproj"}
LORA = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}


def refused(reference: object, cause: str) -> AutofitError:
    with pytest.raises(AutofitError) as caught:
        read_model(reference)  # type: ignore[arg-type]
    error = caught.value
    assert cause in error.message, error.message
    assert (error.message + (error.hint or "")).isprintable()
    return error


# -- choosing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.gguf", "blob-without-suffix", "m.gguf.part", "sha256-ab12"])
def test_gguf_by_suffix_or_by_its_first_bytes(tmp_path: Path, name: str) -> None:
    assert read_model(ggufs.write_llama(tmp_path / name)).format == "gguf"


def test_safetensors_by_suffix_or_by_its_first_bytes(tmp_path: Path) -> None:
    tensors = sf.llama()
    assert read_model(sf.write_tensors(tmp_path / "m.safetensors", tensors)).format == "safetensors"
    assert read_model(sf.write_tensors(tmp_path / "blob", tensors)).format == "safetensors"


def test_a_path_a_string_a_list_and_resolved_files_are_the_same(tmp_path: Path) -> None:
    path = ggufs.write_llama(tmp_path / "m.gguf")
    files = ModelFiles(reference="x", paths=(str(path),))
    assert read_model(path) == read_model(str(path)) == read_model([str(path)]) == read_model(files)


def test_the_shards_of_one_model_by_name(tmp_path: Path) -> None:
    paths = [str(path) for path in ggufs.write_split(tmp_path, "m", ggufs.llama(), 2)]
    assert read_model(paths) == read_model(paths[0])
    assert read_model(paths[::-1]) == read_model(paths[0])
    other = str(ggufs.write_llama(tmp_path / "other.gguf"))
    refused([*paths, other], "these 3 files are not the shards of one model")
    with pytest.raises(UsageError):
        read_model([])


# -- directories ----------------------------------------------------------------------------------------


def test_a_directory_with_one_model(tmp_path: Path) -> None:
    path = ggufs.write_llama(tmp_path / "m.gguf")
    assert read_model(tmp_path) == read_model(path)


def test_a_directory_with_one_split_model(tmp_path: Path) -> None:
    paths = ggufs.write_split(tmp_path, "m", ggufs.llama(), 3)
    assert read_model(tmp_path) == read_model(paths[0])
    paths[0].unlink()
    refused(tmp_path, "m-00001-of-00003.gguf: missing, shard 1 of 3")


def test_companions_in_a_directory_are_not_the_model(tmp_path: Path) -> None:
    path = ggufs.write_llama(tmp_path / "m.gguf")
    Gguf(metadata=MMPROJ).write(tmp_path / "mmproj.gguf")
    Gguf(metadata=LORA).write(tmp_path / "lora.gguf")
    Gguf(metadata={"general.architecture": "eagle3"}).write(tmp_path / "draft.gguf")
    assert read_model(tmp_path) == read_model(path)


def test_a_directory_with_several_models_lists_them(tmp_path: Path) -> None:
    for name in ("b", "a"):
        ggufs.write_llama(tmp_path / f"{name}.gguf")
    error = refused(tmp_path, "2 GGUF models are in this directory")
    assert error.hint == "name one of them: a.gguf, b.gguf"


def test_a_directory_with_both_formats(tmp_path: Path) -> None:
    sf.write_model(tmp_path)
    ggufs.write_llama(tmp_path / "m.gguf")
    refused(tmp_path, "both GGUF and safetensors models")


@pytest.mark.parametrize(
    ("names", "cause", "hint"),
    [
        ([], "no model in this directory", ".gguf or .safetensors"),
        (["pytorch_model.bin", "config.json"], "only pickled weights", "safetensors"),
        (["README.md"], "no model in this directory", ""),
    ],
)
def test_a_directory_without_weights(tmp_path: Path, names: list[str], cause: str, hint: str) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    error = refused(tmp_path, cause)
    assert isinstance(error, ModelNotFoundError)
    assert hint in (error.hint or "")


def test_a_directory_of_directories_names_those_with_models(tmp_path: Path) -> None:
    for name in ("empty", "ours", "theirs"):
        (tmp_path / name).mkdir()
    assert refused(tmp_path, "no model in this directory").hint == "it should hold .gguf or .safetensors files"
    ggufs.write_llama(tmp_path / "ours" / "m.gguf")
    sf.write_model(tmp_path / "theirs")
    hint = refused(tmp_path, "no model in this directory").hint or ""
    assert hint.endswith(f"name that: {tmp_path / 'ours'}, {tmp_path / 'theirs'}")


def test_a_directory_with_a_configuration_alone_is_a_model_without_tensors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "hidden_size": 8}')
    model = read_model(tmp_path)
    assert (model.format, model.tensors, model.architecture) == ("config", (), "LlamaForCausalLM")


def test_a_directory_named_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").mkdir()
    refused(tmp_path / "m.gguf", "no model in this directory")


# -- companions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "role"),
    [
        (MMPROJ, "mmproj"),
        ({"general.architecture": "clip"}, "mmproj"),
        (LORA, "lora"),
        ({"general.architecture": "eagle3"}, "draft"),
        ({"general.architecture": "llama", "general.type": "model"}, "model"),
        ({"general.architecture": "llama"}, "model"),
    ],
)
def test_roles(tmp_path: Path, metadata: dict[str, str], role: str) -> None:
    assert role_of(read_model(Gguf(metadata=metadata).write(tmp_path / "m.gguf"))) == role


def test_groups_go_by_the_names_of_the_format(tmp_path: Path) -> None:
    gguf = group_of(read_model(ggufs.write_llama(tmp_path / "m.gguf")))
    hf = group_of(read_model(sf.write_model(tmp_path / "d")))
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output.weight": "lm_head.weight",
        "output_norm.weight": "model.norm.weight",
        "blk.3.attn_q.weight": "model.layers.3.self_attn.q_proj.weight",
        "blk.3.attn_norm.weight": "model.layers.3.input_layernorm.weight",
        "blk.3.ffn_up.weight": "model.layers.3.mlp.up_proj.weight",
        "blk.3.ffn_up_exps.weight": "model.layers.3.mlp.experts.7.up_proj.weight",
        "blk.3.ffn_up_shexp.weight": "model.layers.3.mlp.shared_experts.up_proj.weight",
        "blk.3.ffn_gate_inp.weight": "model.layers.3.mlp.gate.weight",
        "blk.3.ssm_in.weight": "model.layers.3.mamba.in_proj.weight",
    }
    assert {name: gguf(name) for name in pairs} == {name: hf(other) for name, other in pairs.items()}


# -- what is no ordinary file ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.gguf", "m.safetensors", "config.json", "m"])
def test_a_pipe_without_a_writer_does_not_hang(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    refused(tmp_path / name, f"{name}: a pipe, not a model file")


@pytest.mark.parametrize("name", ["m.gguf", "m"])
def test_a_socket(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        assert isinstance(refused(name, f"{name}: a socket"), ModelError)


def test_a_directory_that_is_called_like_a_model(tmp_path: Path) -> None:
    (tmp_path / "d.gguf").mkdir()
    path = ggufs.write_llama(tmp_path / "m.gguf")
    assert read_model(tmp_path) == read_model(path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to its address space")
def test_a_model_larger_than_the_address_space_allowed(tmp_path: Path) -> None:
    paths = [ggufs.write_llama(tmp_path / "m.gguf"), tmp_path / "m.safetensors"]
    sf.write_tensors(paths[1], sf.llama(n_layer=1))
    for path in paths:
        os.truncate(path, 1 << 42)
    code = """if True:
        import resource, sys
        from autofit.errors import AutofitError
        from autofit.readers import read_model
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        for path in sys.argv[1:]:
            try:
                read_model(path)
            except AutofitError as error:
                print(error)"""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "allocate" not in done.stdout + done.stderr


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device here")
def test_a_device() -> None:
    refused("/dev/zero", "/dev/zero: a device, not a model file")


@pytest.mark.parametrize("name", ["m.gguf", "m.safetensors", "m"])
def test_links_in_a_circle(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / name)
    refused(tmp_path / name, "symbolic links go round in a circle")


@pytest.mark.parametrize("name", ["m.gguf", "m.safetensors", "config.json", "m", "a/b.gguf", "x" * 300])
def test_nothing_there(tmp_path: Path, name: str) -> None:
    refused(tmp_path / name, name[:100])


def test_a_dangling_link_and_a_file_as_directory(tmp_path: Path) -> None:
    (tmp_path / "l.gguf").symlink_to(tmp_path / "gone.gguf")
    refused(tmp_path / "l.gguf", "l.gguf: no such file")
    path = ggufs.write_llama(tmp_path / "m.gguf")
    refused(path / "n.gguf", "a part of this path is not a directory")


def test_a_link_to_a_model(tmp_path: Path) -> None:
    path = ggufs.write_llama(tmp_path / "blob")
    (tmp_path / "link.gguf").symlink_to(path)
    model = read_model(tmp_path / "link.gguf")
    assert model.files[0].path == str(tmp_path / "link.gguf")
    assert model.tensors == read_model(path).tensors


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser reads everything")
@pytest.mark.parametrize("name", ["m.gguf", "m.safetensors", "config.json", "m"])
def test_no_permission(tmp_path: Path, name: str) -> None:
    path = ggufs.write_llama(tmp_path / name)
    path.chmod(0)
    refused(path, f"{name}: no permission to read it")


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_what_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    path = ggufs.write_llama(tmp_path / "m.gguf")

    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(os, "open", fail)
    cause = "no permission to read it" if isinstance(error, PermissionError) else "Input/output error"
    assert refused(path, cause).exit_code == 1


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b"PK\x03\x04" + bytes(40), "pickled weights"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!doctype html><html>", "web page"),
        (b"just text, nothing else", None),
        (b"", None),
    ],
)
def test_other_files(tmp_path: Path, data: bytes, hint: str | None) -> None:
    path = tmp_path / "model"
    path.write_bytes(data)
    error = refused(path, "byte 0: neither GGUF nor safetensors")
    assert (error.hint is None) if hint is None else hint in (error.hint or "")
    if data:
        for suffix in (".gguf", ".safetensors"):
            assert refused(path.rename(path.with_suffix(suffix)), ": byte ").hint == error.hint
            path = path.with_suffix(suffix)


@pytest.mark.parametrize("make", [lambda p: p / "a\x1b[31m.gguf", lambda p: p / "a\nb", lambda p: p / "\u202egguf"])
def test_names_with_control_characters_are_escaped(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    refused(path, "no such file")
    path.write_bytes(b"x")
    refused(path, "not GGUF" if path.suffix == ".gguf" else "neither")


def test_a_path_stays_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`./-m.gguf` without its dot would be a flag on the engine's command line."""
    ggufs.write_llama(tmp_path / "-m.gguf")
    monkeypatch.chdir(tmp_path)
    assert read_model("./-m.gguf").files[0].path == "./-m.gguf"


def test_a_path_that_is_none() -> None:
    refused("a\0b.gguf", "not a path")
