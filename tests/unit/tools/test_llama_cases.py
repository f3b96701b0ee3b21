"""Commands that were once answered wrongly, and variants, stay answered rightly (tools/accuracy/llama_cases.py)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[3] / "tools" / "accuracy" / "llama_cases.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("llama_cases", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["llama_cases"] = module
    spec.loader.exec_module(module)
    return module


CASES = _load()
QUICK = tuple(case for case in CASES.CASES if case.is_quick)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    CASES.write_models(directory, QUICK)
    return directory


@pytest.mark.slow_cases("L1+ rule", "L3+", "L7")
@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_a_case_is_answered_rightly(case: object, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)
    code, text = CASES.answer(case)
    assert CASES.faults(case, code, text) == [], text


def test_what_is_not_right_is_told() -> None:
    case = CASES.Case("X", "", "", "", says=("this",), never=("that",), exit_code=3)
    assert CASES.faults(case, 0, "that") == ["exit code 0, not 3", "not said: this", "said: that"]
