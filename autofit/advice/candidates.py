"""What there is to buy: every profile alone, equal cards together, machines with each RAM that they are sold with.

Figures here are read from profiles and are bounds: a process never gets more memory than `memory_bytes`, and never
reads faster than `bandwidth_bytes_per_s`. The machine itself is put together when a candidate is planned for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autofit.advice.prices import Prices
from autofit.domain.machine import HOST_POOL, Device, Machine
from autofit.domain.units import GIB
from autofit.domain.values import dataclass
from autofit.errors import UsageError
from autofit.hardware.catalog import Profile, list_profiles
from autofit.profiles import THIS_MACHINE

COUNTS = range(1, 9)  #: of equal cards
_BUILT_IN = "laptop"  #: in the names that drivers give to chips which nobody sells alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Hardware to plan for: `on` are the names that `--on` takes, `added` what of it would be bought.

    `sold_bytes` is the memory of all its devices as it is sold, `memory_bytes` what processes may take of it at most.
    `ram_bytes` is the RAM of a machine; `None`: cards alone, in a computer whose RAM is stated.
    """

    on: tuple[str, ...]
    added: str
    n_devices: int
    api: str
    sold_bytes: int
    memory_bytes: int
    bandwidth_bytes_per_s: int | None  #: of all devices together
    fastest_bytes_per_s: int | None  #: of the fastest of them
    price: float | None
    price_date: str | None = None
    devices: tuple[Device, ...] = ()  #: as far as rates follow from them
    ram_bytes: int | None = None
    kind: tuple[object, ...] = ()  #: equal for hardware that an engine takes or refuses alike
    card: str = ""  #: the card that all of it is, of which one may as well buy fewer


def candidates(prices: Prices, profile_dirs: Iterable[str | Path] = ()) -> list[Candidate]:
    """All hardware of which a profile says how much memory it has, by name.

    Raises:
        HardwareError: a profile that is wrong.
    """
    profiles = {one.id: one for one in list_profiles(profile_dirs) if one.id != THIS_MACHINE}
    found: list[Candidate] = []
    for profile in profiles.values():
        found += _of_machine(profile, profiles, prices) if profile.is_machine else _of_card(profile, prices)
    return found


def one_more(have: Sequence[str], machine: Machine, prices: Prices, dirs: Iterable[str | Path] = ()) -> list[Candidate]:
    """What one has with each card added that the same build of an engine drives.

    Raises:
        UsageError: a machine that takes no card.
    """
    if any(device.pool == HOST_POOL for device in machine.devices):
        raise UsageError(
            f"--have {' '.join(have)}: its devices share RAM, and there is no other card to add",
            hint="without --have, whole machines and cards are compared",
        )
    apis = {device.api for device in machine.devices}
    usable = sum(device.free_bytes or 0 for device in machine.devices)
    sold = sum(device.total_bytes or 0 for device in machine.devices)
    rates = [device.bandwidth_bytes_per_s for device in machine.devices]
    found = []
    for profile in list_profiles(dirs):
        for card in _of_card(profile, prices, (1,)) if _is_card(profile) else ():
            if apis and card.api not in apis:
                continue
            found.append(
                Candidate(
                    on=(*have, card.added),
                    added=card.added,
                    n_devices=len(machine.devices) + 1,
                    api=card.api,
                    sold_bytes=sold + card.sold_bytes,
                    memory_bytes=usable + card.memory_bytes,
                    bandwidth_bytes_per_s=_over(sum, [*rates, card.bandwidth_bytes_per_s]),
                    fastest_bytes_per_s=_over(max, [*rates, card.bandwidth_bytes_per_s]),
                    devices=(*machine.devices, *card.devices),
                    price=card.price,
                    price_date=card.price_date,
                    kind=card.kind,
                )
            )
    return found


def _is_card(profile: Profile) -> bool:
    """Whether it is sold alone, for a slot: no laptop's chip, no module of a board, no half of a superchip."""
    table = profile.table
    in_slot = str(table.get("link", "PCIe")).startswith("PCIe") and not table.get("nvlink_switched")
    return not profile.is_machine and in_slot and _BUILT_IN not in profile.id


