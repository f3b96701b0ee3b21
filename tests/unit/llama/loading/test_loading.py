"""Files that the engine's loader refuses; the messages are held beside those of the real one (tests/engine)."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from autofit.domain.model import ModelSpec, TensorInfo
from autofit.domain.values import replace
from autofit.errors import AutofitError, CorruptModelError
from autofit.readers import read_model

import support
from autofit_llama.engine.builds import has_architecture
from autofit_llama.engine.versions import LATEST, NEWER, Version
from autofit_llama.loading.check import check_loads
from autofit_llama.loading.keys import ASKED
from autofit_llama.loading.tensors.index import TENSORS
from autofit_llama.model.architecture import architecture_of
from autofit_llama.model.family_index import FAMILIES
from support import descriptors, ggufs

TINY = sorted(descriptors.names("tiny"))
HOSTILE = support.DATA / "llama" / "hostile"
#: what the engine says of each of these files, in our words
REFUSED = {
    "041086": "it expects n_expert > 0",
    "1fdbe3": "tensor blk.0.attn_qkv.weight has the shape [256, 768], it expects [256, 512]",
    "25f2d5": "it has no tensor blk.0.ssm_in.weight [256, 0]",
    "30dc88": "it has 70 tensors, 31 are asked for; 39 are not",
    "745d62": "GLM_DSA architecture requires MLA",
    "8fb1a6": "it has 40 tensors, 39 are asked for; 1 are not, among them blk..x",
    "91a570": "tensor blk.0.indexer.k_norm.weight has the shape [128], it expects [0]",
    "962897": "tensor blk.1.attn_k_norm.weight has the shape [1], it expects [128]",
    "c2b514": "exaone-moe.attention.value_length_swa: is i8 0, the engine expects u32",
    "cc154b": "granite.attention.head_count_kv is 4294967295: more than the engine can hold",
    "eeed0e": "it has no tensor output_norm.weight [256]",
    "f717c3": "it has no tensor blk.0.attn_q_norm.weight [128]",
}


def described(name: str = "llama-dense") -> dict[str, Any]:
    return copy.deepcopy({"header_bytes": 0, "file_bytes": 0, **descriptors.description("tiny", name)})


def built(description: dict[str, Any]) -> ModelSpec:
    return descriptors.build([description], ["m.gguf"])


def refusal(model: ModelSpec) -> str:
    with pytest.raises(CorruptModelError) as caught:
        check_loads(model, LATEST)
    assert caught.value.message.isprintable()
    return caught.value.message


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_with_a_file_is_said(name: str, tmp_path: Path) -> None:
    description = json.loads(gzip.decompress((HOSTILE / f"{name}.json.gz").read_bytes()))
    path = ggufs.from_description(description).write(tmp_path / "m.gguf")
    assert REFUSED[name] in refusal(read_model(path))


def test_every_recorded_model_loads() -> None:
    parts = [("plain", TINY), *((part, descriptors.names(part)) for part in ("tiny", "archs", "models"))]
    for part, names in parts:
        for name in names:
            assert check_loads(descriptors.spec(part, name), LATEST) == ()


def test_every_architecture_has_its_tensors() -> None:
    loaded = {name for name in FAMILIES if any(has_architecture(LATEST.build, name))}
    assert set(TENSORS) - {"clip"} == loaded
    assert set(ASKED) <= set(TENSORS)


@pytest.mark.parametrize("name", TINY)
def test_a_tensor_more_less_or_odd(name: str) -> None:
    model = descriptors.spec("tiny", name)
    first = next(tensor for tensor in model.tensors if tensor.name == "token_embd.weight")
    others = tuple(tensor for tensor in model.tensors if tensor != first)
    if architecture_of(model.architecture).output != "from output":
        assert "token_embd.weight" in refusal(replace(model, tensors=others))
    wide = first._replace(shape=(*first.shape[:-1], first.shape[-1] * 2))
    assert "has the shape" in refusal(replace(model, tensors=(wide, *others)))
    more = TensorInfo("blk.0.nobody.weight", "f32", (32,), 128, 0, 0)
    assert "blk.0.nobody.weight" in refusal(replace(model, tensors=(*model.tensors, more)))


def test_ones_at_the_end_are_no_dimensions() -> None:
    model = descriptors.spec("tiny", "llama-dense")
    tensors = tuple(t._replace(shape=(1, *t.shape)) if len(t.shape) < 4 else t for t in model.tensors)
    assert check_loads(replace(model, tensors=tensors), LATEST) == ()


@pytest.mark.parametrize(
    ("key", "kind", "value", "said"),
    [
        ("llama.block_count", 10, 2, "block_count: is u64 2, the engine expects u32"),
        ("llama.block_count", 6, 2.0, "block_count: is f32 2.0, the engine expects u32"),
        ("llama.rope.freq_base", 12, 10000.0, "is f64 10000.0, the engine expects f32"),
        ("llama.attention.layer_norm_rms_epsilon", 12, 1e-5, "is f64 1e-05, the engine expects f32"),
        ("llama.rope.scaling.type", "str", "sideways", "is 'sideways', not one of none, linear, yarn, longrope"),
        ("llama.attention.head_count", "array:10", [2, 2], "is u64[] of 2, the engine expects u32"),
        ("llama.attention.head_count", "array:4", [2], "has 1 entries where the engine expects 2"),
        ("llama.attention.causal", 4, 1, "is u32 1, the engine expects bool"),
        ("general.file_type", 5, 1, "is i32 1, the engine expects u32"),
        ("split.count", 4, 1, "is u32 1, the engine expects u16"),
        ("tokenizer.ggml.model", "str", "sideways", "no tokenizer of the engine"),
        ("tokenizer.ggml.model", 4, 1, "is u32 1, the engine expects str"),
        ("tokenizer.ggml.bos_token_id", 5, 1, "is i32 1, the engine expects u32"),
        ("tokenizer.ggml.add_bos_token", 4, 1, "is u32 1, the engine expects bool"),
        ("tokenizer.ggml.tokens", 4, 1, "tokenizer.ggml.tokens is"),
        ("tokenizer.ggml.scores", "array:6", [0.0], "has 1 entries for 128 tokens"),
        ("tokenizer.ggml.scores", "array:12", [0.0] * 128, "is f64[], the engine expects i32[] or f32[]"),
        ("tokenizer.ggml.token_type", "array:4", {"count": 128}, "is u32[], the engine expects i32[]"),
    ],
)
def test_a_key_of_another_type(key: str, kind: int | str, value: Any, said: str) -> None:
    description = described()
    description["kv"] = [entry for entry in description["kv"] if entry[0] != key] + [[key, kind, value]]
    assert said in refusal(built(description))


@pytest.mark.parametrize("key", ["tokenizer.ggml.model", "tokenizer.ggml.tokens"])
def test_a_key_that_is_missing(key: str) -> None:
    description = described()
    description["kv"] = [entry for entry in description["kv"] if entry[0] != key]
    assert f"{key} is missing" in refusal(built(description))


@pytest.mark.parametrize("extra", [[], [["tokenizer.ggml.merges", 4, 1]]])
def test_byte_pairs_need_merges(extra: list[Any]) -> None:
    description = described()
    odd = ("tokenizer.ggml.model", "tokenizer.ggml.merges")
    kept = [entry for entry in description["kv"] if entry[0] not in odd]
    description["kv"] = [*kept, ["tokenizer.ggml.model", "str", "gpt2"], *extra]
    assert "tokenizer.ggml.merges is" in refusal(built(description))


def test_an_unknown_pre_tokenizer() -> None:
    description = described()
    kept = [entry for entry in description["kv"] if entry[0] not in ("tokenizer.ggml.model", "tokenizer.ggml.pre")]
    description["kv"] = [
        *kept,
        ["tokenizer.ggml.model", "str", "gpt2"],
        ["tokenizer.ggml.pre", "str", "sideways"],
        ["tokenizer.ggml.merges", "array:str", {"count": 3}],
    ]
    assert "is 'sideways', which is no pre-tokenizer" in refusal(built(description))


def test_a_file_without_words_needs_none() -> None:
    description = described()
    kept = [entry for entry in description["kv"] if not entry[0].startswith("tokenizer.")]
    description["kv"] = [*kept, ["tokenizer.ggml.model", "str", "none"]]
    assert check_loads(built(description), LATEST) == ()


@pytest.mark.parametrize("version", [NEWER, Version(build=9000), Version(build=11311, fork="ik_llama.cpp")])
def test_another_build_is_only_told(version: Version) -> None:
    model = descriptors.spec("tiny", "llama-dense")
    (found,) = check_loads(replace(model, tensors=model.tensors[1:]), version)
    assert found.code == "file-may-be-refused" and "tensor" in found.message and found.message.isprintable()


def test_a_model_that_is_no_file_has_no_types() -> None:
    """What a conversion would make is planned before there are keys of a vocabulary."""
    model = descriptors.spec("tiny", "llama-dense")
    kept = {key: value for key, value in model.metadata.items() if not key.startswith("tokenizer.")}
    kept["llama.vocab_size"] = 128
    assert check_loads(replace(model, metadata=kept, metadata_types={}), LATEST) == ()


def test_a_type_of_a_replaced_key_no_longer_counts() -> None:
    from autofit_llama.model.metadata import overridden

    description = described()
    entry = next(entry for entry in description["kv"] if entry[0] == "llama.block_count")
    entry[1] = 10
    model = built(description)
    assert "is u64" in refusal(model)
    assert check_loads(overridden(model, ["llama.block_count=int:2"]), LATEST) == ()


def test_an_alignment_of_another_type(tmp_path: Path) -> None:
    model = ggufs.llama(n_layer=1, metadata={"general.alignment": ggufs.Typed("u64", 32)})
    with pytest.raises(AutofitError, match=r"general\.alignment is u64 32"):
        read_model(model.write(tmp_path / "m.gguf"))
