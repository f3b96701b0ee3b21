"""vLLM's own words, of releases from 0.8 to today, and its many ways to run out of memory."""

from __future__ import annotations

import pytest
from autofit.domain.observed import Observed
from autofit.domain.repair import Repair
from autofit.domain.units import GIB, MIB

from autofit_vllm.backend import VllmBackend
from autofit_vllm.logs.arguments import MAX_VALUE
from autofit_vllm.logs.repair import repair


def watch(text: str, exit_code: int | None = 1) -> Observed:
    reader = VllmBackend().watch()
    reader.feed(text.encode())
    return reader.close(exit_code)


START = """\
(APIServer pid=1) INFO 11-01 10:00:00 [api_server.py:1896] vLLM API server version 0.26.0
(APIServer pid=1) INFO 11-01 10:00:00 [utils.py:250] non-default args: {'model_tag': 'org/model', 'model': 'org/model', \
'max_model_len': 32768, 'gpu_memory_utilization': 0.9, 'tensor_parallel_size': 2, 'enforce_eager': True, \
'enable_prefix_caching': False, 'kv_cache_dtype': 'fp8', 'limit_mm_per_prompt': {'image': 0}, \
'kv_transfer_config': KVTransferConfig(kv_connector='X', ranks=[1, 2]), 'cudagraph_capture_sizes': [1, 2]}
(EngineCore_DP0 pid=9) INFO 11-01 10:00:05 [core.py:97] Initializing a V1 LLM engine (v0.26.0) with config: \
model='org/model', speculative_config=None, dtype=torch.bfloat16, max_seq_len=32768, tensor_parallel_size=2, \
pipeline_parallel_size=1, quantization=None
(Worker_TP0 pid=10) INFO 11-01 10:00:09 [gpu_model_runner.py:2338] Starting to load model org/model...
(Worker_TP0 pid=10) INFO 11-01 10:01:00 [gpu_model_runner.py:2392] Model loading took 7.5100 GiB memory and 3.2 seconds
(Worker_TP1 pid=11) INFO 11-01 10:01:00 [gpu_model_runner.py:2392] Model loading took 7.6100 GiB memory and 3.2 seconds
"""
RAN = """\
(Worker_TP0 pid=10) INFO 11-01 10:01:09 [gpu_worker.py:298] Available KV cache memory: 10.50 GiB
(EngineCore_DP0 pid=9) INFO 11-01 10:01:09 [kv_cache_utils.py:864] GPU KV cache size: 567,978 tokens
(EngineCore_DP0 pid=9) INFO 11-01 10:01:09 [kv_cache_utils.py:868] Maximum concurrency for 32,768 tokens per request: 17.33x
(Worker_TP0 pid=10) INFO 11-01 10:01:20 [gpu_model_runner.py:3000] Graph capturing finished in 11 secs, took 0.60 GiB
(Worker_TP0 pid=10) INFO 11-01 10:01:20 [gpu_worker.py:391] Free memory on device (22.1/23.56 GiB) on startup. Desired GPU \
memory utilization is (0.9, 21.2 GiB). Actual usage is 7.51 GiB for weight, 1.41 GiB for peak activation, 0.08 GiB for \
non-torch memory, and 0.60 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with `--kv-cache-memory=1`
(APIServer pid=1) INFO:     Application startup complete.
"""


def test_a_start() -> None:
    seen = watch(START + RAN, None)
    assert (seen.version, seen.stage, seen.failure) == ("0.26.0", "ready", None)
    assert {(part.place, part.kind, part.label): round(part.n_bytes / GIB, 2) for part in seen.parts} == {
        ("cuda:0", "weights", "model"): 7.51,
        ("cuda:1", "weights", "model"): 7.61,
        ("cuda:0", "cache", "available for the KV cache"): 10.5,
        ("cuda:0", "runtime", "CUDA graphs"): 0.6,
        ("cuda:0", "compute", "peak activation"): 1.41,
        ("cuda:0", "runtime", "non-torch memory"): 0.08,
    }
    assert seen.facts["kv_tokens"] == 567978
    assert seen.facts["concurrency"] == 17.33
    (device,) = seen.devices
    assert (device.total_bytes, device.free_bytes) == (round(23.56 * GIB), round(22.1 * GIB))


