"""The planned forms of a model, and which of them to take: what an expert weighs, by the figures that there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from autofit.domain.machine import HOST_POOL
from autofit.domain.units import READ_TOKENS_PER_S, format_rate
from autofit.domain.values import dataclass

if TYPE_CHECKING:
    from autofit.domain.plan import Plan, Speed
    from autofit.domain.quantization import Quantization

_AS_FAST = 0.97  #: rates nearer to each other than this are the same
FLOORS_TOKENS_PER_S = (
    10.0,
    READ_TOKENS_PER_S,
)  #: what a form in RAM should reach, at ease or to be read, if --min-tps says nothing
FEW_BITS = 3.5  #: per weight; below, published losses grow fast, and a form is taken where no other is fast enough


@dataclass(frozen=True, slots=True, kw_only=True)
class FormFile:
    """A file beside the named one whose name says that it has a form. `size_bytes` counts all of its shards."""

    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One form, planned. `full_speed`: no weights of it wait in RAM while there are devices."""

    backend: str
    quantization: Quantization
    plan: Plan | None = None
    because: str = ""  #: why it does not fit, or is not made at all
    file: FormFile | None = None

    @property
    def fits(self) -> bool:
        return self.plan is not None and self.plan.fits

    @property
    def full_speed(self) -> bool:
        if self.plan is None or not self.fits or any(found.code == "weights-in-ram" for found in self.plan.findings):
            return False
        pools = self.plan.memory.pools
        on_devices = sum(pool.sum_bytes("weights") for pool in pools if pool.id != HOST_POOL)
        return len(pools) == 1 or 2 * on_devices > self.weights_bytes  # else a type that no device computes with

    @property
    def speed(self) -> Speed | None:
        return self.plan.speed if self.plan is not None and self.fits else None

    @property
    def context_tokens(self) -> int | None:
        return self.plan.context_tokens if self.plan is not None and self.fits else None

    @property
    def weights_bytes(self) -> int:
        return self.quantization.weights_bytes or 0

    @property
    def bits_per_weight(self) -> float:
        n_parameters = self.quantization.n_parameters
        return self.weights_bytes * 8 / n_parameters if n_parameters else 0.0

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Of a prompt that is first in its context, as the other."""
        return None if self.speed is None else self.speed.start_prefill_tokens_per_s or self.speed.prefill_tokens_per_s

    @property
    def decode_tokens_per_s(self) -> float | None:
        """With an empty context, which tells forms apart whose contexts differ."""
        return None if self.speed is None else self.speed.start_tokens_per_s or self.speed.decode_tokens_per_s


def recommend(
    rows: Sequence[Row], *, prefer: str | None = None, min_tokens_per_s: float | None = None
) -> tuple[Row | None, str]:
    """The form to take, and why: the largest of `FEW_BITS` or more per weight that fits as asked at full speed.

    Files of floats are left to `prefer="quality"`, for they decode at half the rate of 8 bits; a form that is larger
    than another and has a larger published loss is left out. Where none of so many bits fits on the devices, it is the
    largest with weights in RAM that decodes at one of `FLOORS_TOKENS_PER_S`; then the largest at full speed of fewer
    bits (before it with `prefer="speed"`), and last the fastest.
    """
    fitting = [row for row in rows if row.fits and not row.quantization.same_as and not row.quantization.only_for]
    if not fitting:
        return None, "no form fits as asked"
    packed = [row for row in fitting if not row.quantization.is_float]
    choice = _worth_their_bytes(fitting if prefer == "quality" or not packed else packed)
    full = [row for row in choice if row.full_speed]
    best_full = [row for row in full if prefer == "speed" or not _has_few_bits(row)]
    if best_full:
        return _at_full_speed(best_full, choice, prefer)
    many = [row for row in choice if not _has_few_bits(row)]
    floors = FLOORS_TOKENS_PER_S if min_tokens_per_s is None else (min_tokens_per_s,)
    for floor in floors:
        usable = [row for row in many if _decode(row) >= floor]
        if usable:
            why = f"the largest that decodes {format_rate(floor)} tokens/s or more; a part of its weights is in RAM"
            return max(usable, key=lambda row: row.weights_bytes), why + _at_few_bits(full)
    none = f"none of {FEW_BITS} bits per weight or more decodes {format_rate(floors[-1])} tokens/s"
    if full:
        best, why = _at_full_speed(full, choice, prefer)
        return best, f"{why}; {none}"
    best = max(many or choice, key=lambda row: (_decode(row), row.weights_bytes))
    few = "" if _has_few_bits(best) else f" of {FEW_BITS} bits per weight or more"
    least = format_rate(floors[-1])
    return best, f"the fastest{few}; a part of its weights is in RAM, and none decodes {least} tokens/s"


def _at_full_speed(full: Sequence[Row], choice: Sequence[Row], prefer: str | None) -> tuple[Row, str]:
    if prefer == "context":
        longest = max(row.context_tokens or 0 for row in full)
        full = [row for row in full if (row.context_tokens or 0) == longest]
    best = max(full, key=lambda row: row.weights_bytes)
    if kin := best.quantization.kin:
        best = _fastest([row for row in full if row.quantization.kin == kin])
        return best, f"the fastest of {kin}, the most that fits as asked at full speed"
    return best, f"the largest that fits as asked at full speed{_next_larger(best, choice)}"


def _at_few_bits(full: Sequence[Row]) -> str:
    """What would be at full speed, and why it is not taken."""
    if not full:
        return ""
    best = max(full, key=lambda row: row.weights_bytes)
    return f"; at full speed {best.quantization.name} fits, of {best.bits_per_weight:.1f} bits per weight"


def _worth_their_bytes(rows: Sequence[Row]) -> list[Row]:
    """Without forms that another is smaller than, and has a smaller loss: by the measure that both are published by."""
    return [row for row in rows if not any(_is_worse(row.quantization, other.quantization) for other in rows)]


def _is_worse(one: Quantization, other: Quantization) -> bool:
    """Whether a form is larger than another and has a larger loss, by the measure that both are published by."""
    if (one.weights_bytes or 0) <= (other.weights_bytes or 0):
        return False
    losses = {(q.measure, q.model): q.value for q in other.quality}
    shared = [(q.value, losses[q.measure, q.model]) for q in one.quality if (q.measure, q.model) in losses]
    return bool(shared) and all(mine > its for mine, its in shared)


def quality_ranks(forms: Sequence[Quantization]) -> list[int]:
    """The place of each form of one model in quality, 0 the least: by bits per weight; one that is larger than another
    and has a larger published loss comes before that one."""

    def bits(form: Quantization) -> float:
        return (form.weights_bytes or 0) * 8 / form.n_parameters if form.n_parameters else 0.0

    keys = []
    for form in forms:
        better = [bits(other) for other in forms if _is_worse(form, other)]
        keys.append((min([bits(form), *better]), not better))
    order = sorted(set(keys))
    return [order.index(key) for key in keys]


def _fastest(rows: Sequence[Row]) -> Row:
    """The fastest; of those as fast one that is published before one that the engine makes, then the smallest."""
    for rate in (_decode, _prefill):
        best = max(map(rate, rows))
        rows = [row for row in rows if rate(row) >= _AS_FAST * best]
    return min(rows, key=lambda row: (len(row.quantization.engine_args), row.weights_bytes))


def _decode(row: Row) -> float:
    return row.decode_tokens_per_s or 0.0


def _prefill(row: Row) -> float:
    return (row.speed.prefill_tokens_per_s if row.speed is not None else None) or 0.0


def _next_larger(best: Row, rows: Iterable[Row]) -> str:
    larger = [row for row in rows if row.weights_bytes > best.weights_bytes]
    if not larger:
        return ""
    after = min(larger, key=lambda row: row.weights_bytes)
    return f"; of {after.quantization.name} a part would stay in RAM" if not after.full_speed else ""


def _has_few_bits(row: Row) -> bool:
    return 0 < row.bits_per_weight < FEW_BITS
