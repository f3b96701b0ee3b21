"""What a running llama.cpp takes beside weights, caches and compute buffers.

None of it is in the engine's own dry run. Every figure is an assumption or a limit that the engine documents, with
its source; nothing here is ever added to an exact figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from autofit.domain.machine import Device
from autofit.domain.memory import MemoryItem
from autofit.domain.units import MIB, round_up

from autofit_llama.memory.scratch import FULL_PROMPT, driven

CONTEXT_MIB = ((0, 0), (34, 132), (84, 285), (128, 444), (188, 672))
"""Multiprocessors -> CUDA context and modules, which grow with them: RTX 4060 Ti, A40, RTX 4090, RTX PRO 6000. What
nvidia-smi shows for a llama-server beyond its buffers, cuBLAS and graphs, the largest of one to five processes."""
CONTEXT_MIB_PER_WIDE_SM = 3.8
"""The same of a GA100, 265 MiB with 70 multiprocessors, which hold more threads; assumed for those after it."""
UNKNOWN_CUDA_CONTEXT_BYTES = 450 * MIB
HIP_CONTEXT_BYTES = 410 * MIB
OTHER_CONTEXT_BYTES = 200 * MIB
PROCESS_BYTES = 40 * MIB
"""Resident set of llama-fit-params on header-only models: 29 to 42 MB."""
PYTHON_BYTES = 72 * MIB
"""Resident set of `python -m llama_cpp.server` before it loads a model, 68.3 MiB with CPython 3.11: mostly FastAPI."""
GRAPHS_BYTES = 8 * MIB
SECOND_POOL_BYTES = 64 * MIB
"""Pool of a second context at work, a cuBLAS handle's kernels among it: what public runs with draft heads show."""
#: what makes memory grow
FULL_PROMPT_CACHE = "the prompt cache is full"
ALL_CHECKPOINTS = "conversations have all their checkpoints"
AN_IMAGE = "an image is encoded"
FULL_CONTEXT = "the context is full"
NCCL_FIRST_BYTES, NCCL_MORE_BYTES = 640 * MIB, 205 * MIB
"""Buffers and peer mappings of two ranks, and of each more: two RTX 5090 and eight B200, as vLLM reports them."""


def context_bytes(device: Device) -> int:
    """What a context takes on a device before anything is loaded; a server that was asked has its own there already."""
    if device.runtime_bytes is not None:
        return device.runtime_bytes
    if device.api == "rpc" and device.uuid is not None:
        return 0
    device = driven(device)
    if device.api == "cuda":
        return _cuda_context(device)[0]
    if device.api == "rpc":
        return 0
    return HIP_CONTEXT_BYTES if device.api == "rocm" else OTHER_CONTEXT_BYTES


def device_runtime(device: Device) -> tuple[MemoryItem, ...]:
    """Context and libraries of one device; empty when the device says that it has none.

    Sources: ggml/src/ggml-cuda/common.cuh:cublas_handle (workspace of 4 MiB, 32 MiB from compute capability 9.0);
    ggml-org/llama.cpp#23604 for the context.
    """
    context = context_bytes(device)
    if device.runtime_bytes is not None:
        if device.runtime_bytes == 0:
            return ()
        return (_runtime(context, "measured", "context and libraries", "stated for this device"),)
    device = driven(device)
    if device.api == "cuda":
        _, basis, source = _cuda_context(device)
        own = (_runtime(context, basis, "CUDA context and modules", source),) if context else ()
        return (
            *own,
            _runtime(_blas_bytes(device), "derived", "cuBLAS workspace", "ggml-cuda/common.cuh:cublas_handle"),
            _runtime(GRAPHS_BYTES, "assumed", "CUDA graphs", "a few MiB per distinct graph"),
        )
    if device.api == "rpc":
        return ()
    if not context:
        return ()
    return (_runtime(context, "assumed", f"{device.api} context", "not verified on this kind of device"),)


def _cuda_context(device: Device) -> tuple[int, str, str]:
    """Bytes of context and modules, their basis and where they come from."""
    if not device.n_sm:
        return UNKNOWN_CUDA_CONTEXT_BYTES, "assumed", "the number of multiprocessors is unknown"
    if (device.compute_capability or (0, 0)) in {(8, 0), (9, 0), (10, 0), (10, 3)}:
        context = round(CONTEXT_MIB_PER_WIDE_SM * device.n_sm) * MIB
        return context, "assumed", f"{CONTEXT_MIB_PER_WIDE_SM} MiB per multiprocessor, measured on a GA100"
    points = list(pairwise(CONTEXT_MIB))
    (low, small), (high, large) = next((pair for pair in points if device.n_sm <= pair[1][0]), points[-1])
    context = round(small + (large - small) * (device.n_sm - low) / (high - low)) * MIB
    measured = device.n_sm in dict(CONTEXT_MIB)
    where = "a card with as many multiprocessors" if measured else "between cards of fewer and more multiprocessors"
    return context, "measured" if measured else "assumed", where


def second_context(device: Device, label: str) -> tuple[MemoryItem, ...]:
    """What another context of the process (a draft model or head) has for itself on a device it computes on."""
    if device.api not in {"cuda", "rocm"} or device.runtime_bytes == 0:
        return ()
    n_bytes = _blas_bytes(device) + GRAPHS_BYTES + SECOND_POOL_BYTES
    source = "an allowance chosen from 6 public runs with draft heads, 40 to 130 MiB beyond the buffers"
    return (_runtime(n_bytes, "assumed", f"cuBLAS, graphs and pool of the {label}", source),)


def _blas_bytes(device: Device) -> int:
    return 32 * MIB if (device.compute_capability or (0, 0)) >= (9, 0) else 4 * MIB


