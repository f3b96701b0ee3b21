"""llama.cpp's words for an allocation that failed: each backend has its own, and each layer above says it again."""

from __future__ import annotations

import re

from autofit.domain.memory import Kind
from autofit.domain.observed import Cause
from autofit.logs.messages import Message
from autofit.logs.notes import Notes
from autofit.logs.numbers import bytes_of, whole

from autofit_llama.logs.places import is_host, place_of


def _where(place: str) -> Cause:
    return "RAM" if is_host(place) else "device memory"


def _device_malloc(notes: Notes, match: re.Match[str]) -> None:
    """`allocating X MiB on device N: cudaMalloc failed: out of memory`: the number is of CUDA, ROCm, MUSA or CANN."""
    if "out of memory" not in match["why"].lower() and "memory" not in match["why"].lower():
        notes.fail("other", match[0])
        return
    api = "CANN" if match["call"].startswith("acl") else str(notes.facts.get("api", "CUDA"))
    notes.fail(
        "device memory",
        match[0],
        place=f"{api}{match['index']}",
        requested_bytes=bytes_of(match["n"], "MiB"),
    )


def _buffer(notes: Notes, match: re.Match[str]) -> None:
    """`failed to allocate CUDA0 buffer of size N`, of a graph where `ggml_gallocr` says it."""
    place = place_of(match["place"], notes.devices)
    exact: dict[str, object] = {"place": place, "requested_bytes": whole(match["n"])}
    if match["by"].startswith("ggml_gallocr"):
        exact |= {"kind": "transient"} if notes.stage == "ready" else {"kind": "compute", "stage": "compute"}
    is_limit = notes.failure is not None and notes.failure.cause == "limit"  # said by the device just before
    notes.fail("limit" if is_limit else _where(place), match[0], exact=exact)


def _unable(notes: Notes, match: re.Match[str]) -> None:
    place = match["place"] if match["place"] and match["place"] != "backend" else None
    cause: Cause = _where(place_of(place, notes.devices)) if place else "device memory"
    exact: dict[str, object] = {"kind": "weights", "stage": "weights"}
    notes.fail(cause, match[0], place=place_of(place, notes.devices) if place else None, exact=exact)


_WHAT: dict[str, Kind] = {
    "kv": "cache",
    "rs": "cache",
    "DSV4": "cache",
    "compute": "compute",
    "output": "runtime",
    "graph": "compute",
    "lora": "weights",
    "control": "weights",
    "memory": "cache",
}


def _which(notes: Notes, match: re.Match[str]) -> None:
    """The layer above says what the buffer was for; by itself it does not say where it failed."""
    what = match["what"].removeprefix("buffer for ")
    kind = _WHAT.get(what.split()[0])
    size = bytes_of(match["n"], "MiB") if match["n"] else None
    if notes.stage == "ready":
        kind = "transient"
    notes.fail("device memory", match[0], requested_bytes=size, exact={} if kind is None else {"kind": kind})


def _vulkan(notes: Notes, match: re.Match[str]) -> None:
    notes.fail("device memory", match[0], requested_bytes=whole(match["n"]), place=_only(notes))


def _vulkan_why(notes: Notes, match: re.Match[str]) -> None:
    if "exceeds" in match[0] and notes.failure is not None and notes.failure.cause == "device memory":
        size = notes.failure.requested_bytes
        where, kind = notes.failure.place, notes.failure.kind
        notes.failure = None
        notes.fail("limit", match[0], requested_bytes=size, place=where, kind=kind)
        return
    notes.fail("limit" if "exceeds" in match[0] else "device memory", match[0], place=_only(notes))


def _vulkan_host(notes: Notes, match: re.Match[str]) -> None:
    notes.fail("RAM", match[0], place="Vulkan_Host")


def _lost(notes: Notes, match: re.Match[str]) -> None:
    """The driver took the device away: a watchdog, a fault; no allocation failed."""
    notes.fail("other", match[0], place=_only(notes))
    notes.fact("failure.device_lost", True)


def _only(notes: Notes) -> str | None:
    """The device, where there is only one that it can be."""
    used = notes.facts.get("devices.used")
    names = used if isinstance(used, tuple) and used else tuple(notes.devices)
    return names[0] if len(set(names)) == 1 else None


