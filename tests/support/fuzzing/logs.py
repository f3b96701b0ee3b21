"""Logs of engines: their lines cut, repeated, mixed up with each other's, with figures that no engine has."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from autofit.fix import fix, in_words, read_log

from support.descriptors import DATA
from support.fuzzing.values import DIGITS, TEXTS
from support.llama_logs import loader_lines

MODELS = ("llama-3.1-8b-Q4_K_M", "qwen3-30b-a3b-Q4_K_M", "gemma-3-4b-Q4_K_M", "deepseek-v2-lite-Q4_K_M")
LLAMA = (
    "$ llama-server -m m.gguf -c 8192 -ngl 99",
    "build: 9284 (abcdef12) with cc for x86_64-linux-gnu",
    "ggml_cuda_init: found 2 CUDA devices:",
    "  Device 0: NVIDIA GeForce RTX 3090, compute capability 8.6, VMM: yes, VRAM: 24124 MiB",
    "llama_model_load_from_file_impl: using device CUDA0 (NVIDIA GeForce RTX 3090) - 23860 MiB free",
    "load_tensors: offloaded 33/33 layers to GPU",
    "load_tensors:   CPU_Mapped model buffer size =   281.81 MiB",
    "load_tensors:        CUDA0 model buffer size =  4403.49 MiB",
    "llama_context: n_seq_max     = 1",
    "llama_context: n_ctx         = 131072",
    "llama_kv_cache:      CUDA0 KV buffer size =  1024.00 MiB",
    "llama_kv_cache: size = 1024.00 MiB (  8192 cells,  32 layers,  1/ 1 seqs), K (f16):  512.00 MiB, V (f16):  512.00 MiB",
    "sched_reserve:      CUDA0 compute buffer size =   560.00 MiB",
    "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9000.00 MiB on device 0: cudaMalloc failed: out of memory",
    "alloc_tensor_range: failed to allocate CUDA0 buffer of size 9437184128",
    "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
    "CUDA error: out of memory",
    "  current device: 0, in function alloc at ggml-cuda.cu:520",
    "main: server is listening on http://127.0.0.1:8080",
    "llama_memory_breakdown_print: |   - CUDA0 (RTX 3090)   | 24135 = 1234 + (19187 = 17904 + 384 + 898) + 3714 |",
)
VLLM = (
    "INFO [api_server.py:1896] vLLM API server version 0.26.0",
    "INFO [utils.py:250] non-default args: {'model': 'org/m', 'max_model_len': 32768, 'x': [1, {'a': 2}], 'y': K(z='1')}",
    "(EngineCore_DP0 pid=9) INFO [core.py:97] Initializing a V1 LLM engine (v0.26.0) with config: model='org/m', tensor_parallel_size=2",
    "(Worker_TP1 pid=11) INFO Model loading took 7.6100 GiB memory and 3.2 seconds",
    "INFO [gpu_worker.py:276] Available KV cache memory: -2.14 GiB",
    "INFO GPU KV cache size: 567,978 tokens, Maximum concurrency for 32,768 tokens per request: 17.33x",
    "ValueError: No available memory for the cache blocks. Try",
    "ValueError: Free memory on device cuda:0 (12.3/23.5 GiB) on startup is less than desired GPU memory utilization (0.9, 21.2 GiB).",
    ("ValueError: To serve at least one request with the model's max seq len (7001), (6.11 GiB KV cache is needed, which is larger than "
    "the available KV cache memory (5.17 GiB). Based on the available memory, the estimated maximum model length is 5667. Try"),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB. GPU 1 has a total capacity of 11.53 GiB of which 187.75 "
    "MiB is free. Including non-PyTorch memory, this process has 11.34 GiB memory in use."),
    "ValueError: max_num_seqs (1024) exceeds available Mamba cache blocks (939).",
    "RuntimeError: Engine core initialization failed. See root cause above.",
    "INFO:     Application startup complete.",
    "Out of memory: Killed process 4242 (python3) total-vm:9kB, anon-rss:2048kB, file-rss:1024kB",
)  # fmt: skip


@cache
def _loader(name: str) -> tuple[str, ...]:
    return tuple(loader_lines(DATA / "models" / f"{name}.json.gz")[0].splitlines())


def make_log(rng: random.Random) -> Any:
    lines = list(rng.choice((LLAMA, LLAMA, VLLM, LLAMA + VLLM)))
    if rng.random() < 0.6:
        lines[3:3] = _loader(rng.choice(MODELS))
    for _ in range(rng.choice((0, 1, 2, 5, 20))):
        at = rng.randrange(len(lines))
        line = lines[at]
        how = rng.randrange(7)
        if how == 0:
            del lines[at]
        elif how == 1:
            lines.insert(rng.randrange(len(lines) + 1), line)
        elif how == 2:
            lines[at] = line[: rng.randrange(len(line) + 1)]
        elif how == 3:
            lines[at] = line + rng.choice(lines)
        elif how == 4:
            lines[at] = rng.choice(TEXTS) + line
        else:
            figures = [i for i, char in enumerate(line) if char.isdigit()]
            if figures:
                i = rng.choice(figures)
                lines[at] = line[:i] + rng.choice((*DIGITS, "-1", "nan", "1e9", "9" * 30)) + line[i + 1 :]
        if not lines:
            lines = [""]
    text = rng.choice(("\n", "\n", "\r\n", "\r")).join(lines)
    return {"text": text, "piece": rng.choice((1, 7, 1000, 10**6))}


def run_log(given: Any) -> None:
    data = given["text"].encode("utf-8", "surrogatepass")
    pieces = [data[i : i + given["piece"]] for i in range(0, len(data), given["piece"])]
    _, observed = read_log(pieces)
    assert len(observed.parts) <= 1024
    answer = fix(pieces)
    for line in in_words(answer):
        assert line.isprintable(), line
    for change in answer.repair.changes:
        assert change.argv
