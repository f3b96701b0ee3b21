"""Commands that people published with what they ran on, beside the plan that is made for the same card.

    python tools/accuracy/experts.py [ID ...]

The commands are rows of tests/data/llama/reports.jsonl that ran. For each: context, KV type, `-ngl` and weights in main
memory, decode rate at 8192 tokens and with the context full (autofit's estimate for both sides, so that only the choice
differs); then the plan without a wish, and the plan for the published context and KV type.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "tests"), str(ROOT / "tools" / "accuracy")]

import autofit
from defaults import Side, side

from support import llama_reports

EXPERTS = ("B05", "B11", "B17", "B19", "B23", "B31", "B37", "B39", "B49", "B61", "B67")


def sides(row: llama_reports.Row) -> tuple[Side, Side, Side]:
    """What was published, what is planned without a wish, and for the published context and KV type."""
    machine, model = llama_reports.machine_of(row), llama_reports.model_of(row)
    published = autofit.check(llama_reports.words_of(row), machine, model=model, settings=None)
    layers = re.search(r"-ngl (\d+)", row["args"])
    kv = llama_reports.kv_of(row)
    theirs = replace(side(published), kv_type=kv)
    if layers:
        theirs = replace(theirs, placement=f"{layers[1]:>3} {theirs.placement.strip()}")
    plain = autofit.plan("llama", model, machine, settings=None)
    asked = autofit.plan("llama", model, machine, context=theirs.context_tokens, kv=kv, settings=None)
    return theirs, side(plain), side(asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ids", nargs="*", default=EXPERTS, metavar="ID")
    wanted = parser.parse_args().ids
    for row in llama_reports.rows():
        if row["id"] not in wanted:
            continue
        print(f"{row['id']} {row['model']} on {', '.join(row['hardware'])}: {row['args']}  [{row['source']}]")
        for name, found in zip(("published", "planned", "the same asked"), sides(row), strict=True):
            print(f"    {name:<16}{found}", flush=True)


if __name__ == "__main__":
    main()
