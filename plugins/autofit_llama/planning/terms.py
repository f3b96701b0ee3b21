"""A split in the engine's own terms: the shortest flags that say exactly that."""

from __future__ import annotations

from collections.abc import Sequence

from autofit.domain.values import NamedTuple

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
    parts = [(slot, projection, HOST_BUFFER) for slot, projection in split.spilled] + list(split.moved)
    return Terms(
        n_gpu_layers=n_rows - split.head,
        devices=split.order,
        tensor_split=rows,
        n_lean=split.lean,
        patterns=tuple(
            (pattern, place)
            for slot, projection, place in parts
            for pattern in patterns_of(slot, projection, kind, chunked=_is_chunked(found[slot]))
        ),
    )


def patterns_of(slot: int, projection: str, kind: Kind, *, chunked: bool = False) -> Sequence[str]:
    """Regular expressions for one projection of a layer, without a character that is special to a shell or `-ot`.

    Dots are not escaped: a layer's number cannot be taken for another one's.
    """
    suffixes = (".",) if kind == "dense" else ("_exps", "_chexps") if chunked else ("_exps",)
    return [f"blk.{slot}.ffn_{projection}{suffix}" for suffix in suffixes]


def _is_chunked(block: Block) -> bool:
    return any("_chexps" in weight.name for part in block.bulk for weight in part.weights)
