"""Seconds of a step from the bytes it reads, the operations it does, and what engines lose on the way.

A step passes the blocks one after the other, so its time is a sum over blocks, plus a hop wherever the next
block lives elsewhere. Sums of `layer_seconds` and `hop_seconds` are therefore all that a search needs;
`estimate` adds the constant part and the band.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from autofit.domain.machine import HOST_POOL, Device, Host, Machine
from autofit.domain.plan import Speed
from autofit.speed.efficiencies import DRAFT_ACCEPTANCE, EFFICIENCIES, LINK_EFFICIENCY, QUANT_FACTOR
from autofit.speed.efficiency import Efficiency
from autofit.speed.work import Draft, LayerWork, Place, Read, Step, quant_class

# ggml-cuda.cu:ggml_backend_cuda_device_offload_op: steps this large have weights in RAM copied to the device.
OP_OFFLOAD_TOKENS = 32
# What is assumed where a machine does not say: two channels of DDR4-3200, PCIe 4.0 x8, AVX2 cores.
ASSUMED_HOST_BYTES_PER_S = 51_200_000_000
ASSUMED_LINK_BYTES_PER_S = 16_000_000_000
ASSUMED_CORES = 8
HOST_FLOPS_PER_CORE = 64e9
_DEFAULT_SPREAD = 0.25
_ASSUMED_SPREAD = 0.25
_DRAFT_SPREAD = 0.25
_Z90 = 1.645  # standard deviations to either side that hold 90 % of a normal distribution


Engine = Literal["llama", "vllm"]
Placed = Sequence[tuple[LayerWork, Place]]


class Rates:
    """What one place reaches. `assumed` says which of its figures the machine did not state."""

    __slots__ = ("assumed", "cache", "efficiency", "flops", "link", "weights")

    def __init__(
        self,
        bandwidth: int,
        flops: float | None,
        link: float,
        efficiency: Efficiency,
        assumed: tuple[str, ...],
    ) -> None:
        self.efficiency = efficiency
        self.weights = {name: bandwidth * efficiency.weights * k for name, k in QUANT_FACTOR.items()}
        self.cache = bandwidth * efficiency.cache
        self.flops = None if flops is None else flops * efficiency.flops
        self.link = link * LINK_EFFICIENCY
        self.assumed = assumed

    def weight_seconds(self, reads: tuple[Read, ...]) -> float:
        return math.fsum(read.n_bytes / self.weights[quant_class(read.type)] for read in reads)


def efficiency_key(device: Device, engine: Engine) -> str:
    """The row of the fitted table for a device: its engine and API, or `default`."""
    key = f"{engine}/{device.api}"
    return key if key in EFFICIENCIES else "default"


def _host_rates(host: Host) -> Rates:
    assumed = []
    bandwidth = host.bandwidth_bytes_per_s
    if bandwidth is None:
        bandwidth = ASSUMED_HOST_BYTES_PER_S
        assumed.append(f"RAM at {bandwidth / 1e9:.0f} GB/s (two channels of DDR4-3200)")
    cores = host.n_cores_physical
    if cores is None:
        cores = ASSUMED_CORES
        assumed.append(f"{cores} cores")
    return Rates(bandwidth, cores * HOST_FLOPS_PER_CORE, math.inf, EFFICIENCIES["cpu"], tuple(assumed))


def _device_rates(device: Device, host: Host, engine: Engine) -> Rates | None:
    bandwidth = device.bandwidth_bytes_per_s
    if bandwidth is None and device.pool == HOST_POOL:
        bandwidth = host.bandwidth_bytes_per_s
    if bandwidth is None:
        return None
    link: float | None = device.link_bytes_per_s
    assumed: tuple[str, ...] = ()
    if device.pool == HOST_POOL:
        link = math.inf
    elif link is None:
        link = ASSUMED_LINK_BYTES_PER_S
        assumed = (f"{device.id}'s link at {link / 1e9:.0f} GB/s (PCIe 4.0 x8)",)
    efficiency = EFFICIENCIES[efficiency_key(device, engine)]
    return Rates(bandwidth, device.fp16_flops_per_s, link, efficiency, assumed)


class Roofline:
    """The rates of one machine, and the time of steps on it. Cheap to build; holds no state that changes."""

    __slots__ = ("_helper", "rates")

    def __init__(self, machine: Machine, *, engine: Engine = "llama", op_offload: str | None = "") -> None:
        """`op_offload` is the device that weights in RAM are copied to in large steps: by default the first.

        `None` says that the engine is told not to (`--no-op-offload`).
        """
        self.rates: dict[str, Rates | None] = {HOST_POOL: _host_rates(machine.host)}
        for device in machine.devices:
            self.rates[device.id] = _device_rates(device, machine.host, engine)
        if op_offload == "":
            op_offload = next((d.id for d in machine.devices if d.pool != HOST_POOL), None)
        self._helper = None if op_offload is None else self.rates[op_offload]

    def _at(self, place: str) -> Rates:
        rates = self.rates[place]
        if rates is None:
            raise ValueError(f"{place}: memory bandwidth is unknown")
        return rates

    def unknown(self, places: Sequence[Place]) -> tuple[str, ...]:
        """Devices among the places whose memory bandwidth nobody stated: no speed can be told."""
        names = {name for place in places for name in place.parts}
        return tuple(sorted(name for name in names if self.rates.get(name) is None))

    def layer_seconds(self, layer: LayerWork, place: Place, step: Step) -> float:
        """Seconds of one block in one step, without the hops to its neighbours."""
        n_tokens = step.n_sequences if layer.last_token_only else step.n_tokens
        here = self._at(place.device)
        n_ranks = len(place.ranks) or 1
        seconds = self._weights_seconds(place.device, place.device, layer.dense, n_tokens)
        if layer.experts:
            where = place.experts or place.device
            share = layer.n_experts_used / layer.n_experts if layer.n_experts else 1.0
            # How many distinct experts a step touches, if tokens choose independently of each other.
            touched = 1.0 - (1.0 - share) ** n_tokens
            seconds += self._weights_seconds(place.device, where, layer.experts, n_tokens, share, touched)
            if where != place.device:
                seconds += 2 * self._at(HOST_POOL).efficiency.hop_s
        seconds += self._attention_seconds(layer, place, step)
        seconds = seconds / n_ranks + layer.n_kernels * here.efficiency.kernel_s
        return seconds + (2 * here.efficiency.hop_s if n_ranks > 1 else 0.0)

    def _weights_seconds(
        self,
        device: str,
        where: str,
        reads: tuple[Read, ...],
        n_tokens: int,
        share: float = 1.0,
        touched: float = 1.0,
    ) -> float:
        """Weights that lie at `where`: used there or, when the step is large, copied to a device first."""
        stay = _part_seconds(self._at(where), reads, n_tokens, share, touched)
        helper = self._helper if device == HOST_POOL else self._at(device)
        if where != HOST_POOL or self._helper is None or helper is None or n_tokens < OP_OFFLOAD_TOKENS:
            return stay
        copied = sum(read.n_bytes for read in reads) * touched / helper.link
        return copied + _part_seconds(helper, reads, n_tokens, share, touched)

    def _attention_seconds(self, layer: LayerWork, place: Place, step: Step) -> float:
        there = self._at(place.cache or place.device)
        n_new = step.n_tokens // max(step.n_sequences, 1)
        n_cached = step.n_filled + n_new / 2 if n_new > 1 else step.n_filled
        if layer.window_tokens is not None:
            n_cached = min(n_cached, layer.window_tokens)
        n_bytes = step.n_sequences * (n_cached * layer.cache_token_bytes + 2 * layer.state_bytes)
        seconds = n_bytes / there.cache
        if there.flops:
            seconds = max(seconds, step.n_tokens * n_cached * layer.attention_flops / there.flops)
        return seconds

    def hop_seconds(self, a: str, b: str, n_bytes: int) -> float:
        """Seconds to hand `n_bytes` of hidden state from one place to the next; 0 within a place."""
        if a == b:
            return 0.0
        rates = [self._at(name) for name in (a, b) if name != HOST_POOL]
        return max((r.efficiency.hop_s for r in rates), default=0.0) + sum(n_bytes / r.link for r in rates)

    def step_seconds(self, layers: Placed, step: Step, *, hidden_bytes: int = 0) -> float:
        """Seconds of one step through all blocks, hops and the constant part included.

        `hidden_bytes` is what one token hands from block to block: 4 · hidden size in llama.cpp.
        """
        seconds, previous = 0.0, None
        for layer, place in layers:
            seconds += self.layer_seconds(layer, place, step)
            if previous is not None and previous != place.device:
                seconds += self.hop_seconds(previous, place.device, hidden_bytes * step.n_tokens)
            previous = place.device
        return seconds + max((self._at(p.device).efficiency.token_s for _, p in layers), default=0.0)

    def estimate(
        self,
        layers: Placed,
        *,
        n_filled: int = 0,
        n_sequences: int = 1,
        n_ubatch: int = 512,
        n_prompt: int | None = None,
        hidden_bytes: int = 0,
        draft: Draft | None = None,
    ) -> Speed | None:
        """Expected rates of the placed model, with the band that 9 of 10 runs fall into.

        Decode is per sequence, with `n_sequences` at `n_filled` tokens each: times `n_sequences` for the sum.
        Prefill is the mean over a prompt of `n_prompt` tokens (`n_filled` unless given, and at least one
        micro-batch). `None` when the bandwidth of a device in use is unknown (`unknown` names it).
        """
        places = [place for _, place in layers]
        if not layers or self.unknown(places):
            return None
        step = Step(n_sequences, n_sequences, n_filled)
        decode = 1.0 / self.step_seconds(layers, step, hidden_bytes=hidden_bytes)
        spread2 = self._variance(places)
        if draft is not None and draft.n_tokens > 0:
            decode = self._speculative(layers, draft, n_sequences, n_filled, hidden_bytes)
            spread2 += _DRAFT_SPREAD**2
        band = math.exp(_Z90 * math.sqrt(spread2))
        n_prompt = max(n_ubatch, n_filled if n_prompt is None else n_prompt)
        prefill = self._prefill(layers, n_prompt, n_ubatch, hidden_bytes)
        prefill_band = math.exp(_Z90 * math.sqrt(spread2 + _DEFAULT_SPREAD**2))
        return Speed(
            decode_tokens_per_s=decode,
            low=decode / band,
            high=decode * band,
            prefill_tokens_per_s=prefill,
            prefill_low=None if prefill is None else prefill / prefill_band,
            prefill_high=None if prefill is None else prefill * prefill_band,
            basis=self._basis(places),
        )

    def _prefill(
        self, layers: Placed, n_prompt: int, n_ubatch: int, hidden_bytes: int
    ) -> float | None:
        if any(self._at(place.device).flops is None for _, place in layers):
            return None
        n_tokens = max(1, min(n_ubatch, n_prompt))
        # Cost is linear in what is cached, so the mean fill stands for all micro-batches of the prompt.
        step = Step(n_tokens, 1, max(0, (n_prompt - n_tokens) // 2))
        return n_tokens / self.step_seconds(layers, step, hidden_bytes=hidden_bytes)

    def _speculative(
        self,
        layers: Placed,
        draft: Draft,
        n_sequences: int,
        n_filled: int,
        hidden_bytes: int,
    ) -> float:
        """Tokens per second of one sequence: tokens kept of a round over the time to draft and check them."""
        rate = DRAFT_ACCEPTANCE if draft.acceptance is None else draft.acceptance
        kept = sum(rate**i for i in range(draft.n_tokens + 1))
        check = Step(n_sequences * (draft.n_tokens + 1), n_sequences, n_filled)
        seconds = self.step_seconds(layers, check, hidden_bytes=hidden_bytes)
        one = Step(n_sequences, n_sequences, n_filled)
        seconds += draft.n_tokens * sum(self.layer_seconds(*placed, one) for placed in draft.layers)
        return kept / seconds

    def _variance(self, places: Sequence[Place]) -> float:
        used = {name for place in places for name in place.parts}
        spreads = [self._at(name).efficiency.spread or _DEFAULT_SPREAD for name in used]
        assumed = any(self._at(name).assumed for name in used)
        return max(spreads) ** 2 + (_ASSUMED_SPREAD**2 if assumed else 0.0)

    def _basis(self, places: Sequence[Place]) -> str:
        used = sorted({name for place in places for name in place.parts})
        notes = ", ".join(note for name in used for note in self._at(name).assumed)
        return "roofline with fitted efficiencies" + (f"; assumed: {notes}" if notes else "")


def _part_seconds(
    rates: Rates, reads: tuple[Read, ...], n_tokens: int, share: float = 1.0, read_share: float = 1.0
) -> float:
    """Seconds for weights of which `read_share` is read and each token multiplies with `share`."""
    seconds = rates.weight_seconds(reads) * read_share
    if rates.flops is not None and n_tokens > 1:
        n_flops = 2.0 * share * n_tokens * sum(read.n_elements for read in reads)
        seconds = max(seconds, n_flops / rates.flops)
    return seconds
