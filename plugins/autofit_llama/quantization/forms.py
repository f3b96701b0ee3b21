"""Every quantization of a model, with the file that would come out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from autofit.domain.model import ModelSpec
from autofit.domain.quantization import Quantization
from autofit.domain.text import printable
from autofit.domain.values import replace
from autofit.errors import EngineRefusalError, ModelError

from autofit_llama.quantization.files import header_bytes, written
from autofit_llama.quantization.flags import read_flags
from autofit_llama.quantization.ftypes import FLOATS, FTYPES, Ftype
from autofit_llama.quantization.published import quality_of
from autofit_llama.quantization.quantize import Options, Outcome, Source, quantize, source_of

IMATRIX = "an importance matrix"
FEW_BITS_ONLY = "models trained in so few bits"
TRAINED_IN = frozenset({"Q1_0", "Q2_0", "TQ1_0", "TQ2_0"})


def forms(model: ModelSpec, words: Sequence[str] = ()) -> tuple[Quantization, ...]:
    """What llama-quantize, with these flags, makes of the model's original: one form for each of its names.

    A file that is quantized already stands for its original: what is never quantized is the same in both.

    Raises:
        ModelError: nothing in it can be quantized. UsageError: flags. UnsupportedModelError: an unknown architecture.
    """
    options = read_flags(words)
    source = source_of(model)
    if not any(tensor.quantizable for tensor in source.tensors):
        raise ModelError(f"{printable(model.name, 80)}: llama-quantize would change none of its tensors")
    # what is packed here was not packed in the original
    options = replace(options, allow_requantize=True)
    found = [form_of(model, source, ftype, options) for ftype in FTYPES.values()]
    found = list(_marked(found))
    if not any(form.at_hand for form in found):
        found += _as_it_is(model, source, options)
    return tuple(found)


def _marked(found: Sequence[Quantization]) -> Iterator[Quantization]:
    """The forms, where one has the types of another that is named after the type that most of it has."""
    named: dict[tuple[str, ...], str] = {}
    for form in found:
        if form.model is not None and FTYPES[form.name].default == next(iter(form.types_bytes)):
            named.setdefault(_types(form), form.name)
    for form in found:
        other = named.get(_types(form), "")
        yield form if other in ("", form.name) else replace(form, same_as=other, at_hand=False)


def _types(form: Quantization) -> tuple[str, ...]:
    return () if form.model is None else tuple(tensor.type for tensor in form.model.tensors)


def form_of(model: ModelSpec, source: Source, ftype: Ftype, options: Options) -> Quantization:
    try:
        outcome = quantize(source, ftype, options)
    except EngineRefusalError as error:
        return Quantization(name=ftype.name, refusal=error.message)
    notes: tuple[str, ...] = ()
    if not is_same(outcome) and model.metadata.get("general.file_type") == ftype.number and not options.imatrix:
        with_matrix = quantize(source, ftype, replace(options, imatrix=True))
        if is_same(with_matrix):
            outcome, notes = with_matrix, ("as this file has it, made with an importance matrix",)
    return described(model, source, outcome, options, notes)


def described(
    model: ModelSpec, source: Source, outcome: Outcome, options: Options, notes: tuple[str, ...] = ()
) -> Quantization:
    """An outcome as a form: the file's size is known where nothing is written into it that only its making tells."""
    made = written(model, source, outcome)
    known = header_bytes(model) is not None and not options.imatrix and not options.keep_split and not notes
    if outcome.n_fallback:
        n = outcome.n_fallback
        what = "1 tensor gets another type: its rows" if n == 1 else f"{n} tensors get another type: their rows"
        notes += (f"{what} are not whole blocks",)
    return Quantization(
        name=outcome.ftype.name,
        model=made,
        **_weighed(made),
        file_bytes=made.files[0].size_bytes if known else None,
        is_float=outcome.ftype.default in FLOATS,
        at_hand=is_same(outcome),
        needs=IMATRIX if outcome.needs_imatrix else "",
        only_for=FEW_BITS_ONLY if outcome.ftype.name in TRAINED_IN else "",
        notes=notes,
        quality=quality_of(outcome.ftype.name),
    )


def _weighed(model: ModelSpec) -> dict[str, Any]:
    types: dict[str, int] = {}
    for tensor in model.tensors:
        types[tensor.type] = types.get(tensor.type, 0) + tensor.n_bytes
    return {
        "weights_bytes": sum(types.values()),
        "n_parameters": model.n_parameters,
        "types_bytes": dict(sorted(types.items(), key=lambda item: -item[1])),
    }


def is_same(outcome: Outcome) -> bool:
    """Whether every tensor has the type that it has in the file at hand."""
    return all(tensor.type == tensor.was for tensor in outcome.tensors)


def _as_it_is(model: ModelSpec, source: Source, options: Options) -> Iterator[Quantization]:
    """The file at hand, where no name makes it: types set by hand, or by an older llama-quantize."""
    yield Quantization(
        name="as it is",
        model=model,
        **_weighed(model),
        file_bytes=sum(file.size_bytes for file in model.files) or None,
        is_float=all(tensor.type in FLOATS for tensor in source.tensors),
        at_hand=True,
        notes=("no name of llama-quantize gives these types",),
    )
