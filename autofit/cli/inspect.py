"""`autofit inspect MODEL`: what is in the file: tensors by group and type, layers, every byte counted."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from autofit.domain.text import printable
from autofit.domain.units import format_bytes
from autofit.pipeline import read_model

if TYPE_CHECKING:
    from autofit.domain.model import LayerSpec, ModelSpec

_MIXERS = {
    "full": "attention",
    "sliding": "sliding-window attention",
    "chunked": "chunked attention",
    "latent": "latent attention",
    "recurrent": "recurrent",
    "shortconv": "short convolution",
    "none": "no token mixing",
}
_PARTS = {
    "attention": "attention_bytes",
    "feed-forward": "feed_forward_bytes",
    "experts": "expert_bytes",
    "other": "other_bytes",
}
_MAX_RANGES = 40  #: characters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a file, a directory, or a name (docs/names.md)")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(args: argparse.Namespace) -> int:
    model = read_model(args.model)
    if args.format == "json":
        import json

        print(json.dumps(to_dict(model, with_tensors=args.tensors), indent=2, allow_nan=False))
    else:
        print("\n".join(lines(model, with_tensors=args.tensors)))
    return 0


def to_dict(model: ModelSpec, *, with_tensors: bool = False) -> dict[str, object]:
    """The model as JSON values, schema 1; `layers` has one entry per block."""
    from autofit.readers import role_of

    return {
        "schema": 1,
        "name": model.name,
        "format": model.format,
        "role": role_of(model),
        "architecture": model.architecture,
        "parameters": model.n_parameters,
        "weights_bytes": model.weights_bytes,
        "hidden_elements": model.hidden_elements,
        "n_vocab": model.n_vocab,
        "context_train_tokens": model.context_train_tokens,
        "files": [{"path": file.path, "size_bytes": file.size_bytes} for file in model.files],
        "groups": [
            {"group": group, "type": kind, "tensors": count, "bytes": n_bytes}
            for (group, kind), (count, n_bytes) in groups(model).items()
        ],
        "layers": [{name: getattr(layer, name) for name in layer.__slots__} for layer in model.layers],
        **({"tensors": [tensor._asdict() for tensor in model.tensors]} if with_tensors else {}),
    }


def lines(model: ModelSpec, *, with_tensors: bool = False) -> Iterator[str]:
    """The model for people. Whatever comes from its files is made printable."""
    yield printable(model.name)
    for name, value in _facts(model).items():
        if value is not None:
            yield f"  {name:<14}{value}"
    for index, file in enumerate(model.files):
        yield f"  {'' if index else 'files':<14}{printable(file.path, 400)}  {format_bytes(file.size_bytes)}"
    if model.tensors:
        yield from _table("tensors by group and type", "<<>>>", _group_rows(model))
    if model.layers:
        yield from _table("layers", "<><>>>>", _layer_rows(model))
    if with_tensors:
        yield from _table("every tensor", "<<<>", _tensor_rows(model))


def groups(model: ModelSpec) -> Mapping[tuple[str, str], tuple[int, int]]:
    """(group, type) -> number of tensors and their bytes, the heaviest group first."""
    from autofit.readers import group_of

    of = group_of(model)
    found: dict[tuple[str, str], tuple[int, int]] = {}
    totals: dict[str, int] = {}
    for tensor in model.tensors:
        group = of(tensor.name)
        count, n_bytes = found.get((group, tensor.type), (0, 0))
        found[group, tensor.type] = count + 1, n_bytes + tensor.n_bytes
        totals[group] = totals.get(group, 0) + tensor.n_bytes
    return dict(sorted(found.items(), key=lambda item: (-totals[item[0][0]], item[0][0], -item[1][1])))


def ranges(numbers: Sequence[int]) -> str:
    """`0-4, 6` for sorted numbers, cut where it gets long."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
    return text if len(text) <= _MAX_RANGES else f"{text[: _MAX_RANGES - 4].rpartition(',')[0]}, ..."


