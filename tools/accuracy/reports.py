"""Replay report files: what each said when it was written, and what is said today.

    python tools/accuracy/reports.py [--update] FILE...

A file that somebody attached to an issue becomes a case by lying in tests/reports. `--update` writes today's answer
into the files: for a change that moves figures on purpose. The exit code is 1 if a figure differs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from autofit.domain.text import printable
from autofit.reports.report import figures, pack, read_report, replay


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--update", action="store_true")
    options = parser.parse_args()
    moved = 0
    for path in options.files:
        report = read_report(path)
        now = replay(report)
        before, after = figures(report["answer"]), figures(now)
        print(f"{path.name}: {printable(' '.join(report['command']), 300)}")
        for name in before:
            if before[name] == after[name]:
                continue
            moved += 1
            print(f"  {name}\n    then  {before[name]}\n    now   {after[name]}")
        if options.update:
            path.write_bytes(pack({**report, "answer": now}))
    return int(moved > 0 and not options.update)


if __name__ == "__main__":
    sys.exit(main())
