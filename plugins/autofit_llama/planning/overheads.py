"""Overhead per device (everything but layers), learned from full estimates, and the memory it leaves for layers.

Compute buffers, runtime and what the user fixed depend on the place of a device among those in use and on whether
anything is left on the host, hardly on the exact cuts.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol

from autofit.domain.machine import HOST_POOL
from autofit.domain.memory import Memory
from autofit.domain.values import NamedTuple, dataclass, field
from autofit.solve import LayerAssignment, Room

from autofit_llama.planning.tables import Split, Tables

GRAIN_BYTES = 32 << 20  #: less room than this is not worth another try, or another flag
_ENDLESS = 1 << 62


class Candidate(NamedTuple):
    """What is decided before the placement."""

    n_ctx_seq: int  #: tokens that each sequence may hold
    type_k: str
    type_v: str
    n_ubatch: int
    n_batch: int
    one_by_one: bool = False  #: micro-batches do not overlap on several devices, so no copies for that


class Bounds(NamedTuple):
    """What pins leave open. `heads` in blocks; `order`: the devices as given, not as is best.

    `split` are the numbers of a pinned `-ts`; then only `heads` and `n_cpu_ffn` are left to find.
    """

    heads: Sequence[int]
    n_cpu_ffn: tuple[int, int]
    order: tuple[str, ...] | None = None
    split: tuple[float, ...] | None = None
    parts: bool = True  #: blocks may be taken apart
    overflow: bool = True  #: parts may lie on another device than their block


class Problem(Protocol):
    """What the search asks for."""

    @property
    def bounds(self) -> Bounds: ...

    @property
    def n_rows(self) -> int:
        """Blocks and the output layer."""

    @property
    def pool_of(self) -> Mapping[str, str]:
        """Device -> pool; `host` on unified memory."""

    @property
    def limits(self) -> Mapping[str, int | None]:
        """Device, or `host` -> what may be taken of it, `None` if nobody knows.

        On unified memory that of the host is for the devices' share too.
        """

    @property
    def can_overlap(self) -> bool:
        """Whether several devices work on micro-batches at the same time unless told not to."""

    @property
    def counts_blocks(self) -> bool:
        """Whether the build has `-ncmoe`, or `-ncffn`, for what this model can leave in RAM."""

    def tables(self, candidate: Candidate) -> Tables: ...

    def measure(self, candidate: Candidate, split: Split) -> Memory: ...

    def cache_bytes(self, candidate: Candidate) -> int:
        """What all caches take at least, wherever they are."""

    def device_bytes(self, candidate: Candidate, split: Split) -> Mapping[str, int]:
        """What every device in use takes by itself, whatever pool it draws on."""

    def narrowed(self, spare: Mapping[str, int]) -> Problem:
        """The same problem with so many bytes less on devices."""


class Role(NamedTuple):
    """A device of some kind, or the host, in its place."""

    kind: Hashable
    is_first: bool
    is_last: bool
    offload: bool  #: something is left on the host


@dataclass(slots=True)
class OverheadModel:
    """What estimates have shown so far. `cautious`: the most that was ever seen counts, not the latest."""

    problem: Problem
    cautious: bool = False
    _latest: dict[Candidate, dict[Role, int]] = field(default_factory=dict)
    _most: dict[Candidate, dict[Role, int]] = field(default_factory=dict)
    _fixed_bytes: int = 0  #: weights of no block, or that the user has placed, on the host whatever else

    def has_seen(self, candidate: Candidate) -> bool:
        """Whether any estimate with these cache types has been recorded."""
        return any((other.type_k, other.type_v) == (candidate.type_k, candidate.type_v) for other in self._latest)

    def learn(self, candidate: Candidate, tables: Tables, split: Split, memory: Memory) -> bool:
        """Take note of an estimate; whether it showed room that was not thought to be there."""
        kinds = {target.id: target.kind for target in tables.targets}
        blocks, order = tables.device_bytes(split), split.order
        in_all = self.problem.device_bytes(candidate, split)
        host = memory.pool(HOST_POOL).used_bytes - tables.host_bytes(split)
        seen = {}
        for name in order:
            role = Role(kinds[name], name == order[0], name == order[-1], split.on_host)
            seen[role] = in_all[name] - blocks[name]
            if self.problem.pool_of[name] == HOST_POOL:
                host -= in_all[name]
        seen[Role(HOST_POOL, False, False, split.on_host)] = host
        if all(self.problem.pool_of[name] != HOST_POOL for name in order):
            self._fixed_bytes = memory.pool(HOST_POOL).sum_bytes("weights") - tables.host_weights(split)
        is_news = any(self.beside(candidate, role) - n_bytes > GRAIN_BYTES for role, n_bytes in seen.items())
        most = self._most.setdefault(candidate, {})
        self._latest.setdefault(candidate, {}).update(seen)
        for role, n_bytes in seen.items():
            most[role] = max(n_bytes, most.get(role, 0))
        return is_news

    def beside(self, candidate: Candidate, role: Role) -> int:
        """Learned overhead in bytes, or a lower bound while this role of the device has not been estimated.

        Compute buffers grow with the micro-batch and the context, at most in proportion, and with copies for overlap.
        """
        known = (self._most if self.cautious else self._latest).get(candidate, {})
        if role in known:
            return known[role]
        least = 0
        for other, roles in self._latest.items():
            alike = (other.type_k, other.type_v) == (candidate.type_k, candidate.type_v)
            if role in roles and alike and other.one_by_one >= candidate.one_by_one:
                scale = min(1.0, candidate.n_ubatch / other.n_ubatch)
                scale *= min(1.0, candidate.n_ctx_seq / other.n_ctx_seq)
                least = max(least, int(roles[role] * scale))
        if role.kind == HOST_POOL:
            return max(least, self._fixed_bytes)
        there = [n for other, n in known.items() if other[1:] == role[1:] and other.kind != HOST_POOL]
        return max(least, min(there, default=0))

    def room(self, candidate: Candidate, name: str, kind: Hashable, *, offload: bool, share: float = 1.0) -> Room:
        """Bytes for blocks on a device, by its place; `share` enlarges its budget."""
        limit = self.problem.limits[name]
        if limit is None:
            return Room.same(_ENDLESS)
        budget = int(limit * share)

        def at(first: bool, last: bool) -> int:
            return budget - self.beside(candidate, Role(kind, first, last, offload))

        return Room(middle=at(False, False), first=at(True, False), last=at(False, True), only=at(True, True))

    def host_room(self, candidate: Candidate, tables: Tables, *, offload: bool) -> int | None:
        """Bytes for blocks on the host; where all devices draw on it too, below 0 or as many as it likes."""
        limit = self.problem.limits[HOST_POOL]
        if limit is None:
            return None
        room = limit - self.beside(candidate, Role(HOST_POOL, False, False, offload))
        if not tables.targets or any(self.problem.pool_of[target.id] != HOST_POOL for target in tables.targets):
            return room
        return None if room >= tables.least_bytes else -1

    def assignment(
        self,
        candidate: Candidate,
        tables: Tables,
        *,
        offload: bool,
        heads: Sequence[int] | None = None,
        plain: bool = False,
        coarse: Split | None = None,
        by_bytes: bool = False,
        most_weights: int | None = None,
        share: float | None = None,
    ) -> LayerAssignment:
        """The problem as far as it is known; blocks are only taken apart about a `coarse` answer.

        `plain`: no block has its feed-forward alone on the host. `by_bytes`: the least on the host instead of the
        fastest. `most_weights` bounds the weights on the host. `share` enlarges what devices have, and makes the host
        endless.
        """
        bounds = self.problem.bounds
        heads = (bounds.heads if heads is None else heads) if offload else (0,)
        order = bounds.order
        if coarse is not None:
            heads, order = [head for head in heads if abs(head - coarse.head) <= 1], coarse.order
        rooms = {t.id: self.room(candidate, t.id, t.kind, offload=offload, share=share or 1.0) for t in tables.targets}
        return tables.assignment(
            rooms,
            head_room=None if share else self.host_room(candidate, tables, offload=offload),
            heads=heads,
            n_cpu_ffn=bounds.n_cpu_ffn if offload and not plain else (0, 0),
            order=order,
            fine=coarse is not None,
            offload=offload,
            by_bytes=by_bytes,
            overflow=bounds.overflow,
            most_weights=most_weights,
        )
