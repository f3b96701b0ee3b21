"""The one door to the machine (files, programs, libraries), so that a recording can stand in for it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autofit.domain.values import dataclass, field
from autofit.hardware.programs import MAX_TEXT_BYTES, ToolError, find_program

DETECT_SECONDS = 0.3  #: all of detection, hanging tools included; `AUTOFIT_DETECT_SECONDS` states another
LOADER_CACHE = "/etc/ld.so.cache"  #: of glibc: each shared library that is in a folder of the system's, by name
KILL_SECONDS = 0.05  #: what is kept of the time for killing a tool that hangs, and for what is known without it
MAX_NUMBER = 1 << 60  #: what exceeds this is no size: "unlimited", or nonsense


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A machine as the sources see it. `root` is `/`, or a recorded tree: then nothing is run or loaded."""

    root: Path
    env: Mapping[str, str]
    platform: str = sys.platform
    uid: int | None = None
    run: Callable[[Sequence[str], float], str]
    load_nvml: Callable[[], Any]
    load_amdsmi: Callable[[], Any] = lambda: _no_library()
    space: Callable[[Path], int | None]
    n_cpus: Callable[[], int | None] = os.cpu_count
    engines: tuple[str, ...] = ()  #: programs of engines, by which the processes that hold memory are known
    isolates: bool = False  #: drivers' libraries are asked by a child process, which they may take down
    seconds: float = DETECT_SECONDS
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.seconds - (time.monotonic() - self.started))

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str | None:
        """What a file says, without the last line break; `None` if it cannot be read."""
        try:
            with self.path(path).open("rb") as file:
                return file.read(MAX_TEXT_BYTES).decode("utf-8", "replace").rstrip("\n\0")
        except (OSError, ValueError):  # ValueError: a path out of a file that holds a zero byte
            return None

    def number(self, path: str) -> int | None:
        """The whole number a file holds, decimal or 0x; `None` if it holds none."""
        text = (self.text(path) or "").strip()
        try:
            value = int(text, 0)
        except ValueError:
            return None
        return value if abs(value) <= MAX_NUMBER else None

    def names(self, path: str) -> list[str]:
        """What is in a directory, sorted; empty if there is none."""
        try:
            return sorted(entry.name for entry in os.scandir(self.path(path)))
        except (OSError, ValueError):
            return []

    def exists(self, path: str) -> bool:
        try:
            return self.path(path).exists()
        except (OSError, ValueError):
            return False

    def may_load(self, library: str) -> bool:
        """Whether a driver's library is there: a path, or a name that the loader looks for; true where nobody says."""
        if "/" in library:
            return self.exists(library)
        known = self.text(LOADER_CACHE)
        if known is None or library in known or len(known) >= MAX_TEXT_BYTES // 2:  # which is perhaps not all of it
            return True
        return any(self.exists(f"{folder}/{library}") for folder in self.env.get("LD_LIBRARY_PATH", "").split(":"))

    def has_sign(self, signs: Sequence[str]) -> bool:
        """Whether one of these is here: a path, a library that the loader finds, or a program on `PATH`.

        True without any, and in a recorded tree, which may lack what else is on its machine.
        """
        return not signs or self.root != Path("/") or any(map(self._has, signs))

    def _has(self, sign: str) -> bool:
        if "/" in sign:
            return self.exists(sign)
        return self.may_load(sign) if ".so" in sign else find_program(sign, self.env, self.platform) is not None

    def link(self, path: str) -> str | None:
        """The last part of what a symbolic link points to."""
        try:
            return Path(os.readlink(self.path(path))).name  # noqa: PTH115 - one level, as written
        except (OSError, ValueError):
            return None

    def tool(self, *argv: str) -> str:
        """What a program prints, within the time that is left.

        Raises:
            ToolError: not installed, failed, or too slow.
        """
        return self.run(argv, max(0.0, self.seconds_left - KILL_SECONDS))


def this_system(env: Mapping[str, str] | None = None, root: Path = Path("/")) -> System:
    """This machine, or the tree recorded under `root`."""
    env = os.environ if env is None else env
    here = root == Path("/")
    return System(
        root=root,
        env=env,
        platform=sys.platform if here else "linux",
        uid=os.getuid() if here and hasattr(os, "getuid") else None,
        run=_run_here if here else _not_here,
        load_nvml=load_nvml if here else _no_library,
        load_amdsmi=load_amdsmi if here else _no_library,
        space=free_space if here else lambda path: None,
        isolates=here and hasattr(os, "fork") and sys.platform == "linux",
        seconds=_seconds(env),
    )


def _seconds(env: Mapping[str, str]) -> float:
    try:
        seconds = float(env.get("AUTOFIT_DETECT_SECONDS", ""))
    except ValueError:
        return DETECT_SECONDS
    return min(max(seconds, 0.0), 60.0) if seconds == seconds else DETECT_SECONDS  # a NaN is no time


def _run_here(argv: Sequence[str], seconds: float) -> str:
    from autofit.hardware.output import run_tool  # threads and processes, which most starts do without

    return run_tool(argv, seconds)


def _not_here(argv: Sequence[str], seconds: float) -> str:
    raise ToolError(f"{argv[0]}: not run, the machine is a recorded tree")


def _no_library() -> Any:
    raise ToolError("no library in a recorded tree")


def load_nvml() -> Any:
    """`pynvml`, if NVIDIA's management library is there.

    Raises:
        ToolError: no driver library, or no `nvidia-ml-py`.
    """
    import ctypes

    if sys.platform == "darwin":
        raise ToolError("no NVML on this platform")
    name = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
    try:
        ctypes.CDLL(name)
    except OSError as cause:
        raise ToolError(f"{name} cannot be opened") from cause
    try:
        import pynvml
    except ImportError as cause:
        raise ToolError("nvidia-ml-py is not installed") from cause
    return pynvml


def load_amdsmi() -> Any:
    """AMD's `amdsmi` package, which comes with ROCm.

    Raises:
        ToolError: not installed, or its library does not load.
    """
    try:
        import amdsmi
    except Exception as cause:  # it loads its library on import, and says in many ways that it cannot
        raise ToolError(f"amdsmi: {'not installed' if isinstance(cause, ImportError) else cause}") from cause
    return amdsmi


def free_space(path: Path) -> int | None:
    """Free bytes of the file system that holds `path`."""
    try:
        stat = os.statvfs(path)
    except (OSError, AttributeError):
        return None
    return stat.f_bavail * stat.f_frsize
