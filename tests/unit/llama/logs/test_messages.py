"""llama.cpp's own words, of builds from b1500 to today, and of each backend when an allocation fails."""

from __future__ import annotations

import pytest
from autofit.domain.observed import Observed
from autofit.domain.units import MIB

from autofit_llama.backend import LlamaBackend
from autofit_llama.engine.naming import find_version
from autofit_llama.logs.command import command_of
from autofit_llama.logs.devices import devices_of


def watch(text: str, exit_code: int | None = 1) -> Observed:
    reader = LlamaBackend().watch()
    reader.feed(text.encode())
    return reader.close(exit_code)


#: one start in the words of three times; the same buffers in each
STARTS = {
    "b2700": """\
ggml_cuda_init: found 1 CUDA devices:
  Device 0: NVIDIA GeForce RTX 3090, compute capability 8.6, VMM: yes
llama_model_loader: loaded meta data with 20 key-value pairs and 291 tensors from m.gguf (version GGUF V3 (latest))
llama_model_loader: - type  f32:   65 tensors
llm_load_print_meta: n_layer          = 32
llm_load_tensors: offloaded 33/33 layers to GPU
llm_load_tensors:        CPU buffer size =   281.81 MiB
llm_load_tensors:      CUDA0 buffer size =  4403.49 MiB
llama_new_context_with_model: n_ctx      = 8192
llama_kv_cache_init:      CUDA0 KV buffer size =  1024.00 MiB
llama_new_context_with_model: KV self size  = 1024.00 MiB, K (f16):  512.00 MiB, V (f16):  512.00 MiB
llama_new_context_with_model:  CUDA_Host  output buffer size =     0.98 MiB
llama_new_context_with_model:      CUDA0 compute buffer size =   560.00 MiB
llama_new_context_with_model:  CUDA_Host compute buffer size =    24.01 MiB
""",
    "b5100": """\
ggml_cuda_init: found 1 CUDA devices:
  Device 0: NVIDIA GeForce RTX 3090, compute capability 8.6, VMM: yes
build: 5100 (916c83bf) with cc (Ubuntu 11.4.0-1ubuntu1~22.04) 11.4.0 for x86_64-linux-gnu
llama_model_load_from_file_impl: using device CUDA0 (NVIDIA GeForce RTX 3090) - 23860 MiB free
llama_model_loader: loaded meta data with 20 key-value pairs and 291 tensors from m.gguf (version GGUF V3 (latest))
llama_model_loader: - type  f32:   65 tensors
print_info: n_layer          = 32
load_tensors: offloaded 33/33 layers to GPU
load_tensors:   CPU_Mapped model buffer size =   281.81 MiB
load_tensors:        CUDA0 model buffer size =  4403.49 MiB
llama_context: n_seq_max     = 1
llama_context: n_ctx         = 8192
llama_context:  CUDA_Host  output buffer size =     0.98 MiB
init:      CUDA0 KV buffer size =  1024.00 MiB
llama_context:      CUDA0 compute buffer size =   560.00 MiB
llama_context:  CUDA_Host compute buffer size =    24.01 MiB
""",
    "b11311": """\
0.00.000.100 I \x1b[0mcmn     print_info: build 11311 (0c1e57098) with GNU 14.2.0 for Linux x86_64
0.00.100.100 I ggml_cuda_init: found 1 CUDA devices (Total VRAM: 24124 MiB):
0.00.100.200 I   Device 0: NVIDIA GeForce RTX 3090, compute capability 8.6, VMM: yes, VRAM: 24124 MiB
0.00.100.300 I llama_prepare_model_devices: using device CUDA0 (NVIDIA GeForce RTX 3090) (0000:01:00.0) - 23860 MiB free
0.00.100.400 I llama_model_loader: loaded meta data with 20 key-value pairs and 291 tensors from m.gguf (version GGUF V3)
0.00.100.500 I llama_model_loader: - type  f32:   65 tensors
0.00.100.600 I print_info: n_layer               = 32
0.00.100.700 I load_tensors: offloaded 33/33 layers to GPU
0.00.100.800 I load_tensors:   CPU_Mapped model buffer size =   281.81 MiB
0.00.100.900 I load_tensors:        CUDA0 model buffer size =  4403.49 MiB
0.00.101.000 I llama_context: n_seq_max             = 1
0.00.101.100 I llama_context: n_ctx                 = 8192
0.00.101.200 I llama_context:  CUDA_Host  output buffer size =     0.98 MiB
0.00.101.300 I llama_kv_cache:      CUDA0 KV buffer size =  1024.00 MiB
0.00.101.400 I llama_kv_cache: size = 1024.00 MiB (  8192 cells,  32 layers,  1/ 1 seqs), K (f16):  512.00 MiB, V (f16):  512.00 MiB
0.00.101.500 I sched_reserve:      CUDA0 compute buffer size =   560.00 MiB
0.00.101.600 I sched_reserve:  CUDA_Host compute buffer size =    24.01 MiB
""",
}


