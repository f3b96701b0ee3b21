"""Whether a layer is meant by a list of names in a quantization configuration.

The configuration names layers as the checkpoint does; vLLM rewrites those names into its own per model. What
differs between the two are the wrappers in front (`model.`, `language_model.`), so both sides are compared
without them.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, lru_cache
from typing import Any

from autofit.domain.patterns import lazy_pattern
from autofit.domain.values import dataclass
from autofit.errors import EngineRefusalError

_WRAPPERS = frozenset({"model", "language_model", "thinker"})
_MAX_PATTERN = 512
_NAME_LENGTH = 64  #: of a layer's name, about
_MAX_PATTERNS = 10_000  #: of one list; each has to be compiled
_MAX_STEPS = (_NAME_LENGTH + 1) ** 4  #: of all patterns of one list at one name, by `_ways`
_NO_CHOICE = lazy_pattern(r"[^*+?{|]*(?:[*+?{][^*+?{|]*)?")  #: one repetition at most, no alternatives
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
    check_count(len(patterns))
    found = tuple((number, _compiled(pattern)) for pattern, number in patterns.items())
    if sum(map(_steps, patterns)) > _MAX_STEPS:
        raise EngineRefusalError(f"quantization_config: matching {len(patterns)} patterns may not end")
    return Listed(names, found)


def check_count(n_patterns: int) -> None:
    """Raises:
    EngineRefusalError: too many to compile.
    """
    if n_patterns > _MAX_PATTERNS:
        raise EngineRefusalError(
            f"quantization_config: {n_patterns} patterns; at most {_MAX_PATTERNS} are read",
            hint="list names instead, which may be any number",
        )


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


class Globs:
    """Many patterns with `*`, of which few are tried at a name: those whose rarest piece is in it."""

    __slots__ = ("_by_length",)

    def __init__(self, patterns: Iterable[str]) -> None:
        split = {pattern: [piece for piece in pattern.split("*") if piece] or [""] for pattern in patterns}
        count = Counter(piece for pieces in split.values() for piece in pieces)
        self._by_length: dict[int, dict[str, list[str]]] = {}
        for pattern, pieces in split.items():
            piece = pieces[0] if len(pieces) == 1 else min(pieces, key=lambda piece: (count[piece], -len(piece)))
            self._by_length.setdefault(len(piece), {}).setdefault(piece, []).append(pattern)

    def match(self, name: str) -> bool:
        for length, pieces in self._by_length.items():
            for at in range(len(name) - length + 1):
                patterns = pieces.get(name[at : at + length])
                if patterns and any(_glob_matches(pattern, name) for pattern in patterns):
                    return True
        return False


class NameList:
    """Names of layers, prepared for what the methods ask of them: a list of any length is read once."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = tuple(dict.fromkeys(names))

    def __bool__(self) -> bool:
        return bool(self.names)

    @cached_property
    def _bare(self) -> frozenset[str]:
        return frozenset(map(bare, self.names))

    @cached_property
    def _parts(self) -> tuple[Mapping[int, set[str]], Mapping[int, set[str]]]:
        return _by_length(self.names), _by_length(self._bare)

    @cached_property
    def _globs(self) -> tuple[Globs, Globs]:
        starred = [entry for entry in self.names if "*" in entry]
        return Globs(starred), Globs(map(bare, starred))

    @cached_property
    def _experts(self) -> str:
        return "\n".join(entry for entry in self.names if "experts" in entry)

    def exact(self, name: str) -> bool:
        return bare(name) in self._bare

    def part_of(self, name: str) -> bool:
        """Whether an entry is a part of the name."""
        whole, short = self._parts
        return _has_part(name, whole) or _has_part(bare(name), short)

    def glob(self, name: str) -> bool:
        """Whether an entry is the name, `*` standing for anything."""
        whole, short = self._globs
        return self.exact(name) or whole.match(name) or short.match(bare(name))

    def experts(self, name: str) -> bool:
        """Experts are meant when a listed expert lies below them."""
        return bare(name) in self._experts


def _by_length(names: Iterable[str]) -> Mapping[int, set[str]]:
    found: dict[int, set[str]] = {}
    for name in names:
        found.setdefault(len(name), set()).add(name)
    return found


def _has_part(name: str, parts: Mapping[int, set[str]]) -> bool:
    return any(name[at : at + n] in some for n, some in parts.items() for at in range(len(name) - n + 1))


class Below:
    """What is listed for layers, by the layer that they lie below."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._sorted = sorted((name, number) for number, name in enumerate(values))
        self._values = tuple(values.values())

    def at(self, prefix: str) -> list[Any]:
        """The values of all names that begin so, as they are listed."""
        found = []
        for at in range(bisect_left(self._sorted, (prefix, -1)), len(self._sorted)):
            name, number = self._sorted[at]
            if not name.startswith(prefix):
                break
            found.append(number)
        return [self._values[number] for number in sorted(found)]


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


def skipped(name: str, shards: tuple[str, ...], listed: NameList, *, part_of_name: bool = False) -> bool:
    """Whether a list of layers to leave alone means this one
    (layers/quantization/utils/quant_utils.py:is_layer_skipped)."""
    if not listed:
        return False
    means = listed.part_of if part_of_name else listed.exact
    return means(name) or all_or_none(shards, means)
