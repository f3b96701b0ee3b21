"""Every recorded row of older releases' own planners: configuration, cache, refusals and weights."""

from __future__ import annotations

from typing import Any

import pytest

from support import vllm_versions

ROWS = list(vllm_versions.rows())


@pytest.mark.parametrize("row", ROWS, ids=vllm_versions.label)
def test_row(row: dict[str, Any]) -> None:
    assert not {kind: found for kind, found in vllm_versions.judge(row).items() if found}


def test_enough_releases_are_recorded() -> None:
    minors = {tuple(row["version"].split(".")[:2]) for row in ROWS}
    assert len(minors) >= 6