def test_the_command_is_written_back() -> None:
    assert watch(START, None).command == (
        *("vllm", "serve", "org/model", "--max-model-len", "32768", "--gpu-memory-utilization", "0.9"),
        *("--tensor-parallel-size", "2", "--enforce-eager", "--no-enable-prefix-caching", "--kv-cache-dtype", "fp8"),
        *("--limit-mm-per-prompt", '{"image": 0}', "--cudagraph-capture-sizes", "1", "2"),
    )


@pytest.mark.parametrize(
    "args",
    [
        "{",
        "{'model': ",
        "{'model': 'x' 'y', 'a': 1}",
        "{" + "[" * 5000,
        "{'model': '-rf'}",
        "{'model': " + "'x'" * MAX_VALUE,
        "{1: 2, None: 3, 'model': ['x']}",
        "{'model': __import__('os').system('true')}",
        "{'model': 1e999999}",
    ],
)
def test_arguments_of_any_kind_are_only_read(args: str) -> None:
    seen = watch(f"INFO [utils.py:250] non-default args: {args}\n", None)
    assert seen.command in ((), ("vllm", "serve", "xy", "--a", "1"))


def test_the_profiler_of_old() -> None:
    seen = watch(
        "INFO [worker.py:267] the current vLLM instance can use total_gpu_memory (8.00GiB) x gpu_memory_utilization (0.70) = 5.60GiB\n"
        "INFO [worker.py:267] model weights take 5.20GiB; non_torch_memory takes 0.03GiB; PyTorch activation peak memory takes 1.42GiB; "
        "the rest of the memory reserved for KV Cache is -1.05GiB.\n"
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine.\n"
    )  # fmt: skip
    assert seen.facts["gpu_memory_utilization"] == 0.7
    assert seen.facts["available_kv_bytes"] == round(-1.05 * GIB)
    assert seen.failure is not None
    assert (seen.failure.cause, seen.failure.free_bytes) == ("budget", round(-1.05 * GIB))


