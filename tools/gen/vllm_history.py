"""Writes plugins/autofit_vllm/engine/history.json: what releases of vLLM had before the newest known one.

    pip download --no-deps --no-binary vllm vllm==0.10.0      # and so on: sdists, wheels or unpacked directories
    python tools/gen/vllm_history.py vllm-*.tar.gz > plugins/autofit_vllm/engine/history.json

Reads packages without importing them: flags as `vllm_flags.py` does, classes as `vllm_registry.py` does, and a few
constants. The newest package is where tables start; it is kept whole in `flags-VERSION.json` and `registry.py`. A
record is one change, `[UNTIL, NAME, VALUE]`: what NAME was up to release UNTIL, with no VALUE where there was none. A
NAME of a flag is its destination, with the keys of its JSON value behind dots.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_flags import defaults_of, rows_of
from vllm_package import DOCKERFILE, Package, constant
from vllm_registry import classes

Flat = dict[str, Any]
_ABSENT = object()


def flat_flags(package: Package) -> Flat:
    """Options by destination, without the keys of their values; and those keys by their path."""
    result: Flat = {}
    for row in rows_of(package):
        result[row["dest"]] = {name: value for name, value in row.items() if name not in ("keys", "dest")}
        if isinstance(row.get("keys"), dict):
            result[row["dest"] + "."] = None
            result |= flat_keys(row["dest"], row["keys"])
    return result


def flat_keys(path: str, keys: Mapping[str, Any]) -> Flat:
    """Words by path; `{}` for a key that has keys of its own."""
    result: Flat = {}
    for name, value in keys.items():
        inner = f"{path}.{name}"
        if isinstance(value, dict):
            result[inner] = {}
            result |= flat_keys(inner, value)
        else:
            result[inner] = value
    return result


def class_words(package: Package) -> Flat:
    """Abilities by architecture, and the name of its class; modules move without meaning anything."""
    return {name: entry.partition(":")[2] for name, entry in classes(package).items()}


def facts(package: Package) -> Flat:
    """Constants that no flag sets."""
    found: Flat = {}
    envs = package.files["vllm/envs.py"]
    name = "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS"
    default = re.search(rf'getenv\(\s*"{name}",\s*"([01])"', envs)
    found["graphs_deducted"] = default is not None and default[1] == "1"
    image = re.search(r"^ARG torch_cuda_arch_list='(\d+)\.(\d+)", package.files.get(DOCKERFILE, ""), re.MULTILINE)
    found["least_capability"] = [int(image[1]), int(image[2])] if image else None
    table = package.names("vllm.model_executor.layers.quantization").get("QuantizationMethods")
    value = getattr(table, "value", None)
    words = constant(value.slice) if value is not None else None
    found["quantizations"] = sorted(words or ())
    return found


SECTIONS = {"flags": flat_flags, "defaults": defaults_of, "classes": class_words, "facts": facts}


def release_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def changes(tables: Mapping[str, Flat]) -> list[list[Any]]:
    """Records that lead from the newest table to each older one, newest first."""
    records: list[list[Any]] = []
    after: Flat | None = None
    for version in sorted(tables, key=release_key, reverse=True):
        table = tables[version]
        if after is not None:
            records += [[version, name, was] for name, was in table.items() if after.get(name, _ABSENT) != was]
            records += [[version, name] for name in after if name not in table]
        after = table
    return records


def read(package: Package) -> dict[str, Flat]:
    """Every table of one release."""
    return {name: table(package) for name, table in SECTIONS.items()}


def history(tables: Mapping[str, dict[str, Flat]]) -> str:
    """The text of `history.json`, of the tables of every release."""
    versions = sorted(tables, key=release_key)
    for before, version in itertools.pairwise(versions):  # a wheel has no Dockerfile: it is as the release before
        if tables[version]["facts"]["least_capability"] is None:
            tables[version]["facts"]["least_capability"] = tables[before]["facts"]["least_capability"]
    newest = tables[versions[-1]]
    head = {
        "generated": f"tools/gen/vllm_history.py from vLLM {versions[0]} to {versions[-1]}: do not edit",
        "versions": versions,
        "newest": {"defaults": newest["defaults"], "facts": newest["facts"]},
    }
    parts = []
    for name in SECTIONS:
        records = changes({version: each[name] for version, each in tables.items()})
        lines = ",\n  ".join(json.dumps(record, separators=(",", ":")) for record in records)
        parts.append(f' "{name}": [\n  {lines}\n ]')
    return json.dumps(head)[:-1] + ",\n" + ",\n".join(parts) + "\n}"


def main() -> None:
    packages = (Package(Path(path)) for path in sys.argv[1:])
    print(history({str(package.version): read(package) for package in packages}))


if __name__ == "__main__":
    main()
