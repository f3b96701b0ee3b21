"""The fitted table is what its generator writes, and the generator finds what it is shown."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import autofit.speed.efficiencies as efficiencies
import pytest

from support import ROOT

SPEED = ROOT / "tools" / "speed"


@pytest.fixture(scope="module")
def fit_speed() -> ModuleType:
    pytest.importorskip("numpy")
    sys.path.insert(0, str(SPEED))
    try:
        import fit as fit_speed
    finally:
        sys.path.remove(str(SPEED))
    return fit_speed


def rows() -> list[dict[str, object]]:
    """Invented runs, in the form of the public ones."""
    common: dict[str, object] = {
        "gpu": "RTX 3090",
        "gpu_count": 1,
        "vram_gb": 24,
        "peak_vram_gb": 9,
        "cpu": None,
        "quant": "Q4_K_M",
        "engine": "llama.cpp",
        "backend": "cuda",
        "kv": "f16",
        "batch": 1,
        "prefill_tok_s": 3000,
    }
    bench, server = "llama-bench -m Qwen3-8B.gguf -p 512 -n 128 -d {}", "llama-server -m q.gguf -c {} {}"
    dense, experts = common | {"hf_id": "Qwen/Qwen3-8B"}, common | {"hf_id": "Qwen/Qwen3-30B-A3B"}
    return [
        dense | {"context": 4096, "tok_s": 100, "command": bench.format(4096)},
        dense | {"context": 16384, "tok_s": 90, "command": bench.format(16384)},
        dense | {"context": 4096, "tok_s": 100, "command": bench.format(4096)},
        common | {"hf_id": "nobody/knows", "context": 512, "tok_s": 9, "command": server.format(512, "")},
        dense | {"context": 512, "tok_s": 900, "command": server.format(512, "")},
        experts | {"context": 8192, "tok_s": 40, "command": server.format(8192, "-ngl 99 --n-cpu-moe 30")},
        dense
        | {
            "context": 8192,
            "tok_s": 150,
            "command": server.format(8192, "--spec-type draft-mtp --spec-draft-n-max 3"),
        },
    ]


def test_the_table_is_as_generated(fit_speed: ModuleType) -> None:
    text = Path(efficiencies.__file__).read_text(encoding="utf-8")
    n_runs = int(re.search(r"# Fitted to (\d+) public runs", text)[1])  # type: ignore[index]
    shipped = fit_speed.shipped()
    assert fit_speed.source(shipped, n_runs) == text
    for engine in fit_speed.ENGINES.values():
        assert fit_speed.engine_source(shipped, engine) == (ROOT / engine.path).read_text(encoding="utf-8")


def test_runs_are_read_as_their_commands_say(fit_speed: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    path.write_text(json.dumps(rows()), encoding="utf-8")
    runs, left_out = fit_speed.load(path)
    assert [reason.partition(": ")[2].partition(" ")[0] for reason in left_out] == ["repeats", "no", "faster"]
    shallow, deep, experts, draft = runs
    assert (shallow.n_filled, deep.n_filled) == (4096 + 64, 16384 + 64)
    assert fit_speed.row_of(shallow) == "llama/cuda"
    assert fit_speed.rows_of(experts) == {"llama/cuda", "cpu"}
    assert fit_speed.placement([place for _, place in experts.layers]) == "experts in RAM"
    assert draft.draft.n_tokens == 3


def test_a_fit_finds_a_card_that_is_slower_than_its_prior(fit_speed: ModuleType, tmp_path: Path) -> None:
    """Runs at half of the predicted rates move the fraction of the bandwidth down, and not below a half."""
    path = tmp_path / "runs.json"
    path.write_text(json.dumps(rows()[:2]), encoding="utf-8")
    runs, _ = fit_speed.load(path)
    center = [math.log(prior.value) for prior in fit_speed.PRIORS.values()]
    prior = fit_speed.table(center)
    halved = [
        fit_speed.dataclasses.replace(run, decode=fit_speed.predict(run, prior)[0] / 2, prefill=None) for run in runs
    ]
    fitted = fit_speed.table(fit_speed.fit(halved))
    before, after = (some.rows["llama/cuda"].weights for some in (prior, fitted))
    assert before / 2 < after < 0.95 * before
    errors = [abs(item.value) for item in fit_speed.residuals(halved, fitted)]
    assert max(errors) < 0.5 * math.log(2)