def collectives(devices: Sequence[Device], *, n_tokens: int, n_embd: int) -> tuple[MemoryItem, ...]:
    """What `-sm tensor` takes on each of `devices` to sum over them: NCCL, where all are CUDA's.

    Builds without NCCL take 32 MiB in its place (ggml-cuda/allreduce.cu, two devices), or nothing.

    Source: ggml-cuda.cu:ggml_backend_cuda_comm_init, ggml_backend_cuda_comm_allreduce_nccl (large sums in bf16).
    """
    if len(devices) < 2 or any(device.api != "cuda" or device.runtime_bytes == 0 for device in devices):
        return ()
    nccl = NCCL_FIRST_BYTES + NCCL_MORE_BYTES * (len(devices) - 2)
    return (
        _runtime(nccl, "assumed", "NCCL", "as observed with vLLM; less in a build without NCCL"),
        MemoryItem(kind="transient", n_bytes=round_up(2 * n_tokens * n_embd, 2 * MIB), basis="derived",
                   label="sums in half precision", source="ggml-cuda.cu:ggml_backend_cuda_comm_allreduce_nccl",
                   when=FULL_PROMPT),
    )  # fmt: skip


def host_runtime(*, n_vocab: int, n_output_rows: int, server: bool) -> tuple[MemoryItem, ...]:
    """The process itself and the logits it hands out.

    Source: src/llama-context.cpp:output_reserve (f32 logits, as many rows as sequences at start).
    """
    items = [_runtime(PROCESS_BYTES, "assumed", "process", "resident set of a header-only load")]
    items.append(_runtime(4 * n_vocab * n_output_rows, "derived", "output buffer", "llama-context.cpp:output_reserve"))
    if server:
        items.append(_runtime(64 * MIB, "assumed", "HTTP server and tokenizer", "an allowance"))
    return tuple(items)


def prompt_cache(limit_bytes: int | None) -> tuple[MemoryItem, ...]:
    """llama-server's cache of past prompts: grows up to its limit (`--cache-ram`).

    `None` is no limit: it begins with nothing, and nothing says where it ends.

    Source: tools/server/server-task.cpp:server_prompt_cache.
    """
    if not limit_bytes:
        return ()
    return (
        MemoryItem(kind="transient", n_bytes=limit_bytes, basis="derived", label="prompt cache at its limit",
                   source="server-task.cpp:server_prompt_cache", when=FULL_PROMPT_CACHE),
    )  # fmt: skip


def python_server(*, logits_bytes: int, prompts_bytes: int) -> tuple[MemoryItem, ...]:
    """llama-cpp-python's server: the interpreter with its libraries, logits of the whole context, cached prompts.

    The array of logits is as long as the context; its pages are taken as tokens come. The size of a cached prompt is
    that of its state, and its logits are copied beside that.

    Source: llama_cpp/llama.py:Llama.scores, Llama.save_state; llama_cpp/llama_cache.py:LlamaRAMCache.
    """
    items = [_runtime(PYTHON_BYTES, "measured", "interpreter and libraries of Python", "resident set without a model")]
    if logits_bytes:
        items.append(MemoryItem(kind="transient", n_bytes=logits_bytes, basis="exact", label="logits of every token",
                                source="llama_cpp/llama.py:Llama.scores", when=FULL_CONTEXT))  # fmt: skip
    if prompts_bytes:
        items.append(MemoryItem(kind="transient", n_bytes=prompts_bytes, basis="derived", label="cached prompts",
                                source="llama_cpp/llama_cache.py:LlamaRAMCache", when=FULL_PROMPT_CACHE))  # fmt: skip
    return tuple(items)


def checkpoints(
    *, state_bytes_per_slot: int, n_slots: int, n_checkpoints: int, n_ctx_seq: int, min_step: int
) -> tuple[MemoryItem, ...]:
    """Copies of what cannot be rolled back (sliding-window cells, recurrent state), kept per slot.

    At most `n_checkpoints` of them, at least `min_step` tokens apart, and one more near the last message.

    Source: tools/server/server-context.cpp:create_checkpoint.
    """
    if state_bytes_per_slot == 0 or n_checkpoints == 0:
        return ()
    count = min(n_checkpoints, n_ctx_seq // max(min_step, 1) + 1)
    return (
        MemoryItem(kind="transient", n_bytes=state_bytes_per_slot * count * n_slots, basis="derived",
                   label=f"context checkpoints, {count} for each of {n_slots} slots",
                   source="server-context.cpp:create_checkpoint", when=ALL_CHECKPOINTS),
    )  # fmt: skip


def projector(device_bytes: Sequence[int]) -> tuple[MemoryItem, ...]:
    """A vision or audio projector: its tensors, and a worst-case encoder pass that is only bounded here.

    Source: tools/mtmd/clip.cpp:clip_get_mem_usage; its compute buffer depends on the image size, so the bound is
    the larger of 1 GiB and the weights.
    """
    weights = sum(device_bytes)
    if weights == 0:
        return ()
    return (
        MemoryItem(kind="weights", n_bytes=weights, basis="exact", label="projector", source="tools/mtmd/clip.cpp"),
        MemoryItem(kind="transient", n_bytes=max(1 << 30, weights), basis="assumed", label="projector's encoder pass",
                   source="a bound: tools/mtmd/clip.cpp:clip_get_mem_usage needs the image size", when=AN_IMAGE),
    )  # fmt: skip


def _runtime(n_bytes: int, basis: str, label: str, source: str) -> MemoryItem:
    return MemoryItem(kind="runtime", n_bytes=n_bytes, basis=basis, label=label, source=source)  # type: ignore[arg-type]
