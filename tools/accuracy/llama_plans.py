"""Random plans against the engine's own dry run.

    AUTOFIT_LLAMA_BIN=DIR python tools/accuracy/llama_plans.py MODELS_DIR [-n 200] [--seed 1]

Models, machines, wishes and pins are drawn from a seed (tests/support/plan_cases.py); model files are written to
MODELS_DIR as headers with a hole. A plan is right if it stays inside the budget on every device, and its figures are
the engine's.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from autofit.errors import AutofitError

from autofit_llama.backend import LlamaBackend
from support.dryrun import EngineRefusal, dry_run, engine_folder
from support.plan_cases import Case, cases, write

KINDS = ("model", "context", "compute")


def judge(case: Case, folder: Path) -> tuple[str, str]:
    """One word for the outcome, and the command."""
    path = write(case, folder)
    try:
        plan = LlamaBackend().plan(
            LlamaBackend().command(replace(case.request, model_reference=str(path))),
            case.model,
            case.machine,
            replace(case.request, model_reference=str(path)),
        )
    except AutofitError as error:
        return "refused", error.message
    command = " ".join(plan.argv[3:])
    try:
        real = dry_run(plan.argv, case.free_mib, api=case.api)
    except EngineRefusal as refusal:
        return "not taken", f"{command}: {str(refusal)[:200]}"
    margin = case.request.margin[0].n_bytes
    if plan.fits and any(real.device_bytes(i) + margin > device["free"] for i, device in enumerate(real.devices)):
        return "OVER BUDGET", command
    told = [tuple(device[f"{kind}_bytes"] for kind in KINDS) for device in plan.engine_report["devices"]]
    exact = told == [tuple(device[kind] for kind in KINDS) for device in real.devices]
    fits = "fits" if plan.fits else "does not fit"
    return (f"{fits}, exact" if exact else f"{fits}, bounded"), command


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path)
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if engine_folder() is None:
        print("AUTOFIT_LLAMA_BIN does not name a folder with llama.cpp's programs", file=sys.stderr)
        return 1
    args.models.mkdir(parents=True, exist_ok=True)
    outcomes: Counter[str] = Counter()
    start = time.perf_counter()
    for case in cases(args.n, args.seed):
        outcome, command = judge(case, args.models)
        outcomes[outcome] += 1
        if not outcome.endswith("exact"):
            print(f"{outcome}: {case.label}\n    {command}", flush=True)
    print(f"\n{args.n} jobs, seed {args.seed}, {time.perf_counter() - start:.0f} s")
    for outcome, count in outcomes.most_common():
        print(f"  {count:4} {outcome}")
    return 1 if outcomes["OVER BUDGET"] or outcomes["not taken"] else 0


if __name__ == "__main__":
    sys.exit(main())
