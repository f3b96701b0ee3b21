"""What is asked of a backend: autofit's options, the same for every engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from autofit.domain.plan import Origin
from autofit.domain.units import round_up
from autofit.domain.values import dataclass, field

if TYPE_CHECKING:
    from autofit.domain.model import ModelSpec

Prefer = Literal["speed", "context", "quality", "throughput", "memory"]
Fill = Literal["mean", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """Memory to leave free on a device: bytes, or a fraction (0...1) of what it has in total."""

    n_bytes: int = 0
    fraction: float = 0.0

    def of(self, total_bytes: int) -> int:
        return self.n_bytes + round_up(int(total_bytes * self.fraction), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of a backend: autofit's options by their names, and the engine's own flags as constraints.

    `context`, `min_context` and `max_context` are tokens of one sequence. `context` `None` is "auto": as much as is
    useful and fits; 0 is "max": the longest that fits.
    `parallel` sequences are served at a time. In a paged cache one holds a full context and the others `mean_tokens`
    (`None`: a quarter of the context), or with `fill` "full" each a full context.
    `min_tps` is the least decode rate of a sequence, in tokens per second; `max_ttft` the most seconds until the first
    token of a prompt of the planned context.
    `replicas` copies are planned behind a router, 0 as many as there are machines; or, for requests with tokens of
    prompt and answer as in `disaggregate`, instances that read prompts for others that decode.
    `margin` is empty for the default (see the backend), else one per device, the last repeated.
    `origins` says where each option comes from; one not named there is a default.
    `engine_args` are the flags after `--`, or those of a wrapped command: kept exactly.
    """

    context: int | None = None
    min_context: int | None = None
    max_context: int | None = None
    parallel: int | None = None
    mean_tokens: int | None = None
    fill: Fill = "mean"
    min_tps: float | None = None
    max_ttft: float | None = None
    replicas: int | None = None
    disaggregate: tuple[int, int] | None = None
    margin: tuple[Margin, ...] = ()
    prefer: Prefer = "speed"
    kv: str | None = None
    device: tuple[str, ...] = ()
    engine_version: str | None = None
    program: tuple[str, ...] = ()  #: the words of a wrapped command that start its engine; none: the backend's own
    engine_args: tuple[str, ...] = ()
    arg_origins: tuple[Origin, ...] = ()  #: where the first of `engine_args` come from; the rest are the user's
    #: what the engine reads beside its command line: its own variables by name (`Backend.variables`), and the texts
    #: of its settings files by path (`Backend.settings_files`)
    engine_env: Mapping[str, str] = field(default_factory=dict)
    alternatives: bool = True  #: look for other plans worth knowing, which takes longer than the plan itself
    #: weights may wait in RAM where devices do not hold them all; where not, a plan that does not fit says so at once
    in_ram: bool = True
    nearest: bool = True  #: where nothing fits, look for the nearest that would, which takes longer than all else
    explain: bool = True  #: say of settings what the next better value lacks, which takes an estimate of its own
    #: figures of the engine's own log that replace the backend's, by name (`Backend.measurements`)
    measured: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, ModelSpec] = field(default_factory=dict)  #: models of the same folder, by `Backend.beside`
    model_reference: str | None = None  #: what to write for the model in the command
    origins: Mapping[str, Origin] = field(default_factory=dict)

    def origin(self, name: str) -> Origin:
        return self.origins.get(name, "engine default")

    def arg_origin(self, at: int) -> Origin:
        """Where the argument at an index of `engine_args` comes from."""
        return self.arg_origins[at] if at < len(self.arg_origins) else "user"


NOTHING_ASKED = Request()
