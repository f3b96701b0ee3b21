"""The few lines for people: figures that stay figures when they are small."""

from __future__ import annotations

import pytest
from autofit.domain.plan import Speed
from autofit.render import text


@pytest.mark.parametrize(
    ("rate", "shown"), [(1234.5, "1,234"), (20.0, "20"), (0.1, "0.1"), (0.0312, "0.03"), (0.002, "0.002")]
)
def test_a_rate_is_never_shown_as_nothing(rate: float, shown: str) -> None:
    estimate = Speed(decode_tokens_per_s=rate, low=rate / 2, high=rate * 2)
    assert text.speed(estimate).startswith(f"decode ~{shown} tokens/s (")
    assert "(0.0-" not in text.speed(estimate)
