"""What a place of a given machine reaches: nominal figures times fitted efficiencies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from autofit.domain.machine import HOST_POOL, Device, Host
from autofit.domain.values import replace
from autofit.speed.efficiency import Efficiencies, Efficiency, Table
from autofit.speed.work import Read, quant_class

Generation = Literal["ampere", "ada", "blackwell", "rdna4", "other"]

# Assumed where a machine does not say, and then named: PCIe 4.0 x8, eight cores, and DDR4-3200 in as many
# channels as processors of so many cores have.
ASSUMED_LINK_BYTES_PER_S = 15_753_846_153
CHANNEL_BYTES_PER_S = 25_600_000_000
CHANNELS = ((16, 2), (32, 4), (64, 8))  #: up to so many cores, so many channels; beyond, twelve
ASSUMED_CORES = 8
# Single precision of one AVX2 core at 4 GHz: two fused multiply-adds of eight lanes a cycle.
CORE_FLOPS_PER_S = 128e9


class Rates:
    """Bytes and operations per second of one place. `assumed` names what the machine did not state."""

    __slots__ = (
        "_bandwidth", "_flops", "_most", "_quant", "assumed", "attention", "cache", "efficiency", "flops", "kernel_s",
        "launch_s",
        "link", "vector",
    )  # fmt: skip

    def __init__(
        self,
        table: Table,
        efficiency: Efficiency,
        *,
        bandwidth: float,
        flops: float | None,
        link: float,
        n_sm: int | None = None,
        clock: float = 1.0,
        assumed: tuple[str, ...] = (),
    ) -> None:
        nominal = math.inf if flops is None else flops
        self.efficiency = efficiency
        self._bandwidth = bandwidth
        self._quant = table.quant
        each = efficiency.sm_bytes_per_s
        self._most = math.inf if each is None or n_sm is None else each * n_sm
        self._flops = table.quant_flops
        self.cache = bandwidth * efficiency.cache
        self.flops = nominal * efficiency.flops
        self.attention = nominal * efficiency.attention
        self.vector = nominal * efficiency.vector
        self.kernel_s = efficiency.kernel_s * clock
        self.launch_s = efficiency.launch_s * clock
        self.link = link * table.link
        self.assumed = assumed

    @property
    def knows_flops(self) -> bool:
        return not math.isinf(self.flops)

    def read_seconds(self, reads: tuple[Read, ...], fraction: float) -> float:
        """Seconds to read these weights once at `fraction` of the bandwidth, or as fast as all units together can."""
        rate = min(self._bandwidth * fraction, self._most)
        return math.fsum(read.n_bytes / (rate * self._quant[quant_class(read.type)]) for read in reads)

    def operations(self, reads: tuple[Read, ...]) -> float:
        """Two per element, as many of the class `super` as take the same time."""
        return math.fsum(2.0 * read.n_elements / self._flops[quant_class(read.type)] for read in reads)


def generation(device: Device) -> Generation:
    """The generation of a device: small kernels follow its clock, and its units what they read at a time."""
    if device.gfx is not None:
        return "rdna4" if device.gfx.startswith("gfx12") else "other"
    capability = device.compute_capability
    if "cuda" not in (device.api, device.behind) or capability is None:
        return "other"
    return "blackwell" if capability >= (10, 0) else "ada" if capability >= (8, 9) else "ampere"


def host_rates(host: Host, engine: Efficiencies, table: Table, sharing: Iterable[Rates] = ()) -> Rates:
    """The processor's rates; what the machine does not state is assumed and said so.

    Of memory that devices draw on too (`sharing`) it gets no larger part than they do.
    """
    assumed = []
    cores = host.n_cores_performance or host.n_cores_physical
    if cores is None:
        cores = ASSUMED_CORES
        assumed.append(f"{cores} cores")
    bandwidth = host.bandwidth_bytes_per_s
    if bandwidth is None:
        n_channels = next((n for most, n in CHANNELS if cores <= most), 12)
        bandwidth = n_channels * CHANNEL_BYTES_PER_S
        assumed.append(f"memory at {bandwidth / 1e9:.0f} GB/s ({n_channels} channels of DDR4-3200)")
    row = engine.rows.get("cpu", table.rows["cpu"])
    for other in sharing:
        weights, experts = other.efficiency.weights, other.efficiency.experts
        row = replace(row, weights=min(row.weights, weights), experts=min(row.experts, experts))
    return Rates(
        table,
        row,
        bandwidth=bandwidth,
        flops=cores * CORE_FLOPS_PER_S,
        link=math.inf,
        assumed=tuple(assumed),
    )


def efficiency_of(device: Device, engine: Efficiencies, table: Table) -> Efficiency:
    """What an engine reaches of a device's nominal rates: by its generation, its API, or the table's default."""
    api = device.behind or device.api
    return engine.rows.get(f"{api}/{generation(device)}") or engine.rows.get(api, table.rows["default"])


def device_rates(device: Device, host: Host, engine: Efficiencies, table: Table) -> Rates | None:
    """A device's rates, or `None` when nobody stated its memory bandwidth."""
    shares_memory = device.pool == HOST_POOL
    bandwidth = device.bandwidth_bytes_per_s or (host.bandwidth_bytes_per_s if shares_memory else None)
    if bandwidth is None:
        return None
    assumed: tuple[str, ...] = ()
    link = math.inf
    if not shares_memory:
        link = device.link_bytes_per_s or ASSUMED_LINK_BYTES_PER_S
        if device.link_bytes_per_s is None:
            assumed = (f"{device.id} linked at {link / 1e9:.0f} GB/s (PCIe 4.0 x8)",)
    return Rates(
        table,
        efficiency_of(device, engine, table),
        bandwidth=bandwidth,
        flops=device.fp16_flops_per_s,
        link=link,
        n_sm=device.n_sm,
        clock=table.clock.get(generation(device), 1.0),
        assumed=assumed,
    )
