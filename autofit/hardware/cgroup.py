"""Limits of the control groups this process is in: memory and processor time, version 1 and 2, nested.

A limit of a parent binds the child, so every ancestor that can be seen is asked. In a container the path that
`/proc/self/cgroup` names may lie outside of what is mounted; then the mount point itself is the group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from autofit.domain.text import is_number
from autofit.domain.values import dataclass
from autofit.hardware.system import System

UNLIMITED = 1 << 60  #: version 1 says "no limit" with a number close to 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A memory cgroup. `available_bytes`: limit minus usage, with reclaimable page cache counted as free."""

    path: str
    limit_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class _Mount:
    version: int
    controllers: frozenset[str]
    root: str
    point: str


def memory_limits(system: System) -> list[Limit]:
    """Every memory limit that binds this process, the tightest available first."""
    limits = []
    for version, path in _groups(system, "memory"):
        limit = _memory_v2(system, path) if version == 2 else _memory_v1(system, path)
        if limit is not None:
            limits.append(limit)
    return sorted(limits, key=lambda limit: limit.available_bytes)


def protected_bytes(system: System) -> int | None:
    """`memory.min` of this group: what is promised to it (a Kubernetes request, with memory QoS)."""
    for version, path in _groups(system, "memory"):
        if version == 2:
            return system.number(f"{path}/memory.min") or None
    return None


def cpu_quota(system: System) -> float | None:
    """Processors this process may use per unit of time, if a group says so."""
    quotas = []
    for version, path in _groups(system, "cpu"):
        if version == 2:
            words = (system.text(f"{path}/cpu.max") or "").split()
        else:
            words = [system.text(f"{path}/cpu.cfs_{what}_us") or "" for what in ("quota", "period")]
        if len(words) == 2 and all(is_number(word, 15) for word in words) and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _memory_v2(system: System, path: str) -> Limit | None:
    # above memory.high the kernel throttles and reclaims: a process there lives, but not at speed
    stated = [n for name in ("memory.max", "memory.high") if (n := system.number(f"{path}/{name}")) is not None]
    if not stated:
        return None
    used = system.number(f"{path}/memory.current") or 0
    stat = _stat(system, path)
    return _limit(path, min(stated), used, stat.get("active_file", 0) + stat.get("inactive_file", 0))


def _memory_v1(system: System, path: str) -> Limit | None:
    limit = system.number(f"{path}/memory.limit_in_bytes")
    if limit is None or limit >= UNLIMITED:
        return None
    used = system.number(f"{path}/memory.usage_in_bytes") or 0
    stat = _stat(system, path)
    return _limit(path, limit, used, stat.get("total_active_file", 0) + stat.get("total_inactive_file", 0))


def _limit(path: str, limit: int, used: int, page_cache: int) -> Limit:
    held = max(0, used - page_cache)
    return Limit(path=path, limit_bytes=limit, available_bytes=max(0, limit - held))


def _stat(system: System, path: str) -> dict[str, int]:
    text = system.text(f"{path}/memory.stat") or ""
    return {key: int(value) for key, value in re.findall(r"^(\w+) (\d{1,18})$", text, re.MULTILINE)}


def _groups(system: System, controller: str) -> Iterator[tuple[int, str]]:
    """The group of this process and its ancestors, as paths; the version of each."""
    mounts = list(_mounts(system))
    for line in (system.text("/proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        version = 2 if parts[0] == "0" and not parts[1] else 1
        if version == 1 and controller not in parts[1].split(","):
            continue
        for mount in mounts:
            if mount.version == version and (version == 2 or controller in mount.controllers):
                yield from ((version, path) for path in _ancestors(mount, parts[2]))
                break


def _ancestors(mount: _Mount, group: str) -> list[str]:
    """The group's directory and those above it, up to the mount point."""
    try:
        below = PurePosixPath(group).relative_to(mount.root)
    except ValueError:
        below = PurePosixPath()
    if ".." in below.parts:  # a namespace that starts above: only the mount point can be seen
        below = PurePosixPath()
    point = PurePosixPath(mount.point)
    return [str(point / below), *(str(point / parent) for parent in below.parents)] if below.parts else [str(point)]


def _mounts(system: System) -> Iterator[_Mount]:
    for line in (system.text("/proc/self/mountinfo") or "").splitlines():
        left, dash, right = line.partition(" - ")
        words, types = left.split(), right.split()
        if not dash or len(words) < 5 or not types:
            continue
        if types[0] == "cgroup2":
            yield _Mount(2, frozenset(), words[3], words[4])
        elif types[0] == "cgroup":
            yield _Mount(1, frozenset(types[-1].split(",")), words[3], words[4])
