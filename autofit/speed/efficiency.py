"""The shape of the fitted table: what engines reach of nominal rates, and how far runs stray from it."""

from __future__ import annotations

from collections.abc import Mapping

from autofit.domain.efficiency import Efficiencies as Efficiencies
from autofit.domain.efficiency import Efficiency as Efficiency
from autofit.domain.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far runs stray from the prediction: 9 of 10 lie within a factor of `factor`, seen on `n` runs."""

    factor: float
    n: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What holds for every engine. `rows`: `cpu` and `default`, for engines and APIs that nothing was measured of.

    `quant` (of the bandwidth) and `quant_flops` (of the operations) are by `QuantClass`, relative to `super`.

    `clock` scales the time of a kernel by `rates.generation`.
    `link` is the fraction of a link's rate that copies reach, `acceptance` the chance that a drafted token is
    kept. `decode` and `prefill` are by placement (`roofline.placement`); `draft`, `assumed` and
    `unmeasured` widen the band of a speculative run, of a machine that does not state all its figures, and of a place
    that no run of this engine was measured on.
    """

    rows: Mapping[str, Efficiency]
    quant: Mapping[str, float]
    quant_flops: Mapping[str, float]
    clock: Mapping[str, float]
    link: float
    acceptance: float
    decode: Mapping[str, Spread]
    prefill: Mapping[str, Spread]
    draft: Spread
    assumed: Spread
    unmeasured: Spread
