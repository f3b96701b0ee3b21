"""Processor and RAM: what is there, and what this process may take of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import floor

from autofit.domain.machine import Host
from autofit.domain.text import is_number, printable
from autofit.domain.units import KIB, format_bytes
from autofit.domain.values import dataclass, field
from autofit.hardware import cgroup
from autofit.hardware.programs import ToolError
from autofit.hardware.system import System


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """The host, and where each figure comes from."""

    host: Host
    sources: Mapping[str, str] = field(default_factory=dict)


def read_host(system: System) -> HostFacts:
    """What can be learnt about the host; what cannot is `None`. Never fails."""
    if system.platform == "darwin":
        return _darwin(system)
    if system.platform == "win32":
        return _windows()
    return _linux(system)


def _linux(system: System) -> HostFacts:
    notes: list[str] = []
    sources: dict[str, str] = {}
    memory = _meminfo(system)
    total = memory.get("MemTotal")
    available = memory.get("MemAvailable")
    if available is not None:
        sources["host.available_bytes"] = "measured: /proc/meminfo MemAvailable"
    elif memory.get("MemFree") is not None:
        # before Linux 3.14, or a sandbox that leaves it out: free pages and page cache, a bound from below
        available = memory["MemFree"] + max(0, memory.get("Cached", 0) - memory.get("Shmem", 0))
        sources["host.available_bytes"] = "derived: /proc/meminfo MemFree + Cached - Shmem"
    limit_bytes = None
    for limit in cgroup.memory_limits(system):
        if total is not None and limit.limit_bytes >= total:
            continue  # a limit above what is there does not bind
        if limit_bytes is None or limit.limit_bytes < limit_bytes:
            limit_bytes = limit.limit_bytes
        if available is None or limit.available_bytes < available:
            available = limit.available_bytes
            sources["host.available_bytes"] = (
                f"measured: cgroup {printable(limit.path)}, limit {format_bytes(limit.limit_bytes)}"
            )
    if memory.get("SwapTotal"):
        notes.append(f"swap {format_bytes(memory['SwapTotal'])} is not counted")
    notes += _kubernetes(system, total)
    cores = _cores(system, notes)
    shm = system.space(system.path("/dev/shm"))  # noqa: S108 - the name of the mount, no file is made there
    return HostFacts(
        host=Host(
            total_bytes=total,
            available_bytes=available,
            limit_bytes=limit_bytes,
            n_cores_physical=cores.physical,
            n_cores_logical=cores.logical,
            n_cores_performance=cores.performance,
            n_numa_nodes=sum(map(_is_node, system.names("/sys/devices/system/node"))) or None,
            cpu_name=_cpu_name(system),
            shm_bytes=shm,
            memlock_bytes=_memlock(system),
            hugepages_bytes=memory.get("HugePages_Free", 0) * memory.get("Hugepagesize", 0)
            if memory.get("HugePages_Total")
            else None,
            has_repack=_has_repack(system),
            notes=tuple(notes),
        ),
        sources=sources,
    )


def _meminfo(system: System) -> dict[str, int]:
    """/proc/meminfo; kB are bytes here, counts stay counts."""
    found = {}
    for line in (system.text("/proc/meminfo") or "").splitlines():
        name, _, said = line.partition(":")
        number, *unit = said.split() or [""]
        if is_number(number, 15) and unit in ([], ["kB"]):
            found[name] = int(number) * (KIB if unit else 1)
    return found


def _is_node(name: str) -> bool:
    return name.startswith("node") and is_number(name[4:], 6)


def _told(text: str | None, *names: str) -> str | None:
    """What the first line `NAME : VALUE` of one of these names says."""
    for line in (text or "").splitlines():
        name, colon, value = line.partition(":")
        if colon and name.rstrip() in names:
            return value.strip()
    return None


@dataclass(frozen=True, slots=True)
class _Cores:
    physical: int | None
    logical: int | None
    performance: int | None


def _cores(system: System, notes: list[str]) -> _Cores:
    """Cores this process may use: within its affinity mask and its quota of processor time."""
    cpus = _cpu_list(_allowed(system))
    online = _cpu_list(system.text("/sys/devices/system/cpu/online"))
    if online and cpus and not cpus >= online:
        notes.append(f"affinity or cpuset: {len(cpus & online)} of {len(online)} processors")
    cpus = (cpus & online if cpus and online else cpus or online) or set(range(system.n_cpus() or 0))
    siblings = {
        cpu: frozenset(_cpu_list(system.text(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")))
        for cpu in cpus
    }
    known = cpus and all(siblings.values())
    physical = len(set(siblings.values())) if known else None
    fast = _performance_cpus(system, cpus)
    performance = len({siblings[cpu] or frozenset((cpu,)) for cpu in fast}) if fast else physical
    logical = len(cpus) or None
    quota = cgroup.cpu_quota(system)
    if quota is not None and logical is not None and quota < logical:
        notes.append(f"cgroup: {quota:.4g} of {logical} processors' time")
        most = max(1, floor(quota))
        physical, logical, performance = (None if n is None else min(n, most) for n in (physical, logical, performance))
    return _Cores(physical, logical, performance)


def _allowed(system: System) -> str | None:
    return _told(system.text("/proc/self/status"), "Cpus_allowed_list")


def _performance_cpus(system: System, cpus: set[int]) -> set[int]:
    """The fast processors of a chip that has two kinds; empty where all are alike."""
    if fast := _cpu_list(system.text("/sys/devices/cpu_core/cpus")):  # Intel hybrid
        return fast & cpus
    capacity = {cpu: system.number(f"/sys/devices/system/cpu/cpu{cpu}/cpu_capacity") for cpu in cpus}  # Arm
    known = {cpu: n for cpu, n in capacity.items() if n}
    if len(set(known.values())) < 2:
        return set()
    # a chip may have one prime core above its big ones: what is at least half as fast as the fastest counts
    most = max(known.values())
    return {cpu for cpu, n in known.items() if n * 2 >= most}


def _cpu_list(text: str | None) -> set[int]:
    """`0-3,8` -> {0, 1, 2, 3, 8}; empty for what is no list."""
    found: set[int] = set()
    for part in (text or "").strip().split(","):
        first, dash, last = part.partition("-")
        if not is_number(first, 5) or (dash and not is_number(last, 5)):
            return set()
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _cpu_name(system: System) -> str | None:
    if name := _told(system.text("/proc/cpuinfo"), "model name", "Model", "cpu model"):
        return printable(" ".join(name.split()))
    model = system.text("/proc/device-tree/model") or system.text("/sys/firmware/devicetree/base/model")
    return printable(model.strip()) if model else None


def _has_repack(system: System) -> bool | None:
    """AVX2 or NEON, which llama.cpp's CPU builds need to re-lay quantized weights (ggml-cpu/repack.cpp)."""
    flags = _told(system.text("/proc/cpuinfo"), "flags", "Features")
    return bool({"avx2", "asimd", "neon"} & set(flags.split())) if flags else None


