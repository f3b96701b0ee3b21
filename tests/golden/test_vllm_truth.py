"""Every recorded row of vLLM's own planner: the same configuration, cache and refusals; weights within 0.5
%."""

from __future__ import annotations

from typing import Any

import pytest
from autofit.errors import EngineRefusalError, UnsupportedModelError

from support import vllm_truth

ROWS = [(row, "truth") for row in vllm_truth.rows("truth")] + [(row, "flags") for row in vllm_truth.rows("flags")]
WEIGHTS_TOLERANCE = 0.005


@pytest.mark.parametrize("row", [row for row, _ in ROWS], ids=vllm_truth.label)
def test_row(row: dict[str, Any]) -> None:
    report = vllm_truth.predict(row)
    words = vllm_truth.refusal(row)
    if words is not None:
        assert isinstance(report, (EngineRefusalError, UnsupportedModelError)), report
        if "estimated maximum model length is" in words:
            estimate = words.partition("estimated maximum model length is ")[2].partition(".")[0]
            assert f"estimated maximum model length is {estimate}." in str(report)
        return
    assert not isinstance(report, Exception), report
    want = vllm_truth.expected(row)
    assert vllm_truth.predicted(report, want) == want
    for got, real in zip(report["weights_bytes_per_rank"], vllm_truth.weights(row), strict=True):
        assert got == pytest.approx(real, rel=WEIGHTS_TOLERANCE)
