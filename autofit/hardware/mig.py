"""Slices of an NVIDIA card: `a100-mig-3g.20gb`, `h100-2g.20gb`.

A name says the slices of multiprocessors (`3g`) and the memory (`20gb`); the card of several sizes is the one whose
memory, cut in slices, gives that figure. Source: NVIDIA Multi-Instance GPU user guide, "Supported MIG profiles".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autofit.domain.patterns import lazy_pattern
from autofit.domain.text import printable
from autofit.domain.units import GIB, MIB
from autofit.errors import UnknownHardwareError
from autofit.hardware import names
from autofit.hardware.catalog import Profile, read_profile

_NAME = lazy_pattern(r"(.+?)[\s_-]+(?:mig[\s_-]+)?(\d)g[._](\d{1,3})gb(?:[+._](?:me|gfx))*", re.IGNORECASE)
MEMORY_SLICES = {1: (1, 2), 2: (2,), 3: (4,), 4: (4,), 7: (8,)}
"""Slices of compute -> slices of memory, of eight."""
SMALL_MEMORY_SLICES = {1: (1,), 2: (2,), 4: (4,)}
"""The same of the A30, which has four of each."""
SLICE_OVERHEAD_BYTES = 256 * MIB
"""Kept of each instance: 1g.5gb of a card with 39.4 GiB has 4.75 GiB, 3g.20gb 19.62 GiB."""


def find(name: str, dirs: Iterable[str | Path] = ()) -> Profile | None:
    """The slice that a name means, as a profile of its own; `None` where the name is not one of a slice.

    Raises:
        UnknownHardwareError: an unknown card, or one that is not cut like this; the hint names its slices.
    """
    match = _NAME.fullmatch(name) if len(name) <= 80 else None
    if match is None:
        return None
    dirs = tuple(dirs)
    stems = {**names.find_driver(match[1], dirs), **names.find_driver(f"nvidia {match[1]}", dirs)}
    cards = [card for card in map(read_profile, stems.values()) if _can_be_cut(card)]
    if not cards:
        if not stems:
            names.resolve(match[1], dirs)
        raise UnknownHardwareError(f"{printable(match[1], 60)} cannot be cut into instances (MIG)")
    found = {card.id: (card, n) for card in cards for n in _memory_slices(card, int(match[2]), int(match[3]))}
    if not found:
        offered = [slice for card in cards for slice in slices(card)]
        raise UnknownHardwareError(
            f"{printable(name, 60)}: the card is not cut like this",
            hint=f"its instances: {', '.join(dict.fromkeys(offered))}",
        )
    card, n_memory = found[min(found, key=lambda id: (id.count("-"), id))]
    return _cut(card, int(match[2]), int(match[3]), n_memory)


def slices(card: Profile) -> list[str]:
    """The names of a card's instances, such as `3g.20gb`."""
    table = _table(card)
    whole = card.table["memory_total_bytes"] / GIB
    return [f"{g}g.{int(whole * n / _parts(card) + 0.5)}gb" for g, counts in table.items() for n in counts]


def _can_be_cut(card: Profile) -> bool:
    """Ampere, Hopper and Blackwell of the data center: memory on the package, or its name says so."""
    table = card.table
    capability = table.get("compute_capability", [0, 0])
    return not card.is_machine and capability[1] == 0 and capability[0] in {8, 9, 10} and "memory_total_bytes" in table


def _parts(card: Profile) -> int:
    return 4 if card.table["n_sm"] < 60 else 8


def _table(card: Profile) -> Mapping[int, tuple[int, ...]]:
    return MEMORY_SLICES if _parts(card) == 8 else SMALL_MEMORY_SLICES


def _memory_slices(card: Profile, n_compute: int, gb: int) -> list[int]:
    whole = card.table["memory_total_bytes"] / GIB
    return [n for n in _table(card).get(n_compute, ()) if abs(whole * n / _parts(card) - gb) <= 1 + whole / 80]


def _cut(card: Profile, n_compute: int, gb: int, n_memory: int) -> Profile:
    """The figures of an instance: its part of memory and bandwidth, its multiprocessors' part of arithmetic."""
    table, parts = card.table, _parts(card)
    usable = table["memory_total_bytes"] - table.get("memory_reserved_bytes", 0)
    # 14 multiprocessors of 108, 16 of 132: a slice is an eighth, evened; the whole card keeps them all
    n_sm = table["n_sm"] if n_memory == parts and parts == 8 else n_compute * round(table["n_sm"] / parts)
    cut: dict[str, Any] = {
        **table,
        "name": f"{table['name']} MIG {n_compute}g.{gb}gb",
        "memory_total_bytes": usable * n_memory // parts - SLICE_OVERHEAD_BYTES,
        "memory_reserved_bytes": 0,
        "bandwidth_bytes_per_s": table["bandwidth_bytes_per_s"] * n_memory // parts,
        "n_sm": n_sm,
        "source": [
            {
                "figures": ["memory_total_bytes", "bandwidth_bytes_per_s", "n_sm", "fp16_flops_per_s"],
                "basis": "derived",
                "name": f"{n_memory} of {parts} memory slices and {n_sm} multiprocessors of {card.id}",
            },
            *table["source"],
        ],
    }
    if "fp16_flops_per_s" in table:
        cut["fp16_flops_per_s"] = table["fp16_flops_per_s"] * n_sm // table["n_sm"]
    cut.pop("nvlink_bytes_per_s", None)
    return Profile(id=card.id, path=card.path, table=cut)
