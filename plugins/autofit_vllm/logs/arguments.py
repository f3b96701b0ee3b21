"""The arguments that vLLM logs when it starts (`non-default args: {...}`): facts, and the command they came from."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress

from autofit.logs.notes import Notes
from autofit.logs.numbers import whole

MAX_ARGUMENTS = 200
MAX_VALUE = 4000


def note_arguments(notes: Notes, text: str) -> None:
    """Note each argument that is a plain value, and the command."""
    found = dict(_values(text))
    for name, value in found.items():
        if isinstance(value, (str, int, float)):
            notes.fact(name, value)
    words = command_of(found)
    if words:
        notes.command = words


#: what the answers to a log count with, by its names on the command line
_COUNTED = {
    **{name: name for name in ("gpu_memory_utilization", "max_num_batched_tokens", "kv_cache_dtype", "enforce_eager")},
    **dict.fromkeys(("tensor_parallel_size", "tp"), "tensor_parallel_size"),
}


def facts_of(argv: Sequence[str]) -> dict[str, object]:
    """What a command says of the arguments that answers count with; a log of them says it better."""
    found: dict[str, object] = {}
    for word, after in zip(argv, (*argv[1:], "-"), strict=True):
        flag, equals, value = word.partition("=")
        name = _COUNTED.get(flag.lstrip("-").replace("-", "_")) if flag.startswith("-") else None
        if name is None:
            continue
        value = value if equals else "" if after.startswith("-") else after
        if name == "enforce_eager":
            found[name] = True
        elif name == "kv_cache_dtype":
            found[name] = value
        elif name == "gpu_memory_utilization":
            with suppress(ValueError):
                found[name] = float(value)
        elif (number := whole(value)) is not None:
            found[name] = number
    return found


def command_of(arguments: dict[str, object]) -> tuple[str, ...]:
    """`vllm serve MODEL --flags`; nothing without a model."""
    model = arguments.get("model_tag") or arguments.get("model")
    if not isinstance(model, str) or not model or model.startswith("-"):
        return ()
    words = ["vllm", "serve", model]
    for name, value in arguments.items():
        if name not in {"model", "model_tag"} and name.isascii() and name.isidentifier():
            words += _flag(f"--{name.replace('_', '-')}", value)
    return tuple(words)


def _flag(flag: str, value: object) -> list[str]:
    if value is True:
        return [flag]
    if value is False:
        return [f"--no-{flag[2:]}"]
    if isinstance(value, (str, int, float)):
        text = str(value)
        return [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    if isinstance(value, list) and all(isinstance(one, (str, int, float)) for one in value):
        return [flag, *map(str, value)] if value else []
    if isinstance(value, dict):
        try:
            return [flag, json.dumps(value)]
        except (TypeError, ValueError):
            return []
    return []


def _values(text: str) -> Iterator[tuple[str, object]]:
    """Names and values of a dictionary as Python writes it, outermost level. Only literals are read."""
    for n, item in enumerate(_items(text)):
        if n == MAX_ARGUMENTS:
            return
        name, colon, value = item.strip().partition(":")
        if not colon or len(value) > MAX_VALUE:
            continue
        try:
            key, found = ast.literal_eval(name.strip()), ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue  # an object of vLLM's, such as KVTransferConfig(...)
        if isinstance(key, str) and found is not None:
            yield key, found


def _items(text: str) -> Iterator[str]:
    """What stands between the commas of the outermost level."""
    depth, quote, start, skip = 0, "", 1, False
    for at, char in enumerate(text):
        if skip:
            skip = False
        elif quote:
            if char == "\\":
                skip = True
            elif char == quote:
                quote = ""
        elif char in "'\"":
            quote = char
        elif char in "{[(":
            depth += 1
        elif char in "}])":
            depth -= 1
            if depth == 0:
                yield text[start:at]
                return
        elif char == "," and depth == 1:
            yield text[start:at]
            start = at + 1
