"""How far builds of llama.cpp moved: what each device takes in the same launch by two recorded builds.

    python tools/accuracy/llama_moves.py

The margins of builds outside the recorded ones rest on it: STEP_BYTES and UNLIKE_BYTES of engine/versions.py.
"""

from __future__ import annotations

import gzip
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "tests")]

from support.llama_versions import build_of, files

MIB = 1 << 20


def rows(path: Path) -> Mapping[str, list[int]]:
    """Launch -> bytes of each device; launches that the build refused are left out."""
    found = {}
    with gzip.open(path, "rt") as file:
        for row in map(json.loads, file):
            if "devices" in row:
                launch = [row.get("model") or row["args"], row["args"], row["program"], row["device_memory_mib"]]
                found[json.dumps(launch)] = [d["model"] + d["context"] + d["compute"] for d in row["devices"]]
    return found


def moves() -> Iterator[tuple[int, int, list[int]]]:
    """Of each two builds, older and newer: what each device took more in the newer one, sorted."""
    recorded = {build_of(path): rows(path) for path in files()}
    for older, newer in itertools.combinations(sorted(recorded), 2):
        a, b = recorded[older], recorded[newer]
        both = a.keys() & b.keys()
        more = sorted(y - x for launch in both for x, y in zip(a[launch], b[launch], strict=True))
        if more:
            yield older, newer, more


def main() -> None:
    print("  older   newer  devices    least      1 %   median     99 %     most  MiB more in the newer")
    for older, newer, more in moves():
        figures = (more[0], more[len(more) // 100], more[len(more) // 2], more[int(0.99 * len(more))], more[-1])
        shown = " ".join(f"{n / MIB:8.1f}" for n in figures)
        print(f"{f'b{older}':>7} {f'b{newer}':>7} {len(more):>8} {shown}")


if __name__ == "__main__":
    main()
