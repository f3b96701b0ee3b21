"""The shape of the fitted table: what engines reach of nominal rates, and how far runs stray from it."""

from __future__ import annotations

from collections.abc import Mapping

from autofit.domain.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """What one kind of device reaches of its nominal rates, and what it loses per kernel, step and hop.

    Fractions of the memory bandwidth: `weights` for dense weights of the class `super`, `experts` for routed
    experts, `cache` for keys, values and recurrent state. Fractions of the dense FP16 rate: `flops` for
    weights, `attention` for many queries at once, `vector` for the one query of decoding against a quantised
    cache, whose kernels unpack a row anew for every head. An expert that gets `expert_tokens` tokens of a
    step reaches half of `flops`: the rest of its tiles is padding.

    `sm_bytes_per_s` is what one multiprocessor or compute unit reads at most, whatever the bandwidth: many of them are
    needed to keep enough reads in flight. `None` where no card is known to be held up by it.

    `kernel_s` is one kernel in a captured graph and `launch_s` one that is launched by itself, as engines
    do in steps of more than one token; `step_s` what a step costs beside its blocks (sampling, launch, the
    server), `hop_s` handing the hidden state to another place. `n` runs stand behind the row: none is a
    default.
    """

    weights: float
    experts: float
    cache: float
    vector: float
    flops: float
    expert_tokens: float
    attention: float
    kernel_s: float
    launch_s: float
    step_s: float
    hop_s: float
    sm_bytes_per_s: float | None = None
    n: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far runs stray from the prediction: 9 of 10 lie within a factor of `factor`, seen on `n` runs."""

    factor: float
    n: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All that is fitted. `rows` are by engine and API, and by generation where one differs: `llama/rocm/rdna4`.

    `quant` (of the bandwidth) and `quant_flops` (of the operations) are by `QuantClass`, relative to `super`.

    `clock` scales the time of a kernel by `rates.generation`.
    `link` is the fraction of a link's rate that copies reach, `acceptance` the chance that a drafted token is
    kept. `decode` and `prefill` are by placement (`roofline.placement`); `draft` and `assumed` widen the
    band of a speculative run, and of a machine that does not state all its figures.
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
