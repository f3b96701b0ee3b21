"""What hardware costs: a TOML file that anybody can edit. What is not in it has no price, and none is guessed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autofit.domain.text import printable
from autofit.domain.values import dataclass
from autofit.errors import HardwareError, UsageError
from autofit.hardware import names
from autofit.profiles import data_dir, files, parse_toml, read_text, user_dir

SCHEMA = 1
FILE_NAME = "prices.toml"
MAX_ENTRIES = 5000
_MOST = 1e9
_KEYS = frozenset({"hardware", "price", "date", "source", "url"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What one piece of hardware cost on a day, and who says so. `amount` is in the currency of its file."""

    hardware: str
    amount: float
    date: str
    source: str
    url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Prices by the name of a profile, or of a machine with its RAM (`apple-m4-max-32core-36gb`), in one currency."""

    currency: str
    entries: Mapping[str, Price]


def load_prices(path: Path | None = None) -> Prices:
    """Prices of a file; without one those that ship with autofit, and over them those of the user's directory.

    Raises:
        UsageError: a file that is not readable, not TOML, or says what it should not.
    """
    if path is not None:
        return _read(path)
    shipped, own = data_dir() / FILE_NAME, user_dir() / FILE_NAME
    if not own.is_file():
        return _read(shipped)
    mine = _read(own)
    below = _read(shipped)
    if mine.currency != below.currency:
        return mine
    return Prices(currency=mine.currency, entries={**below.entries, **mine.entries})


def _read(path: Path) -> Prices:
    table = parse_toml(read_text(path), str(path))
    if table.get("schema") != SCHEMA:
        raise UsageError(f"{path}: schema: must say schema = {SCHEMA}")
    currency = table.get("currency")
    if not isinstance(currency, str) or not re.fullmatch(r"[A-Z]{3}", currency):
        raise UsageError(f"{path}: currency: must be three capitals", hint='such as currency = "USD"')
    rows = table.get("price", [])
    if not isinstance(rows, list) or len(rows) > MAX_ENTRIES or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{path}: price: must be a list of at most {MAX_ENTRIES} tables: [[price]]")
    known = files("hardware")
    entries: dict[str, Price] = {}
    for number, row in enumerate(rows, 1):
        entry = _entry(row, f"{path}: price {number}", known)
        entries[entry.hardware] = entry
    return Prices(currency=currency, entries=entries)


def _entry(row: Mapping[str, Any], where: str, known: Mapping[str, Path]) -> Price:
    for key in row:
        if key not in _KEYS:
            raise UsageError(f"{where}: {printable(key, 40)}: no such key", hint=f"known: {', '.join(sorted(_KEYS))}")
    for key in ("hardware", "date", "source"):
        if not isinstance(row.get(key), str) or not 0 < len(row[key]) <= 400 or not row[key].isprintable():
            raise UsageError(f"{where}: {key}: must be 1 to 400 printable characters")
    amount: Any = row.get("price")
    if type(amount) not in (int, float) or not math.isfinite(amount) or not 0 < amount <= _MOST:
        raise UsageError(f"{where}: price: must be a number above 0", hint="leave the entry out if it is not known")
    if not re.fullmatch(r"\d{4}-\d{2}(-\d{2})?", row["date"], re.ASCII):
        raise UsageError(f"{where}: date: must be a day or a month", hint='such as date = "2025-01-06"')
    url = row.get("url")
    if url is not None and not isinstance(url, str):
        raise UsageError(f"{where}: url: must be text")
    return Price(
        hardware=_named(row["hardware"], where, known),
        amount=float(amount),
        date=row["date"],
        source=row["source"],
        url=url,
    )


def _named(name: str, where: str, known: Mapping[str, Path]) -> str:
    """The name that a table of hardware has for it: the profile's, with the RAM of a machine that has several."""
    if name in known:
        return name
    base, _, size = name.rpartition("-")
    if base in known and re.fullmatch(r"\d{1,4}gb", size, re.ASCII):
        return name
    try:
        return names.resolve(name).stem
    except HardwareError as error:
        raise UsageError(f"{where}: hardware: {error.message}", hint=error.hint) from error
