"""`autofit advise MODEL --here`: the model on one machine at other contexts, KV types and quantizations."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autofit.cli.advising import ABOUT_HARDWARE, command_line, rate_of, table_of, within
from autofit.cli.telling import Waiting, room
from autofit.domain.text import printable
from autofit.domain.units import format_bytes
from autofit.errors import UsageError

if TYPE_CHECKING:
    from autofit.advice.variants import Variant, Variants

_RATES = "each row is a plan; decode: tokens/s with the context full, and where 9 of 10 machines land"
_FRONT = "*: no other is as good in memory, rate and quality, which is ranked by bits per weight and published losses"
_HEADS = {"context": "context", "kv": "KV type", "quantization": "quantization"}


def run(args: argparse.Namespace, options: Mapping[str, Any]) -> int:
    from autofit.advice.forms import forms_of
    from autofit.advice.variants import variants
    from autofit.machines import load_machine
    from autofit.settings.layers import HERE

    for name in ABOUT_HARDWARE:
        if getattr(args, name):
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} ranks hardware, and --here is about one machine", hint="leave one of them out")
    have = tuple(args.have or ())
    with Waiting("planning for other contexts and types"):
        several = forms_of(args.model, args.backend, options, HERE)
        machine = load_machine(*have, ram=several.forms[0].subject.ram) if have else None
        found = variants(several.forms, machine, have)
    if args.format == "json":
        import json

        print(json.dumps(to_dict(found), indent=2, allow_nan=False))
    else:
        print("\n".join(lines(found, have, several.left_out, room())))
    return 0 if any(one.fits for one in found.rows) else 3


def lines(
    found: Variants, have: Sequence[str], left_out: Sequence[str] = (), columns: int | None = None
) -> Iterator[str]:
    subject = found.subject
    where = printable(" + ".join(have), 120) or "this machine"
    size = f"  {format_bytes(subject.model.weights_bytes)}" if subject.model.weights_bytes else ""
    yield f"{printable(subject.model.name, 80)}{size} on {where}, {subject.backend}"
    yield from within((f"left out: {why}" for why in left_out), columns)
    several = [one for one in found.rows if one.on_front is not None]
    for varies, head in reversed(_HEADS.items()) if several else _HEADS.items():
        rows = [one for one in found.rows if one.varies == varies]
        if not rows:
            continue
        tokens = rows[0].context_tokens
        of = [f"of {printable(found.name, 40)}"] if found.name and varies != "quantization" else []
        at = [f"with {tokens:,} tokens of context"] if varies != "context" and tokens else []
        yield ""
        if of or at:
            yield ", ".join([*of, *at])
        table = [(head, "verdict", "decode", "memory", ""), *map(_cells, rows)]
        is_there = rows[0].on_front is not None
        marks = ["", *("*" if one.on_front else "" for one in rows)]
        cells = [(mark, *row) for mark, row in zip(marks, table, strict=True)] if is_there else table
        yield from table_of(cells, "<<<>><" if is_there else "<<>><")
        if is_there:
            take = f"take {printable(found.name, 40)}: " if found.name else "none: "
            yield from within([f"{take}{found.because}", _FRONT], columns)
    yield ""
    yield from within([_RATES], columns)
    full = [one for one in found.rows if one.full_speed and one.varies == "context"]
    if full:
        yield from command_line("the longest at full speed:", full[-1].command, columns)
    if any(one.varies == "quantization" for one in found.rows):
        yield "all quantizations, with their exact sizes: autofit quants MODEL"


def _cells(one: Variant) -> tuple[str, ...]:
    verdict = "full speed" if one.full_speed else "in RAM" if one.fits else "no"
    size = "" if one.weights_bytes is None else f"{format_bytes(one.weights_bytes)} of weights"
    speed = one.plan.speed if one.plan is not None and one.fits else None
    used = format_bytes(one.device_bytes) if one.fits else ""
    return one.value, verdict, rate_of(speed), used, printable(one.because, 120) if not one.fits else size


def to_dict(found: Variants) -> dict[str, Any]:
    """The variants as JSON values, schema 1 (docs/advise.md)."""
    from autofit.domain.plan import speed_to_dict

    return {
        "schema": 1,
        "model": found.subject.model.name,
        "backend": found.subject.backend,
        "quantization": found.name or None,
        "because": found.because or None,
        "variants": [
            {
                "varies": one.varies,
                "value": one.value,
                "context_tokens": one.context_tokens,
                "fits": one.fits,
                "full_speed": one.full_speed,
                "because": one.because or None,
                "weights_bytes": one.weights_bytes,
                "device_bytes": one.device_bytes if one.plan is not None else None,
                "speed": None
                if one.plan is None or one.plan.speed is None or not one.fits
                else speed_to_dict(one.plan.speed),
                "on_front": one.on_front,
                "command": list(one.command) or None,
            }
            for one in found.rows
        ],
    }
