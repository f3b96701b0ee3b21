"""Public reports of llama.cpp on real cards (tests/data/llama/reports.jsonl), and what `check` says of the commands.

A row: build, hardware (names of profiles, or files under `report_hardware`), RAM, the model's description,
arguments, and what happened: `ran` or `oom`, with MiB in use of each device, or of all together, where that was told.
`limits` says what a row cannot show.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import autofit
from autofit.domain.machine import Machine
from autofit.domain.model import ModelSpec
from autofit.domain.units import MIB
from autofit.hardware import load_machine

from autofit_llama.engine.builds import builds
from support.descriptors import DATA, spec

Row = Mapping[str, Any]


class Verdict(NamedTuple):
    """What happened, what `check` says, and bytes told beyond those in use (`None`: not stated)."""

    label: str
    ran: bool
    says: str
    over_bytes: tuple[int, ...] | None
    used_bytes: int | None


@cache
def rows(path: Path = DATA / "reports.jsonl") -> tuple[Row, ...]:
    """The rows that tell how a command ended."""
    found = map(json.loads, path.read_text("utf-8").splitlines())
    return tuple(row for row in found if row["kind"] == "verdict")


def model_of(row: Row, models: Path | None = None) -> ModelSpec | str:
    name = row["model"].removesuffix(".gguf")
    if models is not None:
        return str(models / row["model"])
    part = "report_models" if (DATA / "report_models" / f"{name}.json.gz").exists() else "models"
    return spec(part, name)


_FIRST_LOAD_MODE = 10361  #: builds before it have other words for `-lm`


def build_of(row: Row) -> str | None:
    """The build where a number or a month is told.

    The documentation of llama-fit-params shows a build that had `--fit` before any release.
    """
    found = re.search(r"\bb(\d{4,5})\b", row["build"])
    number = int(found[1]) if found else _last_of(row["build"])
    return None if number is None or "fit-params" in row["source"] else f"b{number}"


def _last_of(month: str) -> int | None:
    """The last recorded build of a month: what has changed by then, has."""
    return max((build.number for build in builds() if build.day.startswith(f"{month}-")), default=None)


def words_of(row: Row) -> list[str]:
    """The command, in the words of its build: rows are all written with today's.

    A binding has logits for every token, as llama-fit-params has and no server.
    """
    build = build_of(row)
    args, program = row["args"], "llama-fit-params" if "rows of logits" in row["note"] else "llama-server"
    if build is not None and int(build[1:]) < _FIRST_LOAD_MODE:
        args = args.replace("-lm none", "--no-mmap")
    return [program, "-m", row["model"], *shlex.split(args)]


def machine_of(row: Row, hardware: Path = DATA / "report_hardware") -> Machine:
    names = [str(hardware / name) if name.endswith(".toml") else name for name in row["hardware"]]
    return load_machine(*names, ram=row["ram"])


def kv_of(row: Row) -> str:
    """The type of the keys' cache that a command names."""
    found = re.search(r"-ctk (\S+)", row["args"])
    return found[1] if found else "f16"


def judge(row: Row, *, hardware: Path = DATA / "report_hardware", models: Path | None = None) -> Verdict:
    options = dict(zip(row["extra"][::2], row["extra"][1::2], strict=True))
    plan = autofit.check(
        words_of(row),
        machine_of(row, hardware),
        model=model_of(row, models),
        engine_version=build_of(row),
        margin=options.get("--margin"),
        settings=None,
    )
    told = [round(mib * MIB) for mib in row["reported"]["vram_mib"] or ()]
    *cards, host = plan.memory.pools
    used = [pool.used_bytes for pool in cards] or [limit.used_bytes for limit in host.limits]
    if len(told) == 1:
        used = [sum(used)]
    over = tuple(a - b for a, b in zip(used, told, strict=True)) if told and len(used) == len(told) else None
    return Verdict(
        label=f"{row['id']} {row['model']} on {', '.join(row['hardware'])}",
        ran=row["reported"]["outcome"] == "ran",
        says=plan.verdict,
        over_bytes=over,
        used_bytes=sum(told) if told else None,
    )
