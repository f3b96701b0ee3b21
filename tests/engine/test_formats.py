"""Files for Ray Serve and KServe, read by their own classes (`.ci/formats.sh`)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from autofit.cli.main import main

from support import ROOT

FOLDER = os.environ.get("AUTOFIT_FORMATS", "")
MODEL = ROOT / "tests/data/vllm/configs/qwen3-0.6b"
pytestmark = pytest.mark.engine
needs_readers = pytest.mark.skipif(not FOLDER, reason="needs AUTOFIT_FORMATS")


def read(reader: str, path: Path) -> Any:
    program = [f"{FOLDER}/{reader}/bin/python", str(ROOT / "tests/engine/read_formats.py"), reader, str(path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return json.loads(done.stdout)


def written(capsys: pytest.CaptureFixture[str], path: Path, *words: str) -> Path:
    assert main([*words]) == 0, capsys.readouterr().err
    path.write_text(capsys.readouterr().out)
    return path


@needs_readers
@pytest.mark.parametrize("flags", ["-tp 2 --no-enable-prefix-caching", "-dp 2 --disable-log-stats -O1"])
def test_ray_reads_its_application(flags: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("vllm", str(MODEL), "--on", "2xa100-80gb", "--ram", "64GiB", "-q", "--format", "ray-serve", "--")
    (one,) = read("ray", written(capsys, tmp_path / "ray.yaml", *words, *flags.split()))
    assert one["id"] == "qwen3-0.6b"
    assert one["settings"]["max_model_len"] == 40960


@needs_readers
@pytest.mark.parametrize("backend", ["llama", "vllm"])
def test_kserve_knows_every_name(backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = {"llama": ROOT / "autofit/_models/tiny.gguf", "vllm": MODEL}[backend]
    read(
        "kserve", written(capsys, tmp_path / "x.yaml", backend, str(model), "--on", "2xa100-80gb", "--format", "kserve")
    )
    bad = tmp_path / "bad.yaml"
    bad.write_text((tmp_path / "x.yaml").read_text().replace("startupProbe", "startProbe"))
    with pytest.raises(AssertionError, match="startProbe is not of V1Container"):
        read("kserve", bad)


FLAGS = (
    "--max-model-len 4096 --max-num-seqs 64 --gpu-memory-utilization 0.9 -tp 2 --no-enable-prefix-caching -O1 "
    "--compilation-config.cudagraph_capture_sizes [1,2,4] --kv-cache-dtype fp8 --dtype bfloat16 "
    "--allowed-media-domains a.example b.example --served-model-name me "
    "--speculative-config.method ngram --speculative-config.num_speculative_tokens 3 "
    "--enable-auto-tool-choice --tool-call-parser hermes --max-num-batched-tokens 2k --limit-mm-per-prompt.image 2"
).split()


@pytest.mark.skipif("AUTOFIT_VLLM_PYTHON" not in os.environ, reason="needs AUTOFIT_VLLM_PYTHON")
def test_vllm_makes_the_same_of_rays_settings_as_of_the_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "vllm",
        str(MODEL),
        "--on",
        "2xa100-80gb",
        "--ram",
        "64GiB",
        "-q",
        "--engine-version",
        "0.32.0",
        "--format",
    )
    path = written(capsys, tmp_path / "ray.yaml", *words, "ray-serve", "--", *FLAGS)
    (application,) = yaml.safe_load(path.read_text())["applications"]
    (model,) = application["args"]["llm_configs"]
    given = {"flags": ["--model", str(MODEL), *FLAGS], "settings": model["engine_kwargs"]}
    path.write_text(json.dumps(given))
    assert by_vllm("vllm", path) == {"differing": []}


def by_vllm(reader: str, path: Path) -> Any:
    program = [os.environ["AUTOFIT_VLLM_PYTHON"], str(ROOT / "tests/engine/read_formats.py"), reader, str(path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif("AUTOFIT_VLLM_PYTHON" not in os.environ, reason="needs AUTOFIT_VLLM_PYTHON")
def test_vllm_reads_its_settings_file_as_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "vllm",
        str(MODEL),
        "--on",
        "2xa100-80gb",
        "--ram",
        "64GiB",
        "-q",
        "--engine-version",
        "0.32.0",
        "--format",
    )
    path = written(capsys, tmp_path / "vllm.yaml", *words, "vllm-config", "--", *FLAGS)
    document = tmp_path / "both.json"
    document.write_text(json.dumps({"flags": ["--model", str(MODEL), *FLAGS], "file": str(path)}))
    assert by_vllm("config", document) == {"differing": []}
