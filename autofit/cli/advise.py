"""`autofit advise [MODEL]`: which hardware takes a model and at what price; without a model, which model fits here."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autofit.cli.advising import rate_of, table_of
from autofit.cli.options import add_options, given
from autofit.cli.telling import Waiting
from autofit.domain.text import printable
from autofit.domain.units import format_bytes, format_rate
from autofit.errors import UsageError
from autofit.text import shell

if TYPE_CHECKING:
    from autofit.advice.hardware import HardwareAdvice, HardwareRow, Limits
    from autofit.advice.prices import Prices
    from autofit.domain.plan import Plan

_OPTIONS = (
    "context", "min_context", "parallel", "mean_tokens", "fill", "min_tps", "max_ttft", "margin", "ram", "prefer", "kv",
    "engine_version",
)  # fmt: skip
MAX_ROWS = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a file, a directory, or a name (docs/names.md)")
    parser.add_argument("--backend", metavar="NAME", help="plan with this engine (default: the first that serves it)")
    group = parser.add_argument_group("hardware")
    group.add_argument("--budget", metavar="SIZE", help="memory of all devices together, as it is sold: 24GiB")
    group.add_argument("--max-price", metavar="N", help="price of all of it; what has no price is left out")
    group.add_argument("--prices", metavar="FILE", help="a TOML file of prices (docs/advise.md)")
    group.add_argument(
        "--have", metavar="NAME", action="append", help="hardware that you have: what one more card brings"
    )
    group.add_argument(
        "--here", action="store_true", help="what fits on this machine (or --have): contexts, KV types, quantizations"
    )
    group.add_argument("--offload", action="store_true", help="also where a part of the weights waits in RAM")
    group.add_argument("--rows", metavar="N", help="how many rows are planned and shown (default 12)")
    add_options(parser, only=_OPTIONS)
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(args: argparse.Namespace) -> int:
    if args.model is None:
        from autofit.cli.advise_models import run as rank

        return rank(args)
    if args.here:
        from autofit.cli.advise_here import run as compare

        return compare(args, {name: value for name, value in given(args).items() if name in _OPTIONS})
    from autofit.advice.hardware import ROWS, Subject, advise_hardware
    from autofit.advice.prices import load_prices
    from autofit.settings.layers import HERE

    options = {name: value for name, value in given(args).items() if name in _OPTIONS}
    n_rows = ROWS if args.rows is None else _count(args.rows)
    limits = _limits(args)
    prices = load_prices(None if args.prices is None else Path(args.prices))
    with Waiting("planning for hardware"):
        subject = Subject(args.model, args.backend, options, HERE)
        found = advise_hardware(subject, prices, limits, have=tuple(args.have or ()), n_rows=n_rows)
    if args.format == "json":
        import json

        print(json.dumps(to_dict(found), indent=2, allow_nan=False))
    else:
        print("\n".join(lines(found)))
    return 0 if found.rows else 3


def _limits(args: argparse.Namespace) -> Limits:
    from autofit.advice.hardware import Limits
    from autofit.domain.units import parse_size
    from autofit.settings.options import parse_rate, parse_seconds

    budget = None if args.budget is None else parse_size(args.budget)
    if budget is not None and budget <= 0:
        raise UsageError(f"--budget {args.budget}: no memory at all", hint="write a size, such as --budget 24GiB")
    return Limits(
        budget_bytes=budget,
        max_price=None if args.max_price is None else _price(args.max_price),
        min_tokens_per_s=None if args.min_tps is None else parse_rate(args.min_tps),
        max_first_s=None if args.max_ttft is None else parse_seconds(args.max_ttft),
        offload=args.offload,
    )


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) <= MAX_ROWS):
        raise UsageError(f"--rows {text[:40]!r}: not a count", hint=f"write a number from 1 to {MAX_ROWS}")
    return int(text)


def _price(text: str) -> float:
    number = text.replace(",", "").removeprefix("$")
    if not (number.isascii() and number.replace(".", "", 1).isdigit() and len(number) <= 12 and float(number) > 0):
        raise UsageError(f"--max-price {text[:40]!r}: not a price", hint="write a number, such as --max-price 2000")
    return float(number)


def lines(found: HardwareAdvice) -> Iterator[str]:
    """The tables for people."""
    model = found.model
    asked = "" if found.context_tokens is None else f", {found.context_tokens:,} tokens of context"
    yield f"{printable(model.name, 80)}  {format_bytes(model.weights_bytes or found.needs.weights_bytes)}{asked}"
    if found.have is not None:
        yield f"you have {printable(' + '.join(found.have.candidate.on), 120)}: {_in_words(found.have.plan)}"
    if not found.rows:
        yield from _refusal(found)
        return
    yield ""
    yield from _table(found)
    yield from _legend(found)


def _table(found: HardwareAdvice) -> Iterator[str]:
    head = ("", "hardware", "devices", "price", "verdict", "context", "decode", "used of free", "how")
    rows = [("*" if row.on_front else "", *_cells(row, found.prices)) for row in found.rows]
    if found.limits.max_first_s is None:
        return table_of([head, *rows], "<<>><>>><")
    first = ("first token", *(_first_token(row) for row in found.rows))
    return table_of(
        [(*line[:7], cell, *line[7:]) for line, cell in zip([head, *rows], first, strict=True)], "<<>><>>>><"
    )


def _cells(row: HardwareRow, prices: Prices) -> tuple[str, ...]:
    one, plan = row.candidate, row.plan
    free = row.free_bytes
    return (
        printable(one.added, 80),
        str(one.n_devices),
        _money(one.price, prices),
        _verdict(plan),
        f"{plan.context_tokens:,}" if plan.context_tokens else "",
        rate_of(row.speed),
        f"{format_bytes(row.used_bytes)} of {'?' if free is None else format_bytes(free)}",
        plan.backend,
    )


def _first_token(row: HardwareRow) -> str:
    return "" if row.first_s is None else f"~{row.first_s:.3g} s"


def _verdict(plan: Plan) -> str:
    from autofit.planning.offers import at_full_speed

    return "full speed" if at_full_speed(plan) else "in RAM" if plan.fits else plan.verdict


def _money(price: float | None, prices: Prices) -> str:
    return "-" if price is None else f"{price:,.0f} {prices.currency}"


def _in_words(plan: Plan) -> str:
    if not plan.fits:
        lack = max((pool.shortfall_bytes for pool in plan.memory.pools), default=0)
        return f"it does not fit, {format_bytes(lack)} are missing" if lack > 0 else "it does not fit"
    rate = ""
    if plan.speed is not None and plan.speed.decodes:
        rate = f", ~{format_rate(plan.speed.decode_tokens_per_s)} tokens/s"
    where = "full speed" if _verdict(plan) == "full speed" else "a part of the weights in RAM"
    return f"{where}, {plan.context_tokens or 0:,} tokens{rate}"


def _legend(found: HardwareAdvice) -> Iterator[str]:
    least = format_bytes(found.needs.device_bytes)
    yield f"exact: each row is the plan of its command; bounds: weights and cache take at least {least}, which with"
    yield f"what else is asked leaves {found.n_possible} of {found.n_candidates} choices"
    yield "decode: tokens/s with the context full, and where 9 of 10 machines land; *: no other row is as good in"
    yield "price, memory and rate"
    dates = sorted({row.candidate.price_date for row in found.rows if row.candidate.price_date is not None})
    since = f", of {dates[0]} to {dates[-1]}" if dates else ""
    yield f"price: as the price file has it{since}, without the computer around cards; -: not in it"
    yield f"cards are in a computer with {format_bytes(found.ram_bytes)} of RAM"
    yield f"the first of them: {shell.shown(found.rows[0].command)}"


def _refusal(found: HardwareAdvice) -> Iterator[str]:
    limits = found.limits
    asked = []
    if limits.budget_bytes is not None:
        asked.append(f"--budget {format_bytes(limits.budget_bytes)}")
    if limits.max_price is not None:
        asked.append(f"--max-price {limits.max_price:,.0f}")
    if limits.max_first_s is not None:
        asked.append(f"--max-ttft {limits.max_first_s:g}")
    if limits.min_tokens_per_s is not None:
        asked.append(f"--min-tps {format_rate(limits.min_tokens_per_s)}")
    within = f" within {', '.join(asked)}" if asked else ""
    what = "no card that is added brings more" if found.have is not None else "no hardware that is known takes it"
    least = format_bytes(found.needs.device_bytes)
    yield f"{what}{within}: weights and cache need at least {least} on devices"
    near = found.nearest
    if near is not None:
        rate = rate_of(near.speed)
        price = "" if near.candidate.price is None else f", {_money(near.candidate.price, found.prices)}"
        decodes = f", decode {rate} tokens/s" if rate else ""
        if limits.max_first_s is not None and near.first_s is not None:
            decodes += f", first token after {_first_token(near)}"
        name, size = printable(near.candidate.added, 80), format_bytes(near.candidate.sold_bytes)
        yield f"nearest: {name} with {size}{price}{decodes}: {shell.shown(near.command)}"
    elif not limits.offload:
        yield "with a part of the weights in RAM: --offload"


def to_dict(found: HardwareAdvice) -> dict[str, Any]:
    """The advice as JSON values, schema 1 (docs/advise.md)."""
    return {
        "schema": 1,
        "model": found.model.name,
        "context_tokens": found.context_tokens,
        "ram_bytes": found.ram_bytes,
        "bounds": {
            "device_bytes": found.needs.device_bytes,
            "read_bytes": found.needs.read_bytes,
            "candidates": found.n_candidates,
            "possible": found.n_possible,
            "planned": found.n_planned,
        },
        "currency": found.prices.currency,
        "have": None if found.have is None else _row(found.have),
        "rows": [_row(row) for row in found.rows],
        "nearest": None if found.nearest is None else _row(found.nearest),
    }


def _row(row: HardwareRow) -> dict[str, Any]:
    from autofit.domain.plan import speed_to_dict

    one, plan = row.candidate, row.plan
    return {
        "on": list(one.on),
        "added": one.added or None,
        "devices": one.n_devices,
        "memory_bytes": one.sold_bytes,
        "price": one.price,
        "backend": plan.backend,
        "fits": plan.fits,
        "verdict": plan.verdict,
        "full_speed": _verdict(plan) == "full speed",
        "context_tokens": plan.context_tokens,
        "speed": None if plan.speed is None else speed_to_dict(plan.speed),
        "used_bytes": row.used_bytes,
        "free_bytes": row.free_bytes,
        "on_front": row.on_front,
        "command": list(row.command),
    }
