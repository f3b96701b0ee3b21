"""Damaged files, asked of a real llama.cpp and of us: who of the two refuses what.

    python tools/truth/mutants.py [--count 200] [--seed 1] [--part tiny] [--name MODEL] [--decode] [--keep FILE]

Each is a tiny model of the recorded ones with keys changed; in two of three the tensors are then given the shapes that
the loader asks for, so that the file comes as far as the graph. `AUTOFIT_LLAMA_BIN` names the folder of the engine's
programs (tests/support/dryrun.py). `--decode` also lets the engine read a prompt on the CPU. Printed is each file that
one of the two takes and the other refuses, or whose bytes differ; `--keep` writes them down as
tests/data/llama/mutants.jsonl has them. Exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "tests")]

from support.dryrun import engine_folder
from support.mutants import compare, mutants


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", help="of one model alone")
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    folder = engine_folder()
    if folder is None:
        parser.error("AUTOFIT_LLAMA_BIN names no folder with the programs")
    outcomes: dict[str, int] = {}
    kept = []
    with tempfile.TemporaryDirectory() as scratch:
        for given in mutants(options.count, options.seed, options.name):
            found = compare(given, Path(scratch) / "m.gguf", folder, decode=options.decode)
            outcomes[found.kind] = outcomes.get(found.kind, 0) + 1
            if found.is_odd:
                print(json.dumps({"kind": found.kind, "engine": found.engine, "ours": found.ours, "input": given}))
                sys.stdout.flush()
                kept.append(given)
    print(", ".join(f"{n} {kind}" for kind, n in sorted(outcomes.items())), file=sys.stderr)
    if options.keep is not None:
        options.keep.write_text("".join(json.dumps(each) + "\n" for each in kept), "utf-8")
    return int(bool(kept))


if __name__ == "__main__":
    sys.exit(main())
