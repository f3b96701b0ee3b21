"""Logs as people paste them into issues: which allocation failed, why, and whether the change is the one that helped.

The figures are of public reports, the lines in the engines' own words. `right` says what the thread came to.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from autofit.fix import Answer, fix

from support.descriptors import DATA
from support.llama_logs import loader_lines


class Case(NamedTuple):
    source: str
    log: str
    failed: str  #: of the answer's cause
    flags: tuple[str, ...]  #: that the answer advises
    right: str
    command: tuple[str, ...] = ()
    on: tuple[str, ...] = ()


def vllm(*lines: str, version: str = "0.26.0", args: str = "") -> str:
    start = (
        f"(APIServer pid=1) INFO 11-01 10:00:00 [api_server.py:1896] vLLM API server version {version}\n"
        f"(APIServer pid=1) INFO 11-01 10:00:00 [utils.py:250] non-default args: {{{args}}}\n"
    )
    return start + "".join(f"(EngineCore_DP0 pid=9) {line}\n" for line in lines)


def mamba(n: int, blocks: int) -> str:
    return (
        f"ERROR [core.py:700] ValueError: max_num_seqs ({n}) exceeds available Mamba cache blocks ({blocks}). Each decode sequence "
        "requires one Mamba cache block, so CUDA graph capture cannot proceed."
    )


def llama(name: str, *lines: str, build: int, where: str = "models", ftype: int | None = None) -> str:
    text, _ = loader_lines(DATA / where / f"{name}.json.gz", ftype=ftype)
    return f"build: {build} (abcdef12) with cc for x86_64-linux-gnu\n{text}" + "\n".join(lines) + "\n"


def context(n_ctx: int, n_seq: int = 1, **more: object) -> tuple[str, ...]:
    figures = {"n_seq_max": n_seq, "n_ctx": n_ctx, "n_batch": 2048, "n_ubatch": 512, **more}
    return tuple(f"llama_context: {name:<13} = {value}" for name, value in figures.items())


CASES = {
    "hybrid on an RTX PRO 6000": Case(
        source="vllm-project/recipes#831",
        log=vllm(mamba(1024, 939), args="'model': 'Qwen/Qwen3.8-27B-FP8', 'trust_remote_code': True"),
        failed="1024 sequences may run at once, and there is state for 939",
        flags=("--max-num-seqs", "936"),
        right="yes: at most as many as blocks starts; recipes of this family set 512",
    ),
    "hybrid on an H100": Case(
        source="vllm-project/vllm#49064",
        log=vllm(mamba(1024, 969), version="0.28.0", args="'model': 'Qwen/Qwen3.8-27B', 'max_model_len': 132000"),
        failed="there is state for 969",
        flags=("--max-num-seqs", "968"),
        right="yes: the thread restarts with the number of blocks, and it starts",
    ),
    "Nemotron on two H100": Case(
        source="NVIDIA-AI-Blueprints/retail-shopping-assistant#95",
        log=vllm(mamba(1024, 524), args="'model': 'nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8', 'tensor_parallel_size': 2"),
        failed="there is state for 524",
        flags=("--max-num-seqs", "520"),
        right="yes: fewer sequences is what was merged",
    ),
    "long requests on two RX 7900 XT": Case(
        source="vllm-project/vllm#49064, second run",
        log=vllm(
            "ValueError: To serve at least one request with the models's max seq len (132000), (4.11 GiB KV cache is needed, which "
            "is larger than the available KV cache memory (3.86 GiB). Based on the available memory, the estimated maximum model "
            "length is 123872. Try increasing `gpu_memory_utilization` or decreasing `max_model_len`",
            version="0.23.1",
            args="'model': 'Qwen/Qwen3.8-27B', 'max_model_len': 132000, 'tensor_parallel_size': 2, 'gpu_memory_utilization': 0.85",
        ),
        failed="a request of 132000 tokens needs 4.11 GiB of KV cache, and 3.86 GiB are left",
        flags=("--max-model-len", "123872"),
        right="yes: 122633 got past this check (and met the one for sequences)",
    ),
    "stages of unlike cards": Case(
        source="vllm-project/vllm#34076",
        log=vllm(
            "ValueError: To serve at least one request with the models's max seq len (262144), (24.0 GiB KV cache is needed, which "
            "is larger than the available KV cache memory (3.18 GiB). Based on the available memory, the estimated maximum model "
            "length is 34736. Try increasing",
            version="0.15.1",
        ),
        command=(
            *("vllm", "serve", "./Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8", "--gpu-memory-utilization", "0.9"),
            *("--pipeline-parallel-size", "2"),
        ),
        failed="needs 24.00 GiB of KV cache, and 3.18 GiB are left",
        flags=("--max-model-len", "34736"),
        right="yes, it starts; the thread wants the larger card's memory counted, which no flag does",
    ),
    "gpt-oss-120b on an H100": Case(
        source="vllm-project/vllm#23278",
        log=vllm(
            "INFO 08-20 18:04:10 [gpu_model_runner.py:2007] Model loading took 65.9651 GiB and 12.799889 seconds",
            "INFO 08-20 18:04:22 [gpu_worker.py:276] Available KV cache memory: -2.14 GiB",
            "ERROR 08-20 18:04:22 [core.py:700] ValueError: No available memory for the cache blocks. Try increasing "
            "`gpu_memory_utilization` when initializing the engine.",
            version="0.10.1",
            args="'model': 'openai/gpt-oss-120b'",
        ),
        on=("h100-80gb",),
        failed="nothing is left for the KV cache after weights and activations: they take 2.14 GiB more",
        flags=("--gpu-memory-utilization", "0.94"),
        right="not said there; with 0.95 the next releases start it on this card",
    ),
    "others hold the card": Case(
        source="vllm-project/vllm#20305",
        log=vllm(
            "[multiproc_executor.py:492] ValueError: Free memory on device (31.44/47.38 GiB) on startup is less than desired GPU "
            "memory utilization (0.95, 45.01 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
            version="0.10.0",
            args="'model': 'org/model', 'gpu_memory_utilization': 0.95",
        ),
        failed="45.01 GiB of cuda:0 are asked for (0.95 of 47.38 GiB), and 31.44 GiB were free",
        flags=("--gpu-memory-utilization", "0.66"),
        right="yes: less was asked for",
    ),
    "a DGX Spark": Case(
        source="MiaAI-Lab/GLM-5.3-Flash-EXL3-2x-DGX-Sparks#47",
        log=vllm(
            "ValueError: Free memory on device cuda:0 (102.2/121.69 GiB) on startup is less than desired GPU memory utilization "
            "(0.87, 105.87 GiB).",
            args="'model': 'org/model', 'gpu_memory_utilization': 0.87",
        ),
        failed="105.9 GiB of cuda:0 are asked for",
        flags=("--gpu-memory-utilization", "0.83"),
        right="yes: 0.82 to 0.83 is what runs there",
    ),
    "repacked for the CPU": Case(
        source="ggml-org/llama.cpp#23603",
        log=llama(
            "qwen3-next-80b-a3b-Q4_K_M",
            "load_tensors: loading model tensors, this can take a while... (mmap = true, direct_io = false)",
            "ggml_aligned_malloc: insufficient memory (attempted to allocate 44032.00 MB)",
            "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 46170898432",
            "alloc_tensor_range: failed to allocate CPU_REPACK buffer of size 46170898432",
            "llama_model_load: error loading model: unable to allocate CPU_REPACK buffer",
            build=9284,
        ),
        command=("llama-server", "-m", "/models/m.gguf", "-c", "8192"),
        failed="RAM ran out: 43.00 GiB for weights failed",
        flags=("--no-repack",),
        right="yes: the thread's workaround",
    ),
    "two RX 7900 XTX": Case(
        source="ggml-org/llama.cpp#16725",
        log=llama(
            "apertus-70b-IQ4_XS",
            "ggml_cuda_init: found 2 ROCm devices:",
            "  Device 0: AMD Radeon RX 7900 XTX, gfx1100 (0x1100), VMM: no, Wave Size: 32",
            "  Device 1: AMD Radeon RX 7900 XTX, gfx1100 (0x1100), VMM: no, Wave Size: 32",
            "llama_model_load_from_file_impl: using device ROCm0 (AMD Radeon RX 7900 XTX) (0000:03:00.0) - 24524 MiB free",
            "llama_model_load_from_file_impl: using device ROCm1 (AMD Radeon RX 7900 XTX) (0000:06:00.0) - 24524 MiB free",
            "load_tensors: offloaded 81/81 layers to GPU",
            "load_tensors:   CPU_Mapped model buffer size =   549.38 MiB",
            "load_tensors:        ROCm0 model buffer size = 17827.35 MiB",
            "load_tensors:        ROCm1 model buffer size = 17653.31 MiB",
            *context(20480),
            "llama_kv_cache:      ROCm0 KV buffer size =  3280.00 MiB",
            "llama_kv_cache:      ROCm1 KV buffer size =  3120.00 MiB",
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 14136.03 MiB on device 0: cudaMalloc failed: out of memory",
            "ggml_gallocr_reserve_n: failed to allocate ROCm0 buffer of size 14822696064",
            "graph_reserve: failed to allocate compute buffers",
            build=6816,
            where="report_models",
            ftype=30,
        ),
        command=("llama-server", "-c", "20480", "-ngl", "99", "-fa", "on", "-ts", "1,1", "-m", "Apertus-70B-IQ4_XS.gguf"),
        failed="13.80 GiB for compute buffers could not be allocated on ROCm0, which held 20.61 GiB already",
        flags=("-ngl", "73"),
        right="yes: the buffer is four copies for micro-batches that overlap; the thread ends in a build that does without them, as that one does with a layer in RAM",
    ),
    "a long prompt with a draft head": Case(
        source="ggml-org/llama.cpp#23245",
        log=llama(
            "q36-35b-a3b-UD-Q4_K_M-MTP",
            "ggml_cuda_init: found 1 CUDA devices (Total VRAM: 16144 MiB):",
            "  Device 0: Tesla V100-SXM2-16GB, compute capability 7.0, VMM: yes, VRAM: 16144 MiB",
            "srv    load_model: model loaded",
            "main: server is listening on http://0.0.0.0:8080",
            "CUDA error: out of memory",
            "  current device: 0, in function alloc at /llama.cpp/ggml/src/ggml-cuda/ggml-cuda.cu:520",
            build=9205,
            where="report_models",
            ftype=15,
        ),
        command=(
            *("llama-server", "-m", "m.gguf", "--spec-type", "draft-mtp", "--spec-draft-n-max", "2", "-np", "1"),
            *("-c", "131072", "--no-mmap", "-ctk", "q4_0", "-ctv", "q4_0"),
        ),
        failed="CUDA0 ran out of memory for a prompt that is being processed",
        flags=("-fitt", "2048"),
        right="not said there; in #23244, the same failure, a larger --fit-target is what works",
    ),
}  # fmt: skip


def answer(case: Case) -> Answer:
    return fix([case.log.encode()], case.command, on=case.on)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_failed_is_named_and_the_change_is_the_threads(case: Case) -> None:
    found = answer(case)
    assert case.failed in found.repair.cause
    advised = found.repair.changes[0].flags if found.repair.changes else ()
    assert advised == case.flags
    if case.command and advised:
        argv = found.repair.changes[0].argv
        assert argv[: len(case.command[:1])] == case.command[:1]
        assert argv[-len(advised) :] == advised
