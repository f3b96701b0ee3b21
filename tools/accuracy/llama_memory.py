"""Every figure of `check` against the engine's own dry runs, per kind of model and per architecture.

    python tools/accuracy/llama_memory.py [--api cuda|rpc] [--by kind|arch|model] [--worst N] [TRUTH.jsonl MODELS_DIR]

Without a file, the rows in tests/data/llama are taken; TRUTH and MODELS_DIR are as in llama_compute.py.
For weights, cache and compute buffers: how many rows are exact on every device and on the host. For what a
device holds in all, against the fullest device of its row: rows within 1 % and 3 %, rows below the truth, and
the worst error. `refused`: rows that the engine refuses, and how many of them are refused here. The exit code is
1 if a row is not exact.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "tests")]

import autofit
from autofit.domain.machine import Machine
from autofit.domain.model import ModelSpec
from autofit.errors import AutofitError
from autofit.readers.gguf import read_gguf

from autofit_llama.backend import LlamaBackend
from autofit_llama.model.context import ContextParams
from autofit_llama.model.hparams import HParams
from autofit_llama.model.load import read_hparams
from autofit_llama.model.resolve import caches, resolve_context
from support import recorded
from support.commands import tiny_rows

KINDS = ("model", "context", "compute")
Row = Mapping[str, Any]


@dataclass(slots=True)
class Tally:
    n_rows: int = 0
    n_refused: int = 0
    n_refused_here: int = 0
    n_wrong: int = 0  #: refused here alone, or failed
    exact: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    n_near: int = 0
    n_close: int = 0
    n_low: int = 0
    worst: float = 0.0

    def add(self, other: Tally) -> None:
        for name in ("n_rows", "n_refused", "n_refused_here", "n_wrong", "n_near", "n_close", "n_low"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for kind in KINDS:
            self.exact[kind] += other.exact[kind]
        self.worst = max(self.worst, other.worst)


def recorded_rows() -> Iterator[tuple[Row, str, Callable[[], ModelSpec]]]:
    for row in (*recorded.rows(), *tiny_rows()):
        yield row, row["model"], lambda row=row: recorded.sized(row["part"], row["model"]).model  # type: ignore[misc]


def rows_of(truth: Path, models: Path) -> Iterator[tuple[Row, str, Callable[[], ModelSpec]]]:
    """Rows as the engine's dry run printed them, in the shape of the recorded ones."""

    @cache
    def load(file: str) -> ModelSpec:
        return read_gguf(models / file)

    for line in truth.read_text().splitlines():
        raw = json.loads(line)
        row = dict(raw, api=raw["backend"], free_mib=raw["device_memory_mib"])
        if "devices" in raw:
            row["devices"] = [[device[kind] for kind in KINDS] for device in raw["devices"]]
            row["host"] = [raw["host_all"][kind] for kind in KINDS]
        yield row, raw["file"], lambda file=raw["file"]: load(file)  # type: ignore[misc]


@cache
def machine_of(api: str, free_mib: tuple[int, ...]) -> Machine:
    return autofit.load_machine(*(f"generic-{api}:{mib}MiB" for mib in free_mib), ram="64GiB")


@cache
def kind_of(hp: HParams) -> str:
    """What makes the memory of an architecture unlike a plain transformer's."""
    names = {each.name for each in caches(hp, resolve_context(hp, ContextParams(n_ctx=4096)))}
    if not names:
        return "encoder"
    if hp.is_mla:
        return "latent attention"
    if "recurrent" in names:
        return "hybrid" if len(names) > 1 else "recurrent"
    experts = ", experts" if any(hp.n_expert_used) else ""
    return ("sliding window" if "swa" in names else "full attention") + experts


