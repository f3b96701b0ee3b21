"""What a model takes at least, wherever it runs: hardware with less is not planned for.

The bytes of weights are the engine's own, of one plan on a device without end; the cache and the bytes that a token
reads are counted from the header. Each figure is below what any plan that fits takes, so that nothing is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from autofit.domain.machine import HOST_POOL, Device, Machine
from autofit.domain.model import LayerSpec, ModelSpec
from autofit.domain.plan import Plan
from autofit.domain.values import dataclass, replace
from autofit.speed.efficiencies import TABLE
from autofit.speed.rates import efficiency_of

if TYPE_CHECKING:
    from autofit.domain.efficiency import Efficiencies, Efficiency

ENDLESS_BYTES = 1 << 44
_FULL_CACHE_BITS = 16  #: of an element of the plan's cache
LEAST_CACHE_BITS = 4  #: of an element, of any type that engines have
ENDLESS_RATE = 10**18
_FLOPS_PER_S = 10**14


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Lower bounds. `device_bytes`: weights and cache, on all devices together, with no weights in RAM.

    `weights_bytes`: of them, the weights. `read_bytes`: what one token of one sequence reads.
    """

    weights_bytes: int = 0
    device_bytes: int = 0
    read_bytes: int = 0

    def most_tokens_per_s(self, bandwidth_bytes_per_s: int | None) -> float | None:
        """No engine decodes faster, for each weight is read once; `None`: no bound is known."""
        if bandwidth_bytes_per_s is None or self.read_bytes <= 0:
            return None
        return bandwidth_bytes_per_s / self.read_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """What a prompt that fills the context takes to compute, on devices that read memory in no time.

    `operations` are those of FP16 at the nominal rate of a device that reaches as much of it as `reaches`.
    """

    operations: float
    reaches: Efficiency
    engine: Efficiencies

    def least_s(self, devices: Sequence[Device]) -> float:
        """No plan on these devices together has its first token earlier; 0 where a rate is not known."""
        rate = 0.0
        for device, n in Counter(devices).items():
            if not device.fp16_flops_per_s:
                return 0.0
            rate += n * device.fp16_flops_per_s * self._times(efficiency_of(device, self.engine, TABLE))
        return self.operations / rate if rate else 0.0

    def _times(self, other: Efficiency) -> float:
        """How much more of its nominal rate another device reaches, at most."""
        own = self.reaches
        padding = max(1.0, own.expert_tokens / other.expert_tokens) if other.expert_tokens else 1.0
        return max(padding * other.flops / own.flops, other.attention / own.attention)


def first_token(plan: Callable[[Machine], Plan], machine: Machine, engine: Efficiencies) -> FirstToken | None:
    """What `plan` makes of a prompt on an endless machine that reads memory in no time, at two rates: the part that
    halves with twice the rate is computing. `None`: no rate is known."""
    device = replace(machine.devices[0], bandwidth_bytes_per_s=ENDLESS_RATE, n_sm=None)

    def seconds(flops_per_s: int) -> float | None:
        found = plan(replace(machine, devices=(replace(device, fp16_flops_per_s=flops_per_s),)))
        rate = None if found.speed is None else found.speed.prefill_tokens_per_s
        return found.context_tokens / rate if rate and found.context_tokens else None

    once, twice = seconds(_FLOPS_PER_S), seconds(2 * _FLOPS_PER_S)
    if once is None or twice is None:
        return None
    reaches = efficiency_of(device, engine, TABLE)
    return FirstToken(operations=2 * (once - twice) * _FLOPS_PER_S, reaches=reaches, engine=engine)


def endless(machine: Machine) -> Machine:
    """The machine with its first device alone, and with more memory than any model takes."""
    first: Device = machine.devices[0]
    big = replace(first, total_bytes=ENDLESS_BYTES, free_bytes=ENDLESS_BYTES, reserved_bytes=0)
    host = replace(machine.host, total_bytes=ENDLESS_BYTES, available_bytes=ENDLESS_BYTES)
    return replace(machine, devices=(big,), links=(), host=host)


def needs_of(model: ModelSpec, plan: Plan, kv_bits: int = LEAST_CACHE_BITS, context_tokens: int | None = None) -> Needs:
    """The bounds that follow from a plan with room for everything; none where it has no device of its own.

    `kv_bits` is the least that an element of the cache takes. `context_tokens`: that is asked for; where none is, a
    plan may have a shorter one, and no cache is counted.
    """
    on_devices = [pool for pool in plan.memory.pools if pool.id != HOST_POOL]
    weights = sum(pool.sum_bytes("weights") for pool in on_devices)
    cache = sum(pool.sum_bytes("cache") for pool in on_devices)
    counted = least_cache_bytes(model, context_tokens or 0, kv_bits)
    least = min(counted, cache * kv_bits // _FULL_CACHE_BITS)
    loaded = sum(pool.sum_bytes("weights") for pool in plan.memory.pools)
    left_out = max(0, model.weights_bytes - loaded)
    read = max(0, sum(map(_read_bytes, model.layers)) - left_out) if model.tensors else _read_of(model, weights)
    return Needs(weights_bytes=weights, device_bytes=weights + least, read_bytes=read)


def _read_of(model: ModelSpec, weights_bytes: int) -> int:
    """What a token reads of a model that is known by its configuration: all but embedding and output, in 32 bits.

    0, which bounds nothing, where experts or other stacks of blocks are read in part.
    """
    if any(layer.n_experts or layer.stack for layer in model.layers) or not model.n_vocab or not model.hidden_elements:
        return 0
    return max(0, weights_bytes - 2 * 4 * model.n_vocab * model.hidden_elements)


def least_cache_bytes(model: ModelSpec, context_tokens: int, kv_bits: int = LEAST_CACHE_BITS) -> int:
    """Keys and values of one sequence at so many bits an element; layers whose shape is not known count as none."""
    return sum(_elements(layer, context_tokens) for layer in model.layers) * kv_bits // 8


def _elements(layer: LayerSpec, context_tokens: int) -> int:
    if layer.mixer not in ("full", "sliding", "chunked") or not layer.n_kv_heads:
        return 0
    window = context_tokens if layer.mixer == "full" else min(context_tokens, layer.window_tokens or 0)
    return layer.n_kv_heads * ((layer.key_dim or 0) + (layer.value_dim or 0)) * window


def _read_bytes(layer: LayerSpec) -> int:
    experts = layer.expert_bytes * layer.n_experts_used // layer.n_experts if layer.n_experts else 0
    return layer.attention_bytes + layer.feed_forward_bytes + experts
