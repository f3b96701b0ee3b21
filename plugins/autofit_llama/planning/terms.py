"""A split in the engine's own terms: the shortest flags that say exactly that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from autofit_llama.memory.placement import place_layers
from autofit_llama.planning.tables import Split
from autofit_llama.speed.costs import Block, Kind

HOST_BUFFER = "CPU"


class Terms(NamedTuple):
    """What `-ngl`, `-ts`, `-ncmoe` or `-ncffn`, and `-ot` (pattern, buffer or device) have to be.

    `n_lean` is the first number of blocks whose bulk stays in RAM; `tensor_split` is in rows per device,
    in the order of `devices`.
    """

    n_gpu_layers: int
    devices: tuple[str, ...]
    tensor_split: tuple[int, ...]
    n_lean: int
    patterns: tuple[tuple[str, str], ...]


def terms_of(split: Split, found: Sequence[Block], kind: Kind) -> Terms:
    """The terms of a split; places in patterns are device ids, or `CPU`."""
    n_rows = len(found)
    rows = tuple(count for _, count in split.rows)
    patterns: dict[tuple[tuple[str, ...], str], list[int]] = {}
    for place, parts in _by_place(split).items():
        for slot, projections in parts.items():
            patterns.setdefault((tuple(projections), place), []).append(slot)
    return Terms(
        n_gpu_layers=n_rows - split.head,
        devices=split.order,
        tensor_split=rows,
        n_lean=split.lean,
        patterns=tuple(
            (pattern(slots, projections, kind, chunked=_is_chunked(found, slots)), place)
            for (projections, place), slots in patterns.items()
        ),
    )


def placed_as_planned(terms: Terms) -> bool:
    """Whether the engine's own rule, in single precision, gives every device the rows that it should have."""
    n_rows = sum(terms.tensor_split)
    placement = place_layers(n_rows - 1, n_rows, terms.tensor_split)
    homes = [*placement.blocks, placement.output]
    return [homes.count(d) for d in range(len(terms.tensor_split))] == list(terms.tensor_split)


def pattern(slots: Sequence[int], projections: Sequence[str], kind: Kind, *, chunked: bool = False) -> str:
    """A regular expression for these projections of these blocks; no comma, which `-ot` splits on.

    Dots are not escaped: a block's number cannot be taken for another one's, and a shell need not be told.
    """
    suffix = "." if kind == "dense" else "_(ch|)exps" if chunked else "_exps"
    return f"blk.{_one_of(map(str, slots))}.ffn_{_one_of(projections)}{suffix}"


def _one_of(words: Iterable[str]) -> str:
    every = list(words)
    return every[0] if len(every) == 1 else f"({'|'.join(every)})"


def _by_place(split: Split) -> Mapping[str, Mapping[int, list[str]]]:
    places: dict[str, dict[int, list[str]]] = {}
    for slot, projection in split.spilled:
        places.setdefault(HOST_BUFFER, {}).setdefault(slot, []).append(projection)
    for slot, projection, device in split.moved:
        places.setdefault(device, {}).setdefault(slot, []).append(projection)
    return places


def _is_chunked(found: Sequence[Block], slots: Sequence[int]) -> bool:
    return any("_chexps" in weight.name for slot in slots for part in found[slot].bulk for weight in part.weights)
