"""What is better than what: goals compared in order, the Pareto front, and the largest value that passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether `a` is at least as good as `b` in every goal and better in one; more is better."""
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))


def pareto_front(items: Sequence[T], goals: Callable[[T], Sequence[float]]) -> list[T]:
    """The items that no other one dominates, in their order; of items with equal goals the first."""
    scored = [(goals(item), item) for item in items]
    front: list[T] = []
    seen: set[tuple[float, ...]] = set()
    for score, item in scored:
        key = tuple(score)
        if key not in seen and not any(dominates(other, score) for other, _ in scored):
            front.append(item)
            seen.add(key)
    return front


def largest(
    passes: Callable[[int], bool], low: int, high: int, *, step: int = 1, hint: int | None = None
) -> int | None:
    """The largest of low, low + step, ... up to `high` that passes; `None` if `low` does not.

    `passes` must not turn true again once it is false. `hint` is a guess: where it is right, three calls do.
    """
    if high < low or not passes(low):
        return None
    a, b = 0, (high - low) // step + 1  # a passes, b does not (or is out of range)
    if b == 1:
        return low
    if passes(low + (b - 1) * step):
        return low + (b - 1) * step
    b -= 1
    if hint is not None:
        guess = (min(max(hint, low), high) - low) // step
        width = 1
        if a < guess < b:
            # Close in on the guess from both sides before halving what is left.
            if passes(low + guess * step):
                a = guess
                while a + width < b and passes(low + (a + width) * step):
                    a += width
                    width *= 4
                b = min(b, a + width)
            else:
                b = guess
                while b - width > a and not passes(low + (b - width) * step):
                    b -= width
                    width *= 4
                a = max(a, b - width)
    while b - a > 1:
        middle = (a + b) // 2
        if passes(low + middle * step):
            a = middle
        else:
            b = middle
    return low + a * step
