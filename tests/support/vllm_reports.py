"""What public reports say happened on real cards, and what autofit says of the same commands."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import autofit
from autofit.domain.plan import Plan
from autofit.errors import EngineRefusalError

from support import DATA

GIB = 1 << 30
REPORTS = DATA / "vllm" / "reports.jsonl"
CONFIGS = DATA / "vllm" / "report_configs.json.gz"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A report beside what autofit says of it; `plan` `None`: refused before memory was asked."""

    row: dict[str, Any]
    plan: Plan | None

    @property
    def ran(self) -> bool:
        return bool(self.row["real"] == "ran")

    @property
    def fits(self) -> bool:
        return self.plan is not None and self.plan.fits

    @property
    def low_bytes(self) -> int | None:
        """How much less autofit counts beside the KV cache than the report leaves room for; `None`: it does not say.

        What is not the cache is requested or consumed: room for the cache that is not there is a total too low."""
        if self.plan is None or "kv_gib" not in self.row["truth"]:
            return None
        available = self.plan.engine_report["available_kv_cache_bytes"]
        return int(min(available) - self.row["truth"]["kv_gib"] * GIB)  # type: ignore[call-overload]

    @property
    def label(self) -> str:
        return f"{self.row['config']} {self.row['n']}x {self.row['on']} {self.row['version']}"


def rows(path: Path = REPORTS) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@cache
def configs() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(gzip.decompress(CONFIGS.read_bytes()))
    return found


def write_checkpoint(name: str, into: Path) -> Path:
    """A directory with the configuration of a report's checkpoint, and nothing else."""
    directory = into / name
    if not directory.is_dir():
        directory.mkdir()
        for file, content in configs()[name].items():
            (directory / f"{file}.json").write_text(json.dumps(content), encoding="utf-8")
    return directory


def version_of(row: dict[str, Any]) -> str | None:
    """The release that a report names; `None` where it names a month, or less."""
    found = re.match(r"~?(\d+\.\d+[\w.]*)(?!x)", row["version"])
    return None if found is None or found[1].endswith("x") else found[1]


def judge(row: dict[str, Any], directory: Path) -> Verdict:
    """autofit's verdict on the report's command, on described cards."""
    ram = None if row["on"] == "gb10" else "2TiB"
    machine = autofit.load_machine(*[row["on"]] * row["n"], ram=ram)
    try:
        plan = autofit.check(
            ["vllm", "serve", str(directory), *row["args"]], machine, environ={}, engine_version=version_of(row)
        )
    except EngineRefusalError:
        return Verdict(row=row, plan=None)
    return Verdict(row=row, plan=plan)
