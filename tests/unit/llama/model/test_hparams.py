"""Hyperparameters: what architectures add by themselves, and metadata that makes no sense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from autofit.domain.model import ModelSpec
from autofit.errors import CorruptModelError, ModelError, UnsupportedModelError

from autofit_llama.model.hparams import HParams
from autofit_llama.model.load import read_hparams
from support.descriptors import names, spec

LLAMA = ("models", "llama-3.1-8b-Q4_K_M")


def changed(part: str, name: str, values: Mapping[str, Any], without: tuple[str, ...] = ()) -> ModelSpec:
    """The model with other metadata; keys are without the architecture's name."""
    model = spec(part, name)
    arch = model.architecture
    metadata = {key: value for key, value in model.metadata.items() if key not in {f"{arch}.{key}" for key in without}}
    return replace(model, metadata={**metadata, **{f"{arch}.{key}": value for key, value in values.items()}})


def hp(part: str, name: str, **values: Any) -> HParams:
    return read_hparams(changed(part, name, {key.replace("__", "."): value for key, value in values.items()}))


def test_llama() -> None:
    found = hp(*LLAMA)
    assert (found.n_layer, found.n_embd, found.n_head[3], found.n_head_kv[3], found.n_ff[0]) == (
        32, 4096, 32, 8, 14336,
    )  # fmt: skip
    assert found.known
    assert not found.is_mla


@pytest.mark.parametrize("part", ["models", "archs", "tiny"])
def test_every_recorded_model_is_known(part: str) -> None:
    for name in names(part):
        found = read_hparams(spec(part, name))
        assert found.known, name
        assert found.n_layer_all >= found.n_layer >= 0
        for il in range(found.n_layer_all):
            assert found.n_embd_head_k(il) > 0 or found.is_recr[il], name


def test_an_unknown_architecture_keeps_its_generic_keys() -> None:
    model = spec(*LLAMA)
    metadata = {key.replace("llama.", "newest."): value for key, value in model.metadata.items()}
    renamed = replace(model, architecture="newest", metadata={**metadata, "general.architecture": "newest"})
    found = read_hparams(renamed)
    assert not found.known
    assert (found.n_layer, found.n_head_kv[0], found.n_embd) == (32, 8, 4096)


def test_a_projector_is_no_language_model() -> None:
    model = spec(*LLAMA)
    clip = replace(model, architecture="clip", metadata={**model.metadata, "general.architecture": "clip"})
    with pytest.raises(UnsupportedModelError, match="clip"):
        read_hparams(clip)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", None),
        ("block_count", 0),
        ("block_count", -1),
        ("block_count", "32"),
        ("block_count", 1 << 40),
        ("block_count", 32.0),
        ("embedding_length", None),
        ("embedding_length", (4096,)),
        ("context_length", "long"),
        ("attention.head_count", -5),
        ("attention.head_count", (32, 32)),
        ("attention.head_count_kv", True),
        ("attention.head_count_kv", "8"),
        ("feed_forward_length", (1, 2, 3)),
        ("expert_used_count", 9),
    ],
)
def test_bad_metadata_is_named(key: str, value: object) -> None:
    model = changed(*LLAMA, {} if value is None else {key: value}, (key,) if value is None else ())
    with pytest.raises(ModelError, match=key.split(".")[-1]):
        read_hparams(model)


@pytest.mark.parametrize("value", [0, -1, "x", (1,), 1 << 62, float("nan"), True, None])
def test_no_value_of_any_key_is_more_than_an_error(value: object) -> None:
    for part, name in [LLAMA, ("tiny", "deepseek2-moe"), ("tiny", "gemma3-dense"), ("tiny", "qwen35moe-moe")]:
        model = spec(part, name)
        for key in model.metadata:
            if not key.startswith(model.architecture):
                continue
            try:
                found = read_hparams(replace(model, metadata={**model.metadata, key: value}))
            except (CorruptModelError, UnsupportedModelError) as error:
                assert "\n" not in error.message, key
            else:
                assert found.n_layer_all <= 512, key


def test_every_second_layer_of_gemma2_slides() -> None:
    found = hp("models", "gemma-2-27b-Q5_K_M")
    assert [found.is_swa[il] for il in range(4)] == [True, False, True, False]
    assert found.n_swa == 4096


def test_every_sixth_layer_of_gemma3_is_full() -> None:
    found = hp("models", "gemma-3-4b-Q4_K_M")
    assert [il for il in range(found.n_layer) if not found.is_swa[il]] == [5, 11, 17, 23, 29]


def test_chunked_attention_of_llama4() -> None:
    found = hp("models", "llama-4-scout-Q4_K_M")
    assert [found.is_swa[il] for il in range(4)] == [True, True, True, False]
    assert found.n_swa == 8192


def test_recurrent_layers_of_a_hybrid() -> None:
    found = hp("models", "qwen3-next-80b-a3b-Q4_K_M")
    assert [found.is_recr[il] for il in range(4)] == [True, True, True, False]
    assert found.n_embd_s > 0


def test_latent_attention() -> None:
    found = hp("tiny", "deepseek2-moe")
    assert found.is_mla
    assert found.n_head_kv[0] == 1


def test_a_draft_head_is_a_layer_that_is_not_run() -> None:
    found = hp("tiny", "glm4moe-moe+draft")
    assert found.n_layer_all - found.n_layer == found.n_layer_nextn == 1
