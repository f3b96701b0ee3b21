"""The flags of `llama-quantize` that say which types tensors get (tools/quantize/quantize.cpp:llama_quantize)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from autofit.domain.dtypes import GGML_TYPES_BY_NAME
from autofit.errors import UsageError
from autofit.files import read_bounded

from autofit_llama.engine.regex import searcher
from autofit_llama.quantization.ftypes import WRITABLE
from autofit_llama.quantization.quantize import Options

MAX_FILE_BYTES = 1 << 20
_SWITCHES = {
    "--allow-requantize": "allow_requantize",
    "--leave-output-tensor": "leave_output",
    "--pure": "pure",
    "--keep-split": "keep_split",
}
_TYPES = {"--output-tensor-type": "output_type", "--token-embedding-type": "token_embedding_type"}
_WITHOUT_EFFECT = {"--dry-run": 0, "--include-weights": 1, "--exclude-weights": 1, "--max-buffer-size": 1}
_NOT_FORECAST = ("--prune-layers", "--override-kv")
_NAMES = {name.lower(): name for name in GGML_TYPES_BY_NAME}


def read_flags(words: Sequence[str]) -> Options:
    """The options that these flags set.

    Raises:
        UsageError: a flag that llama-quantize has not, a value that it refuses, or what cannot be told beforehand.
    """
    left = iter(words)
    given: dict[str, Any] = {}
    patterns: list[tuple[str, str]] = []
    for flag in left:
        if flag in _SWITCHES:
            given[_SWITCHES[flag]] = True
        elif flag in _TYPES:
            given[_TYPES[flag]] = _type(flag, _value(flag, left))
        elif flag == "--imatrix":
            _value(flag, left)
            given["imatrix"] = True
        elif flag == "--tensor-type":
            patterns.append(_pattern(_value(flag, left)))
        elif flag == "--tensor-type-file":
            patterns += map(_pattern, _words_of(_value(flag, left)))
        elif flag in _WITHOUT_EFFECT:
            for _ in range(_WITHOUT_EFFECT[flag]):
                _value(flag, left)
        else:
            raise _unknown(flag)
    return Options(**given, tensor_types=tuple(patterns))


def _unknown(flag: str) -> UsageError:
    if flag in _NOT_FORECAST:
        return UsageError(f"{flag} changes the model itself, and what comes of it is not told beforehand")
    known = [*_SWITCHES, *_TYPES, "--imatrix", "--tensor-type", "--tensor-type-file"]
    return UsageError(f"llama-quantize: unknown flag {flag[:40]!r}", hint=f"known: {', '.join(known)}")


def _value(flag: str, left: Iterator[str]) -> str:
    value = next(left, None)
    if value is None:
        raise UsageError(f"llama-quantize: {flag} needs a value")
    return value


def _type(flag: str, word: str) -> str:
    name = _NAMES.get(word.lower())
    if name is None or name not in WRITABLE:
        raise UsageError(
            f"llama-quantize: {flag}: {word[:40]!r} is no type that tensors can be written in",
            hint=f"known: {', '.join(sorted(WRITABLE))}",
        )
    return name


def _pattern(word: str) -> tuple[str, str]:
    """`PATTERN=TYPE`. The pattern is made small letters, as the program does."""
    name, equals, type_name = word.partition("=")
    if not name or not equals or not type_name:
        raise UsageError(
            f"llama-quantize: a tensor type is PATTERN=TYPE, not {word[:60]!r}", hint="such as attn_v=q8_0"
        )
    pattern = "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in name)
    searcher(pattern)  # refuses what std::regex would
    return pattern, _type("--tensor-type", type_name)


def _words_of(path: str) -> list[str]:
    try:
        return read_bounded(path, MAX_FILE_BYTES).decode("utf-8", "surrogateescape").split()
    except OSError as error:
        raise UsageError(f"llama-quantize: --tensor-type-file {path[:80]}: {error.strerror or error}") from error