LONG = "which is larger than the available KV cache memory"
FAILURES = {
    "torch": (
        ("(Worker_TP1 pid=11) ERROR [core.py:700] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB. "
        "GPU 1 has a total capacity of 11.53 GiB of which 187.75 MiB is free. Including non-PyTorch memory, this process has "
        "11.34 GiB memory in use. Of the allocated memory 11.20 GiB is allocated by PyTorch, and 33.08 MiB is reserved by "
        "PyTorch but unallocated.\n"),
        ("device memory", "cuda:1", "compute", 224 * MIB, round(187.75 * MIB), round(11.53 * GIB)),
    ),
    "torch, HIP": (
        ("torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.98 GiB of "
        "which 1.10 GiB is free.\n"),
        ("device memory", "cuda:0", "compute", 2 * GIB, round(1.1 * GIB), round(23.98 * GIB)),
    ),
    "not free at the start, 0.9": (
        ("ValueError: Free memory on device (31.44/47.38 GiB) on startup is less than desired GPU memory utilization (0.95, "
        "45.01 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.\n"),
        ("budget", "cuda:0", None, round(45.01 * GIB), round(31.44 * GIB), round(47.38 * GIB)),
    ),
    "not free at the start": (
        ("(Worker_TP1 pid=11) ValueError: Free memory on device cuda:1 (12.38/287.69 GiB) on startup is less than desired GPU "
        "memory utilization (0.92, 264.67 GiB). Decrease GPU memory utilization\n"),
        ("budget", "cuda:1", None, round(264.67 * GIB), round(12.38 * GIB), round(287.69 * GIB)),
    ),
    "too long, 0.8": (
        (f"ValueError: To serve at least one request with the models's max seq len (32768), (2.00 GB KV cache is needed, {LONG} "
        "(0.78 GB). Try increasing `gpu_memory_utilization`\n"),
        ("budget", None, "cache", 2 * GIB, round(0.78 * GIB), None),
    ),
    "too long": (
        (f"ValueError: To serve at least one request with the model's max seq len (700160), (6.11 GiB KV cache is needed, {LONG} "
        "(5.17 GiB). Based on the available memory, the estimated maximum model length is 566784. Try\n"),
        ("budget", None, "cache", round(6.11 * GIB), round(5.17 * GIB), None),
    ),
    "sequences": (
        "ValueError: max_num_seqs (1024) exceeds available Mamba cache blocks (939). Each decode sequence requires one\n",
        ("budget", None, "cache", None, None, None),
    ),
    "sampler": (
        "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests. Please try lowering\n",
        ("device memory", "cuda:0", "compute", None, None, None),
    ),
    "NCCL": (
        "gpu:1:9 [1] init.cc:418 NCCL WARN Cuda failure 2 'out of memory'\n",
        ("device memory", "cuda:0", "runtime", None, None, None),
    ),
    "CPU's share": (
        (
            "ValueError: The worker already uses 9.25 GiB (model weights and runtime), more than the 7.5 GiB of CPU memory reserved for "
            "it on node 0, leaving none for the KV cache.\n"
        ),
        ("budget", "host", "cache", round(9.25 * GIB), None, round(7.5 * GIB)),
    ),
    "not free on the CPU": (
        (
            "ValueError: Available memory on node 0 (3.5/15.6 GiB) on kv cache allocation is less than requested memory for kv "
            "(5.1/7.8 GiB). Reduce CPU memory used by other processes.\n"
        ),
        ("budget", "host", "cache", round(5.1 * GIB), round(3.5 * GIB), round(15.6 * GIB)),
    ),
    "others in the meantime": (
        (
            "AssertionError: Error in memory profiling. Initial free memory 20.1 GiB, current free memory 21.3 GiB. This happens when\n"
        ),
        ("budget", "cuda:0", "compute", None, None, None),
    ),
    "RAM": (
        ("RuntimeError: [enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)\n"),
        ("RAM", "host", "compute", 64 * GIB, None, None),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("line", "told"), FAILURES.values(), ids=FAILURES)
def test_each_way_to_run_out(line: str, told: tuple[object, ...]) -> None:
    end = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
    for log in (START + line + end, START + end + line, START + line * 30 + end):
        failure = watch(log).failure
        assert failure is not None
        assert (
            failure.cause,
            failure.place,
            failure.kind,
            failure.requested_bytes,
            failure.free_bytes,
            failure.total_bytes,
        ) == told


def test_a_core_that_died_for_another_reason() -> None:
    seen = watch(
        START + "ValueError: unknown thing\n(APIServer pid=1) RuntimeError: Engine core initialization failed.\n"
    )
    assert seen.failure is not None
    assert not seen.ran_out


def test_facts_of_the_check_of_the_length() -> None:
    seen = watch(FAILURES["too long"][0])
    assert seen.facts["max_seq_len"] == 700160
    assert seen.facts["failure.fitting_tokens"] == 566784


def test_a_start_in_the_words_of_the_newest_release() -> None:
    seen = watch(
        "(APIServer pid=1) INFO 11-01 10:00:00 [startup.py:40] vLLM server version 0.33.0, serving model org/m\n"
        "(EngineCore pid=9) INFO 11-01 10:01:09 [kv_cache_utils.py:1147] GPU KV cache size: 86,601 tokens, Maximum concurrency for "
        "65,536 tokens per request: 1.32x\n"
        "(Worker_PP1_TP1 pid=10) INFO 11-01 10:01:20 [gpu_worker.py:1045] Free memory on device (30.27/31.4 GiB) on startup. Desired "
        "GPU memory utilization is (0.92, 28.88 GiB). Actual usage is 15.03 GiB for consumed memory (weights + non-torch), 1.59 GiB "
        "for peak activation, and 0.4 GiB for CUDAGraph memory.\n",
        None,
    )
    assert (seen.version, seen.facts["kv_tokens"], seen.facts["max_seq_len"]) == ("0.33.0", 86601, 65536)
    assert seen.facts["consumed_bytes"] == round(15.03 * GIB)
    assert [part.kind for part in seen.parts] == ["compute"]


def answer(text: str, *argv: str) -> Repair:
    return repair(watch(text), argv, ())


TOO_LONG = (
    "ValueError: To serve at least one request with the models's max seq len (262144), (24.0 GiB KV cache is needed, which"
    " is larger than the available KV cache memory (3.18 GiB). Based on the available memory, the estimated maximum model"
    " length is 34736. Try increasing `gpu_memory_utilization` or decreasing `max_model_len`"
)
OUT = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.47 GiB. GPU 0 has a total capacity of 79.11 GiB of"
    " which 1.25 GiB is free. Of the allocated memory 70.03 GiB is allocated by PyTorch,{}"
    " and 22.16 MiB is reserved by PyTorch but unallocated."
)


