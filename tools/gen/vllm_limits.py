"""Writes what vLLM's configuration classes allow into its table of flags: limits of numbers, keys of JSON values.

    python tools/gen/vllm_limits.py plugins/autofit_vllm/command/flags-0.33.0.json

Run where this version of `vllm` can be imported. An option gets `limits` (`ge`, `gt`, `le`, `lt`, `one_of`) of the
field that it fills, and `keys` where its value becomes a configuration class, which knows no other: the allowed
words of each key, its own keys, or `null`.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

#: Option by class where only the field's name, or the option's type, does not tell.
RENAMED = {("CacheConfig", "cache_dtype"): "kv_cache_dtype"}
SPECULATIVE = ("speculative_config", "SpeculativeConfig")  # parsed as a plain mapping
WITHIN = ("target_model_config", "target_parallel_config", "draft_model_config", "draft_parallel_config")
WHEN = {"LoRAConfig": "enable_lora"}  #: classes that exist only if an option is set; one only of some models
BOUNDS = ("ge", "gt", "le", "lt")


def classes() -> dict[str, Any]:
    config = importlib.import_module("vllm.config")
    found = {name: getattr(config, name) for name in config.__all__ if name.endswith("Config")}
    for module, name in (
        ("vllm.config.offload", "UVAOffloadConfig"),
        ("vllm.config.offload", "PrefetchOffloadConfig"),
        ("vllm.config.quantization", "QuantizationConfigArgs"),
    ):
        found[name] = getattr(importlib.import_module(module), name)
    return {name: cls for name, cls in found.items() if dataclasses.is_dataclass(cls)}


def bounds(field: Any) -> dict[str, Any]:
    """The numbers that pydantic holds a field to."""
    found: dict[str, Any] = {}
    for rule in getattr(field, "metadata", ()):
        found |= {name: getattr(rule, name) for name in BOUNDS if getattr(rule, name, None) is not None}
    return found


def members(hint: Any) -> list[Any]:
    """The types of a union, annotations taken off."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return members(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return [part for arg in typing.get_args(hint) for part in members(arg)]
    return [hint]


def words(hint: Any, *, by_name: bool = False) -> list[str] | None:
    """What a field of literals or of named whole numbers takes; `None` if anything else."""
    found: list[str] = []
    for part in members(hint):
        if part is type(None):
            continue
        if typing.get_origin(part) is typing.Literal:
            found += [value for arg in typing.get_args(part) for value in literals(arg)]
        elif isinstance(part, type) and issubclass(part, enum.IntEnum):
            found += [str(member.value) for member in part]
            found += [member.name for member in part if by_name]
        else:
            return None
    return found or None


def literals(arg: Any) -> list[str]:
    if typing.get_origin(arg) is typing.Literal:
        return [value for inner in typing.get_args(arg) for value in literals(inner)]
    return [str(arg)] if isinstance(arg, (str, int)) and not isinstance(arg, bool) else []


def hints_of(cls: Any) -> dict[str, Any]:
    """Types of the fields; pydantic has resolved those of its own classes."""
    resolved = getattr(cls, "__pydantic_fields__", None)
    if resolved is not None:
        return {name: field.annotation for name, field in resolved.items()}
    found = {}
    for field in dataclasses.fields(cls):
        names = {**vars(importlib.import_module(cls.__module__)), **classes()}
        found[field.name] = eval(field.type, names) if isinstance(field.type, str) else field.type
    return found


def keys(cls: Any) -> dict[str, Any]:
    """The keys of a class, each with its words, its own keys, or nothing."""
    hints = hints_of(cls)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if not field.init or field.name.startswith("_") or field.name in WITHIN:
            continue
        hint = hints.get(field.name)
        inner = [part for part in members(hint) if dataclasses.is_dataclass(part)]
        named = words(hint, by_name=True)
        found[field.name] = keys(inner[0]) if inner else named and sorted(named)
    return found


def main() -> None:
    path = Path(sys.argv[1])
    table = json.loads(path.read_text("utf-8"))
    rows = {row["dest"]: row for row in table["options"]}
    for row in rows.values():
        for name in ("limits", "keys", "when"):
            row.pop(name, None)
    known = classes()
    arguments = importlib.import_module("vllm.engine.arg_utils").EngineArgs
    for name, hint in hints_of(arguments).items():
        inner = [part for part in members(hint) if dataclasses.is_dataclass(part)]
        if inner and name in rows:
            rows[name] |= {"kind": "config", "keys": keys(inner[0])}
    rows[SPECULATIVE[0]]["keys"] = keys(known[SPECULATIVE[1]])
    for name, cls in known.items():
        for field_name, field in cls.__pydantic_fields__.items():
            row = rows.get(RENAMED.get((name, field_name), field_name))
            if row is None or name in (SPECULATIVE[1], "MultiModalConfig") or "keys" in row:
                continue
            limits = bounds(field)
            named = words(field.annotation)
            if named and "choices" not in row:
                limits["one_of"] = sorted(named)
            if limits:
                row["limits"] = limits
                if name in WHEN:
                    row["when"] = WHEN[name]
    lines = ",\n  ".join(json.dumps(row) for row in table["options"])
    head = f'{{"version": {json.dumps(table["version"])}, "program": {json.dumps(table["program"])},'
    path.write_text(f'{head}\n "options": [\n  {lines}\n]}}\n', "utf-8")


if __name__ == "__main__":
    main()