def _facts(model: ModelSpec) -> dict[str, str | None]:
    from autofit.readers import role_of

    role = role_of(model)
    kind = model.format if role == "model" else f"{model.format}, {role}"
    size = format_bytes(model.weights_bytes)
    bits = model.weights_bytes * 8 / model.n_parameters if model.n_parameters else 0.0
    return {
        "architecture": f"{printable(model.architecture, 80)} ({kind})",
        "parameters": f"{model.n_parameters:,}" if model.tensors else "no tensors, a configuration alone",
        "weights": f"{model.weights_bytes:,} bytes ({size}, {bits:.2f} bits each)" if model.tensors else None,
        "context": f"{model.context_train_tokens:,} tokens in training" if model.context_train_tokens else None,
        "window": _window(model),
        "vocabulary": f"{model.n_vocab:,} tokens" if model.n_vocab else None,
    }


def _window(model: ModelSpec) -> str | None:
    """A sliding window that the file gives without saying which layers have it: the engine knows that."""
    key = f"{model.architecture}.attention.sliding_window" if model.format == "gguf" else "sliding_window"
    window = model.metadata.get(key)
    if type(window) is not int or window <= 0 or any(layer.mixer == "sliding" for layer in model.layers):
        return None
    if model.metadata.get("use_sliding_window") is False:
        return None
    return f"{window:,} tokens; the engine decides which layers use it"


def _group_rows(model: ModelSpec) -> Iterator[Sequence[str]]:
    yield "group", "type", "tensors", "bytes", ""
    for (group, kind), (count, n_bytes) in groups(model).items():
        yield group, kind, f"{count:,}", f"{n_bytes:,}", format_bytes(n_bytes)
    yield "all", "", f"{len(model.tensors):,}", f"{model.weights_bytes:,}", format_bytes(model.weights_bytes)


def _layer_rows(model: ModelSpec) -> Iterator[Sequence[str]]:
    """Blocks of the same make in one row, with the bytes of all of them."""
    parts = _PARTS if model.tensors else {}
    yield "number", "count", "make", *parts
    alike: dict[tuple[str, str], list[LayerSpec]] = {}
    for layer in model.layers:
        alike.setdefault((layer.stack, f"{_mixing(layer)}; {_feeding(layer)}"), []).append(layer)
    for (stack, make), layers in alike.items():
        where = f"{printable(stack, 40)} {ranges([layer.index for layer in layers])}".strip()
        sums = (sum(getattr(layer, field) for layer in layers) for field in parts.values())
        yield where, str(len(layers)), make, *(f"{n_bytes:,}" for n_bytes in sums)


def _mixing(layer: LayerSpec) -> str:
    text = _MIXERS[layer.mixer]
    if layer.window_tokens:
        text += f" over {layer.window_tokens:,}"
    if layer.also_recurrent:
        text += " and a recurrent state"
    if layer.n_heads:
        text += f", {layer.n_heads} heads"
        if layer.n_kv_heads is not None:
            text += f", {layer.n_kv_heads} of K/V"
        if layer.key_dim:
            widths = dict.fromkeys((layer.key_dim, layer.value_dim or layer.key_dim))
            text += f" ({'/'.join(map(str, widths))} wide)"
    return text


def _feeding(layer: LayerSpec) -> str:
    if layer.feed_forward == "experts":
        return f"{layer.n_experts or '?'} experts, {layer.n_experts_used or '?'} used"
    return "dense feed-forward" if layer.feed_forward == "dense" else "no feed-forward"


def _tensor_rows(model: ModelSpec) -> Iterator[Sequence[str]]:
    yield "name", "type", "shape", "bytes"
    for tensor in model.tensors:
        yield printable(tensor.name), tensor.type, " x ".join(map(str, tensor.shape)), f"{tensor.n_bytes:,}"


def _table(title: str, align: str, rows: Iterator[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as their widest cell; the first row is the head."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    yield ""
    yield title
    for row in table:
        cells = (f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=False))
        yield ("  " + "  ".join(cells)).rstrip()