@pytest.mark.parametrize("width", range(60, 200, 3))
def test_a_long_line_that_a_terminal_broke_is_read_by_its_parts(width: int) -> None:
    broken = "\n".join(TOO_LONG[at : at + width] for at in range(0, len(TOO_LONG), width))
    seen = watch(broken)
    assert seen.failure is None or seen.failure.cause == "budget"
    figures = {flag: value for change in answer(broken).changes for flag, value in [change.flags]}
    assert figures.get("--max-model-len") in (None, "34736")
    spaced = TOO_LONG.replace("(262144), ", "(262144),\n ").replace(". ", ".\n")
    assert answer(spaced).changes == answer(TOO_LONG).changes
    assert answer(spaced).cause == answer(TOO_LONG).cause


def test_a_line_broken_in_its_middle_still_has_its_answer() -> None:
    told = answer(
        TOO_LONG.replace("KV cache is needed", "KV cac\nhe is needed").replace("which is larger", "which\nis larger")
    )
    assert told.changes[0].flags == ("--max-model-len", "34736")
    assert "?" not in told.cause


def test_when_an_allocation_failed_is_not_guessed_from_a_log_without_its_start() -> None:
    told = answer(OUT.format(""))
    assert not told.changes
    assert told.missing
    assert "does not reach back" in told.cause


def test_graphs_in_memory_say_that_the_cache_was_there() -> None:
    """Of an unknown release the share may be the least default, which the answer has to be below."""
    told = answer(OUT.format(" with 340.00 MiB allocated in private pools (e.g., CUDA Graphs),"))
    assert told.changes[0].flags == ("--gpu-memory-utilization", "0.89")


@pytest.mark.parametrize("flag", ["--gpu-memory-utilization 0.8", "--gpu_memory_utilization=0.8"])
@pytest.mark.parametrize("pasted", [True, False])
def test_what_the_command_says_counts_where_the_log_does_not(flag: str, pasted: bool) -> None:
    text = OUT.format(" with 340.00 MiB allocated in private pools (e.g., CUDA Graphs),")
    words = ("vllm", "serve", "org/model", *flag.split())
    told = answer(f"$ {' '.join(words)}\n{text}") if pasted else answer(text, *words)
    assert told.changes[0].flags == ("--gpu-memory-utilization", "0.79")
    assert told.changes[0].argv == ("vllm", "serve", "org/model", "--gpu-memory-utilization", "0.79")
    assert told.is_command


@pytest.mark.parametrize(
    ("text", "command"),
    [
        (
            "$ vllm serve \\\n    org/model \\\n    --max-model-len 8192\n",
            ("vllm", "serve", "org/model", "--max-model-len", "8192"),
        ),
        ("`CUDA_VISIBLE_DEVICES=0 vllm serve org/model -tp 2`\n", ("vllm", "serve", "org/model", "-tp", "2")),
        (
            "# python -m vllm.entrypoints.openai.api_server --model org/model 2>&1 | tee log\n",
            ("python", "-m", "vllm.entrypoints.openai.api_server", "--model", "org/model"),
        ),
        ("try `vllm serve` with less\nvllm serve --help\n", ()),
    ],
)
def test_a_command_that_was_pasted(text: str, command: tuple[str, ...]) -> None:
    assert watch(text + TOO_LONG).command == command


def test_what_the_engine_says_of_its_arguments_counts_more_than_what_was_pasted() -> None:
    assert watch("$ vllm serve other/model --port 1\n" + START).command[2] == "org/model"
