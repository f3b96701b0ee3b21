"""From the items of each device and of the host to pools: margins, budgets, and memory that devices share."""

from __future__ import annotations

from collections.abc import Sequence

from autofit.domain.machine import HOST_POOL, Device, Host, Machine
from autofit.domain.memory import DeviceLimit, Memory, MemoryItem, PoolUse
from autofit.domain.request import Margin
from autofit.domain.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUse:
    """What a launch takes of one device, and the `margin_bytes` that it leaves free there.

    `total_bytes` and `free_bytes` are as the engine sees them; `free_bytes` `None` is unknown.
    """

    device: Device
    items: tuple[MemoryItem, ...]
    total_bytes: int | None
    free_bytes: int | None
    margin_bytes: int = 0

    @property
    def budget_bytes(self) -> int | None:
        """What it may take: what is free beside the margin."""
        return None if self.free_bytes is None else max(self.free_bytes - self.margin_bytes, 0)

    @property
    def shares_memory(self) -> bool:
        """Whether the device draws on RAM."""
        return self.device.pool == HOST_POOL


def margin_of(index: int, margins: Sequence[Margin], total_bytes: int, default: Margin) -> int:
    """Bytes to leave free on the device at `index`; the last of `margins` is repeated."""
    return (margins[min(index, len(margins) - 1)] if margins else default).of(total_bytes)


def account(uses: Sequence[DeviceUse], host_items: Sequence[MemoryItem], machine: Machine) -> Memory:
    """One pool per device in the given order, the host last; devices that draw on RAM are part of its pool.

    Such a device may take less than the host has (Metal's working set, a GTT limit): the pool has a limit for it.
    Those of other machines draw on a pool of theirs, `node1/host`, which comes before the host's.
    """
    sharing = [use for use in uses if use.shares_memory]
    own = [use for use in sharing if not use.device.node]
    others: dict[str, list[DeviceUse]] = {}
    for use in sharing:
        if use.device.node:
            others.setdefault(use.device.node, []).append(use)
    hosts = {node.name: node.host or machine.host for node in machine.nodes}
    there = (
        _host_pool(f"{theirs[0].device.id.rpartition('/')[0] or name}/{HOST_POOL}", theirs, (), hosts[name])
        for name, theirs in others.items()
    )
    devices = (_device_pool(use) for use in uses if not use.shares_memory)
    return Memory(pools=(*devices, *there, _host_pool(HOST_POOL, own, host_items, machine.host)))


def _host_pool(name: str, sharing: Sequence[DeviceUse], host_items: Sequence[MemoryItem], host: Host) -> PoolUse:
    items = (*(item for use in sharing for item in _with_reserve(use)), *host_items)
    reserve = sum(item.n_bytes for item in items if item.kind == "reserve")
    free = host.available_bytes
    return PoolUse(
        id=name,
        name="unified memory" if sharing else "RAM",
        total_bytes=host.total_bytes,
        free_bytes=free,
        budget_bytes=None if free is None else max(free - reserve, 0),
        items=items,
        limits=tuple(
            DeviceLimit(id=use.device.id, name=use.device.name, limit_bytes=use.budget_bytes, items=use.items)
            for use in sharing
            if use.budget_bytes is not None
        ),
    )


def _device_pool(use: DeviceUse) -> PoolUse:
    return PoolUse(
        id=use.device.id,
        name=use.device.name,
        total_bytes=use.total_bytes,
        free_bytes=use.free_bytes,
        budget_bytes=use.budget_bytes,
        items=_with_reserve(use),
    )


def _with_reserve(use: DeviceUse) -> tuple[MemoryItem, ...]:
    if not use.margin_bytes:
        return use.items
    return (*use.items, MemoryItem(kind="reserve", n_bytes=use.margin_bytes, basis="assumed", label="margin"))
