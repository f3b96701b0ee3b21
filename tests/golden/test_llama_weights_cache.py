"""Weights and caches of every architecture against dry runs of the engine: to the byte, on every device."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
from autofit.errors import AutofitError

from support import recorded
from support.commands import Row, model_of, place, tiny_rows

N_PER_MODEL = 3


def sample() -> list[Row]:
    by_model: dict[str, list[Row]] = defaultdict(list)
    for row in recorded.rows():
        by_model[row["model"]].append(row)
    chosen = random.Random(20)
    return [row for rows in by_model.values() for row in chosen.sample(rows, min(N_PER_MODEL, len(rows)))]


def judge(row: Row) -> str | None:
    """What differs, or `None`."""
    model, hp = model_of(row["part"], row["model"])
    try:
        placed = place(model, hp, [row["program"], *row["args"]], row["free_mib"], row["api"])
    except AutofitError as error:
        return None if "refused" in row else f"refused: {error}"
    if "refused" in row:
        return f"not refused: {row['refused']}"
    found = [
        *zip(placed.weights.device_bytes, placed.device_cache_bytes, strict=True),
        (placed.weights.host_all_bytes, placed.host_cache_bytes),
    ]
    expected = [(weights, kept) for weights, kept, _ in (*row["devices"], row["host"])]
    return None if found == expected else f"{found} is not {expected}"


def failures(rows: list[Row]) -> list[str]:
    found = ((row, judge(row)) for row in rows)
    return [f"{row['model']} {' '.join(row['args'])}: {wrong}" for row, wrong in found if wrong]


def test_recorded_dry_runs() -> None:
    assert failures(sample()) == []


@pytest.mark.parametrize("part", range(4))
def test_tiny_models_of_every_architecture(part: int) -> None:
    assert failures(list(tiny_rows()[part::4])) == []


def test_every_refusal_recorded_is_one_here() -> None:
    refused = [row for row in (*recorded.rows(), *tiny_rows()) if "refused" in row]
    assert len(refused) > 20
    assert failures(refused) == []
