"""vLLM's own names for the layers that a quantization configuration lists by the checkpoint's names.

Before a layer looks itself up, every list of names goes through the mapper of the model's class
(model_executor/models/utils.py:WeightsMapper.get_rename_mapper, applied by interfaces.py:SupportsQuant). The mappers of
the registered classes are data: name_maps.json, which tools/gen/vllm_name_maps.py writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

Rename = Callable[[str], str]

#: keys that hold layer names, as lists or as the keys of a table (each method's apply_vllm_mapper)
_LISTS: dict[str, tuple[str, ...]] = {
    "fp8": ("ignored_layers", "modules_to_not_convert"),
    "deepseek_v4_fp8": ("ignored_layers", "modules_to_not_convert"),
    "modelopt": ("ignore", "exclude_modules", "quantized_layers"),
    "awq": ("modules_to_not_convert",),
    "gptq": ("modules_in_block_to_quantize",),
    "auto-round": ("block_name_to_quantize", "extra_config"),
    "inc": ("block_name_to_quantize", "extra_config"),
    "quark": ("exclude", "layer_quant_config"),
}


def renamed(raw: Mapping[str, Any], method: str, architecture: str) -> Mapping[str, Any]:
    """`raw` (a quantization_config) with the names that `architecture` has in vLLM."""
    rename = rename_of(architecture)
    if rename is None:
        return raw
    if method == "compressed-tensors":
        return _compressed(raw, rename)
    keys = _LISTS.get("modelopt" if method.startswith("modelopt") else method, ())
    found = {**raw, **{key: _renamed(raw[key], rename) for key in keys if key in raw}}
    inner = raw.get("quantization")
    if isinstance(inner, Mapping):  # hf_quant_config.json of ModelOpt
        found["quantization"] = {**inner, **{key: _renamed(inner[key], rename) for key in keys if key in inner}}
    return found


def _compressed(raw: Mapping[str, Any], rename: Rename) -> Mapping[str, Any]:
    """Class names and patterns among the targets stay (compressed_tensors.py:apply_vllm_mapper)."""

    def target(name: str) -> str:
        return rename(name) if "." in name and not name.startswith("re:") else name

    groups = raw.get("config_groups")
    found = {**raw, "ignore": _renamed(raw.get("ignore"), target)}
    if isinstance(groups, Mapping):
        found["config_groups"] = {
            name: {**group, "targets": _renamed(group.get("targets"), target)} if isinstance(group, Mapping) else group
            for name, group in groups.items()
        }
    return found


def _renamed(listed: Any, rename: Rename) -> Any:
    if isinstance(listed, str):
        return rename(listed)
    if isinstance(listed, list | tuple):
        return [_renamed(entry, rename) for entry in listed]
    if isinstance(listed, Mapping):
        return {rename(str(name)): value for name, value in listed.items()}
    return listed


@lru_cache(maxsize=16)
def rename_of(architecture: str) -> Rename | None:
    """The renaming of one architecture; `None` where vLLM's class keeps the checkpoint's names."""
    text = Path(__file__).with_name("name_maps.json").read_text("utf-8")
    steps = json.loads(text).get(architecture)
    if not steps:
        return None
    parts = [_STEPS[kind](old, new) for kind, old, new in steps]

    def rename(name: str) -> str:
        for part in parts:
            name = part(name)
        return name

    return rename


def _regex(old: str, new: str) -> Rename:
    pattern = re.compile(old)
    return lambda name: pattern.sub(new, name)


def _substr(old: str, new: str) -> Rename:
    return lambda name: name.replace(old, new, 1)


def _prefix(old: str, new: str) -> Rename:
    return lambda name: new + name[len(old) :] if name.startswith(old) else name


def _suffix(old: str, new: str) -> Rename:
    return lambda name: name[: -len(old)] + new if old and name.endswith(old) else name


_STEPS: Mapping[str, Callable[[str, str], Rename]] = {
    "regex": _regex,
    "substr": _substr,
    "prefix": _prefix,
    "suffix": _suffix,
}
