"""The Pareto front and the search for the largest value, against plain enumeration."""

from __future__ import annotations

from autofit.solve.front import dominates, largest, pareto_front
from hypothesis import given
from hypothesis import strategies as st

points = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2)), max_size=12)


@given(points)
def test_the_front_is_what_nothing_dominates(items: list[tuple[int, int, int]]) -> None:
    front = pareto_front(items, lambda item: item)
    assert len(front) == len(set(front))
    assert set(front) == {a for a in items if not any(dominates(b, a) for b in items)}


@given(
    st.integers(0, 50),
    st.integers(0, 400),
    st.integers(1, 7),
    st.integers(-10, 500),
    st.one_of(st.none(), st.integers(-5, 600)),
)
def test_largest_is_the_last_that_passes(low: int, more: int, step: int, limit: int, hint: int | None) -> None:
    high = low + more
    asked = []

    def passes(value: int) -> bool:
        assert low <= value <= high
        asked.append(value)
        return value <= limit

    expected = [value for value in range(low, high + 1, step) if value <= limit]
    assert largest(passes, low, high, step=step, hint=hint) == (expected[-1] if expected else None)
    assert len(asked) == len(set(asked))


def test_a_good_guess_needs_few_questions() -> None:
    asked = []
    found = largest(lambda value: asked.append(value) is None and value <= 70_000, 0, 1 << 20, step=256, hint=70_000)
    assert found == 69_888
    assert len(asked) <= 4
