"""Recorded dry runs of other builds of llama.cpp (tests/data/llama/versions), and what `check` makes of them.

A row: the model's file, the program and its arguments, free MiB of each device, and what that build reported per
device and for everything on no device; or `error`, where it refused.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import autofit
from autofit.domain.machine import Machine
from autofit.domain.request import Request
from autofit.domain.values import dataclass
from autofit.errors import AutofitError

import support
from autofit_llama.backend import LlamaBackend
from support.descriptors import spec

FOLDER = support.DATA / "llama" / "versions"
KINDS = ("model", "context", "compute")
NEAR_FRACTION, LOW_FRACTION = 0.001, 0.01
BACKEND = LlamaBackend()

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One row; `error` is of the device that is furthest off, as a fraction of the fullest device."""

    refused: bool = False
    refused_here: bool = False
    exact: tuple[str, ...] = ()
    error: float = 0.0
    is_near: bool = False
    is_low: bool = False
    lacks_bytes: int = 0
    what: str = ""

    @property
    def is_exact(self) -> bool:
        return self.refused_here if self.refused else self.exact == KINDS


def files() -> list[Path]:
    return sorted(FOLDER.glob("rows-b*.jsonl.gz"))


def build_of(path: Path) -> int:
    """The build number in the name of a file of rows."""
    return int(path.name.removeprefix("rows-b").partition(".")[0])


def rows_of(path: Path) -> Iterator[Row]:
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        yield json.loads(line)


@cache
def _machine(free_mib: tuple[int, ...]) -> Machine:
    return autofit.load_machine(*(f"generic-cuda:{mib}MiB" for mib in free_mib), ram="64GiB")


def judge(row: Row, build: int) -> Judged:
    """The row against `check` with `--engine-version` of the build."""
    refused = "devices" not in row
    part, _, file = row["file"].partition("/")
    version = f"b{build}"
    try:
        command = BACKEND.parse([row["program"], *row["args"]], version=version)
        machine = _machine(tuple(row["device_memory_mib"]))
        model = spec(part, file.removesuffix(".gguf"))
        report = BACKEND.check(command, model, machine, Request(engine_version=version)).engine_report
    except AutofitError as error:
        return Judged(refused=refused, refused_here=True, error=1.0, what=str(error))
    if refused:
        return Judged(refused=True, error=1.0, what=row["error"][-100:])
    found: Any = [[pool[f"{kind}_bytes"] for kind in KINDS] for pool in (*report["devices"], report["host"])]
    expected = [[pool[kind] for kind in KINDS] for pool in (*row["devices"], row["host_all"])]
    exact = tuple(k for i, k in enumerate(KINDS) if [p[i] for p in found] == [p[i] for p in expected])
    held = [sum(pool) for pool in expected]
    fullest = max(held[:-1], default=0) or held[-1]
    off = [sum(a) - n for a, n in zip(found, held, strict=True)]
    worst = max(off, key=abs)
    on_devices = off[:-1] or off
    fills = (
        zip(found[:-1], expected[:-1], held[:-1], strict=True) if off[:-1] else zip(found, expected, held, strict=True)
    )
    lacks = max(0, -min(on_devices))
    return Judged(
        exact=exact,
        error=worst / fullest,
        is_near=all(abs(a[2] - b[2]) <= NEAR_FRACTION * max(n, 1) for a, b, n in fills),
        is_low=lacks > LOW_FRACTION * fullest,
        lacks_bytes=lacks,
        what=" ".join(f"{k}:" + ",".join(str(a[i] - b[i]) for a, b in zip(found, expected, strict=True))
                      for i, k in enumerate(KINDS) if k not in exact),
    )  # fmt: skip
