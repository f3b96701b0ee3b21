"""`autofit advise MODEL --here`: the model on one machine at other contexts, KV types and quantizations."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autofit.cli.advising import ABOUT_HARDWARE, rate_of, table_of
from autofit.cli.telling import Waiting
from autofit.domain.text import printable
from autofit.domain.units import format_bytes
from autofit.errors import UsageError
from autofit.text import shell

if TYPE_CHECKING:
    from autofit.advice.hardware import Subject
    from autofit.advice.variants import Variant

_HEADS = {"context": "context", "kv": "KV type", "quantization": "quantization"}


def run(args: argparse.Namespace, options: Mapping[str, Any]) -> int:
    from autofit.advice.hardware import Subject
    from autofit.advice.variants import variants
    from autofit.machines import load_machine
    from autofit.settings.layers import HERE

    for name in ABOUT_HARDWARE:
        if getattr(args, name):
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} ranks hardware, and --here is about one machine", hint="leave one of them out")
    have = tuple(args.have or ())
    with Waiting("planning for other contexts and types"):
        subject = Subject(args.model, args.backend, options, HERE)
        machine = load_machine(*have, ram=subject.ram) if have else None
        found = variants(subject, machine, have)
    if args.format == "json":
        import json

        print(json.dumps(to_dict(subject, found), indent=2, allow_nan=False))
    else:
        print("\n".join(lines(subject, found, have)))
    return 0 if any(one.fits for one in found) else 3


def lines(subject: Subject, found: Sequence[Variant], have: Sequence[str]) -> Iterator[str]:
    where = printable(" + ".join(have), 120) or "this machine"
    size = f"  {format_bytes(subject.model.weights_bytes)}" if subject.model.weights_bytes else ""
    yield f"{printable(subject.model.name, 80)}{size} on {where}, {subject.backend}"
    for varies, head in _HEADS.items():
        rows = [one for one in found if one.varies == varies]
        if not rows:
            continue
        tokens = rows[0].context_tokens
        yield ""
        if varies != "context" and tokens:
            yield f"with {tokens:,} tokens of context"
        table = [(head, "verdict", "decode", "memory", ""), *(_cells(one) for one in rows)]
        yield from table_of(table, "<<>><")
    yield ""
    yield "each row is a plan; decode: tokens/s with the context full, and where 9 of 10 machines land"
    full = [one for one in found if one.full_speed and one.varies == "context"]
    if full:
        yield f"the longest at full speed: {shell.shown(full[-1].command)}"
    if any(one.varies == "quantization" for one in found):
        yield "all quantizations, with their exact sizes: autofit quants MODEL"


def _cells(one: Variant) -> tuple[str, ...]:
    verdict = "full speed" if one.full_speed else "in RAM" if one.fits else "no"
    size = "" if one.weights_bytes is None else f"{format_bytes(one.weights_bytes)} of weights"
    speed = one.plan.speed if one.plan is not None and one.fits else None
    used = format_bytes(one.device_bytes) if one.fits else ""
    return one.value, verdict, rate_of(speed), used, printable(one.because, 120) if not one.fits else size


def to_dict(subject: Subject, found: Sequence[Variant]) -> dict[str, Any]:
    """The variants as JSON values, schema 1 (docs/advise.md)."""
    from autofit.domain.plan import speed_to_dict

    return {
        "schema": 1,
        "model": subject.model.name,
        "backend": subject.backend,
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
                "command": list(one.command) or None,
            }
            for one in found
        ],
    }