def _metal(notes: Notes, match: re.Match[str]) -> None:
    notes.fail("device memory", match[0], place="MTL0", requested_bytes=bytes_of(match["n"], "MiB"))


def _metal_run(notes: Notes, match: re.Match[str]) -> None:
    notes.fail("device memory", match[0], place="MTL0", kind="transient" if notes.stage == "ready" else "compute")


def _sized(notes: Notes, match: re.Match[str]) -> None:
    """`can't allocate N Bytes of memory on device`, which SYCL says of RAM as well."""
    cause: Cause = "RAM" if match["where"].startswith("host") else "device memory"
    place = "SYCL_Host" if cause == "RAM" else _only(notes)
    notes.fail(cause, match[0], place=place, requested_bytes=whole(match["n"]))


def _device(notes: Notes, match: re.Match[str]) -> None:
    notes.fail("device memory", match[0], place=_only(notes))


def _opencl(notes: Notes, match: re.Match[str]) -> None:
    size = bytes_of(match["n"], "MiB")
    notes.fail("device memory", match[0], place=_only(notes), requested_bytes=size)


def _host(notes: Notes, match: re.Match[str]) -> None:
    groups = match.groupdict()
    size = bytes_of(groups["n"], groups["unit"] or "b") if groups.get("n") else None
    notes.fail("RAM", match[0], place="CPU", requested_bytes=size)


def _run_time(notes: Notes, match: re.Match[str]) -> None:
    """`CUDA error: out of memory`: the pools and libraries that grow while graphs run, or the first use of a device."""
    kind: Kind = {"start": "runtime", "weights": "weights", "cache": "cache"}.get(notes.stage, "transient")  # type: ignore[assignment]
    notes.fail("device memory", match[0], place=_only(notes), kind=kind)
    notes.fact("failure.at_run_time", True)


def _current(notes: Notes, match: re.Match[str]) -> None:
    """The line after it names the device and the function."""
    if notes.failure is None:
        return
    api = notes.facts.get("api", "CUDA")
    notes.fail("device memory", match[0], place=f"{api}{match['index']}", near=3)
    notes.fact("failure.function", match["function"])


def _given_up(notes: Notes, match: re.Match[str]) -> None:
    notes.fail("other", match[0], near=60)


