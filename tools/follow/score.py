"""Our own figures for the rows of a build, against the engine's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from support.llama_versions import KINDS, judge


@dataclass(slots=True)
class Score:
    n_rows: int = 0  #: that the engine ran
    n_refused: int = 0
    n_refused_here: int = 0  #: of those that the engine refused
    n_wrongly_refused: int = 0
    exact: Counter[str] = field(default_factory=Counter)
    n_near: int = 0
    n_low: int = 0
    lacks_bytes: int = 0
    #: (architecture, kind of memory, or "refused") -> rows that are not exact, and what one of them is off by
    off: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    @property
    def is_exact(self) -> bool:
        return not self.off


def score(rows: Iterable[Mapping[str, Any]], build: int) -> Score:
    """What `check` says of every row with `--engine-version` of the build."""
    found = Score()
    for row in rows:
        one = judge(row, build)
        kinds: list[str] = []
        if one.refused:
            found.n_refused += 1
            found.n_refused_here += one.refused_here
            kinds = [] if one.refused_here else ["refused by the engine"]
        elif one.refused_here:
            found.n_rows += 1
            found.n_wrongly_refused += 1
            kinds = ["refused here"]
        else:
            found.n_rows += 1
            found.exact.update(one.exact)
            found.n_near += one.is_near
            found.n_low += one.is_low
            found.lacks_bytes = max(found.lacks_bytes, one.lacks_bytes)
            kinds = [kind for kind in KINDS if kind not in one.exact]
        for kind in kinds:
            told = f"{row['file']} {row['program']} {' '.join(row['args'])} {row['device_memory_mib']}: {one.what}"
            found.off.setdefault((row["arch"], kind), []).append(told)
    return found
