"""Every fuzzer for a second or two, and the inputs that once escaped. The long run: `python tools/fuzz.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.fuzzing import escape_of, run_for
from support.fuzzing.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
CASES = sorted(CORPUS.glob("*.json"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_escapes(name: str) -> None:
    target = TARGETS[name]
    escapes = [found for found in run_for(target, seed=1, count=target.short) if found]
    assert not escapes, escapes[0][:2000]


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_what_once_escaped_does_no_more(path: Path) -> None:
    case = json.loads(path.read_text("utf-8"))
    assert escape_of(TARGETS[case["target"]], case["input"]) is None
