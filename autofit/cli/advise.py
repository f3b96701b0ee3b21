"""`autofit advise [MODEL]`: which hardware takes a model and at what price; without a model, which model fits here."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autofit.cli.advising import command_line, rate_of, table_of, within
from autofit.cli.options import add_options, given
from autofit.cli.telling import Waiting, room
from autofit.domain.text import printable
from autofit.domain.units import format_bytes, format_rate
from autofit.errors import UsageError

if TYPE_CHECKING:
    from autofit.advice.forms import Form, Ranking
    from autofit.advice.hardware import HardwareAdvice, Limits
    from autofit.advice.prices import Prices
    from autofit.advice.subject import HardwareRow
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
    from autofit.advice.forms import forms_of, rank_hardware
    from autofit.advice.hardware import ROWS
    from autofit.advice.prices import load_prices
    from autofit.settings.layers import HERE

    options = {name: value for name, value in given(args).items() if name in _OPTIONS}
    n_rows = ROWS if args.rows is None else _count(args.rows)
    limits = _limits(args)
    prices = load_prices(None if args.prices is None else Path(args.prices))
    with Waiting("planning for hardware"):
        forms = forms_of(args.model, args.backend, options, HERE)
        found = rank_hardware(forms, prices, limits, have=tuple(args.have or ()), n_rows=n_rows)
    if args.format == "json":
        import json

        print(json.dumps(to_dict(found), indent=2, allow_nan=False))
    else:
        print("\n".join(lines(found, room())))
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


def lines(found: Ranking, columns: int | None = None) -> Iterator[str]:
    """The tables for people; `columns` of a terminal, within which sentences end between words."""
    told: Iterator[str] = chain(_subject(found), _have(found))
    if not found.rows:
        told = chain(told, _refusal(found, columns))
    yield from within(told, columns)
    if found.rows:
        yield ""
        yield from _table(found)
        yield from within(_legend(found), columns)
        yield from command_line("the first of them:", found.rows[0][1].command, columns)


def _subject(found: Ranking) -> Iterator[str]:
    """The model with its size, or its quantizations with theirs."""
    first = found.found[0]
    model, tokens = first.model, first.context_tokens
    asked = "" if tokens is None else f", {tokens:,} tokens of context"
    if not found.is_several:
        yield f"{printable(model.name, 80)}  {format_bytes(model.weights_bytes or first.needs.weights_bytes)}{asked}"
        return
    sizes = [f"{printable(one.name, 40)} {format_bytes(one.quantization.weights_bytes or 0)}" for one in found.forms]
    yield f"{printable(model.name, 80)}  {len(sizes)} quantizations{asked}: {', '.join(sizes)}"
    yield from (f"left out: {why}" for why in found.left_out)


def _have(found: Ranking) -> Iterator[str]:
    """How what one has takes the model, or each quantization of it."""
    for form, one in zip(found.forms, found.found, strict=True):
        if one.have is not None:
            of = f"{printable(form.name, 40)}: " if form.name else ""
            yield f"you have {printable(' + '.join(one.have.candidate.on), 120)}: {of}{_in_words(one.have.plan)}"


def _table(found: Ranking) -> Iterator[str]:
    first = found.found[0]
    columns: list[tuple[str, str, Sequence[str]]] = [
        ("", "<", ["*" if row.on_front else "" for _, row in found.rows]),
        ("hardware", "<", [printable(row.candidate.added, 80) for _, row in found.rows]),
        ("devices", ">", [str(row.candidate.n_devices) for _, row in found.rows]),
        ("price", ">", [_money(row.candidate.price, first.prices) for _, row in found.rows]),
    ]
    if found.is_several:
        columns += [
            ("quantization", "<", [printable(form.name, 40) for form, _ in found.rows]),
            ("bits", ">", [f"{form.bits_per_weight:.2f}" for form, _ in found.rows]),
        ]
    columns += [
        ("verdict", "<", [_verdict(row.plan) for _, row in found.rows]),
        ("context", ">", [f"{row.plan.context_tokens:,}" if row.plan.context_tokens else "" for _, row in found.rows]),
        ("decode", ">", [rate_of(row.speed) for _, row in found.rows]),
    ]
    if first.limits.max_first_s is not None:
        columns.append(("first token", ">", [_first_token(row) for _, row in found.rows]))
    columns += [
        ("used of free", ">", [_used(row) for _, row in found.rows]),
        ("how", "<", [row.plan.backend for _, row in found.rows]),
    ]
    rows = zip(*((head, *cells) for head, _, cells in columns), strict=True)
    return table_of(list(rows), "".join(side for _, side, _ in columns))


def _used(row: HardwareRow) -> str:
    free = row.free_bytes
    return f"{format_bytes(row.used_bytes)} of {'?' if free is None else format_bytes(free)}"


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


def _legend(found: Ranking) -> Iterator[str]:
    least = format_bytes(found.least_bytes)
    possible, choices = sum(one.n_possible for one in found.found), sum(one.n_candidates for one in found.found)
    yield (
        f"exact: each row is the plan of its command; bounds: weights and cache take at least {least}, which with what "
        f"else is asked leaves {possible} of {choices} choices"
    )
    goals = "price, memory, rate and quality" if found.is_several else "price, memory and rate"
    yield "decode: tokens/s with the context full, and where 9 of 10 machines land"
    yield f"*: no other row is as good in {goals}"
    if found.is_several:
        yield (
            "bits: per weight, by which quality is ranked; one that is larger than another and has a larger published "
            "loss ranks below it"
        )
    dates = sorted({row.candidate.price_date for _, row in found.rows if row.candidate.price_date is not None})
    since = f", of {dates[0]} to {dates[-1]}" if dates else ""
    yield f"price: as the price file has it{since}, without the computer around cards; -: not in it"
    yield f"cards are in a computer with {format_bytes(found.found[0].ram_bytes)} of RAM"


def _refusal(found: Ranking, columns: int | None) -> Iterator[str]:
    limits, prices = found.found[0].limits, found.found[0].prices
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
    is_added = found.found[0].have is not None
    what = "no card that is added brings more" if is_added else "no hardware that is known takes it"
    least = format_bytes(found.least_bytes)
    yield f"{what}{within}: weights and cache need at least {least} on devices"
    if found.nearest is not None:
        form, near = found.nearest
        rate = rate_of(near.speed)
        price = "" if near.candidate.price is None else f", {_money(near.candidate.price, prices)}"
        decodes = f", decode {rate} tokens/s" if rate else ""
        if limits.max_first_s is not None and near.first_s is not None:
            decodes += f", first token after {_first_token(near)}"
        name, size = printable(near.candidate.added, 80), format_bytes(near.candidate.sold_bytes)
        of = f" for {printable(form.name, 40)}" if form.name else ""
        yield from command_line(f"nearest: {name} with {size}{of}{price}{decodes}:", near.command, columns)
    elif not limits.offload:
        yield "with a part of the weights in RAM: --offload"


def to_dict(found: Ranking) -> dict[str, Any]:
    """The advice as JSON values, schema 1 (docs/advise.md). `bounds` and `have` are of the first quantization."""
    first = found.found[0]
    near = found.nearest
    return {
        "schema": 1,
        "model": first.model.name,
        "context_tokens": first.context_tokens,
        "ram_bytes": first.ram_bytes,
        "quantizations": [_form(form, one) for form, one in zip(found.forms, found.found, strict=True) if form.name],
        "left_out": list(found.left_out),
        "bounds": _bounds(first),
        "currency": first.prices.currency,
        "have": None if first.have is None else _row(found.forms[0], first.have),
        "rows": [_row(form, row) for form, row in found.rows],
        "nearest": None if near is None else _row(*near),
    }


def _form(form: Form, found: HardwareAdvice) -> dict[str, Any]:
    made = form.quantization
    return {
        "name": form.name,
        "path": form.subject.model.files[0].path if form.subject.model.files else None,
        "weights_bytes": made.weights_bytes,
        "bits_per_weight": round(form.bits_per_weight, 4) or None,
        "quality": [
            {"measure": q.measure, "value": q.value, "model": q.model, "source": q.source} for q in made.quality
        ],
        "bounds": _bounds(found),
        "have": None if found.have is None else _row(form, found.have),
    }


def _bounds(found: HardwareAdvice) -> dict[str, int]:
    return {
        "device_bytes": found.needs.device_bytes,
        "read_bytes": found.needs.read_bytes,
        "candidates": found.n_candidates,
        "possible": found.n_possible,
        "planned": found.n_planned,
    }


def _row(form: Form, row: HardwareRow) -> dict[str, Any]:
    from autofit.domain.plan import speed_to_dict

    one, plan = row.candidate, row.plan
    return {
        "on": list(one.on),
        "added": one.added or None,
        "devices": one.n_devices,
        "memory_bytes": one.sold_bytes,
        "price": one.price,
        "quantization": form.name or None,
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
