"""`autofit models`: what lies in the caches on this machine: its name, size and types, and whether it fits here."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from autofit.cli.options import add_options, given
from autofit.domain.text import printable
from autofit.domain.units import format_bytes
from autofit.domain.values import NamedTuple, replace
from autofit.errors import AutofitError
from autofit.host import blamed, host, resolve

if TYPE_CHECKING:
    from autofit.domain.machine import Machine
    from autofit.domain.model import ModelSpec, StoredModel
    from autofit.domain.plan import Plan

MAX_MODELS = 2000


class Row(NamedTuple):
    """A stored model, what its header says, and the plan for it. `error` is why there is none."""

    stored: StoredModel
    model: ModelSpec | None
    plan: Plan | None
    error: str | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="WORD", help="only models that have each WORD in their name")
    parser.add_argument("--no-fit", action="store_true", help="do not plan: sizes and types alone")
    add_options(parser, only=("on", "ram", "context", "margin"))
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(args: argparse.Namespace) -> int:
    words = [word.lower() for word in args.words]
    found = [model for model in stored() if all(word in model.name.lower() for word in words)]
    from autofit.cli.telling import Waiting

    with Waiting(f"planning for {len(found)} models"):
        rows = [*described(found, None if args.no_fit else given(args))]
    if args.format == "json":
        import json

        print(json.dumps({"schema": 1, "models": [to_dict(row) for row in rows]}, indent=2, allow_nan=False))
    else:
        print("\n".join(lines(rows, with_fit=not args.no_fit)))
    return 0


def stored() -> list[StoredModel]:
    """Models of every source's caches, each path once; the first name of it stays."""
    from autofit.domain.model import StoredModel

    found: dict[str, StoredModel] = {}
    for ref in host().model_sources().values():
        if ref.stored:
            source = resolve(ref.stored)
            with blamed(ref.stored):
                for model in islice(source(os.environ), MAX_MODELS - len(found)):
                    if isinstance(model, StoredModel):
                        found.setdefault(os.path.realpath(model.path), model)
    return list(found.values())


def described(models: Sequence[StoredModel], options: dict[str, object] | None) -> Iterator[Row]:
    """Each model with its header read, and planned for with these options; `None`: not planned for."""
    from autofit.machines import machine_of
    from autofit.pipeline import stated_options
    from autofit.readers import role_of
    from autofit.references import find
    from autofit.settings.layers import HERE

    machine: Machine | None = None
    if options is not None:
        stated = stated_options("models", options, HERE, ("on", "ram", "context", "margin"))
        machine = machine_of(stated) if models or stated.get("on") else None
    for one in models:
        try:
            model = find(one.path).model
        except AutofitError as error:
            yield Row(one, None, None, error.message.removeprefix(f"{printable(one.path)}: "))
            continue
        if machine is None or role_of(model) != "model":
            yield Row(one, model, None, None)
            continue
        yield _planned(one, model, machine, options or {})


def _planned(one: StoredModel, model: ModelSpec, machine: Machine, options: dict[str, object]) -> Row:
    from autofit.pipeline import plan_of, stated_options, with_engine
    from autofit.settings.layers import HERE

    name = next((name for name in host().backends() if model.format in host().backend(name).formats), None)
    if name is None:
        return Row(one, model, None, f"no backend serves {model.format} models")
    wanted = {key: options[key] for key in ("context", "margin")}
    try:
        if options["on"]:
            wanted["on"] = options["on"]  # an engine of another machine is not asked
        stated = with_engine(name, replace(stated_options(name, wanted, HERE), notes=()), HERE)
        return Row(one, model, plan_of(name, model, machine, stated, HERE, details=False, nearest=False), None)
    except AutofitError as error:
        return Row(one, model, None, error.message)


def to_dict(row: Row) -> dict[str, object]:
    """A row as JSON values; what is not known is null."""
    model, plan = row.model, row.plan
    return {
        "name": row.stored.name,
        "path": row.stored.path,
        "place": row.stored.place,
        "size_bytes": row.stored.size_bytes,
        "format": model.format if model else None,
        "architecture": model.architecture if model else None,
        "type": main_type(model) if model else None,
        "parameters": model.n_parameters if model else None,
        "backend": plan.backend if plan else None,
        "fits": plan.fits if plan else None,
        "context_tokens": plan.context_tokens if plan and plan.fits else None,
        "error": row.error,
    }


def main_type(model: ModelSpec) -> str:
    """The type that most of the weights are in, by bytes."""
    sizes: Counter[str] = Counter()
    for tensor in model.tensors:
        sizes[tensor.type] += tensor.n_bytes
    return sizes.most_common(1)[0][0] if sizes else "unknown"


def lines(rows: Sequence[Row], *, with_fit: bool) -> Iterator[str]:
    """A table for people; whatever comes from files is made printable."""
    if not rows:
        yield "no models in the caches of this machine; `autofit plugins` lists the sources that were looked in"
        return
    table = [("name", "size", "architecture", "type", *(["fits here"] if with_fit else []))]
    for row in rows:
        about = (printable(row.model.architecture, 40), main_type(row.model)) if row.model else ("?", "?")
        fit = [_fit(row)] if with_fit else []
        table.append((printable(row.stored.name, 100), format_bytes(row.stored.size_bytes), *about, *fit))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        name, size, *rest = cells
        padded = [f"{cell:<{width}}" for cell, width in zip(rest, widths[2:], strict=True)]
        yield "  ".join([f"{name:<{widths[0]}}", f"{size:>{widths[1]}}", *padded]).rstrip()


def _fit(row: Row) -> str:
    if row.error is not None:
        return printable(row.error, 100)
    if row.plan is None:
        return "-"
    if not row.plan.fits:
        lack = max((pool.shortfall_bytes for pool in row.plan.memory.pools), default=0)
        return f"no: {format_bytes(lack)} more" if lack else "no"
    speed = row.plan.speed
    rate = (
        f", ~{speed.decode_tokens_per_s:,.0f} tokens/s" if speed and speed.decodes and speed.decode_tokens_per_s else ""
    )
    return f"yes: {row.plan.context_tokens:,} tokens{rate}" if row.plan.context_tokens else "yes"
