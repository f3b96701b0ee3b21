"""Configurations of published models, from the recorded rows of vLLM."""

from __future__ import annotations

import gzip
import json
from functools import cache
from typing import Any

import support

DATA = support.DATA / "vllm"


@cache
def recorded() -> dict[str, Any]:
    """`configs` by name, `quantizations` by name, and `rows`."""
    with gzip.open(DATA / "models.json.gz", "rt", encoding="utf-8") as file:
        data: dict[str, Any] = json.load(file)
    return data


def config(name: str) -> dict[str, Any]:
    """A copy of a published `config.json`."""
    found = recorded()["configs"].get(name)
    if found is None:
        found = json.loads((DATA / "configs" / name / "config.json").read_text("utf-8"))
    return dict(found)
