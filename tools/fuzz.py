"""The fuzzers for as long as one likes; escapes are printed and kept as inputs for `tests/fuzz/corpus`.

python tools/fuzz.py [--seconds 600] [--target NAME ...] [--jobs 2] [--seed N] [--keep DIRECTORY]
python tools/fuzz.py --atheris NAME [--seconds 600]     one target under coverage-guided Atheris (pip install atheris)

Exit code 1 when something has escaped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import random
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

from contextlib import nullcontext

with (
    nullcontext()
    if "--atheris" not in sys.argv
    else __import__("atheris").instrument_imports(include=["autofit", "autofit_llama", "autofit_vllm"])
):
    from support.fuzzing import escape_of, run_for
    from support.fuzzing.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="in all, shared by the targets")
    parser.add_argument("--target", action="append", choices=tuple(TARGETS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", type=Path, help="write one input of each kind of escape here")
    parser.add_argument("--atheris", choices=tuple(TARGETS))
    options = parser.parse_args()
    if options.atheris:
        return guided(options.atheris, int(options.seconds))
    names = options.target or list(TARGETS)
    seconds = options.seconds * options.jobs / len(names)
    jobs = [(name, options.seed, seconds) for name in names]
    with multiprocessing.Pool(options.jobs) as pool:
        results = list(pool.imap(one, jobs))
    kinds = 0
    for name, count, escapes in results:
        print(f"{name:<14} {count:>9,} inputs  {len(escapes)} kinds of escapes")
        for kind, (times, text) in escapes.items():
            kinds += 1
            print(f"  {times} x {kind}")
            if options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
                digest = hashlib.sha256(text.encode()).hexdigest()[:8]
                (options.keep / f"{name}-{digest}.json").write_text(text + "\n", "utf-8")
    print(f"{sum(count for _, count, _ in results):,} inputs, seed {options.seed}")
    return 1 if kinds else 0


def one(job: tuple[str, int, float]) -> tuple[str, int, dict[str, tuple[int, str]]]:
    """Run one target; returns its name, the number of inputs, and one input of each kind of escape."""
    name, seed, seconds = job
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    total = 0
    for found in run_for(TARGETS[name], seed=seed, seconds=seconds):
        total += 1
        if found:
            kind = json.loads(found)["escape"][:140]
            counts[kind] += 1
            if len(found) < len(first.setdefault(kind, found)):
                first[kind] = found
    return name, total, {kind: (times, first[kind]) for kind, times in counts.items()}


def guided(name: str, seconds: int) -> int:
    """A target under Atheris: the bytes that it offers are the source of what `make` draws."""
    import atheris

    target = TARGETS[name]

    def check(data: bytes) -> None:
        found = escape_of(target, target.make(random.Random(data)))
        if found is not None:
            raise AssertionError(found)

    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=512", "-rss_limit_mb=4096"], check)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