@pytest.mark.parametrize("name", STARTS)
def test_one_start_in_the_words_of_three_times(name: str) -> None:
    seen = watch(STARTS[name], None)
    assert {(part.place, part.kind): round(part.n_bytes / MIB, 2) for part in seen.parts} == {
        ("CPU" if name == "b2700" else "CPU_Mapped", "weights"): 281.81,
        ("CUDA0", "weights"): 4403.49,
        ("CUDA0", "cache"): 1024.0,
        ("CUDA_Host", "runtime"): 0.98,
        ("CUDA0", "compute"): 560.0,
        ("CUDA_Host", "compute"): 24.01,
    }
    assert [(device.place, device.name) for device in seen.devices] == [("CUDA0", "NVIDIA GeForce RTX 3090")]
    assert seen.facts["info.n_layer"] == "32"
    assert seen.facts["types.f32"] == 65
    assert seen.facts["context.n_ctx"] == "8192"
    assert seen.version == (None if name == "b2700" else name)
    assert (seen.stage, seen.failure) == ("compute", None)


PREFIXES = {
    "docker compose": "llama-1  | ",
    "docker logs -t": "2026-11-01T10:00:00.123456789Z ",
    "journald": "Nov 01 10:00:00 host llama-server[4242]: ",
    "kubectl": "[pod/llama-0/llama] ",
    "containerd": "2026-11-01T10:00:00.1Z stderr F ",
}


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
def test_what_others_put_before_a_line_makes_no_difference(prefix: str) -> None:
    plain = STARTS["b5100"]
    prefixed = "".join(prefix + line for line in plain.splitlines(keepends=True))
    assert watch(prefixed, None) == watch(plain, None)
    assert watch(plain.replace("\n", "\r\n"), None) == watch(plain, None)


def test_a_log_of_json_lines() -> None:
    line = '{"log":"load_tensors:        CUDA0 model buffer size =  4403.49 MiB\\n","stream":"stderr"}\n'
    assert watch(line, None).sum_bytes("CUDA0", "weights") == round(4403.49 * MIB)


