"""Entries as a file that people can share: figures of devices and architectures, no names of anybody and no paths."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from autofit.calibration.rule import MAX_BYTES, MAX_STARTS, Entry, Key
from autofit.errors import UsageError

SCHEMA = 1
MAX_FILE_BYTES = 1 << 20
MAX_ROWS = 1000
#: what may stand in a shared file: names of engines, builds, interfaces, devices and architectures as makers write them
_SHAPES = {
    "engine": re.compile(r"[a-z0-9_-]{1,40}"),
    "build": re.compile(r"[0-9A-Za-z.+-]{0,40}"),
    "api": re.compile(r"[a-z0-9]{1,20}"),
    "device": re.compile(r"[0-9A-Za-z][0-9A-Za-z .()+-]{0,60}"),
    "architecture": re.compile(r"[0-9A-Za-z_.-]{1,80}"),
}


def to_json(found: Iterable[Entry]) -> str:
    """The entries that were measured here, as JSON. What has another shape than names of hardware is left out."""
    rows = []
    for entry in found:
        names = _names(entry.key)
        if entry.imported or any(not shape.fullmatch(names[name]) for name, shape in _SHAPES.items()):
            continue
        rows.append(
            {
                **names,
                "n": entry.n_starts,
                "mean_bytes": round(entry.mean_bytes),
                "spread_bytes": round((entry.squares / (entry.n_starts - 1)) ** 0.5) if entry.n_starts > 1 else 0,
                "most_bytes": entry.most_bytes,
            }
        )
    return json.dumps({"schema": SCHEMA, "starts": rows}, indent=1) + "\n"


def from_json(text: str) -> tuple[Entry, ...]:
    """The entries of a shared file, marked as imported.

    Raises:
        UsageError: it is no such file, or a row is not what it can be.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            "not a file of calibration: it is not JSON", hint="write one with `autofit calibration export`"
        ) from error
    is_ours = isinstance(document, dict) and document.get("schema") == SCHEMA
    if not is_ours or not isinstance(document.get("starts"), list):
        raise UsageError("not a file of calibration", hint=f"its schema must be {SCHEMA}, with a list of starts")
    rows = document["starts"]
    if len(rows) > MAX_ROWS:
        raise UsageError(f"the file has {len(rows):,} entries; at most {MAX_ROWS:,} are accepted")
    return tuple(_entry(row, n) for n, row in enumerate(rows, 1))


def _names(key: Key) -> dict[str, str]:
    return {
        "engine": key.engine,
        "build": key.build,
        "api": key.api,
        "device": key.device,
        "architecture": key.architecture,
    }


def _entry(row: Any, n: int) -> Entry:
    def wrong(what: str) -> UsageError:
        return UsageError(f"entry {n}: {what}", hint="the file is damaged, or was not written by autofit")

    if not isinstance(row, dict):
        raise wrong("not an object")
    for name, shape in _SHAPES.items():
        if not isinstance(row.get(name), str) or not shape.fullmatch(row[name]):
            raise wrong(f"{name} must be text like {shape.pattern}")
    figures = {name: row.get(name) for name in ("n", "mean_bytes", "spread_bytes", "most_bytes")}
    if any(type(value) is not int or abs(value) > MAX_BYTES for value in figures.values()):
        raise wrong("figures must be whole numbers of at most 64 GiB")
    starts, mean, spread, most = (int(value) for value in figures.values())  # type: ignore[arg-type]
    if not 0 < starts <= MAX_STARTS or spread < 0 or most < mean:
        raise wrong(
            f"figures contradict each other: n must be 1 to {MAX_STARTS:,}, spread_bytes at least 0, most_bytes at "
            "least mean_bytes"
        )
    return Entry(
        key=Key(**{name: row[name] for name in _SHAPES}),
        n_starts=starts,
        mean_bytes=float(mean),
        squares=float(spread) ** 2 * (starts - 1),
        most_bytes=most,
        imported=True,
    )
