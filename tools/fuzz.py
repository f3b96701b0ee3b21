"""The fuzzers for as long as one likes; escapes are printed and kept as inputs for `tests/fuzz/corpus`.

python tools/fuzz.py [--seconds 600] [--target NAME ...] [--jobs 2] [--seed N] [--keep DIRECTORY]
python tools/fuzz.py --count 3000000                    so many inputs, shared as in the short run of the tests
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
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WARM, MOST_SECONDS = 20, 300.0  #: under Atheris: inputs before it begins, and of one input
sys.path[:0] = [str(ROOT / "tests")]

if "--atheris" in sys.argv:
    import atheris

    # never left: much is imported where it is needed
    atheris.instrument_imports(include=["autofit", "autofit_llama", "autofit_vllm"]).__enter__()

from support.fuzzing import escape_of, run_for
from support.fuzzing.targets import TARGETS


class Job(NamedTuple):
    """So many inputs of a target, or inputs for so many seconds."""

    name: str
    seed: int
    count: int | None = None
    seconds: float | None = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="in all, shared by the targets")
    parser.add_argument("--count", type=int, help="inputs in all, however long they take, instead of seconds")
    parser.add_argument("--target", action="append", choices=tuple(TARGETS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", type=Path, help="write one input of each kind of escape here")
    parser.add_argument("--atheris", choices=tuple(TARGETS))
    options = parser.parse_args()
    if options.atheris:
        return guided(options.atheris, int(options.seconds))
    names = options.target or list(TARGETS)
    with multiprocessing.Pool(options.jobs) as pool:
        results = [_reported(each, options.keep) for each in pool.imap(one, _jobs(names, options))]
    print(f"{sum(count for count, _ in results):,} inputs, seed {options.seed}")
    return 1 if any(kinds for _, kinds in results) else 0


def _jobs(names: list[str], options: argparse.Namespace) -> list[Job]:
    """What each target gets: seconds alike, or inputs in proportion to its short run, which is time alike again."""
    if options.count is None:
        seconds = options.seconds * options.jobs / len(names)
        return [Job(name, options.seed, seconds=seconds) for name in names]
    of_all = sum(TARGETS[name].short for name in names)
    return [Job(name, options.seed, count=-(-options.count * TARGETS[name].short // of_all)) for name in names]


def _reported(found: tuple[Job, int, float, dict[str, tuple[int, str]]], keep: Path | None) -> tuple[int, int]:
    """Print what one target gave, keep its escapes; returns the number of inputs and of kinds of escapes."""
    job, count, seconds, escapes = found
    print(f"{job.name:<14} {count:>9,} inputs  {seconds:>6,.0f} s  {len(escapes)} kinds of escapes", flush=True)
    for kind, (times, text) in escapes.items():
        print(f"  {times} x {kind}")
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256(text.encode()).hexdigest()[:8]
            (keep / f"{job.name}-{digest}.json").write_text(text + "\n", "utf-8")
    return count, len(escapes)


def one(job: Job) -> tuple[Job, int, float, dict[str, tuple[int, str]]]:
    """Run one target; returns the number of inputs, seconds of the processor, and an input of each kind of escape."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    total = 0
    start = time.process_time()
    for found in run_for(TARGETS[job.name], seed=job.seed, count=job.count, seconds=job.seconds):
        total += 1
        if found:
            kind = json.loads(found)["escape"][:140]
            counts[kind] += 1
            if len(found) < len(first.setdefault(kind, found)):
                first[kind] = found
    spent = time.process_time() - start
    return job, total, spent, {kind: (times, first[kind]) for kind, times in counts.items()}


class Drawn(random.Random):
    """Draws that bytes decide, one after the other, so that Atheris sees what each of them changes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._data, self._at = data, 0

    def getrandbits(self, k: int, /) -> int:
        end = self._at + (k + 7) // 8
        if end > len(self._data):
            return super().getrandbits(k)
        part, self._at = self._data[self._at : end], end
        return int.from_bytes(part, "little") & ((1 << k) - 1)

    def random(self) -> float:
        return self.getrandbits(53) / (1 << 53)


def guided(name: str, seconds: int) -> int:
    """A target under Atheris: the bytes that it offers are what `make` draws."""
    target = TARGETS[name]

    for number in range(WARM):  # what is imported on the way is instrumented first, which takes its time
        escape_of(target, target.make(random.Random(number)), MOST_SECONDS)

    def check(data: bytes) -> None:
        found = escape_of(target, target.make(Drawn(data)), MOST_SECONDS)
        if found is not None:
            raise AssertionError(found)

    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=512", "-rss_limit_mb=4096"], check)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
