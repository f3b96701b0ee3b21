"""NVIDIA's management library behind one question, which tells the ways apart in which it declines."""

from __future__ import annotations

import re
from typing import Any

from autofit.domain.text import printable
from autofit.domain.values import dataclass
from autofit.hardware.system import MAX_NUMBER

REASONS = {
    1: "not initialised",
    2: "invalid argument",
    3: "not supported",
    4: "no permission",
    6: "not found",
    9: "driver not loaded",
    10: "timeout",
    12: "library not found",
    13: "missing symbol",
    15: "lost",
    16: "reset required",
    17: "blocked by the operating system",
    18: "driver mismatch",
    25: "version mismatch",
    28: "not found",
}  #: NVML's error numbers, in words; any other is "unknown error"
UNUSABLE = ("lost", "reset required")
REMEDIES = {
    "driver mismatch": "the driver was updated under a loaded one: reboot, or reload the kernel module",
    "driver not loaded": "the kernel module is not loaded: `modprobe nvidia`, or install the driver",
    "no permission": "this user may not open /dev/nvidia*: check groups, or how the container was started",
    "library not found": "no NVIDIA driver library is installed here",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """The value, or `None` and one of the `REASONS`."""

    value: Any = None
    reason: str | None = None


class Nvml:
    """NVML behind one question."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def ask(self, function: str, *arguments: Any) -> Answer:
        """Call one function of NVML. Never raises: a library older than the function is an answer too."""
        try:
            return Answer(getattr(self._module, function)(*arguments))
        except AttributeError:
            return Answer(reason="missing symbol")
        except TypeError:
            return Answer(reason="version mismatch")  # an nvidia-ml-py older than an argument
        except UnicodeDecodeError:
            return Answer(reason="unknown error")
        except Exception as error:  # NVMLError, whose class is only known to the module itself
            code = getattr(error, "value", None)
            if not isinstance(code, int):
                return Answer(reason=f"unknown error ({type(error).__name__})")
            return Answer(reason=REASONS.get(code, "unknown error"))

    def constant(self, name: str) -> Any:
        return getattr(self._module, name, None)

    def text(self, function: str, *arguments: Any) -> str | None:
        value = self.ask(function, *arguments).value
        if isinstance(value, bytes):  # nvidia-ml-py before 11.515
            value = value.decode("utf-8", "replace")
        return printable(value) if isinstance(value, str) and value else None

    def number(self, function: str, *arguments: Any) -> int | None:
        value = self.ask(function, *arguments).value
        return value if isinstance(value, int) and 0 <= value <= MAX_NUMBER else None


def why_not(reason: str) -> str:
    return f"{reason}; {REMEDIES[reason]}" if reason in REMEDIES else reason


def memory_of(nvml: Nvml, handle: Any) -> Answer:
    """The memory of a device; version 2 tells what the driver keeps, version 1 counts that as used."""
    version = nvml.constant("nvmlMemory_v2")
    answer = (
        nvml.ask("nvmlDeviceGetMemoryInfo", handle, version) if version is not None else Answer(reason="missing symbol")
    )
    if answer.reason in ("missing symbol", "version mismatch", "invalid argument"):
        answer = nvml.ask("nvmlDeviceGetMemoryInfo", handle)
    total = getattr(answer.value, "total", None)
    if answer.value is not None and (not isinstance(total, int) or not 0 < total <= MAX_NUMBER):
        return Answer(reason="not supported")
    return answer


def pci_of(nvml: Nvml, handle: Any) -> str:
    """`0000:01:00.0`, as sysfs writes it."""
    info = nvml.ask("nvmlDeviceGetPciInfo", handle).value
    text = getattr(info, "busId", b"")
    text = text.decode("ascii", "replace") if isinstance(text, bytes) else str(text)
    return pci_address(text)


def pci_address(text: str) -> str:
    """NVML's `00000000:01:00.0` and sysfs' `0000:01:00.0` in one spelling; empty for anything else."""
    match = re.fullmatch(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", text.strip().lower())
    return f"{(match[1] or '0000')[-4:]}:{match[2]}:{match[3]}.{match[4]}" if match else ""
