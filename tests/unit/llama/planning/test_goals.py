from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from autofit_llama.planning.goals import Goals, gain_of


@pytest.mark.parametrize(
    ("rates", "gain"),
    [((30.0, 20.0), 1.5), ((20.0, 20.0), 1.0), ((0.0, 0.0), 1.0), ((20.0, 0.0), math.inf), ((0.0, 20.0), 0.0)],
)
def test_the_gain_of_a_smaller_cache_where_rates_are_not_known(rates: tuple[float, float], gain: float) -> None:
    found: list[Any] = [SimpleNamespace(rate=rate, split=SimpleNamespace(on_host=True)) for rate in rates]
    goals = Goals(prefer="auto", least=256, most=256, rate=lambda one: one.rate, full=lambda one: one.rate)
    assert gain_of(goals, *found) == gain
