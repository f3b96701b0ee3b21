"""How close the vLLM plugin comes to the planners of older releases: a table by release, and what differs.

    python tools/accuracy/vllm_versions.py [--moves] [ROWS.jsonl.gz]

Rows are those of tests/data/vllm/versions (the default), or others of the same form. With `--moves`: by how much
weights and the cache of a row grew from one recorded release to the next. The exit code is 1 if a row differs.
"""

from __future__ import annotations

import itertools
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from support import vllm_truth, vllm_versions

KINDS = ("resolved", "cache", "weights", "refused")


def main(arguments: list[str]) -> None:
    paths = [Path(each) for each in arguments if not each.startswith("--")]
    rows = list(vllm_versions.rows(*paths))
    if "--moves" in arguments:
        show_moves(rows)
        return
    tally: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    wrong = []
    for row in rows:
        for kind, different in vllm_versions.judge(row).items():
            tally[row["version"]][kind].append(not different)
            if different:
                wrong.append(f"{row['version']} {vllm_truth.label(row)}: {kind}: {different}"[:300])
    print(f"{'release':10} {'rows':>5} " + " ".join(f"{kind:>10}" for kind in KINDS))
    for version, kinds in tally.items():
        n_rows = sum(row["version"] == version for row in rows)
        counts = (f"{sum(kinds[kind])}/{len(kinds[kind])}" for kind in KINDS)
        print(f"{version:10} {n_rows:5} " + " ".join(f"{count:>10}" for count in counts))
    for line in wrong:
        print("  different:", line)
    sys.exit(1 if wrong else 0)


def show_moves(rows: list[dict[str, Any]]) -> None:
    """Of rows that two recorded releases in succession have, the largest growth; in all in parts of a GPU too."""
    by_row: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        if not vllm_truth.refusal(row):
            by_row[vllm_truth.label(row)][row["version"]] = row
    versions = list(dict.fromkeys(row["version"] for row in rows))
    print(f"{'from':10} {'to':10} {'rows':>5} {'weights':>9} {'full request':>13} {'of the GPU':>11}")
    for before, after in itertools.pairwise(versions):
        pairs = [(found[before], found[after]) for found in by_row.values() if before in found and after in found]
        weights = [_growth(*map(vllm_versions.weights_bytes, pair)) for pair in pairs]
        cache = [_growth(*map(vllm_versions.request_bytes, pair)) for pair in pairs]
        parts = [vllm_versions.moved_fraction(*pair) for pair in pairs]
        print(f"{before:10} {after:10} {len(pairs):5} {max(weights):+9.2%} {max(cache):+13.2%} {max(parts):+11.2%}")


def _growth(before: float, after: float) -> float:
    return after / before - 1


if __name__ == "__main__":
    main(sys.argv[1:])