def _of_card(profile: Profile, prices: Prices, counts: Sequence[int] = COUNTS) -> Iterator[Candidate]:
    table = profile.table
    total = table.get("memory_total_bytes")
    if total is None:
        return
    entry = prices.entries.get(profile.id)
    for count in (1,) if _BUILT_IN in profile.id else counts:
        name = profile.id if count == 1 else f"{count}x{profile.id}"
        rate = table.get("bandwidth_bytes_per_s")
        yield Candidate(
            on=(name,),
            added=name,
            n_devices=count,
            api=table["api"],
            sold_bytes=count * total,
            memory_bytes=count * (total - table.get("memory_reserved_bytes", 0)),
            bandwidth_bytes_per_s=None if rate is None else count * rate,
            fastest_bytes_per_s=rate,
            devices=(_device(table),) * count,
            price=None if entry is None else entry.amount * count,
            price_date=None if entry is None else entry.date,
            kind=_kind(table),
            card=profile.id,
        )


def _of_machine(profile: Profile, profiles: Mapping[str, Profile], prices: Prices) -> Iterator[Candidate]:
    """A machine with each RAM that it is sold with; none without devices, or whose RAM nobody knows."""
    host = profile.table.get("host", {})
    known = host.get("total_bytes")
    sizes = host.get("sizes_gib", [])
    rows = [_whole(row, profiles) for row in profile.table.get("device", ())]
    for ram in [known] if known is not None else [size * GIB for size in sizes]:
        name = profile.id if known is not None or len(sizes) == 1 else f"{profile.id}-{ram // GIB}gb"
        entry = prices.entries.get(name) or prices.entries.get(f"{profile.id}-{ram // GIB}gb")
        memory = [_memory(row, ram) for row in rows]
        if not rows or None in memory:
            continue
        counts = [row.get("count", 1) for row in rows]
        rates = [row.get("bandwidth_bytes_per_s") for n, row in zip(counts, rows, strict=True) for _ in range(n)]
        devices = [_device(row, host) for row in rows]
        shares = any(row.get("pool") == HOST_POOL for row in rows)
        sold = ram if shares else sum(n * row["memory_total_bytes"] for n, row in zip(counts, rows, strict=True))
        yield Candidate(
            on=(name,),
            added=name,
            n_devices=sum(counts),
            api=rows[0]["api"],
            sold_bytes=sold,
            memory_bytes=sum(n * (size or 0) for n, size in zip(counts, memory, strict=True)),
            bandwidth_bytes_per_s=_over(sum, rates),
            fastest_bytes_per_s=_over(max, rates),
            devices=tuple(device for n, device in zip(counts, devices, strict=True) for _ in range(n)),
            price=None if entry is None else entry.amount,
            price_date=None if entry is None else entry.date,
            ram_bytes=ram,
            kind=_kind(rows[0]),
        )


def _whole(row: Mapping[str, Any], profiles: Mapping[str, Profile]) -> Mapping[str, Any]:
    card = profiles.get(row.get("profile", ""))
    return {**(card.table if card is not None else {}), **row}


def _device(row: Mapping[str, Any], host: Mapping[str, Any] | None = None) -> Device:
    """What rates follow from; of a device that shares RAM, with the bandwidth of RAM."""
    capability = row.get("compute_capability")
    return Device(
        id="",
        index=0,
        name=row["name"],
        api=row["api"],
        total_bytes=None,
        free_bytes=None,
        compute_capability=None if capability is None else (capability[0], capability[1]),
        gfx=row.get("gfx"),
        n_sm=row.get("n_sm"),
        bandwidth_bytes_per_s=row.get("bandwidth_bytes_per_s") or (host or {}).get("bandwidth_bytes_per_s"),
        fp16_flops_per_s=row.get("fp16_flops_per_s"),
    )


def _memory(row: Mapping[str, Any], ram: int) -> int | None:
    """What of a device's memory processes may take at most; of one that shares RAM, all of RAM."""
    if row.get("pool") == HOST_POOL:
        return ram
    total = row.get("memory_total_bytes")
    return None if total is None else total - row.get("memory_reserved_bytes", 0)


def _kind(table: Mapping[str, Any]) -> tuple[object, ...]:
    capability = table.get("compute_capability")
    return table.get("api"), table.get("vendor"), tuple(capability) if capability else None, table.get("gfx")


def _over(join: Callable[[Iterable[int]], int], rates: Sequence[int | None]) -> int | None:
    return None if None in rates else join(rate for rate in rates if rate is not None)
