"""Real starts of engines: which ones, their recorded logs, and what is predicted for them."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from autofit.pipeline import read_model
from autofit.verify import verify_log

from support import ROOT
from support.descriptors import spec

DATA = ROOT / "tests" / "data" / "engine_runs.jsonl.gz"


class LlamaRun(NamedTuple):
    """A start of llama-server with a model of `test-llama-archs`; `devices_mib` are RPC devices."""

    model: str
    devices_mib: tuple[int, ...]
    flags: tuple[str, ...]

    @property
    def name(self) -> str:
        where = f"RPC x {len(self.devices_mib)}" if self.devices_mib else "CPU"
        return f"llama.cpp {self.model} {where}"


class VllmRun(NamedTuple):
    """A start of vLLM with dummy weights."""

    name: str
    config: Mapping[str, Any]
    flags: tuple[str, ...]
    env: Mapping[str, str]


_CPU: Mapping[str, str] = {
    "llama-moe": "-c 8192 -np 1",
    "qwen3moe-moe": "-c 4096 -np 4 -ctk q8_0 -ctv q8_0 -fa on",
    "gemma3-dense": "-c 16384 -np 2",
    "deepseek32-moe": "-c 4096 -np 1 -ub 256",
    "mamba2-dense": "-c 4096 -np 3",
    "lfm2moe-moe": "-c 2048 -np 2 -b 1024",
    "phi2-dense": "-c 2048 -np 1 -fa off",
    "minicpm3-dense": "-c 4096 -np 1",
    "falcon-dense": "-c 6000 -np 1 -ub 1024 -b 1024",
    "bailingmoe3-moe": "-c 4096 -np 1",
    "glm5-next-moe": "-c 4096 -np 1",
    "kimi-k3-moe": "-c 8192 -np 2",
    "olmo2-dense": "-c 32768 -np 1",
    "qwen35-dense": "-c 8192 -np 2 -kvu",
    "smallthinker-moe": "-c 8192 -np 1 --swa-full",
    "nemotron_h_moe-dense": "-c 4096 -np 1",
}
_RPC: Mapping[str, str] = {
    "llama-moe": "-c 8192 -np 1 -ngl 99",
    "qwen3moe-moe": "-c 8192 -np 2 -ngl 99 -ncmoe 1",
    "gemma3-dense": "-c 16384 -np 1 -ngl 1",
    "deepseek32-moe": "-c 4096 -np 1 -ngl 99",
    "hunyuan-moe-moe": "-c 4096 -np 1 -ngl 99 -ot exps=CPU",
    "granitemoe-dense": "-c 8192 -np 4 -ngl 99 -ctk q8_0 -ctv q8_0 -fa on",
    "starcoder-dense": "-c 2048 -np 1 -ngl 2 -nkvo",
    "mamba2-dense": "-c 4096 -np 2 -ngl 99",
    "cohere2moe-moe": "-c 8192 -np 1 -ngl 99 -ub 128",
}
_SPLIT: Mapping[str, str] = {
    "llama-moe": "-c 8192 -np 1 -ngl 99 -ts 1,1",
    "qwen3moe-moe": "-c 4096 -np 1 -ngl 99 -ts 2,1",
    "gemma3-dense": "-c 8192 -np 1 -ngl 99 -ts 1,1",
    "phimoe-moe": "-c 8192 -np 1 -ngl 99 -ts 1,2",
    "mistral3-dense": "-c 8192 -np 2 -ngl 2 -ts 1,1",
    "exaone-moe-moe": "-c 4096 -np 1 -ngl 99 -ts 1,1 -ot exps=CPU",
    "dots1-moe": "-c 4096 -np 1 -ngl 99 -ts 1,1 -sm layer",
}
LLAMA_RUNS = (
    *(LlamaRun(model, (), tuple(flags.split())) for model, flags in _CPU.items()),
    *(LlamaRun(model, (4096,), tuple(flags.split())) for model, flags in _RPC.items()),
    *(LlamaRun(model, (4096, 4096), tuple(flags.split())) for model, flags in _SPLIT.items()),
)

_COMMON = {
    "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 2, "vocab_size": 512, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
_QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 64}
_MIXTRAL = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip
_QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_hidden_layers": 3}
_LARGER = {
    **_LLAMA, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16,
    "num_key_value_heads": 8, "vocab_size": 32000,
}  # fmt: skip
_GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "head_dim": 64, "num_hidden_layers": 6,
    "sliding_window": 128, "sliding_window_pattern": 6, "query_pre_attn_scalar": 64, "rope_local_base_freq": 10000.0,
    "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
}  # fmt: skip


def _vllm(name: str, own: Mapping[str, Any], flags: str, space_gib: int = 1) -> VllmRun:
    fixed = "--load-format dummy --enforce-eager --skip-tokenizer-init"
    return VllmRun(
        f"vLLM {name}", {**_COMMON, **own}, (*fixed.split(), *flags.split()),
        {"VLLM_CPU_KVCACHE_SPACE": str(space_gib)},
    )  # fmt: skip


VLLM_RUNS = (
    _vllm("llama, 24 layers of 1024", _LARGER, "--max-model-len 2048 --max-num-seqs 4", 2),
    _vllm("qwen3", _QWEN3, "--max-model-len 2048 --max-num-seqs 16 --max-num-batched-tokens 2048"),
    _vllm("qwen2", _QWEN2, "--max-model-len 1024 --block-size 32"),
    _vllm("mixtral", _MIXTRAL, "--max-model-len 512 --max-num-seqs 2 --no-enable-prefix-caching"),
    _vllm("gemma3", _GEMMA3, "--max-model-len 1024 --max-num-seqs 8"),
    _vllm("llama in float32", _LLAMA, "--max-model-len 1024 --dtype float32"),
)


def read_rows() -> Iterator[dict[str, Any]]:
    for line in gzip.decompress(DATA.read_bytes()).decode().splitlines():
        yield json.loads(line)


def write_directory(run: VllmRun, place: Path) -> Path:
    """A model's folder with its configuration alone."""
    directory = place / run.name.replace(" ", "-").replace(",", "")
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(run.config), encoding="utf-8")
    return directory


class Figure(NamedTuple):
    """One thing that a log tells: bytes of a part, or tokens of vLLM's KV cache. `over` is 0 within its rounding."""

    what: str
    predicted: int
    reported: int
    over: int


def figures(row: Mapping[str, Any]) -> list[Figure]:
    """What is predicted for a recorded start beside what its log reports."""
    log = [row["log"].encode()]
    if row["engine"] == "llama":
        found = verify_log(log, row["argv"], model=spec("archs", row["model"]))
    else:
        with tempfile.TemporaryDirectory() as place:
            model = read_model(str(write_directory(VllmRun(row["name"], row["config"], (), row["env"]), Path(place))))
        found = verify_log(log, row["argv"], model=model, environ=row["env"])
    parts = (
        Figure(f"{one.pool} {one.kind}", one.predicted_bytes, one.reported_bytes, one.over_bytes)
        for one in found.differences
    )
    counts = (Figure(one.what, one.predicted, one.reported, one.reported - one.predicted) for one in found.counts)
    return [*parts, *counts]
