"""What an engine said of itself while it ran: memory that it took, facts, and the failure that ended it.

Places are the engine's own names (`CUDA0`, `CPU_Mapped`, `cuda:1`); a backend knows which pool of a plan each one is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from autofit.domain.memory import Kind
from autofit.domain.values import dataclass, field

#: what the engine was doing: nothing yet, loading weights, making caches, reserving and capturing graphs, serving
Stage = Literal["start", "weights", "cache", "compute", "ready"]
#: `device memory`, `RAM`: an allocation failed there. `limit`: one buffer is larger than the device allows.
#: `budget`: the engine's own accounting refused before anything failed. `killed`: ended from outside, without words
#: of its own. `other`: it ended for a reason that is not memory.
Cause = Literal["device memory", "RAM", "limit", "budget", "killed", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedPart:
    """One buffer, or one sum, as the engine logged it.

    `n_bytes` is what was printed, which is `rounding_bytes` off at most. `group` tells models and contexts of one
    process apart: `model 0`, `context 1`. `mapped`: the range of a file that is mapped, which other tensors lie in too.
    `excludes`: labels of a plan's items of this kind that the figure does not count.
    """

    place: str
    kind: Kind
    n_bytes: int
    label: str
    group: str = ""
    rounding_bytes: int = 0
    is_host: bool = False
    mapped: bool = False
    excludes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedDevice:
    """A device as the engine listed it. `free_bytes` is what it had free when it was listed."""

    place: str
    name: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    detail: str = ""  #: what else the engine prints of it: compute capability, instruction set


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What went wrong. `words` are the engine's own, made safe for a terminal.

    `requested_bytes` is the allocation that failed; `free_bytes` and `total_bytes` are of the device at that moment.
    `is_certain`: false for a process that was killed without a word that says why.
    """

    cause: Cause
    stage: Stage
    words: str
    place: str | None = None
    kind: Kind | None = None
    requested_bytes: int | None = None
    free_bytes: int | None = None
    total_bytes: int | None = None
    line: int = 0  #: of the log, from 1
    is_certain: bool = True

    @property
    def is_memory(self) -> bool:
        """Whether less memory would have helped."""
        return self.cause != "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One run of an engine, as far as its log tells. Facts are the engine's own, under names of its plugin.

    `n_lines` counts lines that said something; 0: this is no log of the engine. `n_runs` counts starts in the log,
    of which this is the last one that failed, or the last. `recovered` are failures that the engine got over.
    """

    engine: str
    version: str | None = None
    stage: Stage = "start"
    devices: tuple[ReportedDevice, ...] = ()
    parts: tuple[ReportedPart, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    failure: Failure | None = None
    recovered: tuple[Failure, ...] = ()
    command: tuple[str, ...] = ()
    exit_code: int | None = None
    n_lines: int = 0
    n_runs: int = 1

    @property
    def is_ready(self) -> bool:
        """Whether it began to serve."""
        return self.stage == "ready"

    @property
    def ran_out(self) -> bool:
        """Whether it ended for lack of memory."""
        return self.failure is not None and self.failure.is_memory

    def sum_bytes(self, place: str, kind: Kind) -> int:
        """What was reported of one kind in one place."""
        return sum(part.n_bytes for part in self.parts if part.place == place and part.kind == kind)

    @property
    def places(self) -> tuple[str, ...]:
        """Places with memory, in the order in which they were named first."""
        return tuple(dict.fromkeys(part.place for part in self.parts))
