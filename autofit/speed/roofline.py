"""Seconds of a step from the bytes it reads, the operations it does, and what engines lose on the way.

A step passes the blocks one after the other, so its time is a sum over blocks, plus a transfer wherever the next
block lives elsewhere. Sums of `layer_seconds` and `transfer_seconds` are therefore all that a search needs;
`estimate` adds the constant part and the band.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from autofit.domain.machine import HOST_POOL, Machine
from autofit.domain.plan import Speed
from autofit.speed.efficiencies import TABLE
from autofit.speed.efficiency import Efficiencies, Spread, Table
from autofit.speed.network import Network
from autofit.speed.rates import Rates, device_rates, host_rates
from autofit.speed.work import Draft, LayerWork, Place, Read, Step

UNMEASURED = Efficiencies()
DRAFTED_TOKENS = 16  #: a step with more new tokens of a sequence reads a prompt; with fewer it checks what was drafted
Placed = Sequence[tuple[LayerWork, Place]]


def placement(places: Sequence[Place]) -> str:
    """The kind of placement, by which the band is told: how far runs stray differs from one to the other."""
    devices = {place.device for place in places}
    if devices == {HOST_POOL}:
        return "processor"
    if HOST_POOL in devices:
        return "layers in RAM"
    if any(place.experts == HOST_POOL for place in places):
        return "experts in RAM"
    if any(place.cache == HOST_POOL for place in places):
        return "cache in RAM"
    if any(place.ranks for place in places):
        return "tensor parallel"
    return "devices" if len(devices) > 1 else "device"


class Roofline:
    """The rates of one machine, and the time of steps on it. Nothing in it changes after it is made."""

    __slots__ = ("_engine", "_helper", "_links", "_network", "_rates", "_table")

    def __init__(
        self,
        machine: Machine,
        engine: Efficiencies = UNMEASURED,
        *,
        op_offload: str | None = "",
        table: Table = TABLE,
    ) -> None:
        """`op_offload` is the device that weights in RAM are copied to in large steps: by default the first.

        `None` says that the engine is told not to, or never does.
        """
        self._table = table
        self._engine = engine
        devices = {device.id: device_rates(device, machine.host, engine, table) for device in machine.devices}
        shared = [devices[device.id] for device in machine.devices if device.pool == HOST_POOL]
        host = host_rates(machine.host, engine, table, [rates for rates in shared if rates is not None])
        self._rates: dict[str, Rates | None] = {**devices, HOST_POOL: host}
        self._links = {
            frozenset((link.a, link.b)): link.bytes_per_s * table.link
            for link in machine.links
            if link.bytes_per_s is not None
        }
        self._network = Network(machine)
        if engine.copies_from_tokens is None:
            op_offload = None
        if op_offload == "":
            own = (device.id for device in machine.devices if device.pool != HOST_POOL and device.api != "rpc")
            op_offload = next(own, None)
        self._helper = None if op_offload is None else self._rates[op_offload]

    def unknown(self, places: Sequence[Place]) -> tuple[str, ...]:
        """Devices with unknown memory bandwidth; no rate can be predicted for them."""
        return tuple(name for name in _parts(places) if self._rates.get(name) is None)

    def layer_seconds(self, layer: LayerWork, place: Place, step: Step) -> float:
        """Seconds of one block in one step, without the transfers to its neighbors.

        Raises:
            ValueError: the bandwidth of a device in `place` is unknown.
        """
        # Steps of a token per sequence repeat a captured graph; others differ from one to the next.
        is_captured = step.n_tokens == step.n_sequences
        each = [self._at(name) for name in place.ranks or (place.device,)]  # the slowest is waited for
        seconds = layer.n_kernels * max(here.kernel_s if is_captured else here.launch_s for here in each)
        if not place.ranks:
            return seconds + self._part_of_step_seconds(layer, place, step)
        shares = place.shares or (1 / len(place.ranks),) * len(place.ranks)
        largest: dict[str, float] = {}
        for rank, share in zip(place.ranks, shares, strict=True):
            largest[rank] = max(share, largest.get(rank, 0.0))
        alone = place._replace(ranks=(), shares=())
        slowest = max(
            share * self._part_of_step_seconds(layer, alone._replace(device=rank), step)
            for rank, share in largest.items()
        )
        return seconds + slowest + self._reduce_seconds(layer, place.ranks, step)

    def _part_of_step_seconds(self, layer: LayerWork, place: Place, step: Step) -> float:
        """Reading and computing of one block on one device."""
        n_tokens = step.n_sequences if layer.last_token_only else step.n_tokens
        here = self._at(place.device)
        seconds = self._weights_seconds(here, place.device, place.device, layer.dense, n_tokens)
        seconds += self._attention_seconds(layer, place, step)
        n_transfers = 0
        if layer.experts:
            where = place.experts or place.device
            share = layer.n_experts_used / layer.n_experts if layer.n_experts else 1.0
            seconds += self._weights_seconds(here, place.device, where, layer.experts, n_tokens, share)
            n_transfers += 2 * (where != place.device)
        if place.cache not in (None, place.device) and layer.cache_token_bytes:
            n_transfers += 2
        return seconds + n_transfers * self._at(HOST_POOL).efficiency.transfer_s

    def transfer_seconds(self, a: str, b: str, n_bytes: int, input_bytes: float = 0) -> float:
        """Seconds to hand `n_bytes` of hidden state from one place to the next; 0 within a place.

        `input_bytes` are other inputs of the step, which a device behind a server on another machine is sent too.
        """
        if a == b:
            return 0.0
        way = self._network.way(a, b)
        if way is not None:
            return way.latency_s + n_bytes * way.per_byte_s + self._network.input_seconds(a, b, input_bytes)
        latency = max(self._at(name).efficiency.transfer_s for name in (a, b))
        return latency + n_bytes * self._seconds_per_byte(a, b)

    def step_seconds(self, layers: Placed, step: Step) -> float:
        """Seconds of one step through all blocks, transfers and the constant part included."""
        stages = self._stages(layers, step)
        return math.fsum(seconds for _, seconds in stages) + self._constant_seconds(layers)

    def prefill_seconds(
        self, layers: Placed, n_prompt: int, *, n_ubatch: int = 512, n_before: int = 0, overlaps: bool = True
    ) -> float:
        """Seconds to read a prompt of `n_prompt` tokens behind `n_before` cached ones, in micro-batches.

        With whole layers on several devices micro-batches follow each other through them, so only the first
        waits for all stages (pipeline parallelism), if the engine `overlaps` them.
        """
        n_tokens = max(1, min(n_ubatch, n_prompt))
        n_steps, n_rest = divmod(max(1, n_prompt), n_tokens)
        # Cost is linear in what is cached, so the mean fill stands for every whole micro-batch of the prompt.
        stages = self._stages(layers, Step(n_tokens, 1, n_before + n_tokens * (n_steps - 1) // 2))
        total = math.fsum(seconds for _, seconds in stages)
        each = total
        if overlaps and placement([place for _, place in layers]) == "devices":
            each = max(_by_device(stages).values())
        seconds = total + (n_steps - 1) * each + n_steps * self._constant_seconds(layers)
        if n_rest:
            seconds += self.step_seconds(layers, Step(n_rest, 1, n_before + n_tokens * n_steps))
        return seconds

    def estimate(
        self,
        layers: Placed,
        *,
        n_filled: int = 0,
        n_sequences: int = 1,
        n_ubatch: int = 512,
        n_prompt: int | None = None,
        draft: Draft | None = None,
        unmeasured: str = "",
        overlaps: bool = True,
    ) -> Speed | None:
        """Expected rates of the placed model, with the band that 9 of 10 runs fall into.

        Decode is per sequence, with `n_sequences` at `n_filled` tokens each: times `n_sequences` for the sum.
        Prefill is the mean over a prompt of `n_prompt` tokens (`n_filled` unless given, and at least one
        micro-batch), and `None` when the FP16 rate of a device is unknown. All is `None` when the bandwidth
        of a device in use is unknown (`unknown` names it). `unmeasured` says what no run of the engine was measured
        with, if anything: then, and at a place that no run was measured on, the band is wide.
        """
        places = [place for _, place in layers]
        if not layers or self.unknown(places):
            return None
        kind = placement(places)
        step = Step(n_sequences, n_sequences, n_filled)
        widths = [self._table.decode[kind]]
        if draft is not None and draft.n_tokens > 0:
            decode = self._speculative_rate(layers, step, draft)
            widths.append(self._table.draft)
        else:
            decode = 1.0 / self.step_seconds(layers, step)
        names = _parts(places)
        assumed = [note for name in names for note in self._at(name).assumed]
        crosses = self._network.crossed(names)
        assumed += self._network.assumed(names) if crosses else []
        if assumed:
            widths.append(self._table.assumed)
        notes = [unmeasured] if unmeasured else []
        unknown = [name for name in names if not self._at(name).efficiency.n]
        notes += [f"no runs of this engine on {name} to compare with" for name in unknown]
        notes += ["no runs over a network to compare with"] if crosses else []
        if notes:
            widths.append(self._table.unmeasured)
        band = _factor(widths)
        prefill, prefill_band = None, 1.0
        if all(self._at(place.device).knows_flops for place in places):
            n_prompt = max(n_ubatch, n_filled if n_prompt is None else n_prompt)
            prefill = n_prompt / self.prefill_seconds(layers, n_prompt, n_ubatch=n_ubatch, overlaps=overlaps)
            prefill_band = _factor([self._table.prefill[kind], *widths[1:]])
        return Speed(
            decode_tokens_per_s=decode,
            low=decode / band,
            high=decode * band,
            prefill_tokens_per_s=prefill,
            prefill_low=None if prefill is None else prefill / prefill_band,
            prefill_high=None if prefill is None else prefill * prefill_band,
            basis="; ".join([_basis(kind, assumed), *notes]),
        )

    def _at(self, name: str) -> Rates:
        rates = self._rates.get(name)
        if rates is None:
            raise ValueError(f"{name}: memory bandwidth is unknown")
        return rates

    def _weights_seconds(
        self,
        here: Rates,
        device: str,
        where: str,
        reads: tuple[Read, ...],
        n_tokens: int,
        share: float | None = None,
    ) -> float:
        """Weights that lie at `where`: used there or, when the step is large, copied to a device first.

        `share` is the part of routed experts that one token uses; `None` stands for dense weights.
        """
        copies = self._helper is not None and not self._network.is_over_rpc(device)
        if where != HOST_POOL or not copies or n_tokens < (self._engine.copies_from_tokens or 0):
            return self._part_seconds(self._at(where), reads, n_tokens, share)
        helper = self._helper if device == HOST_POOL and self._helper is not None else here
        copied = sum(read.n_bytes for read in reads) * _touched(n_tokens, share) / helper.link
        return copied + self._part_seconds(helper, reads, n_tokens, share)

    def _part_seconds(self, rates: Rates, reads: tuple[Read, ...], n_tokens: int, share: float | None) -> float:
        """Weights used where they lie: the slower of reading them and multiplying with them."""
        efficiency = rates.efficiency
        touched = _touched(n_tokens, share)
        fraction = efficiency.weights if share is None else efficiency.experts
        reading = rates.read_seconds(reads, fraction) * touched
        if not touched or (n_tokens == 1 and rates is not self._rates[HOST_POOL]):  # no token goes to an expert
            return reading  # a GPU computes a token's products while it waits for weights; few cores do not
        n_rows = float(n_tokens) if share is None else n_tokens * share / touched
        if share is not None and n_tokens >= self._engine.tiles_from_tokens:
            n_rows += efficiency.expert_tokens
        return max(reading, touched * n_rows * rates.operations(reads) / rates.flops)

    def _attention_seconds(self, layer: LayerWork, place: Place, step: Step) -> float:
        name = place.cache or place.device
        there, copied = self._at(name), 0.0
        n_new = step.n_tokens // max(step.n_sequences, 1)
        n_cached = step.n_filled + n_new / 2
        if layer.window_tokens is not None:
            n_cached = min(n_cached, layer.window_tokens)
        n_bytes = step.n_sequences * (n_cached * layer.cache_token_bytes + 2 * layer.state_bytes)
        flops = layer.prompt_attention_flops if n_new > DRAFTED_TOKENS else None
        n_flops = step.n_tokens * n_cached * (layer.attention_flops if flops is None else flops)
        if (
            place.device == HOST_POOL
            and self._helper is not None
            and step.n_tokens >= (self._engine.copies_from_tokens or 0)
        ):
            # Attention goes where its neighbors in the graph went.
            name, there, copied = "", self._helper, n_bytes / self._helper.link
        one_by_one = name == HOST_POOL or (n_new == 1 and layer.cache_is_quantized)
        rate = there.vector if one_by_one else there.attention
        return copied + max(n_bytes / there.cache, n_flops / rate)

    def _seconds_per_byte(self, a: str, b: str) -> float:
        """From one device to the other by the network or link between them, else by way of the host, in a pipeline."""
        way = self._network.way(a, b)
        if way is not None:
            return way.per_byte_s
        direct = self._links.get(frozenset((a, b)))
        return 1 / (direct or min(self._at(name).link for name in (a, b)))

    def _reduce_seconds(self, layer: LayerWork, ranks: tuple[str, ...], step: Step) -> float:
        """Two all-reduces of the hidden state per block: behind the mixer and behind the feed-forward.

        Each rank sends 2 · (n - 1) / n of the state around a ring, whose slowest link counts.
        """
        n = len(ranks)
        if n < 2:
            return 0.0
        n_tokens = step.n_sequences if layer.last_token_only else step.n_tokens
        return 2 * self.ring_seconds(ranks, 2 * (n - 1) / n * n_tokens * layer.hidden_bytes)

    def ring_seconds(self, ranks: Sequence[str], n_bytes: float) -> float:
        """Seconds of one collective operation in which each rank sends `n_bytes` around a ring, at its slowest link.

        Raises:
            ValueError: the bandwidth of a rank is unknown.
        """
        ring = zip(ranks, (*ranks[1:], ranks[0]), strict=True)
        pairs = list(ring)
        slowest = max(self._seconds_per_byte(a, b) for a, b in pairs)
        ways = (self._network.way(a, b) for a, b in pairs)
        latency = max((way.latency_s for way in ways if way is not None), default=0.0)
        return max(latency, *(self._at(rank).efficiency.transfer_s for rank in ranks)) + n_bytes * slowest

    def _stages(self, layers: Placed, step: Step) -> list[tuple[str, float]]:
        """Device and seconds of each block, the transfer to it included."""
        stages: list[tuple[str, float]] = []
        known: dict[tuple[int, Place], float] = {}  # most blocks of a model are one and the same value
        previous: tuple[LayerWork, Place] | None = None
        entry = self._entry_seconds(layers, step) if layers else 0.0
        for layer, place in layers:
            key = id(layer), place
            seconds = known.get(key)
            if seconds is None:
                seconds = known[key] = self.layer_seconds(layer, place, step)
            if previous is not None and previous[1].device != place.device:
                n_bytes = previous[0].hidden_bytes * step.n_tokens
                n_masked = layer.mask_bytes * step.n_tokens * (step.n_filled + step.n_tokens / step.n_sequences)
                seconds += self.transfer_seconds(previous[1].device, place.device, n_bytes, n_masked)
            stages.append((place.device, seconds + entry))
            previous, entry = (layer, place), 0.0
        return stages

    def _entry_seconds(self, layers: Placed, step: Step) -> float:
        """Seconds to send a first device over RPC what the processor looked up, and to have the results of the last.

        Of devices in the machine this is part of what every step costs.
        """
        (first, start), (last, end), seconds = layers[0], layers[-1], 0.0
        if self._network.is_over_rpc(start.device):
            masked = first.mask_bytes * step.n_tokens * (step.n_filled + step.n_tokens / step.n_sequences)
            seconds += self.transfer_seconds(HOST_POOL, start.device, first.hidden_bytes * step.n_tokens, masked)
        return seconds + self.exit_seconds(end.device, last.result_bytes * step.n_sequences)

    def exit_seconds(self, name: str, n_bytes: int) -> float:
        """Seconds to have a step's results from the last device; 0 but for one over RPC."""
        return self.transfer_seconds(name, HOST_POOL, n_bytes) if self._network.is_over_rpc(name) else 0.0

    def _constant_seconds(self, layers: Placed) -> float:
        return max((self._at(place.device).efficiency.step_s for _, place in layers), default=0.0)

    def _speculative_rate(self, layers: Placed, step: Step, draft: Draft) -> float:
        """Tokens per second of one sequence: tokens kept of a round over the time to draft and check them."""
        rate = self._table.acceptance if draft.acceptance is None else draft.acceptance
        kept = math.fsum(rate**i for i in range(draft.n_tokens + 1))
        check = step._replace(n_tokens=step.n_sequences * (draft.n_tokens + 1))
        n_drafts = 1 if draft.is_parallel else draft.n_tokens
        drafting = self.step_seconds(draft.layers, step)
        return kept / (self.step_seconds(layers, check) + n_drafts * drafting)


def _basis(kind: str, assumed: Sequence[str]) -> str:
    return f"roofline, {kind}" + (f"; assumed: {', '.join(assumed)}" if assumed else "")


def _parts(places: Sequence[Place]) -> list[str]:
    return sorted({name for place in dict.fromkeys(places) for name in place.parts})


def _by_device(stages: Sequence[tuple[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for name, seconds in stages:
        sums[name] = sums.get(name, 0.0) + seconds
    return sums


def _touched(n_tokens: int, share: float | None) -> float:
    """The part of the weights that a step reads, if tokens choose experts independently of each other."""
    return 1.0 if share is None or share >= 1.0 else 1.0 - (1.0 - share) ** n_tokens


def _factor(spreads: Sequence[Spread]) -> float:
    """Independent spreads together: the squares of their logarithms add up."""
    return math.exp(math.sqrt(math.fsum(math.log(spread.factor) ** 2 for spread in spreads)))
