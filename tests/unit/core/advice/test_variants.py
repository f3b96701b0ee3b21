"""`autofit advise MODEL --here`: one thing varied at a time, each row a plan."""

from __future__ import annotations

import json
from functools import cache

import autofit
import pytest
from autofit.advice.forms import forms_of
from autofit.advice.variants import MAX_FORMS, Variant, chosen_forms, contexts, variants
from autofit.cli.main import main
from autofit.domain.model import ModelFile, ModelSpec
from autofit.domain.quantization import Quantization
from autofit.errors import HardwareError

from support.vllm_truth import DATA

LLAMA = "example:llama-3.1-8b-q4_k_m"
QWEN = str(DATA / "configs" / "qwen3-32b")
CARD = ("rtx-3060-12gb",)


@cache
def found() -> tuple[Variant, ...]:
    forms = forms_of(LLAMA, None, {}, None).forms
    return variants(forms, autofit.load_machine(*CARD, ram="64GiB"), CARD).rows


def _of(varies: str) -> list[Variant]:
    return [one for one in found() if one.varies == varies]


def test_contexts_are_halves_of_what_the_model_was_trained_for() -> None:
    assert contexts(131_072, 16_384) == [4096, 8192, 16_384, 32_768, 65_536, 131_072]
    assert contexts(131_072, 10_000) == [4096, 8192, 10_000, 16_384, 32_768, 65_536, 131_072]
    assert contexts(1 << 20, None)[0] == 32_768
    assert contexts(2048, None) == [2048]
    assert contexts(None, 5000) == [5000]
    assert contexts(None, None) == [4096]


@pytest.mark.slow
def test_a_longer_context_takes_more_and_decodes_slower() -> None:
    rows = _of("context")
    assert [one.context_tokens for one in rows] == [4096, 8192, 16_384, 32_768, 65_536, 131_072]
    assert [one.full_speed for one in rows] == [True] * 5 + [False]
    rates = [one.plan.speed.decode_tokens_per_s for one in rows if one.plan is not None and one.plan.speed is not None]
    assert rates == sorted(rates, reverse=True) and len(rates) == 6


def test_kv_types_are_compared_where_they_matter() -> None:
    rows = _of("kv")
    assert {one.value for one in rows} >= {"f16", "q8_0", "q4_0"}
    assert {one.context_tokens for one in rows} == {131_072}
    full = {one.value for one in rows if one.full_speed}
    assert "q4_0" in full and "f16" not in full


def test_rows_are_the_plans_of_their_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for one in (_of("context")[1], next(one for one in _of("kv") if one.value == "q4_0")):
        assert main([*one.command[1:], "--format", "json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert plan["context_tokens"] == one.context_tokens
        assert sum(pool["used_bytes"] for pool in plan["pools"] if pool["id"] != "host") == one.device_bytes


def test_quantizations_begin_with_the_one_that_is_too_large() -> None:
    rows = _of("quantization")
    sizes = [one.weights_bytes or 0 for one in rows]
    assert sizes == sorted(sizes, reverse=True) and len(rows) == MAX_FORMS
    free = autofit.load_machine(*CARD, ram="64GiB").devices[0].free_bytes or 0
    assert sizes[0] > free >= sizes[1]
    assert not rows[0].full_speed and rows[1].full_speed
    assert "Q4_K_M" not in {one.value for one in rows}, "the form at hand is what the other rows are about"


def _form(name: str, n_bytes: int, **more: bool) -> Quantization:
    model = ModelSpec(
        name="m", format="gguf", architecture="llama", files=(ModelFile(path="m", size_bytes=0),), tensors=(),
        layers=(), metadata={},
    )  # fmt: skip
    return Quantization(name=name, model=model, weights_bytes=n_bytes, n_parameters=1, **more)  # type: ignore[arg-type]


def test_chosen_forms_without_room_or_without_a_limit() -> None:
    forms = [_form("a", 900), _form("b", 500), _form("here", 400, at_hand=True)]
    assert [form.name for form in chosen_forms(forms, 600)] == ["a", "b"]
    assert [form.name for form in chosen_forms(forms, 100)] == ["b"]
    assert [form.name for form in chosen_forms(forms, None)] == ["a", "b"]
    assert chosen_forms([], 600) == []


def test_what_an_engine_refuses_has_its_reason() -> None:
    forms = forms_of(QWEN, None, {}, None).forms
    rows = variants(forms, autofit.load_machine("h100-80gb", ram="64GiB"), ("h100-80gb",)).rows
    refused = next(one for one in rows if one.value == "f16")
    assert not refused.fits and "bfloat16" in refused.because
    with pytest.raises(HardwareError, match="NVIDIA"):
        variants(forms, autofit.load_machine("rx-7900-xtx", ram="64GiB"), ("rx-7900-xtx",))


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "example:tiny", "--here", "--have", "rtx-3090"]) == 0
    text = capsys.readouterr().out
    assert "KV type" in text and "full speed" in text and "--on rtx-3090" in text
    assert main(["advise", "example:tiny", "--here", "--have", "rtx-3090", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["variants"]
    assert {row["varies"] for row in rows} >= {"context", "kv"} and all(row["fits"] for row in rows[:1])
    assert main(["advise", "example:tiny", "--here", "--budget", "8GiB"]) == 2
    assert "--budget ranks hardware" in capsys.readouterr().err