LOADING = "load_tensors: loading model tensors, this can take a while... (mmap = true)\n"
LOADED = "load_tensors:        CUDA0 model buffer size =  4403.49 MiB\n"
CONTEXT = "llama_context: n_seq_max     = 1\nllama_context: n_ctx         = 8192\n"
FAILURES = {
    "CUDA weights": (
        ("llama_model_loader: loaded meta data with 20 key-value pairs and 291 tensors from m.gguf (version GGUF V3)\n"
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9000.00 MiB on device 1: cudaMalloc failed: out of memory\n"
        "alloc_tensor_range: failed to allocate CUDA1 buffer of size 9437184128\n"
        "llama_model_load: error loading model: unable to allocate CUDA1 buffer\n"
        "llama_model_load_from_file_impl: failed to load model\n"),
        ("device memory", "CUDA1", "weights", 9437184128),
    ),
    "CUDA cache": (
        LOADED + CONTEXT + "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 4096.00 MiB on device 0: cudaMalloc "
        "failed: out of memory\nalloc_tensor_range: failed to allocate CUDA0 buffer of size 4294967296\n"
        "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache\n",
        ("device memory", "CUDA0", "cache", 4294967296),
    ),
    "CUDA graph": (
        LOADED + CONTEXT + "llama_kv_cache:      CUDA0 KV buffer size =  1024.00 MiB\n"
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 560.00 MiB on device 0: cudaMalloc failed: out of memory\n"
        "ggml_gallocr_reserve_n_impl: failed to allocate CUDA0 buffer of size 587202560\n"
        "graph_reserve: failed to allocate compute buffers\n"
        "llama_init_from_model: failed to initialize the context: failed to allocate compute pp buffers\n",
        ("device memory", "CUDA0", "compute", 587202560),
    ),
    "ROCm cache": (
        "ggml_cuda_init: found 1 ROCm devices:\n  Device 0: AMD Radeon RX 7900 XTX, gfx1100 (0x1100), VMM: no\n"
        + LOADED.replace("CUDA0", "ROCm0") + CONTEXT
        + "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 4096.00 MiB on device 0: cudaMalloc failed: out of "
        "memory\nllama_kv_cache_init: failed to allocate buffer for kv cache\n",
        ("device memory", "ROCm0", "cache", 4096 * MIB),
    ),
    "CUDA while running": (
        "ggml_cuda_init: found 1 CUDA devices:\n" + LOADED + CONTEXT
        + "main: server is listening on http://127.0.0.1:8080 - starting the main loop\nCUDA error: out of memory\n"
        "  current device: 0, in function alloc at /ggml/src/ggml-cuda/ggml-cuda.cu:520\n",
        ("device memory", "CUDA0", "transient", None),
    ),
    "Vulkan weights": (
        "ggml_vulkan: 0 = AMD Radeon RX 6600M (amdvlk) | uma: 0 | fp16: 1 | warp size: 64\n" + LOADING
        + "ggml_vulkan: Device memory allocation of size 4697620480 failed.\n"
        "ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory\n"
        "alloc_tensor_range: failed to allocate Vulkan0 buffer of size 4697620480\n"
        "llama_model_load: error loading model: unable to allocate Vulkan0 buffer\n",
        ("device memory", "Vulkan0", "weights", 4697620480),
    ),
    "Vulkan limit": (
        "ggml_vulkan: 0 = AMD Radeon Graphics (radv) | uma: 1 | fp16: 1\n" + LOADING
        + "ggml_vulkan: Device memory allocation of size 4697620480 failed.\n"
        "ggml_vulkan: Requested buffer size exceeds device memory allocation limit: ErrorOutOfDeviceMemory\n"
        "alloc_tensor_range: failed to allocate Vulkan0 buffer of size 4697620480\n",
        ("limit", "Vulkan0", None, 4697620480),
    ),
    "Metal": (
        LOADED.replace("CUDA0", "MTL0") + CONTEXT
        + "ggml_metal_buffer_init: error: failed to allocate buffer, size = 12288.00 MiB\n"
        "alloc_tensor_range: failed to allocate MTL0 buffer of size 12884901888\n",
        ("device memory", "MTL0", "cache", 12884901888),
    ),
    "Metal while running": (
        ("main: server is listening on http://127.0.0.1:8080\n"
        "ggml_metal_synchronize: error: command buffer 0 failed with status 5\n"
        "error: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)\n"),
        ("device memory", "MTL0", "transient", None),
    ),
    "SYCL": (
        LOADED.replace("CUDA0", "SYCL0") + CONTEXT
        + "ggml_backend_sycl_buffer_type_alloc_buffer: can't allocate 5368709120 Bytes of memory on device\n"
        "alloc_tensor_range: failed to allocate SYCL0 buffer of size 5368709120\n",
        ("device memory", "SYCL0", "cache", 5368709120),
    ),
    "CPU": (
        LOADED + CONTEXT + "ggml_aligned_malloc: insufficient memory (attempted to allocate 65536.00 MB)\n"
        "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 68719476736\n"
        "alloc_tensor_range: failed to allocate CPU buffer of size 68719476736\n",
        ("RAM", "CPU", "cache", 68719476736),
    ),
    "RPC": (
        LOADED + CONTEXT + "alloc_tensor_range: failed to allocate RPC0[10.0.0.2:50052] buffer of size 1073741824\n",
        ("device memory", "RPC0", "cache", 1073741824),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("log", "told"), FAILURES.values(), ids=FAILURES)
def test_each_backend_says_it_in_its_own_words(log: str, told: tuple[str, str, str | None, int | None]) -> None:
    failure = watch(log).failure
    assert failure is not None
    cause, place, kind, size = told
    assert (failure.cause, failure.place, failure.requested_bytes) == (cause, place, size)
    if kind is not None:
        assert failure.kind == kind


def test_a_second_context_and_a_draft_model_add_to_the_first() -> None:
    log = (
        STARTS["b5100"]
        + """\
llama_model_loader: loaded meta data with 20 key-value pairs and 100 tensors from draft.gguf (version GGUF V3)
print_info: n_layer          = 16
load_tensors:        CUDA0 model buffer size =   500.00 MiB
llama_context: n_seq_max     = 1
llama_context: n_ctx         = 4096
init:      CUDA0 KV buffer size =   128.00 MiB
llama_context:      CUDA0 compute buffer size =    60.00 MiB
"""
    )
    seen = watch(log, None)
    assert round(seen.sum_bytes("CUDA0", "weights") / MIB, 2) == 4903.49
    assert seen.sum_bytes("CUDA0", "cache") == 1152 * MIB
    assert seen.sum_bytes("CUDA0", "compute") == 620 * MIB
    assert seen.facts["info.n_layer"] == "32"  # of the model, not of its draft
    assert seen.facts["context.n_ctx"] == "8192"


def test_buffers_that_are_reserved_again_count_once() -> None:
    seen = watch(STARTS["b11311"] + "sched_reserve:      CUDA0 compute buffer size =   570.00 MiB\n", None)
    assert seen.sum_bytes("CUDA0", "compute") == 570 * MIB


def test_sliding_windows_have_a_cache_of_their_own() -> None:
    line = "llama_kv_cache:      CUDA0 KV buffer size =   100.00 MiB\n"
    assert watch(CONTEXT + line + line, None).sum_bytes("CUDA0", "cache") == 200 * MIB


def test_the_table_at_the_end() -> None:
    seen = watch(
        "llama_memory_breakdown_print: | memory breakdown [MiB] | total   free    self   model   context   compute    unaccounted |\n"
        "llama_memory_breakdown_print: |   - CUDA0 (RTX 3090)   | 24135 = 1234 + (19187 = 17904 +     384 +     898) +        3714 |\n"
        "llama_memory_breakdown_print: |   - Host               |                 58271 = 58259 +       0 +      12                |\n",
        0,
    )  # fmt: skip
    assert seen.facts["breakdown.CUDA0"] == (17904 * MIB, 384 * MIB, 898 * MIB)
    assert seen.facts["breakdown.Host"] == (58259 * MIB, 0, 12 * MIB)
    (part,) = seen.parts
    assert (part.kind, part.label, part.n_bytes) == ("runtime", "unaccounted", 3714 * MIB)


def test_it_gets_over_pipeline_parallelism() -> None:
    seen = watch(
        LOADED + CONTEXT + "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 560.00 MiB on device 0: cudaMalloc failed: out of memory\n"
        "ggml_gallocr_reserve_n_impl: failed to allocate CUDA0 buffer of size 587202560\n"
        "sched_reserve: compute buffer allocation failed, retrying without pipeline parallelism\n"
        "sched_reserve:      CUDA0 compute buffer size =   300.00 MiB\n",
        None,
    )  # fmt: skip
    assert seen.failure is None
    assert len(seen.recovered) == 1


@pytest.mark.parametrize(
    "line",
    [
        "WARNING: failed to allocate 512.00 MB of pinned memory: out of memory\n",
        "llama_model_load_from_file_impl: failed to mlock 4096-byte buffer: Cannot allocate memory\n",
        "srv  update_slots: failed to find free space in the KV cache, retrying with smaller batch size\n",
    ],
)
def test_what_costs_speed_only_is_no_failure(line: str) -> None:
    assert watch(LOADED + line, None).failure is None


def test_a_failure_of_another_kind_is_told_as_such() -> None:
    seen = watch(LOADING + "error loading model: missing tensor 'blk.0.x'\nllama_model_load: failed to load model\n")
    assert seen.failure is not None
    assert not seen.failure.is_memory
    assert not seen.ran_out


@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("RPC0", "RPC0 (10.0.0.2:50052) (unknown id)"),
        ("RPC[10.0.0.2:50052]", "RPC[10.0.0.2:50052] (RPC[10.0.0.2:50052])"),
    ],
)
def test_a_remote_device_is_one_device_with_its_address(device: str, told: str) -> None:
    buffers = "RPC0[10.0.0.2:50052]" if device == "RPC0" else device
    seen = watch(
        f"llama_prepare_model_devices: using device {told} - 24000 MiB free\n"
        "load_tensors: offloaded 33/33 layers to GPU\n"
        f"load_tensors: {buffers} model buffer size =  4155.99 MiB\n"
    )
    assert [(one.id, one.free_bytes) for one in devices_of(seen)] == [(device, 24000 * MIB)]
    command = command_of(seen, find_version(None)[0])
    assert command[3:] == ("--rpc", "10.0.0.2:50052", "-ngl", "99")


@pytest.mark.parametrize(
    ("text", "command"),
    [
        (
            "$ ./build/bin/llama-server \\\n  -m /m/q.gguf \\\n  -c 65536 2>&1 | tee log\n",
            "./build/bin/llama-server -m /m/q.gguf -c 65536",
        ),
        ("C:\\x> llama-server.exe -m q.gguf ^\r\n  -ngl 99\r\n", "llama-server.exe -m q.gguf -ngl 99"),
        ("> `llama-cli --model=q.gguf -c 8k`\n", "llama-cli --model=q.gguf -c 8k"),
        ("bash -c 'llama-server -m q.gguf -np 2'\n", "llama-server -m q.gguf -np 2"),
        ("llama-server --help\n", ""),
        ("Feb 21 01:41:02 host llama-server[40]: -m is not said here\n", ""),
    ],
)
def test_a_command_that_was_pasted(text: str, command: str) -> None:
    assert watch(text + "main: server is listening on 1\n").command == tuple(command.split())