def _memlock(system: System) -> int | None:
    for line in (system.text("/proc/self/limits") or "").splitlines():
        if line.startswith("Max locked memory"):
            soft = (line.removeprefix("Max locked memory").split() or [""])[0]
            return int(soft) if is_number(soft, 18) else None
    return None


def _kubernetes(system: System, total: int | None) -> list[str]:
    """What a pod can see of its memory request."""
    if "KUBERNETES_SERVICE_HOST" not in system.env and "kubepods" not in (system.text("/proc/self/cgroup") or ""):
        return []
    if promised := cgroup.protected_bytes(system):
        return [f"Kubernetes: memory request {format_bytes(promised)} (memory.min)"]
    score = system.number("/proc/self/oom_score_adj")
    if score == -997:
        return ["Kubernetes: guaranteed, the memory request is the limit"]
    if score == 1000:
        return ["Kubernetes: best effort, no memory request: first to be killed when the node runs short"]
    if score is not None and 2 < score < 999 and total is not None:
        # the kubelet sets 1000 - 1000 * request / capacity for a burstable pod
        request = format_bytes(total * (1000 - score) // 1000)
        return [f"Kubernetes: burstable, memory request about {request} (oom_score_adj {score})"]
    return []


def _darwin(system: System) -> HostFacts:
    keys = (
        "hw.memsize",
        "hw.physicalcpu",
        "hw.logicalcpu",
        "hw.perflevel0.physicalcpu",
        "machdep.cpu.brand_string",
        "hw.optional.neon",
    )
    try:
        answers = parse_sysctl(system.tool("sysctl", *keys))
    except ToolError as cause:
        # an Intel Mac lacks some keys, and sysctl then fails as a whole
        answers = {}
        for key in keys[:-1]:
            try:
                answers |= parse_sysctl(system.tool("sysctl", key))
            except ToolError:
                continue
        if not answers:
            return HostFacts(host=Host(total_bytes=None, available_bytes=None, notes=(str(cause),)))
    total = _int(answers.get("hw.memsize"))
    sources = {}
    available = None
    try:
        available = parse_vm_stat(system.tool("vm_stat"))
        sources["host.available_bytes"] = "measured: vm_stat, free + inactive + purgeable + speculative pages"
    except ToolError:
        pass
    physical = _int(answers.get("hw.physicalcpu"))
    return HostFacts(
        host=Host(
            total_bytes=total,
            available_bytes=available,
            n_cores_physical=physical,
            n_cores_logical=_int(answers.get("hw.logicalcpu")),
            n_cores_performance=_int(answers.get("hw.perflevel0.physicalcpu")) or physical,
            cpu_name=printable(answers["machdep.cpu.brand_string"]) if "machdep.cpu.brand_string" in answers else None,
            has_repack=True
            if answers.get("hw.optional.neon") == "1" or answers.get("machdep.cpu.brand_string", "").startswith("Apple")
            else None,
        ),
        sources=sources,
    )


def parse_sysctl(text: str) -> dict[str, str]:
    """`name: value` lines."""
    return {
        key.strip(): value.strip() for key, colon, value in (line.partition(":") for line in text.splitlines()) if colon
    }


def parse_vm_stat(text: str) -> int | None:
    """Bytes that can be taken without swap: pages that are free, inactive, purgeable or speculative."""
    size = re.search(r"page size of (\d{1,7}) bytes", text)
    pages = {
        name.strip('" '): int(count) for name, count in re.findall(r"^(.+?):\s+(\d{1,12})\.?\s*$", text, re.MULTILINE)
    }
    if size is None or "Pages free" not in pages:
        return None
    wanted = ("Pages free", "Pages inactive", "Pages purgeable", "Pages speculative")
    return int(size[1]) * sum(pages.get(name, 0) for name in wanted)


def _int(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) < 19 else None


def _windows() -> HostFacts:
    """`GlobalMemoryStatusEx`: physical memory alone, the page file is not counted."""
    import ctypes
    import os
    import sys

    if sys.platform != "win32":
        return HostFacts(host=Host(total_bytes=None, available_bytes=None))

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in (
                "total",
                "available",
                "page_total",
                "page_available",
                "virtual_total",
                "virtual_available",
                "extended",
            )
        ]

    status = Status(length=ctypes.sizeof(Status))
    ok = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return HostFacts(
        host=Host(
            total_bytes=int(status.total) if ok else None,
            available_bytes=int(status.available) if ok else None,
            n_cores_logical=os.cpu_count(),
            cpu_name=os.environ.get("PROCESSOR_IDENTIFIER"),
        ),
        sources={"host.available_bytes": "measured: GlobalMemoryStatusEx"} if ok else {},
    )
