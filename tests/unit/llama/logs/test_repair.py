"""What is offered where one of several devices is too small for its share."""

from __future__ import annotations

import pytest
from autofit.domain.ram import parse_ram
from autofit.domain.repair import Repair
from autofit.fix import fix

from support.descriptors import DATA
from support.llama_logs import loader_lines

COMMAND = ("llama-server", "-m", "/m/q.gguf", "-ngl", "99", "-c", "16384", "-np", "1", "-fa", "on")
FAILED = """\
load_tensors: offloaded 65/65 layers to GPU
load_tensors:        CUDA0 model buffer size =  9300.00 MiB
load_tensors:        CUDA1 model buffer size =  9500.00 MiB
llama_kv_cache:      CUDA0 KV buffer size =  2112.00 MiB
ggml_backend_cuda_buffer_type_alloc_buffer: allocating 1984.00 MiB on device 1: cudaMalloc failed: out of memory
alloc_tensor_range: failed to allocate CUDA1 buffer of size 2080374784
"""


ALONE = """\
load_tensors: offloaded 65/65 layers to GPU
ggml_backend_cuda_buffer_type_alloc_buffer: allocating 18335.00 MiB on device 0: cudaMalloc failed: out of memory
alloc_tensor_range: failed to allocate CUDA0 buffer of size 19225640960
llama_model_load: error loading model: unable to allocate CUDA0 buffer
"""


def answer(*frees_mib: int, command: tuple[str, ...], ram: str | None = None, failed: str = FAILED) -> Repair:
    text, _ = loader_lines(DATA / "models" / "qwen3-32b-Q4_K_M.json.gz")
    devices = "".join(
        f"llama_model_load_from_file_impl: using device CUDA{i} (NVIDIA GeForce RTX 3090) (0000:0{i}:00.0) - {n} MiB free\n"
        for i, n in enumerate(frees_mib)
    )
    return fix(
        [f"build: 8864 (abcdef12) with cc\n{devices}{text}\n{failed}".encode()],
        command,
        ram=None if ram is None else parse_ram(ram),
    ).repair


def test_uneven_cards_get_uneven_shares_before_anything_is_given_up() -> None:
    first, *others = answer(23800, 11700, command=(*COMMAND, "-ts", "1,1")).changes
    assert first.flags == ("-ts", "23,11")
    assert first.argv == (*COMMAND, "-ts", "23,11")
    assert first.plan is not None and first.plan.fits
    assert all(change.argv.count("-ts") == 1 for change in others)


@pytest.mark.slow
def test_no_shares_are_offered_where_none_are_enough_or_the_engine_deals_by_itself() -> None:
    alike = answer(11700, 11700, command=(*COMMAND, "-ts", "1,1"))
    assert alike.changes
    assert not [change for change in alike.changes if change.flags[0] == "-ts"]
    rows = answer(23800, 11700, command=(*COMMAND, "-ts", "1,1", "-sm", "row"))
    assert not [change for change in rows.changes if change.flags[0] == "-ts"]
    fitted = answer(23800, 11700, command=("llama-server", "-m", "/m/q.gguf", "-c", "16384"))
    assert not [change for change in fitted.changes if change.flags[0] == "-ts"]


@pytest.mark.slow
def test_where_no_change_is_enough_alone_the_fewest_together_are_offered() -> None:
    """18.4 GiB of weights and 16 GiB of cache, on a card with 11.4 GiB and beside 16 GiB of RAM."""
    command = ("llama-server", "-m", "/m/q.gguf", "-ngl", "99", "-c", "65536", "-np", "1", "-fa", "on")
    (change,) = answer(11700, command=command, ram="16GiB", failed=ALONE).changes
    assert change.plan is not None and change.plan.fits
    assert change.flags == ("-cram", "0", "-c", "16384", "-ngl", "32")
    assert change.argv == (*command[:3], "-np", "1", "-fa", "on", *change.flags)
    assert change.because.split("; ")[0] == "no prompt cache in RAM (8 GiB by default)"
    assert answer(11700, command=command, ram="2GiB", failed=ALONE).changes == ()


KILLED = "Memory cgroup out of memory: Killed process 77 (llama-server) total-vm:9kB, anon-rss:{kb}kB, file-rss:4kB\n"


@pytest.mark.slow_but("end0-*", "end1-*")
@pytest.mark.parametrize(
    ("end", "ram", "gib", "flag"),
    [
        (KILLED.format(kb=16 << 20), None, 16, "-ctk"),  # it had as much, and no more
        (KILLED.format(kb=16 << 20), "12GiB", 12, "-c"),
        ("        Reason:       OOMKilled\n", "16GiB", 16, "-ctk"),
        (KILLED.format(kb=32 << 20), None, 22, "-ctk"),  # by its figures it would have fitted, and it did not
    ],
)
def test_a_process_that_the_kernel_killed_gets_a_command_for_what_it_had(
    end: str, ram: str | None, gib: int, flag: str
) -> None:
    text, _ = loader_lines(DATA / "models" / "llama-3.1-8b-Q4_K_M.json.gz")
    context = "".join(f"llama_context: {name} = {n}\n" for name, n in (("n_seq_max", 1), ("n_ctx", 131072)))
    command = ("llama-server", "-m", "m.gguf", "-c", "131072", "-fa", "on")
    log = f"build: 9205 (abc) with cc for x86_64-linux-gnu\n{text}{context}{end}".encode()
    found = fix([log], command, ram=None if ram is None else parse_ram(ram)).repair
    assert found.changes and not found.missing
    for change in found.changes:
        assert change.plan is not None and change.plan.memory.pool("host").start_bytes <= gib << 30
    assert found.changes[0].flags[0] == flag


def test_of_a_process_that_was_killed_without_a_figure_ram_is_asked_for() -> None:
    text, _ = loader_lines(DATA / "models" / "llama-3.1-8b-Q4_K_M.json.gz")
    log = f"build: 9205 (abc) with cc for x86_64-linux-gnu\n{text}        Reason:       OOMKilled\n".encode()
    found = fix([log], ("llama-server", "-m", "m.gguf", "-c", "131072")).repair
    assert not found.changes and any("--ram SIZE" in text for text in found.advice)


def test_a_log_without_its_beginning_says_what_else_would_do() -> None:
    said = answer(23800, command=COMMAND, failed=ALONE).missing
    cut = fix([f"build: 8864 (abcdef12) with cc\n{ALONE}".encode()], COMMAND).repair.missing
    assert not said
    assert "-v" in cut[-1] and "--model" in cut[-1]