def compare(row: Row, report: Mapping[str, Any]) -> Tally:
    tally = Tally(n_rows=1)
    found = [[pool[f"{kind}_bytes"] for kind in KINDS] for pool in (*report["devices"], report["host"])]
    expected = [*row["devices"], row["host"]]
    for i, kind in enumerate(KINDS):
        tally.exact[kind] = int([pool[i] for pool in found] == [pool[i] for pool in expected])
    largest = max((sum(pool) for pool in expected[:-1]), default=0) or 1
    errors = [(sum(a) - sum(b)) / largest for a, b in zip(found[:-1], expected[:-1], strict=True)]
    worst = max(errors, key=abs, default=0.0)
    tally.worst = abs(worst)
    tally.n_near = int(abs(worst) <= 0.01)
    tally.n_close = int(abs(worst) <= 0.03)
    tally.n_low = int(min(errors, default=0.0) < 0)
    return tally


def judge(backend: LlamaBackend, row: Row, model: ModelSpec) -> Tally:
    refused = "devices" not in row
    try:
        command = backend.parse([row["program"], *row["args"]])
        report = backend.check(command, model, machine_of(row["api"], tuple(row["free_mib"]))).engine_report
    except AutofitError as error:
        if not refused:
            print(row["id"], row["model"], *row["args"], f"refused: {error}", file=sys.stderr)
        return Tally(n_rows=1, n_refused=int(refused), n_refused_here=int(refused), n_wrong=int(not refused))
    return Tally(n_rows=1, n_refused=1) if refused else compare(row, report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truth", type=Path, nargs="?")
    parser.add_argument("models", type=Path, nargs="?")
    parser.add_argument("--api", choices=("cuda", "rpc"))
    parser.add_argument("--by", choices=("kind", "arch", "model"), default="kind")
    parser.add_argument("--part", choices=("models", "archs", "tiny"), help="only these rows")
    parser.add_argument("--worst", type=int, default=0, metavar="N", help="print the N rows that are furthest off")
    options = parser.parse_args()
    rows = rows_of(options.truth, options.models) if options.truth else recorded_rows()
    backend, tallies = LlamaBackend(), dict[tuple[str, str], Tally]()
    off: list[tuple[float, Row]] = []
    begin = time.perf_counter()
    for row, name, load in rows:
        if options.api not in (None, row["api"]) or options.part not in (None, row.get("part")):
            continue
        model = load()
        group = name
        if options.by != "model":
            hp = read_hparams(model) if options.truth else recorded.sized(row["part"], row["model"]).hparams
            group = kind_of(hp) if options.by == "kind" else hp.arch
        tally = judge(backend, row, model)
        tallies.setdefault((row["api"], group), Tally()).add(tally)
        if tally.worst or tally.n_wrong:
            off.append((1.0 if tally.n_wrong else tally.worst, row))
    elapsed = time.perf_counter() - begin
    print(
        f"{'':30} {'rows':>5} {'weights':>7} {'cache':>7} {'compute':>7} {'<=1%':>6} {'<=3%':>6} "
        f"{'low':>5} {'worst':>8} {'refused':>8} {'wrong':>5}"
    )
    for api in sorted({api for api, _ in tallies}):
        total = Tally()
        for (of, group), tally in sorted(tallies.items()):
            if of == api:
                _print(f"{api} {group}", tally)
                total.add(tally)
        _print(f"{api}, all", total)
    n_rows = sum(tally.n_rows for tally in tallies.values())
    print(f"{elapsed / max(n_rows, 1) * 1000:.1f} ms a row")
    for error, row in sorted(off, key=lambda pair: -pair[0])[: options.worst]:
        print(f"{error:8.3%} {row['api']} {row['id']} {row['model']} {' '.join(row['args'])} {row['free_mib']}")
    sys.exit(1 if off else 0)


def _print(name: str, t: Tally) -> None:
    n = t.n_rows - t.n_refused
    exact = " ".join(f"{t.exact[kind]:7}" for kind in KINDS)
    print(
        f"{name[:30]:30} {n:5} {exact} {t.n_near:6} {t.n_close:6} {t.n_low:5} {t.worst:8.3%} "
        f"{t.n_refused_here:4}/{t.n_refused:3} {t.n_wrong:5}"
    )


if __name__ == "__main__":
    main()
