"""Whether a layer is meant by a list of names in a quantization configuration.

The configuration names layers as the checkpoint does; vLLM rewrites those names into its own per model. What
differs between the two are the wrappers in front (`model.`, `language_model.`), so both sides are compared
without them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from autofit.domain.values import dataclass
from autofit.errors import EngineRefusalError

_WRAPPERS = frozenset({"model", "language_model", "thinker"})
_MAX_PATTERN = 512
_NAME_LENGTH = 64  #: of a layer's name, about
_MAX_STEPS = (_NAME_LENGTH + 1) ** 4  #: of all patterns of one list at one name, by `_ways`
_NO_CHOICE = re.compile(r"[^*+?{|]*(?:[*+?{][^*+?{|]*)?")  #: one repetition at most, no alternatives
_REPEATS = frozenset({"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"})


@lru_cache(maxsize=65536)
def bare(name: str) -> str:
    """A layer's name without the wrappers in front: `layers.0.mlp.down_proj`."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in _WRAPPERS:
        del parts[0]
    return ".".join(parts)


@dataclass(frozen=True, slots=True)
class Listed:
    """The entries of one list, each a name or a pattern (`re:`), read once: a name is looked up, not compared."""

    names: Mapping[str, int]  #: without wrappers -> the first entry of that name
    patterns: tuple[tuple[int, re.Pattern[str]], ...]  #: with the number of the entry

    def first(self, name: str) -> int | None:
        """The first entry that means a layer
        (layers/quantization/compressed_tensors/utils.py:is_equal_or_regex_match)."""
        named = self.names.get(bare(name))
        for number, pattern in self.patterns:
            if named is not None and named < number:
                break
            if pattern.match(name):
                return number
        return named

    def means(self, name: str) -> bool:
        return self.first(name) is not None

    def any_below(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.names)


def listed(entries: Iterable[str]) -> Listed:
    """Raises:
    EngineRefusalError: no pattern, or matching might not end.
    """
    names: dict[str, int] = {}
    patterns: dict[str, int] = {}
    for number, entry in enumerate(entries):
        if entry.startswith("re:"):
            patterns.setdefault(entry[3:], number)
        else:
            names.setdefault(bare(entry), number)
    found = tuple((number, _compiled(pattern)) for pattern, number in patterns.items())
    if sum(map(_steps, patterns)) > _MAX_STEPS:
        raise EngineRefusalError(f"quantization_config: matching {len(patterns)} patterns may not end")
    return Listed(names, found)


@lru_cache(maxsize=16384)
def _compiled(pattern: str) -> re.Pattern[str]:
    import warnings

    if len(pattern) > _MAX_PATTERN:
        raise EngineRefusalError(f"quantization_config: pattern {pattern[:60]!r} of {len(pattern)} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a later Python may read differently
            compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise EngineRefusalError(f"quantization_config: bad pattern {pattern[:60]!r}: {error}") from None
    if _steps(pattern) > _MAX_STEPS:
        raise EngineRefusalError(f"quantization_config: matching the pattern {pattern[:60]!r} may not end")
    return compiled


@lru_cache(maxsize=16384)
def _steps(pattern: str) -> int:
    """About how many steps Python's `re` may take at one name."""
    if _NO_CHOICE.fullmatch(pattern):
        return _NAME_LENGTH
    from re import _parser  # type: ignore[attr-defined]

    return _ways(_parser.parse(pattern))


def _ways(items: Iterable[tuple[Any, Any]]) -> int:
    """In how many ways a parsed pattern may match at one place: all of them are tried where none leads on.

    Alternatives add up, what follows each other multiplies, and a repetition of what itself has several ways is a
    power. More than `_MAX_STEPS` is not told apart.
    """
    ways = 1
    for operation, value in items:
        name = str(operation)
        if name == "BRANCH":
            ways *= sum(map(_ways, value[1]))
        elif name in _REPEATS:
            least, most, item = value
            least, most = min(least, _NAME_LENGTH), min(most, _NAME_LENGTH)
            inner = _ways(item)
            ways *= inner**most * (most - least + 1) if inner > 1 else most - least + 1
        elif name == "GROUPREF_EXISTS":
            ways *= sum(_ways(item) for item in value[1:] if item is not None)
        elif name in ("SUBPATTERN", "ASSERT", "ASSERT_NOT", "ATOMIC_GROUP"):
            ways *= _ways(value if name == "ATOMIC_GROUP" else value[-1])
        ways = min(ways, _MAX_STEPS + 1)
    return ways


def regex_matches(pattern: str, name: str) -> bool:
    """`re:` patterns match from the start of vLLM's own name."""
    return _compiled(pattern).match(name) is not None


def regex_searches(pattern: str, name: str) -> bool:
    """Anywhere in vLLM's own name."""
    return _compiled(pattern).search(name) is not None


def glob_matches(pattern: str, name: str) -> bool:
    return _glob_matches(pattern, name) or _glob_matches(bare(pattern), bare(name))


def _glob_matches(pattern: str, name: str) -> bool:
    """Where `*` stands for anything: each piece at the first place that it has, which is enough."""
    first, *others = pattern.split("*")
    if not others:
        return pattern == name
    *middle, last = others
    at = len(first)
    if not name.startswith(first):
        return False
    for piece in middle:
        found = name.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return len(name) - len(last) >= at and name.endswith(last)


def exact(name: str, listed: Iterable[str]) -> bool:
    return any(name == entry or bare(name) == bare(entry) for entry in listed)


def substring(name: str, listed: Iterable[str]) -> bool:
    return any(entry in name or bare(entry) in bare(name) for entry in listed)


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
