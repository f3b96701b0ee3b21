"""Records of architectures: complete, buildable, and those that the generated registry tells."""

from __future__ import annotations

import pytest
from autofit.errors import EngineRefusalError, UnsupportedModelError

import autofit_vllm.architectures.record as record
from autofit_vllm.architectures import build_from_config
from autofit_vllm.architectures.builders import BUILDERS, BY_ARCHITECTURE, CAUSAL_LM, base_of, model_builder
from autofit_vllm.architectures.record import ABILITIES, Architecture, architecture_of
from autofit_vllm.architectures.registry import CLASSES, DROPPED
from autofit_vllm.command.settings import from_given
from autofit_vllm.config.engine import CPU
from autofit_vllm.config.resolve import resolve
from support.vllm_recorded import config


def test_every_row_of_the_registry_is_a_record_whose_fields_are_all_said() -> None:
    records = [architecture_of(name) for name in CLASSES]
    assert len(records) > 300
    assert all(found.class_name for found in records)
    for ability in ABILITIES:
        assert {getattr(found, ability) for found in records} == {True, False}, ability


def test_a_record_without_one_of_its_fields_is_an_error() -> None:
    facts = dict.fromkeys(ABILITIES, False)
    del facts["lora"]
    with pytest.raises(TypeError, match="lora"):
        Architecture(name="X", class_name="X", **facts)


def test_an_ability_that_has_no_field_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(record.CLASSES, "NewForCausalLM", "new:NewForCausalLM pipeline levitates")
    with pytest.raises(ValueError, match="NewForCausalLM: no field for levitates"):
        architecture_of("NewForCausalLM")


@pytest.mark.parametrize("name", sorted(BY_ARCHITECTURE))
def test_what_is_built_is_in_the_registry_and_its_builder_exists(name: str) -> None:
    assert name in CLASSES or name in DROPPED
    assert callable(model_builder(name))


def test_an_architecture_has_one_builder() -> None:
    names = [name for group in BUILDERS.values() for name in group.split()]
    assert len(names) == len(set(names))
    assert set(CAUSAL_LM.values()) <= set(names)


@pytest.mark.parametrize(
    ("name", "base", "conversion"),
    [
        ("LlamaForCausalLM", "LlamaForCausalLM", None),
        ("Qwen3ForSequenceClassification", "Qwen3ForCausalLM", "classify"),
        ("Qwen3NextEmbeddingModel", "Qwen3NextForCausalLM", "embed"),
    ],
)
def test_an_adapter_keeps_what_its_class_can_do(name: str, base: str, conversion: str | None) -> None:
    found, how = base_of(name)
    assert (found.name, how) == (base, conversion)
    assert found == architecture_of(base)


def test_a_name_that_nobody_builds_has_no_base() -> None:
    with pytest.raises(UnsupportedModelError, match="unknown architecture"):
        base_of("Evil\x1bForCausalLM")


def test_adapters_are_refused_by_a_class_that_takes_none() -> None:
    settings = from_given({"enable_lora": True})
    assert resolve(settings, build_from_config(config("llama3.2-1b")), CPU).dtype == "bfloat16"
    gpt2 = build_from_config({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"})
    with pytest.raises(EngineRefusalError, match="GPT2LMHeadModel does not support LoRA yet"):
        resolve(settings, gpt2, CPU)
