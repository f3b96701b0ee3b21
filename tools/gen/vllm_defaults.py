"""Writes plugins/autofit_vllm/architectures/defaults.json from the configuration classes that vLLM uses.

    python tools/gen/vllm_defaults.py > plugins/autofit_vllm/architectures/defaults.json

Run where `transformers` and `vllm` can be imported. For every model type: the defaults of the keys that the
plugin reads, and the class's own spellings of them (`attribute_map`).
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

PLUGIN = Path(__file__).resolve().parents[2] / "plugins" / "autofit_vllm"
_MAX_ITEMS = 80  #: longer lists are per layer of one model


def keys_read() -> tuple[set[str], tuple[str, ...]]:
    """Words that stand as strings in the plugin, and those that follow a prefix in an f-string."""
    words, endings = set(), set()
    for path in PLUGIN.rglob("*.py"):
        source = path.read_text("utf-8")
        words |= set(re.findall(r'"([A-Za-z_][A-Za-z0-9_]*)"', source))
        endings |= set(re.findall(r'f"\{[a-z]+\}([a-z_]+)"', source))
    return words, tuple(ending for ending in endings if "_" in ending)


def classes() -> Iterator[tuple[str, Any]]:
    """Configuration classes by model type; vLLM's own come last, and win."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    for mapping, names in ((CONFIG_MAPPING, CONFIG_MAPPING_NAMES), (_CONFIG_REGISTRY, _CONFIG_REGISTRY)):
        for name in names:
            try:
                yield name, mapping[name]
            except Exception as error:
                print(f"{name}: {error}", file=sys.stderr)


def defaults(found: Any) -> dict[str, Any]:
    """Of a class's fields, and of the arguments of its own constructor."""
    values: dict[str, Any] = {}
    if dataclasses.is_dataclass(found):
        for field in dataclasses.fields(found):
            if field.default is not dataclasses.MISSING:
                values[field.name] = field.default
            elif field.default_factory is not dataclasses.MISSING:
                values[field.name] = field.default_factory()
    if "__init__" in found.__dict__:
        for name, parameter in inspect.signature(found.__init__).parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                values[name] = parameter.default
    return values


def plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= _MAX_ITEMS and all(map(plain, value))
    if isinstance(value, dict):
        return all(map(plain, value.values()))
    return value is None or isinstance(value, bool | int | float | str)


def main() -> None:
    words, endings = keys_read()
    types: dict[str, dict[str, Any]] = {}
    for name, found in classes():
        fields = {
            key: value
            for key, value in defaults(found).items()
            if (key in words or key.endswith(endings)) and key not in ("architectures", "model_type") and plain(value)
        }
        if fields.get("dtype", "") is None:
            del fields["dtype"]
        types[name] = {"fields": fields, "aliases": dict(found.attribute_map)}
    text = {name: {key: value for key, value in entry.items() if value} for name, entry in types.items()}
    lines = (
        f"{json.dumps(name)}: {json.dumps(entry, separators=(',', ':'), sort_keys=True)}"
        for name, entry in sorted(text.items())
        if entry
    )
    made = f"tools/gen/vllm_defaults.py from the configuration classes of vLLM {version('vllm')} and its transformers"
    head = json.dumps({"generated": f"{made}: do not edit"})[:-1]
    print(head + ',\n"types": {\n' + ",\n".join(lines) + "\n}}")


if __name__ == "__main__":
    main()
