"""autofit's plan against llama.cpp's own --fit, on recorded cases, both measured by the engine's dry run.

    AUTOFIT_LLAMA_BIN=DIR python bench/fit_duel.py CASES.jsonl MODELS_DIR [--only TEXT]

CASES holds one object per line: `file`, `backend` (cuda or rpc), `free_mib` per device, `margin_mib`, the user's
`args`, and what --fit chose (`chosen`, `devices` with the bytes of each). Our command is fed to the same dry run. A
row is won if it stays inside the budget everywhere, leaves no fewer weights on devices, and is predicted to decode
no slower at the same fill of the context.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from autofit.domain.machine import Device, Host, Machine
from autofit.domain.plan import Plan
from autofit.domain.request import Margin, Request
from autofit.domain.units import GIB, MIB
from autofit.readers import read_model

from autofit_llama.backend import LlamaBackend
from autofit_llama.command.parse import settings_of
from autofit_llama.command.reading import read
from autofit_llama.launch.defaults import launch_of
from autofit_llama.launch.process import run_of
from autofit_llama.memory.estimate import estimate, size
from autofit_llama.speed.rates import FILLED_TOKENS, speed_of
from support.dryrun import EngineRefusal, dry_run, engine_folder

_REMOTE = re.compile(r"(RPC\d+)\[[^\]]*\]")  #: a remote device's buffer type; its address was another one then


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two plans: weights on devices, tokens of context, decode rate."""

    weights_bytes: int
    n_ctx: int
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    label: str
    fit: Side
    ours: Side | None
    worst_spare_bytes: int  #: of the budget, on the fullest device
    exact: bool  #: our own figures are those of the dry run
    seconds: float
    command: str
    problem: str = ""

    @property
    def won(self) -> bool:
        return (
            not self.problem
            and self.ours is not None
            and self.worst_spare_bytes >= 0
            and self.ours.weights_bytes >= self.fit.weights_bytes
            and self.ours.rate >= self.fit.rate * (1 - 1e-9)
        )


def machine_of(case: dict[str, Any]) -> Machine:
    """The recorded hardware: so much free on each device, nothing beside the buffers, the speed of an RTX 3090."""
    devices = tuple(
        Device(
            id=f"GPU{i}",
            index=i,
            name="card",
            api=case["backend"],
            total_bytes=mib * MIB,
            free_bytes=mib * MIB,
            runtime_bytes=0,
            compute_capability=(8, 9) if case["backend"] == "cuda" else None,
            bandwidth_bytes_per_s=936_000_000_000,
            fp16_flops_per_s=71_000_000_000_000,
            link_bytes_per_s=31_500_000_000,
        )
        for i, mib in enumerate(case["free_mib"])
    )
    host = Host(total_bytes=None, available_bytes=None, n_cores_physical=8, bandwidth_bytes_per_s=60_000_000_000)
    return Machine(host=host, devices=devices)


def rate_of(model: Any, machine: Machine, argv: list[str]) -> float:
    """Predicted decode rate of a command, with the same fill whatever its context."""
    reading = read([_REMOTE.sub(r"\1", word) for word in argv])
    settings = settings_of(reading)
    sized = size(model)
    run = run_of(launch_of(settings, reading.program), model, machine, sized=sized)
    speed = speed_of(run, estimate(run, machine), machine, n_filled=min(FILLED_TOKENS, settings.n_ctx or FILLED_TOKENS))
    assert speed is not None
    return speed.decode_tokens_per_s


def duel(case: dict[str, Any], models: Path, folder: Path) -> Row:
    path = models / case["file"]
    model, machine = read_model(str(path)), machine_of(case)
    margin = case["margin_mib"] * MIB
    label = f"{case['model']} {case['backend']} {'+'.join(map(str, case['free_mib']))} {' '.join(case['args'])}".strip()
    fit = Side(
        weights_bytes=sum(device["model"] for device in case["devices"]),
        n_ctx=case["n_ctx"],
        rate=rate_of(model, machine, ["llama-server", "-m", str(path), "-np", "1", *case["args"], *case["chosen"]]),
    )
    request = Request(margin=(Margin(n_bytes=margin),), engine_args=tuple(case["args"]), model_reference=str(path))
    start = time.perf_counter()
    plan = LlamaBackend().plan(LlamaBackend().command(request), model, machine, request)
    seconds = time.perf_counter() - start
    return _measure(label, case, model, machine, plan, fit, margin, seconds, folder)


