"""What the user wishes, the same words for every engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from autofit.domain.plan import Origin
from autofit.domain.units import round_up
from autofit.domain.values import dataclass, field

Prefer = Literal["speed", "context", "quality", "throughput"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """Memory to leave free on a device: bytes, or a fraction (0...1) of what it has in total."""

    n_bytes: int = 0
    fraction: float = 0.0

    def of(self, total_bytes: int) -> int:
        return self.n_bytes + round_up(int(total_bytes * self.fraction), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The wishes, and the engine's own flags as constraints.

    `context_tokens` `None` is "auto": as much as is useful and fits; 0 is "max": the longest that fits at a
    decode floor.
    `margins` is empty for the default (see the backend), else one per device, the last repeated.
    `origins` says where each field comes from; a field not named there is a default.
    `engine_args` are the flags after `--`: kept exactly.
    """

    context_tokens: int | None = None
    min_context_tokens: int | None = None
    max_context_tokens: int | None = None
    n_parallel: int | None = None
    margins: tuple[Margin, ...] = ()
    prefer: Prefer = "speed"
    kv: str | None = None
    force: bool = False
    devices: tuple[str, ...] = ()
    engine_version: str | None = None
    engine_args: tuple[str, ...] = ()
    program: tuple[str, ...] = ()  #: the wrapped command's program words, to be kept: ("vllm", "serve")
    #: what the engine reads beside its command line: its own variables (LLAMA_ARG_..., VLLM_...) by name, and the
    #: texts of its settings files by path (`Backend.settings_files`)
    engine_env: Mapping[str, str] = field(default_factory=dict)
    alternatives: bool = True  #: look for other plans worth knowing, which takes longer than the plan itself
    explain: bool = True  #: say of settings what the next better value lacks, which takes an estimate of its own
    model_reference: str | None = None  #: what to write for the model in the command
    origins: Mapping[str, Origin] = field(default_factory=dict)

    def origin(self, name: str) -> Origin:
        return self.origins.get(name, "engine default")
