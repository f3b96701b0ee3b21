"""What an engine reaches of the nominal rates of hardware, and what it loses on the way."""

from __future__ import annotations

from collections.abc import Mapping

from autofit.domain.values import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """What one kind of device reaches of its nominal rates, and what it loses per kernel, step and transfer.

    Fractions of the memory bandwidth: `weights` for dense weights of the class `super`, `experts` for routed
    experts, `cache` for keys, values and recurrent state. Fractions of the dense FP16 rate: `flops` for
    weights, `attention` for many queries at once, `vector` for the one query of decoding against a quantized
    cache, whose kernels unpack a row anew for every head. An expert that gets `expert_tokens` tokens of a
    step reaches half of `flops`: the rest of its tiles is padding.

    `sm_bytes_per_s` is what one multiprocessor or compute unit reads at most, whatever the bandwidth: many of them are
    needed to keep enough reads in flight. `None` where no card is known to be held up by it.

    `kernel_s` is one kernel in a captured graph and `launch_s` one that is launched by itself, as engines
    do in steps of more than one token; `step_s` what a step costs beside its blocks (sampling, launch, the
    server), `transfer_s` handing the hidden state to another place. `n` runs stand behind the row: none is a
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
    transfer_s: float
    sm_bytes_per_s: float | None = None
    n: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiencies:
    """What one engine reaches: `rows` by API, and by generation where one differs (`rocm/rdna4`); `cpu` for the
    processor. An API without a row gets the table's default.

    Steps of at least `copies_from_tokens` tokens have weights in RAM copied to a device, if the engine does that at
    all; from `tiles_from_tokens` on, weights are multiplied in tiles of a matrix, below it by vector kernels.
    """

    rows: Mapping[str, Efficiency] = field(default_factory=dict)
    copies_from_tokens: int | None = None
    tiles_from_tokens: int = 9
