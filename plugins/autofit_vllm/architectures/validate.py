"""Figures of a `config.json` that no engine can build a model from, refused before any arithmetic on them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from autofit.domain.patterns import lazy_pattern
from autofit.domain.text import printable
from autofit.errors import ModelError

MAX_FIGURE = (1 << 31) - 1
MAX_DEPTH = 12
#: keys of sizes and counts, by their last word; a window, a token or one layer may be negative, which means none
_SIZES = lazy_pattern(
    r"(?:^|.*_)(?:size|sizes|dim|dims|heads|layers|experts|rank|groups|per_tok|per_token|topk|top_k|kernel|width|channels"
    r"|depth|embd|embeddings|inner|state|hidden|ffn)",
    re.ASCII,
)
_COUNTS = lazy_pattern(r"num_[a-z_]*(?:heads|layers|experts|per_tok)|hidden_size|intermediate_size|vocab_size")
_MAY_BE_NEGATIVE = lazy_pattern(r".*window.*|.*vision_feature.*|.*_token.*|max_window_layers|.*group_size")
_POSITIVE = frozenset("hidden_size num_attention_heads vocab_size n_embd n_head d_model num_heads".split())
_SKIPPED = frozenset("quantization_config compression_config rope_scaling rope_parameters generation_config".split())


def check_figures(raw: Mapping[str, Any], depth: int = 0) -> None:
    """Hold the sizes and counts of a configuration, at any depth, against what a tensor can have.

    Raises:
        ModelError: one is negative, 0 where a model divides by it, or beyond 31 bits; with key and value.
    """
    hidden, heads = raw.get("hidden_size"), raw.get("num_attention_heads")
    if type(hidden) is int and type(heads) is int and heads > hidden > 0 and raw.get("head_dim") is None:
        raise ModelError(f"config.json: num_attention_heads is {_digits(heads)}, hidden_size {_digits(hidden)}")
    used, experts = raw.get("num_experts_per_tok"), raw.get("num_experts", raw.get("num_local_experts"))
    if type(used) is int and type(experts) is int and used > experts > 0:
        raise ModelError(f"config.json: num_experts_per_tok is {_digits(used)}, of {_digits(experts)} experts")
    for key, value in raw.items():
        if isinstance(value, str) and _COUNTS.fullmatch(key):
            raise ModelError(f"config.json: {printable(key, 60)} is text, '{printable(value, 40)}', not a number")
        if isinstance(value, float) and _COUNTS.fullmatch(key):
            raise ModelError(f"config.json: {printable(key, 60)} is {value!r}, not a whole number")
        if isinstance(value, Mapping):
            if key not in _SKIPPED and depth < MAX_DEPTH:
                check_figures(value, depth + 1)
            continue
        if type(value) is not int or not isinstance(key, str) or not _SIZES.fullmatch(key):
            continue
        if value < 0 and not _MAY_BE_NEGATIVE.fullmatch(key):
            raise ModelError(f"config.json: {printable(key, 60)} is {_digits(value)}, less than zero")
        if value == 0 and key in _POSITIVE:
            raise ModelError(f"config.json: {printable(key, 60)} is 0")
        if abs(value) > MAX_FIGURE:
            raise ModelError(f"config.json: {printable(key, 60)} is {_digits(value)}, more than a tensor can have")


def _digits(value: int) -> str:
    return str(value) if abs(value) < 1 << 70 else f"a number of {value.bit_length()} bits"
