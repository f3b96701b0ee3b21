"""A split in the engine's own terms: the shortest flags that say exactly that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from autofit.domain.values import NamedTuple

from autofit_llama.planning.tables import Split
from autofit_llama.speed.costs import Block, Kind

HOST_BUFFER = "CPU"


class Terms(NamedTuple):
    """What `-ngl`, `-ts`, `-ncmoe` or `-ncffn`, and `-ot` (pattern, buffer or device) have to be.

    `n_cpu_ffn` is the first number of blocks whose ffn stays in RAM, 0 where patterns say it; `tensor_split` is in
    rows per device, in the order of `devices`.
    """

    n_gpu_layers: int
    devices: tuple[str, ...]
    tensor_split: tuple[int, ...]
    n_cpu_ffn: int
    patterns: tuple[tuple[str, str], ...]


def terms_of(split: Split, found: Sequence[Block], kind: Kind, *, counted: bool = True) -> Terms:
    """The terms of a split; places in patterns are device ids, or `CPU`.

    Not `counted`: the build has no flag for a number of blocks, and a pattern names each of their parts.
    """
    n_rows = len(found)
    rows = tuple(count for _, count in split.rows)
    offloaded = (
        split.offloaded if counted else (*_ffn_of(found, range(split.head, split.n_cpu_ffn), kind), *split.offloaded)
    )
    parts = [(slot, projection, HOST_BUFFER) for slot, projection in offloaded] + list(split.moved)
    return Terms(
        n_gpu_layers=n_rows - split.head,
        devices=split.order,
        tensor_split=rows,
        n_cpu_ffn=split.n_cpu_ffn if counted else 0,
        patterns=tuple(
            (pattern, place)
            for slot, projection, place in parts
            for pattern in patterns_of(slot, projection, kind, chunked=_is_chunked(found[slot]))
        ),
    )


def _ffn_of(found: Sequence[Block], slots: Iterable[int], kind: Kind) -> Iterator[tuple[int, str]]:
    return ((slot, part.projection) for slot in slots for part in found[slot].ffn if part.kind == kind)


def patterns_of(slot: int, projection: str, kind: Kind, *, chunked: bool = False) -> Sequence[str]:
    """Regular expressions for one projection of a layer, without a character that is special to a shell or `-ot`.

    Dots are not escaped: a layer's number cannot be taken for another one's.
    """
    suffixes = (".",) if kind == "dense" else ("_exps", "_chexps") if chunked else ("_exps",)
    return [f"blk.{slot}.ffn_{projection}{suffix}" for suffix in suffixes]


def _is_chunked(block: Block) -> bool:
    return any("_chexps" in weight.name for part in block.ffn for weight in part.weights)
