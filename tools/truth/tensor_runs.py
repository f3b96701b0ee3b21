"""Runs with `-sm tensor`: what each device holds, and whether the engine gets through a prompt.

    python tools/truth/tensor_runs.py [--rows 2]       writes tests/data/llama/tensor_runs.jsonl.gz

Models are those of tests/data/llama: of real size in a dry run, tiny ones of every architecture really loaded and
decoded as well, on devices that compute nothing. `AUTOFIT_LLAMA_BIN` names the folder of the engine's programs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "tests")]

from dry_runs import tensor_case

from support import descriptors, ggufs
from support.dryrun import EngineRefusal, allocated_bytes, dry_run

TARGET = descriptors.DATA / "tensor_runs.jsonl.gz"
#: models that read a whole text at once, which these programs do not run
WANTS_ALL_OUTPUTS = "n_outputs_max <= cparams.n_outputs_max"
NO_VOCABULARY = ("phi-3-mini-4k-F16",)  #: one whose strings the engine needs
KINDS = ("model", "context", "compute")


def rows_of(part: str, name: str, n_rows: int, seed: int) -> Iterator[dict[str, Any]]:
    model, rng = descriptors.spec(part, name), random.Random(f"{seed} {part} {name}")
    with tempfile.TemporaryDirectory() as folder:
        path = ggufs.from_description(descriptors.description(part, name)).write(Path(folder) / "model.gguf")
        for _ in range(n_rows):
            program, args, free_mib = tensor_case(rng, model)
            row = {"part": part, "model": name, "program": program, "args": args, "free_mib": free_mib, "api": "cuda"}
            argv = [program, "-m", str(path), *args]
            try:
                found = dry_run(argv, free_mib)
                if part != "models":
                    row["allocated"] = allocated_bytes(argv, free_mib)
            except EngineRefusal as error:
                if WANTS_ALL_OUTPUTS not in str(error):
                    said = re.findall(r"not implemented for architecture|[a-z0-9-]+\.cpp:\d+: [^\n]*", str(error))
                    yield {**row, "refused": said[-1] if said else str(error).strip()[-200:]}
                    continue
            row["devices"] = [[device[kind] for kind in KINDS] for device in found.devices]
            yield {**row, "host": [found.host[kind] for kind in KINDS]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    parts = ("models", "archs", "tiny")
    models = [(part, name) for part in parts for name in descriptors.names(part)]
    models = [(part, name) for part, name in models if "-of-" not in name and name not in NO_VOCABULARY]
    rows = [row for part, name in models for row in rows_of(part, name, options.rows, options.seed)]
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    TARGET.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(len(models), "models,", len(rows), "rows,", sum("refused" in row for row in rows), "refused")


if __name__ == "__main__":
    main()
