"""Which split to try when not everything fits onto devices: whole blocks, then parts, then the last tensor."""

from __future__ import annotations

from collections.abc import Sequence, Set
from math import inf

from autofit.solve import Placement, solve

from autofit_llama.planning.boundary import choices, pieces, split_of
from autofit_llama.planning.overheads import GRAIN_BYTES, Candidate, OverheadModel
from autofit_llama.planning.tables import Split, Tables

PLAIN_GAIN = 1.02  #: how much faster than the plainest flags others have to be
CACHE_GAIN = 1.03  #: how much faster caches on devices have to make it, to push more weights off them
MOSTLY_FFN = 0.8  #: of a block: then the rest of it is never worth a place on the host
WORTH_FRACTION = 0.0025  #: of what is on the host: less is not worth any


def propose(overheads: OverheadModel, candidate: Candidate, tables: Tables, failed: Set[Split]) -> Split | None:
    """The fastest split by what is known; not one of those that failed, where there is a choice."""
    bounds = overheads.problem.bounds
    is_free = bounds.n_cpu_ffn == (0, len(tables.blocks))
    plain = most_weights = None
    if tables.ffn_kind == "dense" and is_free:
        plain = _solved(overheads, candidate, tables, plain=True)
        most_weights = None if plain is None else tables.host_weights(tables.split(plain))
    found, most_weights = _coarse(overheads, candidate, tables, most_weights)
    if found is None:
        return None if plain is None else _timed(tables, tables.split(plain))
    split = _timed(tables, tables.split(found))
    if bounds.parts and split.rows:
        finer = _solved(overheads, candidate, tables, coarse=split, most_weights=most_weights)
        if finer is not None:
            split = min(split, _timed(tables, tables.split(finer, fine=True)), key=lambda s: (s.seconds, s.offloaded))
        split = _polished(overheads, candidate, tables, split, most_weights, failed)
    if plain is not None and plain.seconds <= split.seconds * PLAIN_GAIN:
        split = _timed(tables, tables.split(plain))
    return split


def _coarse(
    overheads: OverheadModel, candidate: Candidate, tables: Tables, most_weights: int | None
) -> tuple[Placement | None, int | None]:
    """The fastest in whole blocks, and the bound on host weights that it was found with.

    Of a dense model whole blocks on the host are the plainest (`-ngl` alone): others may not leave more weights
    there, to have more of the cache on devices, but where it pays. Of one with experts it is all blocks on
    devices (`-ncmoe` alone).
    """
    heads = overheads.problem.bounds.heads
    found = None
    if tables.ffn_kind == "experts" and 0 in heads:
        found = _solved(overheads, candidate, tables, heads=(0,))
        if found is not None and tables.ffn_share > MOSTLY_FFN:
            return found, most_weights
        heads = [head for head in heads if head > 0]
    below = inf if found is None else found.seconds / PLAIN_GAIN
    found = _solved(overheads, candidate, tables, heads=heads, most_weights=most_weights, below=below) or found
    if found is None:
        return None, None
    if most_weights is not None:
        free = _solved(overheads, candidate, tables, below=found.seconds / CACHE_GAIN)
        if free is not None:
            return free, None
    return found, most_weights


def _solved(
    overheads: OverheadModel,
    candidate: Candidate,
    tables: Tables,
    *,
    heads: Sequence[int] | None = None,
    plain: bool = False,
    coarse: Split | None = None,
    most_weights: int | None = None,
    below: float = inf,
) -> Placement | None:
    assignment = overheads.assignment(
        candidate, tables, offload=True, heads=heads, plain=plain, coarse=coarse, most_weights=most_weights
    )
    found = solve(assignment, below=below)
    return found if found is None or found.seconds < below else None


def _timed(tables: Tables, split: Split) -> Split:
    return split._replace(seconds=tables.seconds(split))


def _polished(
    overheads: OverheadModel,
    candidate: Candidate,
    tables: Tables,
    split: Split,
    most_weights: int | None,
    failed: Set[Split],
) -> Split:
    """The same devices, with the parts at the edges chosen so that the least stays on the host.

    Never slower, for a part more on a device can mean two transfers more; and of choices within a grain the plainest.
    """
    bounds = overheads.problem.bounds
    if bounds.n_cpu_ffn[1] == 0:
        return split
    kinds, order = {target.id: target.kind for target in tables.targets}, split.order

    def room_of(name: str) -> int:
        room = overheads.room(candidate, name, kinds[name], offload=True)
        return room.at(is_first=name == order[0], is_last=name == order[-1])

    heads = sorted({head for head in (split.head - 1, split.head) if head in bounds.heads})
    host_room = overheads.host_room(candidate, tables, offload=True)
    on_host = tables.host_bytes(split)
    worth = max(GRAIN_BYTES, int(on_host * WORTH_FRACTION))
    best: list[Split] = []
    least: int | None = None
    for choice in choices(tables, split, heads, room_of, overflow=bounds.overflow):
        if choice.host_bytes > on_host - worth or (least is not None and choice.host_bytes > least + GRAIN_BYTES):
            break
        if choice.seconds > split.seconds or (host_room is not None and choice.host_bytes > host_room):
            continue
        found = split_of(tables, choice)
        if found in failed or not found.on_host:
            continue
        if most_weights is None or tables.host_weights(found) <= most_weights:
            least = choice.host_bytes if least is None else least
            best.append(found)
    if not best and split._replace(seconds=0.0) in failed:
        return split
    return _timed(tables, min(best, key=pieces)) if best else split
