"""Tiny models with changed keys: a real llama.cpp and `check` take and refuse the same ones, to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.dryrun import VARIABLE, engine_folder
from support.mutants import compare, mutants

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(engine_folder() is None, reason=f"{VARIABLE} names no llama.cpp"),
]


@pytest.mark.parametrize("given", list(mutants(240, seed=2)), ids=lambda given: f"{given['base']} {given['keys']}")
def test_what_the_engine_takes_is_planned_and_what_it_refuses_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    folder = engine_folder()
    assert folder is not None
    found = compare(given, tmp_path / "m.gguf", folder)
    assert not found.is_odd, f"{found.kind}: {found.engine} / {found.ours}"
