"""Every recorded build of llama.cpp: its own dry runs against what `check` says with its build number.

    python tools/accuracy/llama_versions.py [--build N] [--worst N] [--by arch|model] [ROWS.jsonl.gz...]

Without files, the rows in tests/data/llama/versions are taken; the build is the number in a file's name. For every
build: rows that the engine ran, and those that it refused and how many of them are refused here; rows whose weights,
caches and compute buffers are exact on every device and on the host; rows whose compute buffers are within 0.1 % of
what their devices hold; rows where a device holds more than 1 % more than said, and by how much at most. The exit code
is 1 if a row is not exact.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "tests")]

from support.llama_versions import KINDS, Judged, Row, files, judge, rows_of


@dataclass(slots=True)
class Tally:
    n_rows: int = 0
    n_refused: int = 0
    n_refused_here: int = 0
    n_wrong: int = 0  #: refused here alone
    exact: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    n_near: int = 0
    n_low: int = 0
    lacks_bytes: int = 0

    def add(self, one: Judged) -> None:
        self.n_refused += one.refused
        self.n_refused_here += one.refused and one.refused_here
        if one.refused:
            return
        self.n_rows += 1
        self.n_wrong += one.refused_here
        for kind in one.exact:
            self.exact[kind] += 1
        self.n_near += one.is_near
        self.n_low += one.is_low
        self.lacks_bytes = max(self.lacks_bytes, one.lacks_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, nargs="*")
    parser.add_argument("--build", type=int, action="append", help="only this build")
    parser.add_argument("--as", type=int, dest="told", metavar="BUILD", help="plan for this build instead")
    parser.add_argument("--by", choices=("arch", "model"), help="a line for each, too")
    parser.add_argument("--worst", type=int, default=0, metavar="N", help="print the N rows that are furthest off")
    options = parser.parse_args()
    tallies: dict[tuple[int, str], Tally] = defaultdict(Tally)
    off: list[tuple[float, int, Row, Judged]] = []
    begin, n_rows = time.perf_counter(), 0
    for path in options.rows or files():
        build = int(re.findall(r"\d+", path.name)[-1])
        if options.build and build not in options.build:
            continue
        for row in rows_of(path):
            one = judge(row, options.told or build)
            n_rows += 1
            for group in ("", *([row[options.by]] if options.by else [])):
                tallies[build, group].add(one)
            if not one.is_exact:
                off.append((one.error, build, row, one))
    print(f"{'build':30} {'rows':>5} {'weights':>7} {'caches':>7} {'compute':>7} {'<=0.1%':>6} {'>1%low':>6} "
          f"{'lacks at most':>14} {'refused':>8} {'wrong':>5}")  # fmt: skip
    for (build, group), t in sorted(tallies.items()):
        exact = " ".join(f"{t.exact[kind]:7}" for kind in KINDS)
        lacks, refused = f"{t.lacks_bytes / 2**20:.1f} MiB", f"{t.n_refused_here}/{t.n_refused}"
        name = f"b{build} {group}"
        print(f"{name:30} {t.n_rows:5} {exact} {t.n_near:6} {t.n_low:6} {lacks:>14} {refused:>8} {t.n_wrong:5}")
    print(f"{(time.perf_counter() - begin) / max(n_rows, 1) * 1000:.1f} ms a row")
    for error, build, row, one in sorted(off, key=lambda each: -abs(each[0]))[: options.worst]:
        print(f"{error:+8.3%} b{build} {row['id']} {row['file']} {row['program']} {' '.join(row['args'])}"
              f" {row['device_memory_mib']} {one.what}")  # fmt: skip
    sys.exit(1 if off else 0)


if __name__ == "__main__":
    main()
