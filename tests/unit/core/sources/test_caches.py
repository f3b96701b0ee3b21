"""What lies in the caches of other programs: found by name, listed, and never trusted."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import autofit
import pytest
from autofit.cli.main import main
from autofit.errors import AutofitError, ModelNotFoundError, UsageError
from autofit.references import locate
from autofit.sources import folders, hub_cache, lmstudio, modelscope, ollama

from support import ROOT, caches, ggufs
from support import safetensor_files as sf

TINY = ROOT / "autofit/_models/tiny.gguf"
VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "LLAMA_CACHE", "OLLAMA_MODELS", "MODELSCOPE_CACHE",
             "XDG_CACHE_HOME", "LOCALAPPDATA", "USERPROFILE")  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without caches, and no network."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ollama, "_SYSTEM", tmp_path / "no")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checkpoint(directory: Path, n_shards: int = 2) -> dict[str, Path]:
    directory.mkdir(parents=True)
    index = sf.write_sharded(directory, sf.llama(), n_shards)
    (directory / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    return {path.name: path for path in directory.iterdir()} | {index.name: index}


@pytest.mark.parametrize(
    ("variables", "root"),
    [
        ({}, ".cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "x"}, "x/huggingface/hub"),
        ({"HF_HOME": "h", "XDG_CACHE_HOME": "x"}, "h/hub"),
        ({"HF_HUB_CACHE": "c", "HF_HOME": "h"}, "c"),
        ({"LLAMA_CACHE": "l", "HF_HUB_CACHE": "c"}, "l"),
    ],
)
def test_a_repository_on_disk_is_its_file(
    home: Path, monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str], root: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, str(home / value))
    snapshot = caches.hub(home / root, "o/r", {"m-Q4_K_M.gguf": TINY, "m-Q8_0.gguf": TINY, "mmproj-F16.gguf": TINY})
    assert locate("o/r").paths == (str(snapshot / "m-Q4_K_M.gguf"),)
    assert locate("hf:o/r:q8_0").paths == (str(snapshot / "m-Q8_0.gguf"),)
    assert locate(f"o/r:m-Q8_0.gguf@{caches.COMMIT}").paths == (str(snapshot / "m-Q8_0.gguf"),)
    assert autofit.plan("llama", "o/r", autofit.load_machine("rtx-3090", ram="64GiB")).argv[2].startswith(str(snapshot))


def test_a_path_of_that_name_wins(home: Path) -> None:
    caches.hub(home / ".cache/huggingface/hub", "o/r", {"m-Q4_K_M.gguf": TINY})
    (home / "o/r").mkdir(parents=True)
    assert locate("o/r").paths == ("o/r",)


def test_a_branch_is_followed_and_a_broken_one_is_not(home: Path) -> None:
    root = home / ".cache/huggingface/hub"
    snapshot = caches.hub(root, "o/r", {"m.gguf": TINY}, branch="refs/pr/1")
    assert hub_cache.find(hub_cache.HubName("o/r", None, "refs/pr/1"), os.environ) is not None
    assert hub_cache.find(hub_cache.HubName("o/r"), os.environ) is not None  # the only branch there is
    assert snapshot.is_dir()
    for text in ("../../../..", "", "x" * 40, "0" * 41):
        (root / "models--o--r/refs/pr").mkdir(parents=True, exist_ok=True)
        (root / "models--o--r/refs/refs/pr/1").write_text(text)
        assert hub_cache.find(hub_cache.HubName("o/r"), os.environ) is None


def test_a_model_that_lacks_a_shard_or_a_blob_is_not_there(home: Path) -> None:
    root = home / ".cache/huggingface/hub"
    names = ("m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf")
    snapshot = caches.hub(root, "o/r", dict.fromkeys(names, TINY))
    assert [model.name for model in hub_cache.stored(os.environ)] == ["o/r:Q8_0"]
    (snapshot / names[1]).resolve()
    (snapshot / names[1]).unlink()
    (snapshot / names[1]).symlink_to("nowhere")
    assert not [*hub_cache.stored(os.environ)]
    with pytest.raises(AutofitError):
        locate("o/r:Q8_0")


def test_a_checkpoint_is_its_directory_and_is_named_as_the_repository(home: Path) -> None:
    root = home / ".cache/huggingface/hub"
    snapshot = caches.hub(root, "o/r", checkpoint(home / "files"))
    found = locate("o/r")
    assert (found.paths, found.written) == ((str(snapshot),), "hf:o/r")
    (snapshot / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(AutofitError):
        locate("o/r")


def test_plain_files_of_older_releases(home: Path) -> None:
    own = home / ".cache/llama.cpp"
    own.mkdir(parents=True)
    path = own / "o_r_m-Q4_K_M.gguf"
    path.symlink_to(TINY)
    assert locate("o/r").paths == (str(path),)
    assert [model.name for model in hub_cache.stored(os.environ)] == [str(path)]


def test_ollama(home: Path) -> None:
    root = home / ".ollama/models"
    caches.ollama(root, "registry.ollama.ai/library/tiny/latest", TINY, projector=TINY)
    caches.ollama(root, "hf.co/o/r/Q4_K_M", TINY)
    found = locate("ollama:tiny")
    assert Path(found.paths[0]).resolve() == TINY and set(found.beside) == {"mmproj"}
    assert autofit.read_model("ollama:tiny").architecture == autofit.read_model(TINY).architecture
    assert locate("ollama:hf.co/o/r:Q4_K_M").paths == found.paths
    assert [model.name for model in ollama.stored(os.environ)] == ["ollama:hf.co/o/r:Q4_K_M", "ollama:tiny:latest"]
    for name in ("ollama:", "ollama:../x", "ollama:a:b:c", "ollama:a b"):
        with pytest.raises(UsageError):
            locate(name)


@pytest.mark.parametrize(
    "manifest",
    [b"", b"[]", b"{}", b'{"layers": 3}', b'{"layers": [{}]}', b"[" * 100_000, b'{"layers": []}',
     caches.manifest({"application/vnd.ollama.image.model": ("sha256:../../../etc/passwd", 1)}),
     caches.manifest({"application/vnd.ollama.image.model": ("sha256:" + "0" * 64, -1)})],
    ids=str,
)  # fmt: skip
def test_a_manifest_that_is_none(home: Path, manifest: bytes) -> None:
    place = home / ".ollama/models/manifests/registry.ollama.ai/library/x/latest"
    place.parent.mkdir(parents=True)
    place.write_bytes(manifest)
    with pytest.raises(AutofitError):
        locate("ollama:x")
    assert not [*ollama.stored(os.environ)]


def test_lmstudio(home: Path) -> None:
    place = home / ".lmstudio/models/pub/repo-GGUF"
    place.mkdir(parents=True)
    (place / "m-Q4_K_M.gguf").symlink_to(TINY)
    (place / "m-Q8_0.gguf").symlink_to(TINY)
    assert locate("lmstudio:pub/repo-GGUF/m-Q8_0.gguf").paths == (str(place / "m-Q8_0.gguf"),)
    assert locate("lmstudio:q4_k_m").paths == (str(place / "m-Q4_K_M.gguf"),)
    for name, error in (("lmstudio:repo", ModelNotFoundError), ("lmstudio:nope", ModelNotFoundError),
                        ("lmstudio:", UsageError)):  # fmt: skip
        with pytest.raises(error) as caught:
            locate(name)
        assert caught.value.hint
    elsewhere = home / "elsewhere"
    (elsewhere / "a").mkdir(parents=True)
    (home / ".lmstudio/settings.json").write_text(json.dumps({"downloadsFolder": str(elsewhere)}))
    assert lmstudio.folder(os.environ) == elsewhere
    for broken in ("{", "[]", '{"downloadsFolder": 3}', '{"downloadsFolder": "relative"}'):
        (home / ".lmstudio/settings.json").write_text(broken)
        assert lmstudio.folder(os.environ) == home / ".lmstudio/models"


def test_modelscope(home: Path) -> None:
    root = home / ".cache/modelscope/hub/models"
    checkpoint(root / "Qwen/Qwen3-0___6B")
    assert locate("modelscope:Qwen/Qwen3-0.6B").paths == (str(root / "Qwen/Qwen3-0___6B"),)
    assert [model.name for model in modelscope.stored(os.environ)] == ["modelscope:Qwen/Qwen3-0.6B"]
    for name, error in (("modelscope:a/b", ModelNotFoundError), ("modelscope:../b", UsageError)):
        with pytest.raises(error):
            locate(name)


def test_what_is_listed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub = home / ".cache/huggingface/hub"
    caches.hub(hub, "o/r", {"m-Q4_K_M.gguf": TINY})
    caches.hub(hub, "o/whole", checkpoint(home / "files"))
    caches.hub(hub, "o/broken", {"m-Q8_0.gguf": ggufs.write_llama(home / "x.gguf")})
    os.truncate((hub / "models--o--broken/snapshots" / caches.COMMIT / "m-Q8_0.gguf").resolve(), 100)
    caches.ollama(home / ".ollama/models", "registry.ollama.ai/library/tiny/latest", TINY)
    assert main(["models", "--on", "rtx-3090", "--ram", "64GiB", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in document["models"]}
    assert set(rows) == {"o/r:Q4_K_M", "o/whole", "o/broken:Q8_0"}  # Ollama's is the same file as the first
    first = rows["o/r:Q4_K_M"]
    assert (first["size_bytes"], first["fits"], first["backend"]) == (TINY.stat().st_size, True, "llama")
    assert rows["o/broken:Q8_0"]["fits"] is None and "declares 21 tensors" in rows["o/broken:Q8_0"]["error"]
    assert rows["o/whole"]["format"] == "safetensors"
    assert main(["models", "whole", "--no-fit"]) == 0
    printed = capsys.readouterr().out
    assert "o/whole" in printed and "o/r" not in printed and "fits here" not in printed


def test_nothing_is_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert "no models" in capsys.readouterr().out


def test_a_hostile_folder_is_bounded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = home / "deep"
    place = deep
    for name in "abcdefghij":
        place = place / name
    place.mkdir(parents=True)
    (place / "m.gguf").write_bytes(b"")
    (deep / "loop").symlink_to(deep)
    (deep / "a\x1b[2J.gguf").write_bytes(b"")
    os.mkfifo(deep / "pipe.gguf")
    assert [*folders.files_below(deep)] == []
    monkeypatch.setattr(folders, "MAX_ENTRIES", 10)
    many = home / "many"
    many.mkdir()
    for i in range(20):
        (many / f"{i}.gguf").write_bytes(b"")
    assert len([*folders.files_below(many)]) <= 10
