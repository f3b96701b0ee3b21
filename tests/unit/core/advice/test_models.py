"""`autofit advise` without a model: the models on disk in the order in which to take them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from autofit.cli.advise_models import ranked, usable
from autofit.cli.main import main
from autofit.cli.models import Row
from autofit.domain.memory import Memory, MemoryItem, PoolUse
from autofit.domain.model import StoredModel
from autofit.domain.plan import Finding, Plan, Speed

from support import ROOT


def _row(name: str, size: int, rate: float, *, in_ram: bool = False, fits: bool = True) -> Row:
    item = MemoryItem(kind="weights", label="w", n_bytes=size, basis="exact")
    pool = PoolUse(id="GPU0", name="g", total_bytes=None, free_bytes=None, budget_bytes=None, items=(item,))
    findings = (Finding(severity="info", code="weights-in-ram", message=""),) if in_ram else ()
    plan = Plan(
        backend="b", fits=fits, argv=(), memory=Memory(pools=(pool,)), context_tokens=4096, findings=findings,
        speed=Speed(decode_tokens_per_s=rate, low=rate, high=rate),
    )  # fmt: skip
    return Row(StoredModel(name, name, size, "here"), None, plan, None)


def _names(floor: float | None, *rows: Row) -> list[str]:
    return [row.stored.name for row in ranked(rows, floor)]


def test_the_largest_at_full_speed_comes_first_and_what_does_not_fit_last() -> None:
    rows = [
        _row("no", 900, 9, fits=False), _row("small", 100, 90), _row("large", 400, 30), _row("ram", 800, 3, in_ram=True)
    ]  # fmt: skip
    assert _names(None, *rows) == ["large", "small", "ram", "no"]
    assert _names(50.0, *rows)[0] == "small"
    assert [usable(row, 50.0) for row in rows] == [False, True, False, False]


def test_projectors_and_adapters_are_no_models_to_take() -> None:
    beside = Row(StoredModel("mmproj", "mmproj", 5, "here"), None, None, None)
    assert _names(None, beside) == []


@pytest.fixture
def one_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "LLAMA_CACHE", "OLLAMA_MODELS", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    shutil.copyfile(ROOT / "autofit/_models/tiny.gguf", tmp_path / "ORG_tiny-GGUF_tiny-Q8_0.gguf")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_stored_model_is_ranked_for_this_machine_and_for_another(
    one_stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[Any] = []
    for words in ([], ["--have", "rtx-3090", "--ram", "64GiB"]):
        assert main(["advise", *words, "--format", "json"]) == 0
        found += json.loads(capsys.readouterr().out)["models"]
        assert main(["advise", *words]) == 0
        assert "tiny" in capsys.readouterr().out
    assert [(one["rank"], one["fits"], one["full_speed"]) for one in found] == [(1, True, True)] * 2
    assert main(["advise", "--min-tps", "999999", "--have", "rtx-3090"]) == 3


@pytest.mark.parametrize(
    "words", [["--max-ttft", "1"], ["--kv", "q8_0"], ["--parallel", "4"], ["--prefer", "memory"], ["--budget", "8GiB"]]
)
def test_an_option_that_ranks_no_models_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", *words]) == 2
    told = capsys.readouterr().err
    assert f"{words[0]} is about one model" in told and "autofit advise MODEL" in told
