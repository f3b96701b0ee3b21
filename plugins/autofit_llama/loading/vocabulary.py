"""Keys that the engine reads of every file, and those of its vocabulary, by their exact types.

Keys: src/llama-arch.cpp:LLM_KV_NAMES. Reading: src/llama-model-loader.cpp:get_key, src/llama-model.cpp:load_hparams,
src/llama-vocab.cpp:load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NoReturn

from autofit.domain.model import ModelSpec, StringArray
from autofit.domain.text import printable
from autofit.errors import CorruptModelError

from autofit_llama.loading.keys import ASKED
from autofit_llama.loading.tokenizers import PRE_TOKENIZERS, TOKENIZERS

WITHOUT_WORDS = frozenset({"no_vocab", "none"})  #: tokenizers that read nothing more
WITH_PAIRS = frozenset({"gpt2", "hybriddna", "whitespace", "gemma4"})  #: tokenizers of byte pairs, which read merges
WITHOUT_MERGES = "kimi-k2"  #: pre-tokenizer that may come without merges
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")

_IDS = """bos eos eot eom unknown seperator padding mask fim_pre fim_suf fim_mid fim_pad fim_rep fim_sep prefix suffix
    middle""".split()
#: scalars by their keys; `{}` is the architecture
SCALARS: Mapping[str, str] = {
    "general.name": "str",
    "general.file_type": "u32",
    "split.count": "u16",
    "{}.rope.freq_base": "f32",
    "{}.rope.scaling.type": "str",
    "{}.rope.scaling.factor": "f32",
    "{}.rope.scaling.attn_factor": "f32",
    "{}.rope.scaling.alpha": "f32",
    "tokenizer.ggml.model": "str",
    "tokenizer.ggml.pre": "str",
    "tokenizer.ggml.token_type_count": "u32",
}
WORD_SCALARS: Mapping[str, str] = {
    **{f"tokenizer.ggml.{name}_token_id": "u32" for name in _IDS},
    **{f"tokenizer.ggml.add_{name}_token": "bool" for name in ("bos", "eos", "sep")},
    "tokenizer.ggml.add_space_prefix": "bool",
    "tokenizer.ggml.remove_extra_whitespaces": "bool",
    "tokenizer.ggml.normalizer.lowercase": "bool",
    "tokenizer.ggml.normalizer.strip_accents": "bool",
}


def check_keys(model: ModelSpec) -> None:
    """Hold a file's general keys and its vocabulary to what b11311 reads; a model without a file has none.

    Raises:
        CorruptModelError: a key is missing, of another type or too short.
    """
    if not model.metadata_types:
        return
    for key, cause in _wrong(model):
        _refuse(model, key, cause)


def _refuse(model: ModelSpec, key: str, cause: str) -> NoReturn:
    path = printable(model.files[0].path if model.files else model.name)
    raise CorruptModelError(path, f"llama.cpp refuses it: metadata key {printable(key, 80)} {cause}")


def _wrong(model: ModelSpec) -> Iterator[tuple[str, str]]:
    """Each key that the engine would stop at, and why, in the engine's order."""
    yield from _typed(model, SCALARS)
    scaling = model.metadata.get(f"{model.architecture}.rope.scaling.type")
    if isinstance(scaling, str) and scaling not in ROPE_SCALINGS:
        yield f"{model.architecture}.rope.scaling.type", f"is {_shown(scaling)}, not one of {', '.join(ROPE_SCALINGS)}"
    labels = f"{model.architecture}.classifier.output_labels"
    if model.metadata_types.get(labels, "str[]").endswith("[]"):
        yield from _typed(model, {labels: "str[]"})
    yield from _asked(model)
    tokenizer = model.metadata.get("tokenizer.ggml.model")
    if tokenizer is None:
        yield "tokenizer.ggml.model", "is missing"
    if tokenizer in WITHOUT_WORDS:
        return
    if tokenizer not in TOKENIZERS:
        yield "tokenizer.ggml.model", f"is {_shown(tokenizer)}, which is no tokenizer of the engine"
    yield from _pairs(model, tokenizer)
    if tokenizer == "t5":
        yield from _typed(model, {"tokenizer.ggml.precompiled_charsmap": "i8[] u8[]"})
    yield from _words(model)
    yield from _typed(model, WORD_SCALARS)
    yield from _typed(model, {"tokenizer.ggml.suppress_tokens": "i32[]"})


def _typed(model: ModelSpec, expected: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for template, types in expected.items():
        key = template.replace("{}", model.architecture)
        found = model.metadata_types.get(key)
        if found is not None and found not in types.split():
            value = model.metadata.get(key)
            shown = "" if isinstance(value, (StringArray, tuple)) else f" {_shown(value)}"
            yield key, f"is {found}{shown}, the engine expects {types.replace(' ', ' or ')}"


def _asked(model: ModelSpec) -> Iterator[tuple[str, str]]:
    """The architecture's own keys."""
    words = iter(ASKED.get(model.architecture, "").split())
    for name, kind in zip(words, words, strict=True):
        key = f"{model.architecture}.{name}"
        yield from _typed(model, {key: kind.removesuffix("?")})
        if key not in model.metadata and not kind.endswith("?"):
            yield key, "is missing"


def _pairs(model: ModelSpec, tokenizer: object) -> Iterator[tuple[str, str]]:
    if tokenizer not in WITH_PAIRS:
        return
    pre = model.metadata.get("tokenizer.ggml.pre", "")
    if "tokenizer.ggml.merges" not in model.metadata and (tokenizer == "gemma4" or pre != WITHOUT_MERGES):
        yield "tokenizer.ggml.merges", "is missing"
    yield from _typed(model, {"tokenizer.ggml.merges": "str[]"})
    if tokenizer != "gemma4" and pre and pre not in PRE_TOKENIZERS:
        yield "tokenizer.ggml.pre", f"is {_shown(pre)}, which is no pre-tokenizer of the engine"


def _words(model: ModelSpec) -> Iterator[tuple[str, str]]:
    """The words, and a score and a kind for each, where there are any."""
    n_words = _count(model, "tokenizer.ggml.tokens")
    if n_words is None:
        yield "tokenizer.ggml.tokens", "is missing"
    for key, types in (("tokens", "str[]"), ("scores", "i32[] f32[]"), ("token_type", "i32[]")):
        key = f"tokenizer.ggml.{key}"
        yield from _typed(model, {key: types})
        n = _count(model, key)
        if n is not None and n_words is not None and n < n_words:
            yield key, f"has {n} entries for {n_words} tokens"


def _count(model: ModelSpec, key: str) -> int | None:
    value = model.metadata.get(key)
    if isinstance(value, StringArray):
        return value.count
    return len(value) if isinstance(value, tuple) else None


def _shown(value: object) -> str:
    return printable(repr(value), 40)