def _measure(
    label: str, case: dict[str, Any], model: Any, machine: Machine, plan: Plan, fit: Side, margin: int,
    seconds: float, folder: Path,
) -> Row:  # fmt: skip
    command = " ".join(plan.argv[3:])
    if not plan.fits:
        return Row(label=label, fit=fit, ours=None, worst_spare_bytes=0, exact=False, seconds=seconds,
                   command=command, problem="no plan")  # fmt: skip
    try:
        real = dry_run(plan.argv, case["free_mib"], api=case["backend"], folder=folder)
    except EngineRefusal as refusal:
        return Row(label=label, fit=fit, ours=None, worst_spare_bytes=0, exact=False, seconds=seconds,
                   command=command, problem=f"refused: {str(refusal)[:200]}")  # fmt: skip
    free = {device["name"]: device["free"] for device in real.devices}
    spare = min(free[device["name"]] - margin - real.device_bytes(i) for i, device in enumerate(real.devices))
    report = [
        tuple(device[f"{kind}_bytes"] for kind in ("model", "context", "compute"))
        for device in plan.engine_report["devices"]
    ]
    told = [tuple(device[kind] for kind in ("model", "context", "compute")) for device in real.devices]
    ours = Side(weights_bytes=real.weights_bytes, n_ctx=real.n_ctx, rate=rate_of(model, machine, list(plan.argv)))
    return Row(
        label=label, fit=fit, ours=ours, worst_spare_bytes=spare, exact=report == told, seconds=seconds, command=command
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cases", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--only", default="", help="only rows whose label has this text")
    parser.add_argument("--commands", action="store_true", help="print each command")
    args = parser.parse_args()
    folder = engine_folder()
    if folder is None:
        print("AUTOFIT_LLAMA_BIN does not name a folder with llama.cpp's programs", file=sys.stderr)
        return 1
    rows = []
    print(f"{'case':66} {'weights GiB':>17} {'tokens/s':>15} {'context':>15} {'spare MiB':>9} {'ms':>5}")
    for line in args.cases.read_text().splitlines():
        case = json.loads(line)
        if args.only not in f"{case['model']} {case['backend']}":
            continue
        row = duel(case, args.models, folder)
        rows.append(row)
        print(_line(row), flush=True)
        if args.commands or not row.won:
            print(f"    {row.command}")
    return _sum_up(rows)


def _line(row: Row) -> str:
    if row.ours is None:
        return f"{row.label:66.66} {row.problem}"
    weights = f"{row.fit.weights_bytes / GIB:.2f} -> {row.ours.weights_bytes / GIB:.2f}"
    rates = f"{row.fit.rate:.1f} -> {row.ours.rate:.1f}"
    contexts = f"{row.fit.n_ctx} -> {row.ours.n_ctx}"
    verdict = ("" if row.won else "  LOST") + ("" if row.exact else "  figures differ")
    spare = row.worst_spare_bytes / MIB
    return f"{row.label:66.66} {weights:>17} {rates:>15} {contexts:>15} {spare:9.1f} {row.seconds * 1e3:5.0f}{verdict}"


def _sum_up(rows: list[Row]) -> int:
    both = [(row.fit, row.ours) for row in rows if row.ours is not None]
    ratios = [ours.rate / fit.rate for fit, ours in both] or [math.nan]
    inside = sum(row.ours is not None and row.worst_spare_bytes >= 0 for row in rows)
    fuller = sum(ours.weights_bytes >= fit.weights_bytes for fit, ours in both)
    mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
    median = sorted(row.seconds for row in rows)[len(rows) // 2] * 1e3 if rows else math.nan
    print(
        f"\n{len(rows)} cases: {inside} inside the budget on every device, {fuller} with no fewer weights on devices, "
        f"{sum(ratio >= 1 - 1e-9 for ratio in ratios)} no slower, {sum(row.exact for row in rows)} with exact figures; "
        f"decode rate {mean:.3f} times that of --fit (geometric mean), {min(ratios):.3f} at worst; "
        f"{median:.0f} ms for a plan in the median"
    )
    return 0 if all(row.won for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
