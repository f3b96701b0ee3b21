"""Recorded machines: file trees, NVML answers and tool output under `tests/data/hardware/<machine>/`.

`files.txt` holds a tree: `=== /path` starts a file (`␀` is a zero byte), `=== /path -> target` is a link.
`nvml.json` holds what the driver's library answers; `{"error": 3}` in the place of a value is NVML's error of
that number. `tools.json` holds what programs print: `[[argv...], {"stdout": ..., "exit": ..., "seconds":
...}]`; the longest argv that the call starts with is taken.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from autofit.domain.machine import Machine
from autofit.hardware import detect as detection
from autofit.hardware.facts import Source
from autofit.hardware.programs import ToolError, ToolTimeoutError
from autofit.hardware.system import System
from autofit.host import host
from autofit.machines import hardware_sources

import support

DATA = support.DATA / "hardware"


def machine(
    name: str,
    tmp_path: Path,
    *,
    env: Mapping[str, str] | None = None,
    platform: str = "linux",
    seconds: float = 30.0,
    nvml: Any = None,
    tools: Sequence[tuple[Sequence[str], Mapping[str, Any]]] | None = None,
) -> System:
    """The recorded machine as a `System`. Time is not short here unless a test makes it so."""
    where = DATA / name
    assert where.is_dir(), f"no recording {name}"
    root = tmp_path / name
    unpack((where / "files.txt").read_text("utf-8") if (where / "files.txt").exists() else "", root)
    recording = where / "nvml.json"
    if nvml is None and recording.exists():
        nvml = FakeNvml(json.loads(recording.read_text("utf-8")))
    if tools is None and (where / "tools.json").exists():
        tools = json.loads((where / "tools.json").read_text("utf-8"))

    def load_nvml() -> Any:
        if nvml is None:
            raise ToolError("libnvidia-ml.so.1 cannot be opened")
        return nvml

    return System(
        root=root,
        env=env or {},
        platform=platform,
        uid=1000,
        run=runner(tools or []),
        load_nvml=load_nvml,
        space=lambda path: 67108864 if path.is_dir() else None,
        n_cpus=lambda: 4,
        seconds=seconds,
    )


def detect(system: System, *further: Source) -> Machine:
    """What the sources of autofit and of its plugins say of it, and these."""
    engines = tuple(word for ref in host().backends().values() for word in ref.programs)
    return detection.detect(replace(system, engines=engines), [*hardware_sources(), *further])


def unpack(text: str, root: Path) -> Path:
    """A tree out of its bundle."""
    root.mkdir(parents=True, exist_ok=True)
    path: Path | None = None
    lines: list[str] = []

    def flush() -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines).replace("␀", "\0") + ("\n" if lines else ""), "utf-8")

    for line in text.splitlines():
        if not line.startswith("=== "):
            lines.append(line)
            continue
        flush()
        lines = []
        name, arrow, target = line[4:].partition(" -> ")
        path = root / name.lstrip("/")
        if arrow:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
            path = None
        elif name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            path = None
    flush()
    return root


def runner(tools: Sequence[Any]) -> Any:
    """Programs that answer from a recording, and hang as long as it says."""

    def run(argv: Sequence[str], seconds: float) -> str:
        best = max(
            (entry for entry in tools if list(argv[: len(entry[0])]) == list(entry[0])),
            key=lambda entry: len(entry[0]),
            default=None,
        )
        if best is None:
            raise ToolError(f"{argv[0]}: not installed")
        answer = best[1]
        if answer.get("seconds", 0) > seconds:
            raise ToolTimeoutError(f"{argv[0]}: no answer within {seconds:.1f} s")
        if answer.get("exit", 0):
            raise ToolError(f"{argv[0]}: exit code {answer['exit']}: {answer.get('stderr', '')}")
        stdout = answer["stdout"]
        return stdout if isinstance(stdout, str) else "\n".join(stdout) + "\n"

    return run


class FakeNVMLError(Exception):
    """As `pynvml.NVMLError`: the number is in `value`."""

    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


class FakeNvml:
    """NVML with pynvml's functions, answering from a recording.

    A function that the recording names under `missing` is a symbol that the driver's library lacks.
    """

    nvmlMemory_v2 = 0x02000028

    def __init__(self, recording: Mapping[str, Any]) -> None:
        self._r = recording
        self.hang = threading.Event()  #: what `"hangs": [...]` functions wait for

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name != "nvmlMemory_v2":
            recording = object.__getattribute__(self, "_r")
            if name in recording.get("missing", ()):
                raise AttributeError(name)
            if name in recording.get("hangs", ()):
                object.__getattribute__(self, "hang").wait(30)
        return object.__getattribute__(self, name)

    @staticmethod
    def _answer(value: Any) -> Any:
        if isinstance(value, Mapping) and set(value) == {"error"}:
            raise FakeNVMLError(value["error"])
        return value

    def _of(self, handle: Mapping[str, Any], key: str) -> Any:
        return self._answer(handle.get(key, {"error": 3}))

    def nvmlInit(self) -> None:
        self._answer(self._r.get("init"))

    def nvmlShutdown(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return len(self._answer(self._r["devices"]))

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        device = self._r["devices"][index]
        return self._answer(device.get("handle", device))

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:
        for device in self._r["devices"]:
            if device.get("uuid") == uuid:
                return device
        raise FakeNVMLError(6)

    def nvmlDeviceGetName(self, handle: Any) -> Any:
        return self._of(handle, "name")

    def nvmlDeviceGetUUID(self, handle: Any) -> Any:
        return self._of(handle, "uuid")

    def nvmlDeviceGetPciInfo(self, handle: Any) -> Any:
        return SimpleNamespace(busId=self._of(handle, "pci").encode())

    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> Any:
        if version is not None and "nvmlDeviceGetMemoryInfo_v2" in self._r.get("missing", ()):
            raise FakeNVMLError(13)
        total, reserved, used = self._of(handle, "memory")
        if version is None:  # the first version counts what the driver keeps as used
            return SimpleNamespace(total=total, free=total - reserved - used, used=used + reserved)
        return SimpleNamespace(total=total, reserved=reserved, free=total - reserved - used, used=used)

    def nvmlDeviceGetComputeMode(self, handle: Any) -> Any:
        return self._of(handle, "compute_mode")

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> Any:
        return tuple(self._of(handle, "cc"))

    def nvmlDeviceGetNumGpuCores(self, handle: Any) -> Any:
        return self._of(handle, "cores")

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: int) -> Any:
        return self._of(handle, "clocks")[0 if kind == 1 else 1]

    def nvmlDeviceGetMemoryBusWidth(self, handle: Any) -> Any:
        return self._of(handle, "bus_width")

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: Any) -> Any:
        return self._of(handle, "pcie")["max_generation"]

    def nvmlDeviceGetCurrPcieLinkGeneration(self, handle: Any) -> Any:
        return self._of(handle, "pcie")["generation"]

    def nvmlDeviceGetCurrPcieLinkWidth(self, handle: Any) -> Any:
        return self._of(handle, "pcie")["width"]

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: Any) -> Any:
        return self._of(handle, "pcie")["max_width"]

    def nvmlDeviceGetMigMode(self, handle: Any) -> Any:
        return self._of(handle, "mig_mode")

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> Any:
        return self._of(handle, "mig_slots")

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: int) -> Any:
        instances = self._of(handle, "mig")
        if index >= len(instances) or instances[index] is None:
            raise FakeNVMLError(6)
        return instances[index]

    def nvmlDeviceGetGpuInstanceId(self, handle: Any) -> Any:
        return self._of(handle, "gi")

    def nvmlDeviceGetComputeInstanceId(self, handle: Any) -> Any:
        return self._of(handle, "ci")

    def nvmlDeviceGetAttributes(self, handle: Any) -> Any:
        return SimpleNamespace(**self._of(handle, "attributes"))

    def nvmlDeviceGetVirtualizationMode(self, handle: Any) -> Any:
        return self._of(handle, "virtualization")

    def nvmlDeviceGetDriverModel(self, handle: Any) -> Any:
        return self._of(handle, "driver_model")

    def nvmlDeviceGetEccMode(self, handle: Any) -> Any:
        return self._of(handle, "ecc")

    def _processes(self, handle: Any, key: str) -> Any:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self._of(handle, key)]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> Any:
        return self._processes(handle, "compute_processes")

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: Any) -> Any:
        return self._processes(handle, "graphics_processes")

    def nvmlDeviceGetNvLinkState(self, handle: Any, link: int) -> Any:
        links = self._of(handle, "nvlinks")
        if link >= len(links):
            raise FakeNVMLError(2)
        return links[link] is not None

    def nvmlDeviceGetNvLinkVersion(self, handle: Any, link: int) -> Any:
        return self._of(handle, "nvlink_version")

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: Any, link: int) -> Any:
        return SimpleNamespace(busId=self._of(handle, "nvlinks")[link].encode())
