"""`autofit quants MODEL`: every quantization, with its exact size, whether it fits and how fast, and which to take."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from autofit.cli.options import add_options, given
from autofit.cli.plan import write_product
from autofit.cli.telling import Waiting, room
from autofit.domain.names import is_elsewhere
from autofit.domain.text import printable
from autofit.domain.units import format_bytes, format_rate
from autofit.quant_choice import Row
from autofit.quants import Quants, device_shortfall, made_to_measure, quantizations
from autofit.text import shell

TAKES_COMMAND = True
_SKIPPED = ("force", "strict")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from autofit.settings.options import OPTIONS

    parser.usage = f"{parser.prog} MODEL [options] [-- flags of the program that quantizes]"
    parser.add_argument("model", metavar="MODEL", help="a file, a directory, or a name (docs/names.md)")
    parser.add_argument("--backend", metavar="NAME", help="ask this engine alone")
    add_options(parser, only=tuple(option.name for option in OPTIONS if option.name not in _SKIPPED))
    parser.add_argument(
        "--size", metavar="SIZE|fit", help="make a file of this size, or the largest that fits: prints the command"
    )
    group = parser.add_argument_group("output")
    group.add_argument("--format", choices=("text", "json"), default="text")
    group.add_argument("--tensors", action="store_true", help="with --format json: the type of every tensor")


def run(args: argparse.Namespace) -> int:
    options: Any = {name: value for name, value in given(args).items() if value is not None}
    if args.size is not None:
        return _measured(args, options)
    with Waiting("planning for every quantization"):
        found = quantizations(args.model, backend=args.backend, quantize_args=args.engine_args or (), **options)
    if args.format == "json":
        import json

        print(json.dumps(found.to_dict(tensors=args.tensors), indent=2, allow_nan=False))
    else:
        print("\n".join(lines(found)))
    return 0 if found.recommended is not None else 3


def _measured(args: argparse.Namespace, options: Any) -> int:
    """The command on stdout, what comes of it on stderr."""
    with Waiting("looking for the types of tensors"):
        done = made_to_measure(
            args.model, size=args.size, backend=args.backend, quantize_args=args.engine_args or (), **options
        )
    if args.format == "json":
        import json

        print(json.dumps(done.to_dict(), indent=2, allow_nan=False))
        return 0
    write_product(shell.command(done.recipe.argv, columns=room()))
    row, form = done.row, done.recipe.quantization
    said = [f"{done.recipe.because}, {row.bits_per_weight:.2f} bits per weight", *form.notes]
    if row.fits and row.decode_tokens_per_s is not None:
        where = "full speed" if row.full_speed else "a part of the weights in RAM"
        said.append(
            f"{where}, context {row.context_tokens:,} tokens, decode ~{format_rate(row.decode_tokens_per_s)} tokens/s"
        )
    elif not row.fits:
        said.append(f"it does not fit: {row.because}")
    for line in said:
        print(f"  {printable(line, 400)}", file=sys.stderr)
    return 0 if row.fits else 3


def lines(found: Quants) -> Iterator[str]:
    """The table for people, and what to take."""
    model = found.model
    yield f"{printable(model.name, 80)}  {found.n_parameters:,} parameters, {printable(model.architecture, 40)}"
    for backend, (chosen, because) in found.choices.items():
        rows = [row for row in found.rows if row.backend == backend]
        if len(found.choices) > 1:
            yield ""
            yield backend
        if rows:
            yield from _table(rows, chosen)
            yield from _legend(rows)
        yield f"none: {because}" if chosen is None else f"take {chosen.quantization.name}: {because}"


def _table(rows: Sequence[Row], chosen: Row | None) -> Iterator[str]:
    table: list[tuple[str, ...]] = [
        ("name", "bytes", "size", "bits", "fits", "context", "decode", "prefill", "loss", "")
    ]
    table += [_cells(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    aligned = "<>>><>>>><"
    for row, cells in zip((None, *rows), table, strict=True):
        mark = "*" if row is not None and row is chosen else " "
        texts = (f"{cell:{side}{width}}" for cell, side, width in zip(cells, aligned, widths, strict=True))
        yield f"{mark} {'  '.join(texts)}".rstrip()


def _cells(row: Row) -> tuple[str, ...]:
    form, weights = row.quantization, row.quantization.weights_bytes
    if weights is None:
        return (form.name, "", "", "", "not made", "", "", "", "", printable(form.refusal, 120))
    n_bytes = form.file_bytes or weights
    bits = f"{row.bits_per_weight:.2f}" if row.bits_per_weight else ""
    context = row.context_tokens
    decode, prefill = row.decode_tokens_per_s, row.prefill_tokens_per_s
    return (
        form.name,
        f"{n_bytes:,}",
        format_bytes(n_bytes),
        bits,
        "full speed" if row.full_speed else "in RAM" if row.fits else "no",
        f"{context:,}" if context else "",
        f"~{format_rate(decode)}" if decode else "",
        f"~{format_rate(prefill)}" if prefill else "",
        f"{form.quality[0].value:+.4f}" if form.quality else "",
        ", ".join(_remarks(row)),
    )


def _remarks(row: Row) -> Iterator[str]:
    if row.quantization.at_hand:
        yield "this file"
    elif row.file is not None:
        yield "in the repository" if is_elsewhere(row.file.path) else "in this folder"
    if row.quantization.same_as:
        yield f"the same as {row.quantization.same_as}"
    if row.quantization.only_for:
        yield f"for {row.quantization.only_for}"
    if row.quantization.needs:
        yield f"needs {row.quantization.needs}"
    if not row.fits:
        yield f"lacks {device_shortfall(row)}" if device_shortfall(row) else printable(row.because, 120)
    yield from row.quantization.notes


def _legend(rows: Sequence[Row]) -> Iterator[str]:
    """What a column means, where its words do not say it."""
    figures = [figure for row in rows for figure in row.quantization.quality]
    models = " and ".join(dict.fromkeys(figure.model for figure in figures))
    if figures:
        yield f"loss: {figures[0].measure} published for {models} ({figures[0].source}); not of this model"
    if any(row.fits for row in rows):
        yield "decode, prefill: tokens/s, with an empty context; context: tokens that fit with it"
