"""`autofit advise` without a model: the models on disk, the one to take here first."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from autofit.cli.advising import ABOUT_HARDWARE, rate_of, table_of
from autofit.cli.models import Row, described, main_type, stored
from autofit.cli.models import to_dict as stored_to_dict
from autofit.cli.options import given
from autofit.cli.telling import Waiting
from autofit.domain.text import printable
from autofit.domain.units import format_bytes
from autofit.errors import UsageError
from autofit.planning.offers import at_full_speed
from autofit.settings.options import parse_rate

if TYPE_CHECKING:
    from autofit.domain.plan import Speed

_FOR_MODELS = (
    *ABOUT_HARDWARE, "backend", "here", "max_ttft", "parallel", "mean_tokens", "fill", "prefer", "kv", "engine_version",
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    for name in _FOR_MODELS:
        if getattr(args, name):
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} is about one model", hint="name the model: autofit advise MODEL")
    options = given(args)
    asked = {"on": args.have, "ram": options["ram"], "margin": options["margin"]}
    asked["context"] = options["context"] or options["min_context"]
    floor = None if args.min_tps is None else parse_rate(args.min_tps)
    found = stored()
    with Waiting(f"planning for {len(found)} models"):
        rows = ranked([*described(found, asked)], floor)
    if args.format == "json":
        import json

        models = [{"rank": n, "full_speed": _is_full(row), **stored_to_dict(row)} for n, row in enumerate(rows, 1)]
        print(json.dumps({"schema": 1, "models": models}, indent=2, allow_nan=False))
    else:
        print("\n".join(lines(rows, floor)))
    return 0 if any(usable(row, floor) for row in rows) else 3


def ranked(rows: Sequence[Row], floor: float | None) -> list[Row]:
    """Those first that fit, at full speed before others, the largest first; then what is too slow, or does not fit.

    What is no model to serve by itself (a projector, an adapter) is left out.
    """
    models = [row for row in rows if row.plan is not None or row.error is not None]
    return sorted(models, key=lambda row: (not usable(row, floor), not _is_full(row), -row.stored.size_bytes))


def usable(row: Row, floor: float | None) -> bool:
    """Whether it fits, and decodes as fast as is asked for."""
    if row.plan is None or not row.plan.fits:
        return False
    speed = _speed(row)
    return floor is None or (speed is not None and speed.decode_tokens_per_s >= floor)


def _is_full(row: Row) -> bool:
    return row.plan is not None and at_full_speed(row.plan)


def _speed(row: Row) -> Speed | None:
    speed = row.plan.speed if row.plan is not None else None
    return speed if speed is not None and speed.decodes else None


def lines(rows: Sequence[Row], floor: float | None) -> Iterator[str]:
    if not rows:
        yield "no models in the caches of this machine; `autofit plugins` lists the sources that were looked in"
        yield "for hardware, name a model: autofit advise MODEL"
        return
    table: list[tuple[str, ...]] = [("", "name", "size", "type", "verdict", "context", "decode")]
    for number, row in enumerate(rows, 1):
        table.append((f"{number}" if usable(row, floor) else "-", *_cells(row)))
    yield from table_of(table, "><><<>>")


def _cells(row: Row) -> tuple[str, ...]:
    name, size = printable(row.stored.name, 100), format_bytes(row.stored.size_bytes)
    kind = main_type(row.model) if row.model is not None else "?"
    if row.plan is None or not row.plan.fits:
        lack = max((pool.shortfall_bytes for pool in row.plan.memory.pools), default=0) if row.plan else 0
        why = row.error or (f"no: {format_bytes(lack)} more" if lack > 0 else "no")
        return name, size, kind, printable(why, 100), "", ""
    context = f"{row.plan.context_tokens:,}" if row.plan.context_tokens else ""
    return name, size, kind, "full speed" if _is_full(row) else "in RAM", context, rate_of(_speed(row))
