"""What this machine really does: how fast it reads RAM."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autofit.domain.machine import Machine
from autofit.domain.units import format_bytes
from autofit.domain.values import dataclass, field
from autofit.errors import HardwareError

BUFFER_BYTES = 256 << 20  #: per thread: far beyond any cache, and pages that are really there
MIN_BUFFER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Measured rates. `passes` are all of them, so that a noisy machine shows."""

    ram_bandwidth_bytes_per_s: int
    n_threads: int
    passes: tuple[int, ...] = ()
    benchmark: tuple[Mapping[str, Any], ...] = field(default=())  #: rows of an engine's own

    def to_table(self, date: str) -> dict[str, Any]:
        """The `[calibration]` table of a profile."""
        table: dict[str, Any] = {
            "date": date,
            "ram_bandwidth_bytes_per_s": self.ram_bandwidth_bytes_per_s,
            "n_threads": self.n_threads,
        }
        return table | ({"benchmark": [dict(row) for row in self.benchmark]} if self.benchmark else {})


def measure_ram(machine: Machine, *, seconds: float = 2.0, buffer_bytes: int | None = None) -> Calibration:
    """Read RAM with all performance cores at once for `seconds`; the best pass counts.

    `memchr` looks for a byte that is not there: the C library's widest loads, outside Python's lock.

    Raises:
        HardwareError: too little memory is available to measure outside the caches.
    """
    n_threads = machine.host.n_cores_performance or machine.host.n_cores_physical or 1
    available = machine.host.available_bytes
    size = buffer_bytes or BUFFER_BYTES
    if available is not None and buffer_bytes is None:
        size = min(size, available // 4 // n_threads)
    if size < MIN_BUFFER_BYTES and buffer_bytes is None:
        raise HardwareError(
            "too little memory is available to measure its speed",
            hint=f"{format_bytes(MIN_BUFFER_BYTES * n_threads * 4)} would do",
        )
    search = _memchr()
    buffers = [_touched(size) for _ in range(n_threads)]
    passes: list[int] = []
    deadline = time.perf_counter() + seconds
    while not passes or time.perf_counter() < deadline:
        passes.append(_one_pass(search, buffers, size))
    return Calibration(ram_bandwidth_bytes_per_s=max(passes), n_threads=n_threads, passes=tuple(passes))


def _memchr() -> Callable[[Any, int, int], object]:
    library = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
    function = library.memchr
    function.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    function.restype = ctypes.c_void_p
    found: Callable[[Any, int, int], object] = function
    return found


def _touched(size: int) -> ctypes.Array[ctypes.c_char]:
    """A buffer whose pages exist: untouched ones would all be the same page of zeros."""
    buffer = ctypes.create_string_buffer(size)
    ctypes.memset(buffer, 1, size)
    return buffer


def _one_pass(search: Callable[[Any, int, int], object], buffers: Sequence[Any], size: int) -> int:
    """Bytes per second of one sweep over all buffers, from the first start to the last end."""
    ready = threading.Barrier(len(buffers) + 1)
    threads = [threading.Thread(target=_sweep, args=(search, buffer, size, ready)) for buffer in buffers]
    for thread in threads:
        thread.start()
    ready.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return int(len(buffers) * size / (time.perf_counter() - start))


def _sweep(search: Callable[[Any, int, int], object], buffer: Any, size: int, ready: threading.Barrier) -> None:
    ready.wait()
    search(buffer, 2, size)
