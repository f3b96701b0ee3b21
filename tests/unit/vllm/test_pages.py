"""docs/vllm.md and docs/add-an-architecture.md say what is so."""

from __future__ import annotations

import re
from typing import Any

import pytest

import autofit_vllm.architectures.builders as builders
import autofit_vllm.architectures.families.dense as dense
from autofit_vllm.architectures import build_from_config
from autofit_vllm.architectures.builder import Builder
from autofit_vllm.memory.budget import rank_budget
from autofit_vllm.memory.kv import plan_kv
from autofit_vllm.modules.model import Plain
from support import ROOT, vllm_models
from support.vllm_recorded import config

PLUGIN = ROOT / "plugins" / "autofit_vllm"
PAGE = (ROOT / "docs" / "vllm.md").read_text("utf-8")
GUIDE = (ROOT / "docs" / "add-an-architecture.md").read_text("utf-8").partition("## vLLM")[2]
CELLS = [line.rstrip(" |").rpartition(" | ")[2] for line in PAGE.splitlines() if line.startswith("| ")]


def test_every_file_that_the_page_names_is_there() -> None:
    named = {path for cell in CELLS for path in re.findall(r"`([a-z_0-9./-]+/[a-z_0-9.-]*)`", cell)}
    assert len(named) > 15
    assert [path for path in sorted(named) if not (PLUGIN / path).exists()] == []
    for tool in re.findall(r"tools/[a-z_/]+\.py", PAGE + GUIDE):
        assert (ROOT / tool).is_file(), tool


@pytest.mark.parametrize("name", ["llama_8b", "deepseek_v3", "gemma3_27b", "qwen3_6_27b"])
def test_every_part_of_a_gpu_is_on_the_page(name: str) -> None:
    model = getattr(vllm_models, name)()
    resolved = vllm_models.config(model, "h100", "--tensor-parallel-size", "2")
    stage = vllm_models.weights(model, 15 << 30, tp=2)[0]
    labels = {item.label for item in rank_budget(model, resolved, stage, plan_kv(model, resolved)).items}
    parts = {re.sub(r"^\d+ | \(.*\)$", "", label) for label in labels}
    assert {part for part in parts if f"`{part}`" not in PAGE} == set()


def test_the_builder_of_the_guide_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    source = re.search(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert source is not None
    lines = [line.removeprefix("   ") for line in source[1].splitlines()]
    namespace: dict[str, Any] = {"Builder": Builder}
    exec("\n".join(lines), namespace)
    row = re.search(r'`"(\w+:\w+)": "(\w+)"`', GUIDE)
    assert row is not None
    monkeypatch.setattr(dense, "novel", namespace["novel"], raising=False)
    monkeypatch.setitem(builders.BY_ARCHITECTURE, row[2], row[1])
    model = build_from_config({**config("llama3.2-1b"), "architectures": [row[2]], "attention_bias": True})
    assert model.architecture == "NovelForCausalLM"
    biases = [module.name for module in model.modules if isinstance(module, Plain) and module.name.endswith("bias")]
    assert len(biases) == 2 * model.n_layers + 1
