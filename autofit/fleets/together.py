"""Which copies may run at once, and the most that an allowed set of them holds of a pool.

Copies run together that share a phase; of a group, those of one model at a time. Allowed sets are all that both rules
leave, and every part of one is allowed too. The fullest of them is found without counting them up: in each phase all
copies without a group run, and of each group the model that holds most.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product

from autofit.domain.fleet import MAX_SETS
from autofit.domain.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One copy of a model as far as running together goes. `phases` are bits; `group` `None`: it is in none."""

    name: str
    model: int
    group: str | None
    phases: int


@dataclass(frozen=True, kw_only=True)
class Together:
    """The rules of a fleet for its copies, which are numbered as in `copies`."""

    copies: tuple[Copy, ...]

    @cached_property
    def phases(self) -> tuple[frozenset[int], ...]:
        """The copies of each phase; a phase that is part of another adds nothing and is left out."""
        n_bits = max((copy.phases.bit_length() for copy in self.copies), default=0)
        found = {frozenset(i for i, one in enumerate(self.copies) if one.phases >> bit & 1) for bit in range(n_bits)}
        largest = [one for one in found if not any(one < other for other in found)]
        return tuple(sorted((one for one in largest if one), key=sorted))

    @cached_property
    def slots(self) -> tuple[int, ...]:
        """For each copy the number of its slot: copies of one slot count alike, whatever runs beside them."""
        keys = [(one.phases, one.group, one.model if one.group is not None else -1) for one in self.copies]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return tuple(numbers[key] for key in keys)

    @cached_property
    def _slots_of_phases(self) -> tuple[tuple[tuple[int, ...], tuple[tuple[int, ...], ...]], ...]:
        """For each phase its slots without a group, and those of each group."""
        found = []
        for phase in self.phases:
            alone: dict[int, None] = {}
            groups: dict[str, dict[int, None]] = {}
            for i in sorted(phase):
                slots = alone if (group := self.copies[i].group) is None else groups.setdefault(group, {})
                slots[self.slots[i]] = None
            found.append((tuple(alone), tuple(tuple(slots) for slots in groups.values())))
        return tuple(found)

    @cached_property
    def n_slots(self) -> int:
        return max(self.slots, default=-1) + 1

    @cached_property
    def is_plain(self) -> bool:
        """Whether all copies may run at once."""
        return self.n_slots <= 1

    def most(self, by_slot: Sequence[int]) -> int:
        """The most bytes of an allowed set, of the bytes of each slot."""
        if self.n_slots == 1:
            return by_slot[0]
        return max(
            (
                sum(by_slot[slot] for slot in alone) + sum(max(by_slot[slot] for slot in group) for group in groups)
                for alone, groups in self._slots_of_phases
            ),
            default=0,
        )

    def most_with(self, by_slot: Sequence[int], slot: int) -> int:
        """The same of the sets in which copies of a slot run."""
        if self.n_slots == 1:
            return by_slot[0]
        most = 0
        for alone, groups in self._slots_of_phases:
            if slot in alone or any(slot in group for group in groups):
                of_groups = (by_slot[slot] if slot in group else max(by_slot[i] for i in group) for group in groups)
                most = max(most, sum(by_slot[i] for i in alone) + sum(of_groups))
        return most

    def fullest(self, held: Mapping[int, int]) -> tuple[frozenset[int], ...]:
        """For each phase its allowed set that holds most, of what copies hold."""
        return tuple(frozenset(self._fullest(phase, held)) for phase in self.phases)

    def peak(self, held: Mapping[int, int]) -> tuple[int, tuple[int, ...]]:
        """The most bytes of an allowed set, of what copies hold, and such a set."""
        best: tuple[int, tuple[int, ...]] = (0, ())
        for running in self.fullest(held):
            n_bytes = sum(held[i] for i in running)
            if n_bytes > best[0]:
                best = (n_bytes, tuple(sorted(running)))
        return best

    def beside(self, copy: int, held: Mapping[int, int]) -> int:
        """The most bytes that others hold while this one runs."""
        own = self.copies[copy]
        most = 0
        for phase in self.phases:
            if copy in phase:
                others = [i for i in phase if i != copy and not self._excludes(own, self.copies[i])]
                most = max(most, sum(held[i] for i in self._fullest(others, held)))
        return most

    def evicted(self, copy: int) -> Iterator[int]:
        """The copies that never run beside this one."""
        own = self.copies[copy]
        for i, other in enumerate(self.copies):
            if i != copy and (not own.phases & other.phases or self._excludes(own, other)):
                yield i

    def sets(self, limit: int = MAX_SETS) -> tuple[tuple[int, ...], ...]:
        """The largest allowed sets, `limit` of them at most."""
        found: dict[tuple[int, ...], None] = {}
        for phase in self.phases:
            alone = [i for i in sorted(phase) if self.copies[i].group is None]
            groups: dict[str, dict[int, list[int]]] = {}
            for i in sorted(phase):
                if (group := self.copies[i].group) is not None:
                    groups.setdefault(group, {}).setdefault(self.copies[i].model, []).append(i)
            for chosen in product(*(models.values() for models in groups.values())):
                found[tuple(sorted([*alone, *(i for part in chosen for i in part)]))] = None
                if len(found) >= limit:
                    return tuple(found)
        return tuple(found)

    @staticmethod
    def _excludes(one: Copy, other: Copy) -> bool:
        return one.group is not None and one.group == other.group and one.model != other.model

    def _fullest(self, copies: Iterable[int], held: Mapping[int, int]) -> Iterator[int]:
        """Of these copies, those that run at once and hold most."""
        groups: dict[str, dict[int, list[int]]] = {}
        for i in copies:
            if i not in held:
                continue
            group = self.copies[i].group
            if group is None:
                yield i
            else:
                groups.setdefault(group, {}).setdefault(self.copies[i].model, []).append(i)
        for models in groups.values():
            yield from max(models.values(), key=lambda part: sum(held[i] for i in part))
