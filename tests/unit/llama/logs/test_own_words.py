"""Failures in the words of Vulkan and of Ollama: what failed, where, and what is advised."""

from __future__ import annotations

import pytest
from autofit.domain.units import GIB
from autofit.fix import Answer, fix

from support.descriptors import DATA
from support.llama_logs import loader_lines

COMMAND = ("llama-server", "-m", "m.gguf", "-ngl", "99", "-c", "32768", "-np", "1")
ONE = (("AMD Radeon RX 7600", 8000),)
TWO = (*ONE, ("Intel Arc A380", 5900))
HELD = "load_tensors:      Vulkan0 model buffer size =  4403.49 MiB\n"
LISTENS = "main: server is listening on http://127.0.0.1:8080\n"


def answer(devices: tuple[tuple[str, int], ...], failed: str) -> Answer:
    text, _ = loader_lines(DATA / "models" / "llama-3.1-8b-Q4_K_M.json.gz")
    used = "".join(
        f"llama_model_load_from_file_impl: using device Vulkan{i} ({name}) (0000:0{i}:00.0) - {mib} MiB free\n"
        for i, (name, mib) in enumerate(devices)
    )
    return fix([f"build: 8864 (abcdef12) with cc\n{used}{text}\n{failed}".encode()], COMMAND)


FAILED = """\
ggml_vulkan: Device memory allocation of size 4404019200 failed.
ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory
alloc_tensor_range: failed to allocate Vulkan0 buffer of size 4404019200
"""
TOO_LARGE = f"""{HELD}\
ggml_vulkan: Device memory allocation of size 4563402752 failed.
ggml_vulkan: Requested buffer size exceeds device buffer size limit: ErrorOutOfDeviceMemory
ggml_gallocr_reserve_n_impl: failed to allocate Vulkan0 buffer of size 4563402752
"""
SECOND = f"""{HELD}\
ggml_vulkan: Device memory allocation of size 2214592512 failed.
ggml_vulkan: No suitable memory type found: ErrorOutOfDeviceMemory
alloc_tensor_range: failed to allocate Vulkan1 buffer of size 2214592512
"""
PROMPT = LISTENS + "  what():  vk::Device::allocateMemory: ErrorOutOfDeviceMemory\n"
PINNED = "ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfHostMemory\n"
LOST = LISTENS + "ggml_vulkan: device lost on Vulkan0\n"
RESET = LISTENS + "  what():  vk::Queue::submit: ErrorDeviceLost\n"


@pytest.mark.slow_cases("devices2-*", "devices4-*", "devices3-*")
@pytest.mark.parametrize(
    ("devices", "failed", "cause", "place", "kind"),
    [
        (ONE, FAILED, "device memory", "Vulkan0", "weights"),
        (ONE, TOO_LARGE, "limit", "Vulkan0", "compute"),
        (TWO, SECOND, "device memory", "Vulkan1", "weights"),
        (ONE, PROMPT, "device memory", "Vulkan0", "transient"),
        (ONE, PINNED, "RAM", "Vulkan_Host", "weights"),
        (ONE, LOST, "other", "Vulkan0", None),
        (ONE, RESET, "other", "Vulkan0", None),
    ],
)
def test_vulkan(devices: tuple[tuple[str, int], ...], failed: str, cause: str, place: str, kind: str | None) -> None:
    found = answer(devices, failed)
    failure = found.observed.failure
    assert failure is not None and (failure.cause, failure.place, failure.kind) == (cause, place, kind)
    assert bool(found.repair.changes) is (cause != "other")
    assert all(change.plan is None or change.plan.memory.starts for change in found.repair.changes)
    if cause == "other":
        assert any("the driver reset the device" in text for text in found.repair.advice)


OLLAMA = """\
time=2026-10-02T10:11:12Z level=INFO source=server.go:400 msg="starting runner" cmd="/usr/bin/ollama runner --port 39451"
time=2026-10-02T10:11:12Z level=INFO source=types.go:131 msg="inference compute" id=GPU-1 library=CUDA compute=8.6 \
name=CUDA0 description="NVIDIA GeForce RTX 3060" libdirs=ollama total="12.0 GiB" available="11.2 GiB"
"""
RUNNER = """
llama_context: n_ctx         = 65536
ggml_backend_cuda_buffer_type_alloc_buffer: allocating 8192.00 MiB on device 0: cudaMalloc failed: out of memory
alloc_tensor_range: failed to allocate CUDA0 buffer of size 8589934592
llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache
time=2026-10-02T10:11:14Z level=ERROR source=server.go:430 msg="llama runner terminated" error="exit status 2"
"""


def test_an_excerpt_of_ollama_is_answered_in_its_words() -> None:
    text, _ = loader_lines(DATA / "models" / "llama-3.1-8b-Q4_K_M.json.gz")
    found = fix([f"{OLLAMA}{text}{RUNNER}".encode()])
    (device,) = found.observed.devices
    assert (device.place, device.name) == ("CUDA0", "NVIDIA GeForce RTX 3060")
    assert (device.total_bytes, device.free_bytes) == (12 * GIB, round(11.2 * GIB))
    assert "8.00 GiB for the KV cache could not be allocated on CUDA0" in found.repair.cause
    assert found.repair.changes
    assert any("-c is num_ctx, -ngl is num_gpu" in text for text in found.repair.advice)
