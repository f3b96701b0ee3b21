"""What llama-bench prints."""

from __future__ import annotations

import json

import pytest
from autofit.errors import EngineError

from autofit_llama.engine.benchmark import parse


def test_rows() -> None:
    kind = {"model_type": "llama 8B Q4_K - Medium", "n_gpu_layers": 99}
    rows = [
        {**kind, "n_prompt": 512, "n_gen": 0, "avg_ts": 4123.456},
        {**kind, "n_prompt": 0, "n_gen": 64, "avg_ts": 101.5},
    ]
    assert [(row["test"], row["tokens_per_s"]) for row in parse(json.dumps(rows))] == [
        ("pp512", 4123.46),
        ("tg64", 101.5),
    ]


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "[1]", "[" * 100_000, '[{"n_prompt": "x"}]', '[{"n_prompt": 1, "n_gen": 0, "avg_ts": -1}]'],
)
def test_an_answer_that_is_none(text: str) -> None:
    with pytest.raises(EngineError):
        parse(text)