FAILURES = (
    Message(
        "Malloc",
        r"allocating (?P<n>[\d.]{1,20}) MiB on device (?P<index>\d{1,3}): (?P<call>(?:cuda|hip|musa|aclrt)Malloc\w{0,10}) failed: (?P<why>[^\r\n]{0,80})",
        _device_malloc,
        "ggml-cuda.cu:ggml_backend_cuda_buffer_type_alloc_buffer; ggml-cann.cpp",
    ),
    Message(
        "failed to allocate ",
        r"(?P<by>alloc_tensor_range|ggml_gallocr_\w{1,30}|ggml_backend_\w{1,50}): failed to allocate (?P<place>\S{1,80}) buffer of size (?P<n>\d{1,18})",
        _buffer,
        "ggml-alloc.c:alloc_tensor_range, ggml_gallocr_reserve_n_impl",
    ),
    Message(
        "unable to allocate ",
        r"error loading model: unable to allocate (?P<place>\S{1,80}) buffer",
        _unable,
        "llama-model.cpp:load_tensors",
    ),
    Message(
        "failed to allocate ",
        r"failed to allocate (?P<what>compute(?: pp| tg)? buffers?|output buffer|graph\b|buffer for (?:kv cache|rs cache|lora adapter|control vector|DSV4 compressor state))"
        r"(?: of size (?P<n>[\d.]{1,20}) MiB)?",
        _which,
        "llama-context.cpp:sched_reserve, output_reserve; llama-kv-cache.cpp:llama_kv_cache",
    ),
    Message(
        "emory allocation of size ",
        r"ggml_vulkan: (?:Device m|M)emory allocation of size (?P<n>\d{1,18}) failed",
        _vulkan,
        "ggml-vulkan-buffers.cpp:ggml_vk_create_buffer_device, ggml_vk_create_buffer_check",
    ),
    Message(
        "ErrorOutOfDeviceMemory",
        r"(?:Requested buffer size exceeds[^:]{0,60}: |vk::[\w:]{1,60}: )?ErrorOutOfDeviceMemory",
        _vulkan_why,
        "ggml-vulkan-buffers.cpp:ggml_vk_create_buffer",
    ),
    Message("ErrorOutOfHostMemory", r"ErrorOutOfHostMemory", _vulkan_host, "Vulkan, by ggml-vulkan"),
    Message("device lost on ", r"ggml_vulkan: device lost on \S{1,40}", _lost, "Vulkan, by ggml-vulkan"),
    Message("DeviceLost", r"(?:vk::DeviceLostError|ErrorDeviceLost)", _lost, "Vulkan, by ggml-vulkan"),
    Message(
        "failed to allocate buffer, size = ",
        r"failed to allocate buffer, size = {1,10}(?P<n>[\d.]{1,20}) MiB",
        _metal,
        "ggml-metal-device.m:ggml_metal_buffer_init",
    ),
    Message(
        "OutOfMemory",
        r"(?:Insufficient Memory \([^)]{0,80}OutOfMemory\)|kIOGPUCommandBufferCallbackErrorOutOfMemory)",
        _metal_run,
        "ggml-metal-context.m:ggml_metal_synchronize",
    ),
    Message(
        " of memory on ",
        r"can't (?:m?alloc(?:ate)?) (?P<n>\d{1,18}) Bytes (?:of )?memory on (?P<where>device|host)",
        _sized,
        "ggml-sycl.cpp:ggml_backend_sycl_buffer_type_alloc_buffer",
    ),
    Message(
        "UR_RESULT_ERROR_OUT_OF_",
        r"UR_RESULT_ERROR_OUT_OF_(?:DEVICE_MEMORY|RESOURCES|HOST_MEMORY)",
        _device,
        "SYCL's runtime, by ggml-sycl",
    ),
    Message("(err=", r"failed to allocate (?P<n>[\d.]{1,20}) MiB \(err=-?\d{1,4}\)", _opencl, "ggml-opencl.cpp"),
    Message(
        "attempted to allocate",
        r"insufficient memory \(attempted to allocate {1,8}(?P<n>[\d.]{1,20}) (?P<unit>MB)\)",
        _host,
        "ggml.c:ggml_aligned_malloc",
    ),
    Message(
        "failed to allocate buffer of size ",
        r"ggml_backend_cpu_\w{1,40}: failed to allocate buffer of size (?P<n>\d{1,18})(?P<unit>)",
        _host,
        "ggml/src/ggml-backend.cpp:ggml_backend_cpu_buffer_type_alloc_buffer",
    ),
    Message("std::bad_alloc", r"std::bad_alloc", _host, "the C++ runtime"),
    Message("Cannot allocate memory", r"mmap failed: Cannot allocate memory", _host, "llama-mmap.cpp:llama_mmap"),
    Message(
        " error: out of memory",
        r"(?:CUDA|ROCm|HIP|MUSA) error: out of memory",
        _run_time,
        "ggml-cuda.cu:ggml_cuda_error",
    ),
    Message(
        "CUBLAS_STATUS_",
        r"CUBLAS_STATUS_(?:ALLOC_FAILED|NOT_INITIALIZED)",
        _run_time,
        "ggml-cuda/common.cuh:cublas_get_error_str",
    ),
    Message(
        "current device: ",
        r"current device: (?P<index>\d{1,3}), in function (?P<function>\w{1,80})",
        _current,
        "ggml-cuda.cu:ggml_cuda_error",
    ),
    Message(
        "failed to load model",
        r"(?:failed to load model\b|exiting due to model loading error)",
        _given_up,
        "common/common.cpp:common_init_from_params; tools/server/server.cpp",
    ),
    Message(
        "failed to create context",
        r"failed to create (?:llama_)?context",
        _given_up,
        "common/common.cpp:common_init_from_params",
    ),
    Message("GGML_ASSERT(", r"GGML_ASSERT\(.{1,200}", _given_up, "ggml.c:ggml_abort"),
)
