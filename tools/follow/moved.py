"""What moved between two builds: flags, architectures, bytes of rows, and the definitions that our rules cite."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import check_sources
from gen import llama_builds

KINDS = {"model": "weights", "context": "caches", "compute": "compute"}
DIFF_LINES = 60

Row = Mapping[str, Any]


class Sheet(NamedTuple):
    """What a source accepts, starts with and knows."""

    flags: dict[str, str]  #: spelling -> programs that accept it (s, c, p, f, b as in the flag table)
    facts: dict[str, str]  #: defaults and the like, by the names that tools/gen/llama_builds.py has for them
    architectures: frozenset[str]


def sheet(tree: Path) -> Sheet:
    build = llama_builds.read_tree(tree)
    flags: dict[str, str] = {}
    for row in build.rows:
        for spelling in (*row.spellings, *row.negations):
            flags[spelling] = "".join(sorted({*flags.get(spelling, ""), *row.letters} - {"-"}))
    return Sheet(flags, dict(build.facts), frozenset(build.architectures))


@dataclass(slots=True)
class Move:
    """Rows of one architecture whose bytes of one kind are others in the newer build."""

    n_rows: int = 0
    least_bytes: int = 0
    most_bytes: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, row: Row, by_bytes: int) -> None:
        self.least_bytes = by_bytes if self.n_rows == 0 else min(self.least_bytes, by_bytes)
        self.most_bytes = by_bytes if self.n_rows == 0 else max(self.most_bytes, by_bytes)
        self.n_rows += 1
        self.examples.append(f"{row['file']} {row['program']} {' '.join(row['args'])} {row['device_memory_mib']}")


def key(row: Row) -> tuple[Any, ...]:
    return row["file"], row["program"], tuple(row["args"]), tuple(row["device_memory_mib"])


def moves(old: Iterable[Row], new: Iterable[Row]) -> dict[tuple[str, str], Move]:
    """(architecture, kind of memory) -> what the engine itself allocates otherwise, on devices and the host together.

    A row that one of the two refuses is of the kind "refused" or "accepted", without bytes.
    """
    before = {key(row): row for row in old}
    found: dict[tuple[str, str], Move] = {}
    for row in new:
        was = before.get(key(row))
        if was is None:
            continue
        for kind, by_bytes in _moved(was, row):
            found.setdefault((row["arch"], kind), Move()).add(row, by_bytes)
    return dict(sorted(found.items()))


def _moved(was: Row, row: Row) -> Iterator[tuple[str, int]]:
    if "devices" not in was or "devices" not in row:
        if ("devices" in was) != ("devices" in row):
            yield ("accepted" if "devices" in row else "refused"), 0
        return
    pools = [*zip(was["devices"], row["devices"], strict=True), (was["host_all"], row["host_all"])]
    for kind, name in KINDS.items():
        changes = [b[kind] - a[kind] for a, b in pools]
        if any(changes):
            yield name, max(changes, key=abs)


@dataclass(frozen=True, slots=True)
class Definition:
    """A definition that we cite and that two sources have differently."""

    file: str
    name: str
    where: tuple[str, ...]  #: our lines that cite it
    diff: tuple[str, ...]


def definitions(old: Path, new: Path) -> list[Definition]:
    """Cited definitions that changed from `old` to `new`, with the engine's own difference.

    Files of one architecture each are taken whole, cited or not.
    """
    index = check_sources.read_index("llama")
    places: dict[tuple[str, str], list[str]] = {}
    for each in check_sources.citations("llama"):
        path = index["cited"].get(each.file)
        if path is not None:
            places.setdefault((path, each.name), []).append(each.where)
    found = []
    for path, names in index["files"].items():
        before, after = old / path, new / path
        if not before.is_file() or not after.is_file():
            if before.is_file() != after.is_file():
                found.append(Definition(path, "", _all(places, path), ("came" if after.is_file() else "gone",)))
            continue
        for name in names:
            if check_sources.digest(before, name) != check_sources.digest(after, name):
                diff = tuple(_diff(check_sources.text_of(before, name), check_sources.text_of(after, name)))
                found.append(Definition(path, name, tuple(places.get((path, name), ())), diff))
    return found


def _all(places: Mapping[tuple[str, str], Sequence[str]], path: str) -> tuple[str, ...]:
    return tuple(where for (file, _), lines in places.items() if file == path for where in lines)


def _diff(old: str, new: str) -> Iterator[str]:
    lines = [
        line for line in difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=2)
        if not line.startswith(("---", "+++"))
    ]  # fmt: skip
    yield from lines[:DIFF_LINES]
    if len(lines) > DIFF_LINES:
        yield f"… {len(lines) - DIFF_LINES} more lines"


def ranked(changed: Sequence[Definition], moved: Mapping[tuple[str, str], Move]) -> list[Definition]:
    """The definitions that may have moved most rows first; of files cited as a whole last."""
    rows = Counter[str]()
    for (arch, _), move in moved.items():
        rows[arch] += move.n_rows
    return sorted(changed, key=lambda each: (not each.name and not _is_model(each.file), -_weight(each, rows)))


def _is_model(file: str) -> bool:
    return file.startswith(f"{check_sources.MODELS['llama']}/")


def _weight(each: Definition, rows: Counter[str]) -> int:
    if _is_model(each.file):
        stem = re.sub(r"[^a-z0-9]", "", Path(each.file).stem.lower())
        return sum(n for arch, n in rows.items() if re.sub(r"[^a-z0-9]", "", arch.lower()) == stem)
    return sum(rows.values()) if each.file.startswith(("src/", "ggml/")) else 0
