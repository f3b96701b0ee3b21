"""Whether a layer is meant by a list of names in a quantization configuration.

The configuration names layers as the checkpoint does; vLLM rewrites those names into its own per model. What
differs between the two are the wrappers in front (`model.`, `language_model.`), so both sides are compared
without them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from autofit.errors import EngineRefusalError

_WRAPPERS = frozenset({"model", "language_model", "thinker"})
_MAX_PATTERN = 512
_NESTED = re.compile(r"[)*+}](?<!\\.)[*+{]")  #: a repetition of what repeats may backtrack without end
_UNBOUNDED = re.compile(r"(?<!\\)(?<!\\d)[*+]|,\}")
_MAX_UNBOUNDED = 4  #: the steps of a match grow with the name's length to this power


@lru_cache(maxsize=65536)
def bare(name: str) -> str:
    """A layer's name without the wrappers in front: `layers.0.mlp.down_proj`."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in _WRAPPERS:
        del parts[0]
    return ".".join(parts)


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    unbounded = len(_UNBOUNDED.findall(pattern))
    if len(pattern) > _MAX_PATTERN or unbounded > _MAX_UNBOUNDED or _NESTED.search(pattern):
        raise EngineRefusalError(f"quantization_config: matching the pattern {pattern[:60]!r} may not end")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise EngineRefusalError(f"quantization_config: bad pattern {pattern!r}: {error}") from None


@lru_cache(maxsize=1024)
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(piece) for piece in pattern[:_MAX_PATTERN].split("*")) + r"\Z")


def regex_matches(pattern: str, name: str) -> bool:
    """`re:` patterns match from the start of vLLM's own name."""
    return _compiled(pattern).match(name) is not None


def regex_searches(pattern: str, name: str) -> bool:
    """Anywhere in vLLM's own name."""
    return _compiled(pattern).search(name) is not None


def glob_matches(pattern: str, name: str) -> bool:
    return _glob(pattern).match(name) is not None or _glob(bare(pattern)).match(bare(name)) is not None


def exact(name: str, listed: Iterable[str]) -> bool:
    return any(name == entry or bare(name) == bare(entry) for entry in listed)


def substring(name: str, listed: Iterable[str]) -> bool:
    return any(entry in name or bare(entry) in bare(name) for entry in listed)


def exact_or_regex(name: str, entry: str) -> bool:
    """compressed-tensors' rule (layers/quantization/compressed_tensors/utils.py:is_equal_or_regex_match)."""
    if entry.startswith("re:"):
        return regex_matches(entry[3:], name)
    return name == entry or bare(name) == bare(entry)


def all_or_none(shards: tuple[str, ...], match: Callable[[str], bool]) -> bool:
    """Whether the shards of a fused layer match; they must agree.

    Raises:
        EngineRefusalError: some match and some do not.
    """
    matched = [match(shard) for shard in shards]
    if any(matched) and not all(matched):
        raise EngineRefusalError(
            f"quantization_config treats the parts of one fused layer differently: {', '.join(shards)}"
        )
    return all(matched)


def skipped(name: str, shards: tuple[str, ...], listed: list[str], *, part_of_name: bool = False) -> bool:
    """Whether a list of layers to leave alone means this one
    (layers/quantization/utils/quant_utils.py:is_layer_skipped)."""
    if not listed:
        return False
    if part_of_name:
        return substring(name, listed) or all_or_none(shards, lambda shard: substring(shard, listed))
    if exact(name, listed):
        return True
    return all_or_none(shards, lambda shard: exact(shard, listed))


def experts_skipped(name: str, listed: list[str]) -> bool:
    """Experts are left alone when a listed expert lies below them."""
    return any("experts" in entry and bare(name) in entry for entry in listed)
