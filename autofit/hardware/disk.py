"""The file system that weights are read from: how much is free there, and whether paging from it is slow."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from autofit.domain.values import dataclass
from autofit.hardware.system import System

REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "fuse.glusterfs", "lustre", "beegfs", "gpfs"}
)
IN_MEMORY = frozenset({"tmpfs", "ramfs"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A file system. `rotational` is `None` where the kernel does not say."""

    mount: str
    kind: str
    free_bytes: int | None
    remote: bool = False
    in_memory: bool = False  #: files there are RAM already
    rotational: bool | None = None


def disk_of(system: System, path: Path) -> Disk | None:
    """The file system of `path`, by the kernel's table of mounts; `None` where there is none."""
    where = PurePosixPath(path if path.is_absolute() else Path.cwd() / path)
    best: tuple[int, list[str], list[str]] | None = None
    for line in (system.text("/proc/self/mountinfo") or "").splitlines():
        left, dash, right = line.partition(" - ")
        words, types = left.split(), right.split()
        if not dash or len(words) < 5 or not types:
            continue
        mount = PurePosixPath(words[4].replace("\\040", " "))
        # of two mounts on one place the later one is seen
        if where.is_relative_to(mount) and (best is None or len(mount.parts) >= best[0]):
            best = (len(mount.parts), words, types)
    if best is None:
        return None
    _, words, types = best
    turning = system.number(f"/sys/dev/block/{words[2]}/queue/rotational")
    if turning is None:  # a partition: its disk is one above
        turning = system.number(f"/sys/dev/block/{words[2]}/../queue/rotational")
    return Disk(
        mount=words[4].replace("\\040", " "),
        kind=types[0],
        free_bytes=system.space(system.path(str(where))),
        remote=types[0] in REMOTE,
        in_memory=types[0] in IN_MEMORY,
        rotational=None if turning is None else bool(turning),
    )
