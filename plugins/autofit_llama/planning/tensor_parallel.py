"""The placement with `-sm tensor`: every device holds a part of every block, so there is little to choose.

The engine sees one device. What is left is how many blocks stay on the host, whole or with their feed-forward
weights alone, and in which proportions tensors are cut. Each step of that order takes memory off the devices and onto
the host, so a bisection over full estimates finds the first that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar

from autofit.domain.machine import HOST_POOL
from autofit.domain.values import dataclass, field
from autofit.errors import EngineRefusalError
from autofit.solve import largest

from autofit_llama.planning.overheads import Candidate
from autofit_llama.planning.problem import LaunchProblem
from autofit_llama.planning.search import Found, Search, shortfall_bytes
from autofit_llama.planning.tables import Split
from autofit_llama.speed.rates import work_of

Shares = tuple[int, ...]
_T = TypeVar("_T")


@dataclass(slots=True)
class TensorSearch(Search):
    """`Search` for devices that share every block. The rows of a split are the numbers of `-ts`."""

    learns: ClassVar[bool] = False
    seconds: dict[tuple[Candidate, Split], float] = field(default_factory=dict)
    _levels_that_lack: dict[Shares, int] = field(default_factory=dict)  #: of the last context: the next one's is near

    def best(self, candidate: Candidate) -> Found | None:
        return self.resident(candidate) or (self.offloaded(candidate) if self.offloads else None)

    def resident(self, candidate: Candidate) -> Found | None:
        """Everything on the devices: the fastest cut that fits."""
        if 0 not in self.problem.bounds.heads or self.problem.bounds.n_cpu_ffn[0] > 0:
            return None
        return self._fastest(candidate, lambda shares: self._measured(candidate, 0, 0, shares))

    def resident_up_to(self, candidate: Candidate, n_ctx: int) -> Found | None:
        return None

    def offloaded(self, candidate: Candidate) -> Found | None:
        """The least on the host that lets the rest fit."""
        return self._fastest(candidate, lambda shares: self._first_that_fits(candidate, shares))

    def nearest(self, candidate: Candidate) -> Found | None:
        levels = self._levels()

        def closest(shares: Shares) -> Found:
            ends = (self._measured(candidate, *level, shares) for level in (levels[0], levels[-1]))
            return min(filter(None, (self._first_that_fits(candidate, shares), *ends)), key=_shortfall)

        return min(self._each(candidate, closest), key=_shortfall)

    def shares(self, candidate: Candidate) -> Sequence[Shares]:
        """The cuts worth trying: even; as devices read; as they have memory, or room. A pinned `-ts` is kept."""
        problem = self.problem
        assert isinstance(problem, LaunchProblem)
        n = len(problem.devices)
        if problem.bounds.split is not None:
            return ((1,) * n,)
        speeds = [device.bandwidth_bytes_per_s for device in problem.devices]
        limits = [problem.limits[device.id] for device in problem.devices]
        parts = (speeds, limits, self._rooms(candidate, limits))
        return tuple(dict.fromkeys(((1,) * n, *map(_percent, parts))))

    def _rooms(self, candidate: Candidate, limits: Sequence[int | None]) -> Sequence[int | None]:
        """Memory left on each device for its shard after replicated tensors, measured with an empty shard."""
        problem = self.problem
        assert isinstance(problem, LaunchProblem)
        *_, last = problem.devices
        nothing = Split(0, tuple((device.id, int(device is not last)) for device in problem.devices))
        try:
            whole = problem.device_bytes(candidate, nothing)[last.id]
        except EngineRefusalError:  # some tensors cannot be cut so
            return limits
        return [limit and max(1, limit - whole) for limit in limits]

    def _fastest(self, candidate: Candidate, answer: Callable[[Shares], Found | None]) -> Found | None:
        found = [one for one in self._each(candidate, answer) if one is not None and one.fits]
        return min(found, key=lambda one: one.seconds, default=None)

    def _each(self, candidate: Candidate, answer: Callable[[Shares], _T]) -> list[_T]:
        """The answer for every cut that the engine takes.

        Raises:
            EngineRefusalError: it takes none.
        """
        answers, refusals = [], []
        for shares in self.shares(candidate):
            try:
                answers.append(answer(shares))
            except EngineRefusalError as refusal:
                refusals.append(refusal)
        if not answers:
            raise refusals[0]
        return answers

    def _first_that_fits(self, candidate: Candidate, shares: Shares) -> Found | None:
        """With the least on the host so that devices hold the rest; what the host then has is another question."""
        levels = self._levels()

        def lacks(k: int) -> bool:
            spare = self.spare(self._measured(candidate, *levels[k], shares))
            return any(n_bytes < 0 for name, n_bytes in spare.items() if name != HOST_POOL)

        last = largest(lacks, 0, len(levels) - 1, hint=self._levels_that_lack.get(shares))
        first = 0 if last is None else last + 1
        self._levels_that_lack[shares] = first - 1
        return self._measured(candidate, *levels[first], shares) if first < len(levels) else None

    def _levels(self) -> Sequence[tuple[int, int]]:
        """Heads and `n_cpu_ffn`, each with more on the host than the one before: experts first, then whole blocks."""
        problem = self.problem
        assert isinstance(problem, LaunchProblem)
        bounds = problem.bounds
        first, last = bounds.heads[0], bounds.n_cpu_ffn[1]
        n_blocks = problem.n_rows - 1
        levels = [(first, bounds.n_cpu_ffn[0])]
        if problem.kind == "experts":
            levels += [(first, n_cpu_ffn) for n_cpu_ffn in range(first + 1, min(last, n_blocks) + 1)]
        return (*levels, *((head, levels[-1][1]) for head in bounds.heads[1:]))

    def _measured(self, candidate: Candidate, head: int, n_cpu_ffn: int, shares: Shares) -> Found:
        problem = self.problem
        assert isinstance(problem, LaunchProblem)
        rows = tuple((device.id, share) for device, share in zip(problem.devices, shares, strict=True))
        split = Split(head, rows, n_cpu_ffn if n_cpu_ffn > head else 0)
        memory = self.measure(candidate, split)
        key = candidate, split
        if key not in self.seconds:
            run = problem.run_of(problem.solved(candidate, split))
            work = work_of(problem.estimated(candidate, split).layout, run)
            constant = problem.constant_seconds([device.id for device in problem.devices])
            self.seconds[key] = problem.roofline.step_seconds(work, problem.step(candidate)) - constant
        return Found(candidate, split._replace(seconds=self.seconds[key]), memory)


def _shortfall(found: Found) -> int:
    return shortfall_bytes(found.memory)


def _percent(parts: Sequence[int | None]) -> Shares:
    """The proportions of `parts` in hundredths; even where one is unknown, or all are nearly the same."""
    known = [part for part in parts if part]
    if len(known) < len(parts) or max(known) < 1.05 * min(known):
        return (1,) * len(parts)
    return tuple(max(1, round(100 * part / sum(known))) for part in known)
