"""What a build of an engine does otherwise, and whether we say so: source, dry run, rows, score, what moved.

    python tools/follow llama.cpp BUILD [--from BUILD] [--source TREE] [--cache DIR] [--out DIR] [--keep]

BUILD is a number, such as 11434, or `newest`. Its source comes out of the package index (about 200 builds from b8672
on) or is TREE; it is compiled with the device that only counts, asked every recorded case, and `check` with
`--engine-version BUILD` is held against each row. `--from` is the build that it is compared with: the newest one below
it whose rows are recorded, and whose source the index has. Printed: the score, architectures, flags and defaults that
came and went, what rows moved by architecture and kind of memory, and beside that the engine's own difference of each
definition that our rules cite. The same goes to OUT/report.md, the rows to OUT/rows-bBUILD.jsonl.gz; `--keep` puts
these to tests/data/llama/versions too.
CACHE keeps sources and programs.

Exit code: 0 if every row is exact, 1 if one is not, 2 if it could not be done.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT), str(ROOT / "plugins"), str(ROOT / "tests")]

from follow import moved
from follow.cases import cases
from follow.engine_build import build
from follow.engine_source import FollowError, fetch, known_builds, tools_python
from follow.recording import load, record, save
from follow.report import Followed, text
from follow.score import score
from support.llama_versions import FOLDER, build_of, files

NEWEST = "newest"
CACHE = Path.home() / ".cache" / "autofit-follow"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="follow", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", choices=("llama.cpp",))
    parser.add_argument("build", type=build_or_newest, metavar="BUILD")
    parser.add_argument("--from", dest="base", type=build_number, metavar="BUILD")
    parser.add_argument("--source", type=Path, metavar="TREE", help="the source, if the package index has none")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the report and the rows; CACHE/BUILD without it")
    parser.add_argument("--keep", action="store_true", help="record the rows in tests/data/llama/versions")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="files that are compiled at once")
    options = parser.parse_args(argv)
    try:
        followed = follow(options)
    except FollowError as error:
        print(f"follow: {error}", file=sys.stderr)
        return 2
    return int(not followed.score.is_exact)


def follow(options: argparse.Namespace) -> Followed:
    clock = Clock()
    number = max(known_builds()) if options.build == NEWEST else options.build
    cache = options.cache.absolute()
    out = (options.out or cache / str(number)).absolute()
    rows_file = out / f"rows-b{number}.jsonl.gz"
    below = [options.base] if options.base is not None else recorded_below(number)
    python = tools_python(cache)
    tree = options.source or fetch(number, cache, python)
    base, base_tree = _base(below, cache, python)
    clock.done("sources")
    programs = build(tree.absolute(), cache / str(number), jobs=options.jobs, tools=Path(python).parent)
    clock.done("build")
    rows = record(programs, cache / "models", cases())
    save(rows, rows_file)
    clock.done("rows")
    before = load(FOLDER / f"rows-b{base}.jsonl.gz")
    found = Followed(
        build=number,
        base=base,
        score=score(rows, number),
        before=moved.sheet(base_tree),
        after=moved.sheet(tree),
        moves=moved.moves(before, rows),
        definitions=moved.definitions(base_tree, tree),
    )
    clock.done("comparison")
    said = text(found, clock.seconds)
    (out / "report.md").write_text(said, encoding="utf-8")
    print(said)
    if options.keep:
        shutil.copy(rows_file, FOLDER)
    return found


def _base(below: Sequence[int], cache: Path, python: str) -> tuple[int, Path]:
    """The first of these builds that the package index has a source of, and its tree.

    Raises:
        FollowError: it has none.
    """
    for number in below[:-1]:
        with suppress(FollowError):
            return number, fetch(number, cache, python)
    return below[-1], fetch(below[-1], cache, python)


def recorded_below(build: int) -> list[int]:
    """The builds below this one that have rows, the newest first.

    Raises:
        FollowError: there is none.
    """
    recorded = sorted(build_of(path) for path in files())
    below = [each for each in recorded if each < build]
    if not below:
        raise FollowError(
            f"no rows of a build below b{build} are recorded (the first is b{recorded[0]}); name one with --from"
        )
    return below[::-1]


def build_number(word: str) -> int:
    """`b11434` or `11434`."""
    number = word.removeprefix("b")
    if not (number.isascii() and number.isdigit()) or len(number) > 9:
        raise argparse.ArgumentTypeError(f"{word!r} is no build number, such as b11434")
    return int(number)


def build_or_newest(word: str) -> int | str:
    """A build number, or `newest`."""
    return NEWEST if word == NEWEST else build_number(word)


class Clock:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._at = time.monotonic()

    def done(self, step: str) -> None:
        now = time.monotonic()
        self.seconds[step] = now - self._at
        self._at = now
        print(f"{step}: {self.seconds[step]:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
