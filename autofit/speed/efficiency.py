"""One row of the fitted table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """What one kind of device reaches of its nominal rates, and what it loses per kernel, token and hop.

    `weights` and `cache` are fractions of the memory bandwidth, `flops` of the dense FP16 rate. `kernel_s` is
    the start of one kernel, `token_s` what a step costs beside the blocks (sampling, launch, the server),
    `hop_s` handing the hidden state to another place. `n` runs stand behind the row, whose logarithms of
    measured over predicted decode rates have the standard deviation `spread` (`None`: no run, so a default).
    """

    weights: float
    cache: float
    flops: float
    kernel_s: float
    token_s: float
    hop_s: float
    n: int = 0
    spread: float | None = None
    n_prefill: int = 0
    prefill_spread: float | None = None
