"""The shipped models and the readers against a real llama.cpp (`AUTOFIT_LLAMA_BIN`: the folder it is in)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from autofit.readers import read_model
from autofit.sources import resolve

from support import ROOT, ggufs

BIN = Path(os.environ.get("AUTOFIT_LLAMA_BIN", "/nonexistent"))
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not (BIN / "llama-server").exists(), reason="AUTOFIT_LLAMA_BIN names no llama.cpp"),
]


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a llama-server with the tiny model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tiny = resolve("example:tiny").paths[0]
    argv = [
        str(BIN / "llama-server"),
        "-m",
        tiny,
        "-c",
        "512",
        "-t",
        "1",
        "-np",
        "1",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def ask(url: str, document: object = None) -> dict[str, object]:
    data = None if document is None else json.dumps(document).encode()
    with urllib.request.urlopen(url, data=data, timeout=10) as answer:
        return json.loads(answer.read())  # type: ignore[no-any-return]


def test_the_tiny_model_serves_and_answers(server: str) -> None:
    for _ in range(240):
        try:
            if ask(f"{server}/health")["status"] == "ok":
                break
        except OSError:
            time.sleep(0.25)
    answer = ask(f"{server}/completion", {"prompt": "hello", "n_predict": 5, "ignore_eos": True})
    assert answer["tokens_predicted"] == 5


def test_the_descriptions_are_what_llama_quantize_chooses() -> None:
    script = [
        sys.executable,
        str(ROOT / "tools" / "gen" / "examples.py"),
        str(BIN / "llama-quantize"),
        "--check",
    ]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def dry_run(path: Path) -> subprocess.CompletedProcess[str]:
    """llama.cpp's own reading of a file's header."""
    argv = [str(BIN / "llama-quantize"), "--dry-run", str(path), "Q8_0"]
    return subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=60)


@pytest.mark.parametrize("alignment", [32, 64, 4096])
@pytest.mark.parametrize("version", [2, 3])
def test_the_engine_reads_what_our_writer_writes(tmp_path: Path, version: int, alignment: int) -> None:
    model = ggufs.llama(n_vocab=300, metadata=ggufs.byte_vocabulary(300))
    model.version, model.alignment = version, alignment
    path = model.write(tmp_path / "m.gguf")
    assert dry_run(path).returncode == 0
    assert len(read_model(path).tensors) == len(model.tensors)


def test_the_engine_finds_the_shards_that_our_writer_writes(tmp_path: Path) -> None:
    paths = ggufs.write_split(tmp_path, "m", ggufs.llama(), 3)
    assert dry_run(paths[0]).returncode == 0
    paths[1].unlink()
    assert dry_run(paths[0]).returncode != 0
